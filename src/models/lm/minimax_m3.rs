//! MiniMax M3: attention to the blocks of keys that an indexer chooses, experts with a shared one.

use serde::Deserialize;

use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::cache::{LayerCache, Mask, Masks, Offset};
use crate::checkpoint::{Rules, Weights};
use crate::error::{Error, Result};
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, ExpertCount, FeedForward, Mixer, Mlp, MlpType, Moe, MoeNames,
    Names, Routing, Scoring, attend, merge_heads, split_heads,
};
use crate::nn::activations::{Activation, clamped_swiglu};
use crate::nn::{Linear, Norm, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    dense_intermediate_size: i32,
    shared_intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    num_hidden_layers: usize,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    #[serde(default = "eps")]
    rms_norm_eps: f32,
    head_dim: i32,
    rotary_dim: Option<i32>,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    routed_scaling_factor: Option<f32>,
    #[serde(default = "yes")]
    use_qk_norm: bool,
    /// Whether the factor of a norm is `1 + weight`.
    #[serde(default = "yes")]
    use_gemma_norm: bool,
    swiglu_alpha: Option<f32>,
    swiglu_limit: Option<f32>,
    mlp_layer_types: Option<Vec<MlpType>>,
    moe_layer_freq: Option<Vec<u8>>,
    /// `full_attention`, or another name for layers with an indexer.
    layer_types: Option<Vec<String>>,
    sparse_attention_config: Option<SparseConfig>,
    sparse_attention_freq: Option<Vec<u8>>,
    index_n_heads: Option<i32>,
    index_head_dim: Option<i32>,
    index_block_size: Option<i32>,
    index_topk_blocks: Option<i32>,
    index_local_blocks: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

/// The published spelling of the `index_` keys.
#[derive(Debug, Clone, Default, Deserialize)]
struct SparseConfig {
    sparse_num_index_heads: Option<i32>,
    sparse_index_dim: Option<i32>,
    sparse_block_size: Option<i32>,
    sparse_topk_blocks: Option<i32>,
    sparse_local_block: Option<i32>,
    sparse_attention_freq: Option<Vec<u8>>,
}

/// How an indexer chooses.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    heads: i32,
    head_dim: i32,
    /// Keys of a block.
    block: i32,
    /// Blocks for each query.
    top_k: i32,
    /// Of these, how many are the query's own and those just before it.
    local: i32,
}

fn eps() -> f32 {
    1e-6
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let layers = self.num_hidden_layers;
        let freq = |freq: Option<&Vec<u8>>| freq.map_or(layers, Vec::len) == layers;
        let flags = freq(self.moe_layer_freq.as_ref()) && freq(self.sparse_freq());
        let rotary = self.rotary_dim.unwrap_or(2);
        let checks = Checks::new("minimax_m3")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("dense_intermediate_size", self.dense_intermediate_size)
            .size("shared_intermediate_size", self.shared_intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, Some(self.head_dim), self.hidden_size)
            .that((2..=self.head_dim).contains(&rotary), || format!("`rotary_dim` is {rotary}"))
            .routing(self.experts.get(), &self.routing())
            .layer_types(layers, self.mlp_layer_types.as_deref())
            .layer_types(layers, self.layer_types.as_deref())
            .that(flags, || {
                format!("`moe_layer_freq` or `sparse_attention_freq` are not for {layers} layers")
            })
            .eps("rms_norm_eps", self.rms_norm_eps);
        let checks = match self.chosen() {
            Ok(None) => checks,
            Ok(Some(Chosen { heads, head_dim, block, top_k, local })) => checks
                .heads(self.num_attention_heads, heads, Some(head_dim), self.hidden_size)
                .size("index_block_size", block)
                .size("index_topk_blocks", top_k)
                .that((0..1 << 28).contains(&local), || format!("`index_local_blocks` is {local}")),
            Err(missing) => checks.that(false, || missing),
        };
        checks.done()
    }

    /// The indexer of the layers that have one; what is missing.
    fn chosen(&self) -> Result<Option<Chosen>, String> {
        let own = self.sparse_attention_config.clone().unwrap_or_default();
        let need = |name: &str, published: Option<i32>, value: Option<i32>| {
            published.or(value).ok_or_else(|| format!("`{name}` is missing"))
        };
        let Some(block) = own.sparse_block_size.or(self.index_block_size) else { return Ok(None) };
        Ok(Some(Chosen {
            heads: need("index_n_heads", own.sparse_num_index_heads, self.index_n_heads)?,
            head_dim: need("index_head_dim", own.sparse_index_dim, self.index_head_dim)?,
            block,
            top_k: need("index_topk_blocks", own.sparse_topk_blocks, self.index_topk_blocks)?,
            local: own.sparse_local_block.or(self.index_local_blocks).unwrap_or(1),
        }))
    }

    fn sparse_freq(&self) -> Option<&Vec<u8>> {
        let own = self.sparse_attention_config.as_ref().and_then(|own| own.sparse_attention_freq.as_ref());
        own.or(self.sparse_attention_freq.as_ref())
    }

    /// The indexer of a layer: by default of those whose weights `w` have one.
    fn indexer(&self, layer: usize, w: &Weights) -> Option<Chosen> {
        let sparse = match (&self.layer_types, self.sparse_freq()) {
            (Some(types), _) => types[layer] != "full_attention",
            (None, Some(freq)) => freq[layer] != 0,
            (None, None) => w.pp("index_q_proj").contains("weight"),
        };
        self.chosen().ok().flatten().filter(|_| sparse)
    }

    fn has_experts(&self, layer: usize) -> bool {
        match (&self.mlp_layer_types, &self.moe_layer_freq) {
            (Some(types), _) => types[layer] == MlpType::Sparse,
            (None, Some(freq)) => freq[layer] != 0,
            (None, None) => true,
        }
    }

    fn routing(&self) -> Routing {
        Routing {
            normalize: true,
            scale: self.routed_scaling_factor.unwrap_or(2.0),
            ..Routing::new(self.num_experts_per_tok, Scoring::Sigmoid)
        }
    }

    fn norm(&self, w: &Weights, name: &str, dims: i32) -> Result<Norm> {
        if self.use_gemma_norm {
            return w.shifted_norm(name, dims, self.rms_norm_eps);
        }
        Ok(w.rms_norm(name, dims, self.rms_norm_eps)?.into())
    }

    fn rope(&self, most: i32) -> Result<Rope> {
        let dims = self.rotary_dim.map_or_else(|| self.rope.dims(self.head_dim, 0.5), Ok)?;
        Rope::new(dims.min(most), &self.rope, 5e6)
    }
}

/// How the names of a checkpoint become the model's: those of the release, of transformers 5, and with the
/// shared expert as the last of the others.
pub fn rules(args: &Args) -> Rules {
    let count = args.experts.get();
    let split = |rules: Rules, at: &str, part: &str, axis| {
        let [gate, up] = ["gate_proj", "up_proj"].map(|name| format!("{at}.{name}.{part}"));
        rules.split(&format!("{at}.gate_up_proj.{part}"), &[&gate, &up], axis, &[])
    };
    let moe = "*.block_sparse_moe";
    let mut rules = Rules::new()
        .rename("*.self_attn.indexer.{}.{}", "*.self_attn.index_{}.{}")
        .rename("*.mlp.gate.e_score_correction_bias", format!("{moe}.e_score_correction_bias"))
        .rename("*.mlp.gate.{}", format!("{moe}.gate.{{}}"))
        .rename("*.mlp.shared_experts.*", format!("{moe}.shared_experts.*"))
        .rename("*.mlp.experts.{}", format!("{moe}.switch_mlp.{{}}.weight"))
        .stack_experts(&format!("{moe}.experts"), &format!("{moe}.switch_mlp"));
    for layer in ["gate_proj", "up_proj", "down_proj"] {
        // A dense layer; the router is `gate`.
        rules = rules.rename(format!("{moe}.{layer}.{{}}"), format!("*.mlp.{layer}.{{}}"));
    }
    for layer in ["gate_up_proj", "gate_proj", "up_proj", "down_proj"] {
        let [routed, shared] = ["switch_mlp", "shared_experts"].map(|of| format!("{moe}.{of}.{layer}.{{}}"));
        let joined = format!("{routed} [{}, _, _]", i64::from(count) + 1);
        rules = rules.split(&joined, &[&routed, &shared], 0, &[count, 1]);
        rules = rules.reshape(&format!("{shared} [1, _, _]"), &[-1, 0]);
    }
    rules = split(rules, &format!("{moe}.switch_mlp"), "{}", 1);
    rules = split(rules, &format!("{moe}.shared_experts"), "{}", 0);
    rules = split(rules, "*.mlp", "{}", 0);
    rules.tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Block<BlockSparseAttention, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let dims = args.hidden_size;
    let norm = |name: &str| args.norm(w, name, dims);
    let (layers, tied) = (args.num_hidden_layers, args.tie_word_embeddings);
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, layers, |i, w| {
        let names = if args.has_experts(i) { BlockNames::MIXTRAL } else { BlockNames::LLAMA };
        let block = Block::new(
            BlockSparseAttention::new(args, i, &w.pp(names.mixer))?,
            feed_forward(args, i, &w.pp(names.mlp))?,
            args.norm(w, names.norm1, dims)?,
            args.norm(w, names.norm2, dims)?,
        );
        Ok(Block { names, ..block })
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.hidden_size;
    let (alpha, limit) = (args.swiglu_alpha.unwrap_or(1.702), args.swiglu_limit.unwrap_or(7.0));
    let act = move |gate: &Array, x: &Array| clamped_swiglu(gate, x, alpha, limit);
    let mlp = |w: &Weights, hidden| Ok(Mlp::new(w, dims, hidden, Activation::Silu)?.with(act));
    if !args.has_experts(layer) {
        return Ok(Box::new(mlp(w, args.dense_intermediate_size)?));
    }
    let correction = Some("e_score_correction_bias");
    let names = MoeNames { correction, shared: "shared_experts", ..MoeNames::PLAIN };
    let moe = Moe::new(w, names, args.routing(), dims, [args.experts.get(), args.intermediate_size])?;
    let shared = Some(mlp(&w.pp(names.shared), args.shared_intermediate_size)?);
    Ok(Box::new(Moe { experts: moe.experts.with(act), shared, ..moe }))
}

/// Attention to the keys of some blocks, which each query chooses by the keys of an indexer.
#[derive(Debug)]
pub struct BlockSparseAttention {
    attention: Attention,
    rope: Rope,
    indexer: Option<Indexer>,
}

parameters!(BlockSparseAttention { attention: "", indexer: "" });

impl BlockSparseAttention {
    fn new(args: &Args, layer: usize, w: &Weights) -> Result<Self> {
        let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.num_key_value_heads, args.head_dim);
        let norm = |name| args.use_qk_norm.then(|| args.norm(w, name, head_dim)).transpose();
        let indexer = args.indexer(layer, w).map(|how| {
            Ok::<_, Error>(Indexer {
                index_q_proj: w.linear("index_q_proj", args.hidden_size, how.heads * how.head_dim)?,
                index_k_proj: w.linear("index_k_proj", args.hidden_size, how.head_dim)?,
                index_q_norm: args.norm(w, "index_q_norm", how.head_dim)?,
                index_k_norm: args.norm(w, "index_k_norm", how.head_dim)?,
                rope: args.rope(how.head_dim)?,
                how,
            })
        });
        Ok(Self {
            attention: Attention {
                q_norm: norm("q_norm")?,
                k_norm: norm("k_norm")?,
                ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
            },
            rope: args.rope(head_dim)?,
            indexer: indexer.transpose()?,
        })
    }
}

impl Mixer for BlockSparseAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let Attention { q_norm, k_norm, o_proj, scale, heads, .. } = &self.attention;
        let mut mask = masks.of(cache.part(0)?, None)?;
        let offset = cache.part(0)?.offset();
        let place = |x: Array, norm: &Option<Norm>| {
            let x = norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))?;
            self.rope.forward(&x, &offset)
        };
        let [queries, keys, values] = self.attention.project(x)?;
        let (queries, keys) = (place(queries, q_norm)?, place(keys, k_norm)?);
        if let Some(indexer) = &self.indexer {
            mask = indexer.choose(x, mask, cache.part(1)?, *heads)?;
        }
        let seen = cache.part(0)?.update(&keys, &values)?;
        o_proj.forward(&merge_heads(&attend(&queries, &seen, *scale, &mask, None)?)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        let parts = if self.indexer.is_some() { 2 } else { 1 };
        Some(LayerCache::List((0..parts).map(|_| LayerCache::kv()).collect()))
    }
}

/// Scores blocks of keys for each query.
#[derive(Debug)]
struct Indexer {
    index_q_proj: Linear,
    index_k_proj: Linear,
    index_q_norm: Norm,
    index_k_norm: Norm,
    rope: Rope,
    how: Chosen,
}

parameters!(Indexer { index_q_proj, index_k_proj, index_q_norm, index_k_norm });

impl Indexer {
    /// `mask` without the keys of blocks that a query does not choose, `[batch, heads, length, keys]`: a
    /// block's score is that of its best key.
    fn choose(&self, x: &Array, mask: Mask, cache: &mut LayerCache, heads: i32) -> Result<Mask> {
        let Chosen { heads: index_heads, block, top_k, local, .. } = self.how;
        let offset = cache.offset();
        let place = |proj: &Linear, norm: &Norm, heads| {
            self.rope.forward(&norm.forward(&split_heads(&proj.forward(x)?, heads)?)?, &offset)
        };
        let keys = place(&self.index_k_proj, &self.index_k_norm, 1)?;
        let none = ops::zeros(&[keys.dim(0)?, 1, keys.dim(2)?, 0], keys.dtype())?;
        let keys = cache.update(&keys, &none)?.keys;
        let (length, count) = (x.dim(1)?, keys.dim(2)?);
        let blocks = (count - 1) / block + 1;
        if top_k >= blocks {
            return Ok(mask);
        }
        let queries = place(&self.index_q_proj, &self.index_q_norm, index_heads)?;
        let [queries, keys] = [queries, keys].map(|x| ops::astype(&x, Dtype::Float32));
        let scores = ops::matmul(&queries?, &ops::swapaxes(&keys?, -1, -2)?)?;
        let seen = match mask.to_array(length, count)? {
            Some(seen) => seen,
            None => ops::full(&[length, count], true, Dtype::Bool)?,
        };
        let never = Array::from(f32::NEG_INFINITY);
        let mut scores = ops::where_(&seen, &scores, &never)?;
        let mut at = ops::arange(count - length, count, 1, Dtype::Int32)?;
        // Blocks begin where a sequence does, behind its padding.
        let padding = match &offset {
            Offset::All(_) => None,
            Offset::Each(offsets) => Some(ops::expand_dims(&(count - length - offsets)?, [1, 2, 3])?),
        };
        if let Some(padding) = &padding {
            scores = turned(&scores, padding)?;
            at = (at - ops::squeeze(padding, [2])?)?;
        }
        let room = ops::full(
            &[scores.dim(0)?, index_heads, length, blocks * block - count],
            &never,
            Dtype::Float32,
        )?;
        let scores = ops::unflatten(&ops::concatenate([&scores, &room], -1)?, -1, &[blocks, block])?;
        let mut scores = ops::max(&scores, -1, false)?;
        if local > 0 {
            let own = ops::expand_dims(&ops::floor_divide(&at, Array::from(block))?, -1)?;
            let ids = ops::arange(0, blocks, 1, Dtype::Int32)?;
            let near = ops::greater(&ids, (&own - local)?)?;
            let near = ops::logical_and(&ops::less_equal(&ids, &own)?, &near)?;
            scores = ops::where_(&near, Array::from(f32::INFINITY), &scores)?;
        }
        let order = ops::argpartition(&ops::negative(&scores)?, top_k - 1, -1)?.index((Ellipsis, ..top_k))?;
        let chosen = ops::zeros(scores.shape(), Dtype::Bool)?;
        let chosen = ops::put_along_axis(&chosen, &order, &Array::from(true), -1)?;
        let mut chosen = ops::repeat(&chosen, block, -1)?.index((Ellipsis, ..count))?;
        if let Some(padding) = &padding {
            chosen = turned(&chosen, &ops::negative(padding)?)?;
        }
        let chosen = ops::logical_and(&chosen, &seen)?;
        Ok(Mask::Array(ops::repeat(&chosen, heads / index_heads, 1)?))
    }
}

/// `x`, `[batch, heads, length, keys]`, with its last axis turned to the left by `count`, `[batch, 1, 1, 1]`.
fn turned(x: &Array, count: &Array) -> Result<Array> {
    let keys = x.dim(-1)?;
    let from = ops::remainder(&(ops::arange(0, keys, 1, Dtype::Int32)? + count)?, keys)?;
    ops::take_along_axis(x, &ops::broadcast_to(&from, x.shape())?, -1)
}
