//! DeepSeek-V4.1: attention to a window and to compressed groups of positions that an indexer chooses, in
//! residual streams that mix (Xie et al., "mHC: Manifold-Constrained Hyper-Connections", 2025).

use std::ops::Range;

use serde::Deserialize;

use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::cache::{Cache, KeysValues, LayerCache, Mask, Masks, Offset};
use crate::checkpoint::{Encoding, Rules, Weights};
use crate::error::{Error, Result};
use crate::models::blocks::{
    Decoder, DecoderLayer, FeedForward, Mlp, Moe, MoeNames, Names, Routing, Scoring, TextConfig, attend,
    merge_heads, split_heads, top_k, weighted_sum,
};
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::activations::{Activation, swiglu};
use crate::nn::{Linear, MultiLinear, RmsNorm, Rope, RopeConfig, RopeScaling};
use crate::ops::PadMode;
use crate::{fast, ops, parameters};

/// The config.
pub type Args = TextConfig<Text>;

/// That of the language model.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Text {
    vocab_size: i32,
    hidden_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    head_dim: i32,
    q_lora_rank: i32,
    qk_rope_head_dim: i32,
    o_groups: i32,
    o_lora_rank: i32,
    moe_intermediate_size: i32,
    n_routed_experts: i32,
    num_experts_per_tok: i32,
    scoring_func: Scoring,
    gate_temp: f32,
    norm_topk_prob: bool,
    routed_scaling_factor: f32,
    swiglu_limit: f32,
    rms_norm_eps: f32,
    sliding_window: i32,
    /// Positions of a compressed group, for each layer; 0 for a layer that sees its window alone.
    compress_ratios: Vec<i32>,
    /// Layers that compress; those after them see what the last one has made.
    kv_source_layer_ids: Vec<usize>,
    /// Layers that choose groups; those after them see what the last one has chosen.
    index_source_layer_ids: Vec<usize>,
    compress_rope_theta: f64,
    /// The layer that limits what those after it choose from.
    candidate_source_layer_id: i64,
    candidate_topk_blocks: i32,
    candidate_block_size: i32,
    index_n_heads: i32,
    index_head_dim: i32,
    index_topk: i32,
    rope_theta: f64,
    rope_scaling: Option<RopeScaling>,
    max_position_embeddings: i32,
    hc_mult: i32,
    hc_sinkhorn_iters: usize,
    hc_eps: f32,
    engram_layer_ids: Vec<usize>,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            vocab_size: 129_280,
            hidden_size: 5120,
            num_hidden_layers: 40,
            num_attention_heads: 64,
            head_dim: 512,
            q_lora_rank: 1280,
            qk_rope_head_dim: 64,
            o_groups: 8,
            o_lora_rank: 1024,
            moe_intermediate_size: 2304,
            n_routed_experts: 384,
            num_experts_per_tok: 6,
            scoring_func: Scoring::SqrtSoftplus,
            gate_temp: 1.0,
            norm_topk_prob: true,
            routed_scaling_factor: 1.5,
            swiglu_limit: 10.0,
            rms_norm_eps: 1e-20,
            sliding_window: 128,
            compress_ratios: Vec::new(),
            kv_source_layer_ids: Vec::new(),
            index_source_layer_ids: Vec::new(),
            compress_rope_theta: 160_000.0,
            candidate_source_layer_id: -1,
            candidate_topk_blocks: 2048,
            candidate_block_size: 8,
            index_n_heads: 32,
            index_head_dim: 128,
            index_topk: 512,
            rope_theta: 10_000.0,
            rope_scaling: None,
            max_position_embeddings: 1 << 20,
            hc_mult: 4,
            hc_sinkhorn_iters: 20,
            hc_eps: 1e-6,
            engram_layer_ids: Vec::new(),
        }
    }
}

impl TextConfig<Text> {
    /// Fails for sizes that no model has, and for models with an n-gram memory.
    pub fn check(&self) -> Result<()> {
        let args = &self.0;
        let (heads, groups, turning) = (args.num_attention_heads, args.o_groups, args.qk_rope_head_dim);
        let index_width = i64::from(args.index_n_heads) * i64::from(args.index_head_dim);
        let compresses = |&layer: &usize| args.ratio(layer) > 0;
        let mut sources = args.kv_source_layer_ids.iter().chain(&args.index_source_layer_ids);
        Checks::new("deepseek_v41")
            .size("hidden_size", args.hidden_size)
            .size("vocab_size", args.vocab_size)
            .size("q_lora_rank", args.q_lora_rank)
            .size("o_lora_rank", args.o_lora_rank)
            .size("o_groups", groups)
            .size("head_dim", args.head_dim)
            .size("moe_intermediate_size", args.moe_intermediate_size)
            .size("sliding_window", args.sliding_window)
            .size("candidate_block_size", args.candidate_block_size)
            .size("index_n_heads", args.index_n_heads)
            .size("index_head_dim", args.index_head_dim)
            .size("index_topk", args.index_topk)
            .heads(heads, 1, Some(args.head_dim), args.hidden_size)
            .that(heads.checked_rem(groups) == Some(0), || format!("{heads} heads in {groups} groups"))
            .that((1..=1 << 28).contains(&index_width), || format!("an indexer {index_width} wide"))
            .that((1..=args.head_dim.min(args.index_head_dim)).contains(&turning), || {
                format!("`qk_rope_head_dim` is {turning}")
            })
            .that((1..=64).contains(&args.hc_mult), || format!("`hc_mult` is {}", args.hc_mult))
            .that((1..=1000).contains(&args.hc_sinkhorn_iters), || {
                format!("`hc_sinkhorn_iters` is {}", args.hc_sinkhorn_iters)
            })
            .that(args.compress_ratios.iter().all(|ratio| (0..=1 << 16).contains(ratio)), || {
                format!("`compress_ratios` are {:?}", args.compress_ratios)
            })
            .that(sources.all(compresses), || "a source of groups has none".into())
            .that(args.gate_temp > 0.0, || format!("`gate_temp` is {}", args.gate_temp))
            .that(args.engram_layer_ids.is_empty(), || "layers with an n-gram memory are not here yet".into())
            .routing(args.n_routed_experts, &args.routing())
            .eps("rms_norm_eps", args.rms_norm_eps)
            .eps("hc_eps", args.hc_eps)
            .done()
    }
}

impl Text {
    fn ratio(&self, layer: usize) -> i32 {
        self.compress_ratios.get(layer).copied().unwrap_or(0)
    }

    fn routing(&self) -> Routing {
        Routing {
            normalize: self.norm_topk_prob && self.num_experts_per_tok > 1,
            scale: self.routed_scaling_factor,
            ..Routing::new(self.num_experts_per_tok, self.scoring_func)
        }
    }

    /// `silu(gate) x` in `float32`, with the gate at most, and `x` within, `swiglu_limit`.
    fn act(&self) -> impl Fn(&Array, &Array) -> Result<Array> + 'static {
        let limit = self.swiglu_limit;
        move |gate, x| {
            let dtype = x.dtype();
            let [mut gate, mut x] = [ops::astype(gate, Dtype::Float32)?, ops::astype(x, Dtype::Float32)?];
            if limit > 0.0 {
                (gate, x) = (ops::minimum(&gate, limit)?, ops::clip(&x, -limit..=limit)?);
            }
            ops::astype(&swiglu(&gate, &x)?, dtype)
        }
    }

    /// Layers with groups have another base, and are stretched.
    fn rope(&self, layer: usize) -> Result<Rope> {
        let mut config = RopeConfig { rope_traditional: true, ..RopeConfig::default() };
        if self.ratio(layer) == 0 {
            return Rope::new(self.qk_rope_head_dim, &config, self.rope_theta);
        }
        let scaling = self.rope_scaling.clone().unwrap_or_default();
        let context = scaling.original_max_position_embeddings;
        config.rope_scaling = Some(RopeScaling {
            r#type: Some("yarn".into()),
            rope_type: None,
            rope_theta: None,
            factor: Some(scaling.factor.unwrap_or(1.0)),
            original_max_position_embeddings: context.or(Some(f64::from(self.max_position_embeddings))),
            attention_factor: Some(1.0),
            ..scaling
        });
        Rope::new(self.qk_rope_head_dim, &config, self.compress_rope_theta)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let parts = ["vision.*", "aligner.*", "image_*"];
    let rules = parts.iter().fold(Rules::new(), |rules, part| rules.drop(*part, "not of the language model"));
    let to = ["*.weight", "*.scales", "*.biases"];
    let names = [
        ("*.attn.*", "*.self_attn.*"),
        ("*.ffn.*", "*.mlp.*"),
        ("*.attn_norm.*", "*.input_layernorm.*"),
        ("*.ffn_norm.*", "*.post_attention_layernorm.*"),
        ("*.hc_attn_{}", "*.attn_hc.{}"),
        ("*.hc_ffn_{}", "*.ffn_hc.{}"),
        ("*.attn_sink", "*.sinks"),
        ("*.wq_a.{}", "*.q_a_proj.{}"),
        ("*.wq_b.{}", "*.q_b_proj.{}"),
        ("*.wkv.{}", "*.kv_proj.{}"),
        ("*.wgate.{}", "*.gate_proj.{}"),
        ("*.wo_a.{}", "*.o_a_proj.{}"),
        ("*.wo_b.{}", "*.o_b_proj.{}"),
        ("*.q_norm.{}", "*.q_a_norm.{}"),
        ("*.compressor.norm.{}", "*.compressor.kv_norm.{}"),
        ("*.indexer.wk.{}", "*.indexer.k_proj.{}"),
        ("*.gate.bias", "*.gate.e_score_correction_bias"),
        ("*.shared_experts.w1.{}", "*.shared_experts.gate_proj.{}"),
        ("*.shared_experts.w2.{}", "*.shared_experts.down_proj.{}"),
        ("*.shared_experts.w3.{}", "*.shared_experts.up_proj.{}"),
    ];
    let published = names.into_iter().fold(Rules::new(), |rules, (from, to)| rules.rename(from, to));
    let published = published
        .stack_experts("*.mlp.experts", "*.mlp.experts.switch_mlp")
        .reshape("*.o_a_proj.{} [_, _]", &[args.0.o_groups, -1, 0])
        .rename("*", "model.*")
        .rename("model.head.{}", "lm_head.{}")
        .rename("model.embed.{}", "model.embed_tokens.{}");
    rules
        .drop("mtp.*", "predicts further tokens, for speculation")
        .drop("*.gate.bias_vl", "sends pictures to experts")
        .decode(
            &["*.ffn.experts.{}.{}.weight", "*.ffn.experts.{}.{}.scale"],
            &to,
            Encoding::Fp4 { divided: false },
        )
        .decode(&["*.weight", "*.scale"], &to, Encoding::Fp8 { block: [32, 32] })
        .when("embed.weight", published)
}

/// The model.
#[derive(Debug)]
pub struct Model {
    decoder: Decoder<Layer>,
    /// Residual streams.
    streams: i32,
}

parameters!(Model { decoder: "" });

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let args = &args.0;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, layers) = ([args.vocab_size, dims], args.num_hidden_layers);
    let decoder = Decoder::new(w, Names::LLAMA, sizes, Some(false), norm, layers, |i, w| {
        Ok(Layer {
            self_attn: Attention::new(args, i, &w.pp("self_attn"))?,
            mlp: Experts::new(args, &w.pp("mlp"))?,
            input_layernorm: w.rms_norm("input_layernorm", dims, eps)?,
            post_attention_layernorm: w.rms_norm("post_attention_layernorm", dims, eps)?,
            attn_hc: HyperConnection::new(args, &w.pp("attn_hc"))?,
            ffn_hc: HyperConnection::new(args, &w.pp("ffn_hc"))?,
        })
    })?;
    Ok(Model { decoder, streams: args.hc_mult })
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        self.decoder.embed(tokens)
    }

    fn forward_embeddings(&self, embeddings: &Array, _tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let (batch, length, dims) = (embeddings.dim(0)?, embeddings.dim(1)?, embeddings.dim(2)?);
        let shape = [batch, length, self.streams, dims];
        let mut streams = ops::broadcast_to(&ops::expand_dims(embeddings, 2)?, &shape)?;
        // Of the streams, the first layer reads the first.
        let first = ops::equal(&ops::arange(0, self.streams, 1, Dtype::Int32)?, 0)?;
        let mut reads = ops::astype(&first, Dtype::Float32)?;
        let mut masks = Masks::new(length).expecting(cache.expected()?);
        let mut shared = Shared::default();
        for (i, (layer, cache)) in
            self.decoder.layers.iter().zip(cache.layers_mut(self.decoder.layers.len())?).enumerate()
        {
            (streams, reads) = stage_pair(i, || layer.run(&streams, &reads, &mut shared, &mut masks, cache))?;
        }
        let h = collapse(&streams, &reads)?;
        self.decoder.head(&stage("norm", || self.decoder.norm.forward(&h))?)
    }

    fn make_cache(&self) -> Cache {
        self.decoder.make_cache()
    }
    fn num_layers(&self) -> usize {
        self.decoder.num_layers()
    }
    fn vocab_size(&self) -> i32 {
        self.decoder.vocab_size()
    }
}

/// The streams that come out of a layer are its stage.
fn stage_pair(layer: usize, run: impl FnOnce() -> Result<(Array, Array)>) -> Result<(Array, Array)> {
    let mut reads = None;
    let streams = stage(format_args!("layers.{layer}"), || {
        let (streams, next) = run()?;
        reads = Some(next);
        Ok(streams)
    })?;
    let none = || Error::argument("layer", "it did not run");
    Ok((streams, reads.ok_or_else(none)?))
}

/// What layers leave for those after them.
#[derive(Debug, Default)]
struct Shared {
    /// Compressed groups, `[batch, groups, head_dim]`.
    groups: Option<Array>,
    /// Their keys for indexers, `[batch, groups, index_head_dim]`.
    index: Option<Array>,
    /// Which of them may be chosen, `bool` `[batch, length, groups]`.
    candidates: Option<Array>,
    /// Which of them were, `bool` `[batch, length, groups]`, and for a single position the numbers of some,
    /// `[batch, count]`, that have all of these among them.
    chosen: Option<(Array, Option<Array>)>,
}

/// A layer whose branches read one mixture of the streams, and add to each of them.
#[derive(Debug)]
pub struct Layer {
    self_attn: Attention,
    mlp: Experts,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    attn_hc: HyperConnection,
    ffn_hc: HyperConnection,
}

parameters!(Layer { self_attn, mlp, input_layernorm, post_attention_layernorm, attn_hc, ffn_hc });

impl Layer {
    /// From the streams, `[batch, length, streams, dims]`, and how much of each the layer reads, `[...,
    /// streams]`, to the same for the next one.
    fn run(
        &self,
        streams: &Array,
        reads: &Array,
        shared: &mut Shared,
        masks: &mut Masks,
        cache: &mut LayerCache,
    ) -> Result<(Array, Array)> {
        let connection = self.attn_hc.forward(streams)?;
        let x = self.input_layernorm.forward(&collapse(streams, reads)?)?;
        let mixed = stage("self_attn", || self.self_attn.forward(&x, shared, masks, cache))?;
        let streams = connection.expand(&mixed, streams)?;
        let x = self.post_attention_layernorm.forward(&collapse(&streams, &connection.reads)?)?;
        let connection = self.ffn_hc.forward(&streams)?;
        let fed = stage("mlp", || self.mlp.forward(&x))?;
        Ok((connection.expand(&fed, &streams)?, connection.reads))
    }
}

impl DecoderLayer for Layer {
    /// As a model of one stream, and of this layer alone.
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let streams = ops::expand_dims(x, 2)?;
        let (streams, reads) =
            self.run(&streams, &Array::from(1.0f32), &mut Shared::default(), masks, cache)?;
        collapse(&streams, &reads)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(self.self_attn.make_cache())
    }
}

/// The sum of the streams, `[batch, length, streams, dims]`, weighted by `reads`, `[..., streams]`.
fn collapse(streams: &Array, reads: &Array) -> Result<Array> {
    let weighted = (ops::expand_dims(reads, -1)? * ops::astype(streams, Dtype::Float32)?)?;
    ops::astype(&ops::sum(&weighted, 2, false)?, streams.dtype())
}

/// How much of each stream is read, how much is added to each, and how they mix, all by the streams
/// themselves. The mixture is almost doubly stochastic (Sinkhorn and Knopp, 1967).
#[derive(Debug)]
struct HyperConnection {
    r#fn: Array,
    base: Array,
    scale: Array,
    streams: i32,
    iterations: usize,
    eps: f32,
    norm_eps: f32,
}

parameters!(HyperConnection { r#fn: "fn", base, scale });

/// What a [`HyperConnection`] gives for some streams.
#[derive(Debug)]
struct Connection {
    /// `[batch, length, streams]`.
    reads: Array,
    /// `[batch, length, streams]`.
    adds: Array,
    /// `[batch, length, streams, streams]`, from the streams to themselves.
    mixes: Array,
}

impl HyperConnection {
    fn new(args: &Text, w: &Weights) -> Result<Self> {
        let (streams, mixes) = (args.hc_mult, (2 + args.hc_mult) * args.hc_mult);
        let width = streams.saturating_mul(args.hidden_size);
        Ok(Self {
            r#fn: w.get_shaped("fn", &[mixes, width])?,
            base: w.get_shaped("base", &[mixes])?,
            scale: w.get_shaped("scale", &[3])?,
            streams,
            iterations: args.hc_sinkhorn_iters,
            eps: args.hc_eps,
            norm_eps: args.rms_norm_eps,
        })
    }

    fn forward(&self, streams: &Array) -> Result<Connection> {
        let n = self.streams;
        let flat = ops::astype(&ops::flatten(streams, -2, -1)?, Dtype::Float32)?;
        let flat = fast::rms_norm(&flat, None, self.norm_eps)?;
        let parts = |x: &Array| ops::exactly::<3>(ops::split(x, [n, 2 * n], -1)?);
        let (mix, base) =
            (parts(&ops::matmul(&flat, &ops::swapaxes(&self.r#fn, 0, 1)?)?)?, parts(&self.base)?);
        let part = |i: usize| (&mix[i] * self.scale.index(i as i32)?)? + &base[i];
        let mixes = ops::softmax(&ops::unflatten(&part(2)?, -1, &[n, n])?, -1, true)?;
        Ok(Connection {
            reads: (ops::sigmoid(&part(0)?)? + self.eps)?,
            adds: (ops::sigmoid(&part(1)?)? * 2.0)?,
            mixes: self.balance((mixes + self.eps)?)?,
        })
    }

    /// Columns that sum to 1, then by turns rows and columns.
    fn balance(&self, mut mixes: Array) -> Result<Array> {
        for turn in 0..2 * self.iterations - 1 {
            let axis = if turn % 2 == 0 { -2 } else { -1 };
            mixes = (&mixes / (ops::sum(&mixes, axis, true)? + self.eps)?)?;
        }
        Ok(mixes)
    }
}

impl Connection {
    /// The streams with what a branch gives, `[batch, length, dims]`.
    fn expand(&self, x: &Array, streams: &Array) -> Result<Array> {
        let mixed =
            ops::matmul(&ops::swapaxes(&self.mixes, -1, -2)?, &ops::astype(streams, Dtype::Float32)?)?;
        let added = (ops::expand_dims(&self.adds, -1)? * ops::expand_dims(x, -2)?)?;
        ops::astype(&(added + mixed)?, streams.dtype())
    }
}

/// Attention with one key, which is the value too, for all heads.
#[derive(Debug)]
struct Attention {
    q_a_proj: Linear,
    q_a_norm: RmsNorm,
    q_b_proj: Linear,
    kv_proj: Linear,
    kv_norm: RmsNorm,
    /// For each group of heads one.
    o_a_proj: MultiLinear,
    o_b_proj: Linear,
    sinks: Array,
    compressor: Option<Compressor>,
    indexer: Option<Indexer>,
    place: Place,
    heads: i32,
    o_groups: i32,
    scale: f32,
    window: i32,
    /// Whether it sees groups.
    sees_groups: bool,
}

parameters!(Attention {
    q_a_proj,
    q_a_norm,
    q_b_proj,
    kv_proj,
    kv_norm,
    o_a_proj,
    o_b_proj,
    sinks,
    compressor,
    indexer
});

impl Attention {
    fn new(args: &Text, layer: usize, w: &Weights) -> Result<Self> {
        let (dims, heads, head_dim, eps) =
            (args.hidden_size, args.num_attention_heads, args.head_dim, args.rms_norm_eps);
        let (rank, groups, inner) = (args.q_lora_rank, args.o_groups, args.o_lora_rank);
        let compresses = args.kv_source_layer_ids.contains(&layer);
        let place = Place::new(args, layer)?;
        let indexer = || Indexer::new(args, layer, compresses, &place, &w.pp("indexer"));
        let compressor = || Compressor::new(args, layer, &place, &w.pp("compressor"));
        Ok(Self {
            q_a_proj: w.linear("q_a_proj", dims, rank)?,
            q_a_norm: w.rms_norm("q_a_norm", rank, eps)?,
            q_b_proj: w.linear("q_b_proj", rank, heads * head_dim)?,
            kv_proj: w.linear("kv_proj", dims, head_dim)?,
            kv_norm: w.rms_norm("kv_norm", head_dim, eps)?,
            o_a_proj: w.multi_linear("o_a_proj", groups, heads * head_dim / groups, inner)?,
            o_b_proj: w.linear("o_b_proj", groups.saturating_mul(inner), dims)?,
            sinks: w.get_shaped("sinks", &[heads])?,
            compressor: compresses.then(compressor).transpose()?,
            indexer: args.index_source_layer_ids.contains(&layer).then(indexer).transpose()?,
            place,
            heads,
            o_groups: groups,
            scale: (head_dim as f32).powf(-0.5),
            window: args.sliding_window,
            sees_groups: args.ratio(layer) > 0,
        })
    }

    fn make_cache(&self) -> LayerCache {
        let window = LayerCache::window(Some(self.window));
        if self.compressor.is_none() { window } else { LayerCache::List(vec![window, LayerCache::states(4)]) }
    }

    fn forward(
        &self,
        x: &Array,
        shared: &mut Shared,
        masks: &mut Masks,
        cache: &mut LayerCache,
    ) -> Result<Array> {
        let (length, offset) = (x.dim(1)?, cache.offset());
        let squeezed = self.q_a_norm.forward(&self.q_a_proj.forward(x)?)?;
        let queries = split_heads(&self.q_b_proj.forward(&squeezed)?, self.heads)?;
        let queries = self.place.forward(&queries, &offset)?;
        let own = ops::expand_dims(&self.kv_norm.forward(&self.kv_proj.forward(x)?)?, 1)?;
        let own = round_fp8(&self.place.forward(&own, &offset)?)?;
        if let Some(compressor) = &self.compressor {
            let index_keys = self.indexer.as_ref().and_then(|indexer| indexer.keys.as_ref());
            compressor.add(x, &offset, index_keys, shared, cache.part(1)?)?;
        }
        if let Some(indexer) = &self.indexer {
            indexer.choose(x, &squeezed, &offset, shared)?;
        }
        let window = if let LayerCache::List(_) = cache { cache.part(0)? } else { cache };
        let mask = masks.of(window, Some(self.window))?;
        let mut keys = window.update(&own, &own)?.keys;
        let mut mask = mask.to_array(length, keys.dim(2)?)?;
        if let (true, Some(groups), Some((sees, rows))) = (self.sees_groups, &shared.groups, &shared.chosen) {
            let (mut groups, mut sees) = (groups.clone(), sees.clone());
            if let Some(rows) = rows {
                groups = ops::take_along_axis(&groups, &ops::expand_dims(rows, -1)?, 1)?;
                sees = ops::take_along_axis(&sees, &ops::expand_dims(rows, 1)?, -1)?;
            }
            let shape = [x.dim(0)?, 1, length, keys.dim(2)?];
            let near = match mask {
                Some(mask) => ops::broadcast_to(&mask, &shape)?,
                None => ops::ones(&shape, Dtype::Bool)?,
            };
            mask = Some(ops::concatenate([&near, &ops::expand_dims(&sees, 1)?], -1)?);
            keys = ops::concatenate([&keys, &ops::expand_dims(&groups, 1)?], 2)?;
        }
        // Scores are large: they are computed in `float32`.
        let wide = |x: &Array| ops::astype(x, Dtype::Float32);
        let keys = wide(&keys)?;
        let seen = KeysValues { values: keys.clone(), keys, quantized: None };
        let mask = mask.map_or(Mask::None, Mask::Array);
        let heads = attend(&wide(&queries)?, &seen, self.scale, &mask, Some(&wide(&self.sinks)?))?;
        let heads = self.place.back(&ops::astype(&heads, x.dtype())?, &offset)?;
        let groups = ops::unflatten(&merge_heads(&heads)?, -1, &[self.o_groups, -1])?;
        let groups = self.o_a_proj.forward(&ops::swapaxes(&groups, 1, 2)?)?;
        self.o_b_proj.forward(&merge_heads(&groups)?)
    }
}

/// Turns the last dimensions of heads by their positions, in `float32`.
#[derive(Debug, Clone)]
struct Place {
    rope: Rope,
    dims: i32,
}

impl Place {
    fn new(args: &Text, layer: usize) -> Result<Self> {
        Ok(Self { rope: args.rope(layer)?, dims: args.qk_rope_head_dim })
    }

    /// Whose positions are so many apart.
    fn striding(&self, ratio: i32) -> Self {
        Self { rope: self.rope.clone().striding(ratio as f32), dims: self.dims }
    }

    /// `[batch, heads, length, dims]` to the same shape.
    fn forward(&self, x: &Array, offset: &Offset) -> Result<Array> {
        self.turn(&self.rope, x, offset)
    }

    /// Undoes [`forward`](Self::forward).
    fn back(&self, x: &Array, offset: &Offset) -> Result<Array> {
        self.turn(&self.rope.clone().backwards()?, x, offset)
    }

    fn turn(&self, rope: &Rope, x: &Array, offset: &Offset) -> Result<Array> {
        let [still, turning] = ops::exactly(ops::split(x, [x.dim(-1)? - self.dims], -1)?)?;
        let turned = rope.forward(&ops::astype(&turning, Dtype::Float32)?, offset)?;
        ops::concatenate([&still, &ops::astype(&turned, x.dtype())?], -1)
    }
}

/// Makes one key of each group of positions: a mean weighted by gates.
#[derive(Debug)]
struct Compressor {
    kv_proj: Linear,
    /// For groups of more than one.
    gate_proj: Option<Linear>,
    kv_norm: RmsNorm,
    place: Place,
    ratio: i32,
    head_dim: i32,
}

parameters!(Compressor { kv_proj, gate_proj, kv_norm });

/// The states of a [`Compressor`]: the last positions before they are pooled, and their gates, as many as an
/// open group can have; the groups; their keys for indexers.
const OPEN: usize = 0;
const GATES: usize = 1;
const GROUPS: usize = 2;
const INDEX: usize = 3;

impl Compressor {
    fn new(args: &Text, layer: usize, place: &Place, w: &Weights) -> Result<Self> {
        let (dims, head_dim, ratio) = (args.hidden_size, args.head_dim, args.ratio(layer));
        Ok(Self {
            kv_proj: w.linear("kv_proj", dims, head_dim)?,
            gate_proj: (ratio > 1).then(|| w.linear("gate_proj", dims, head_dim)).transpose()?,
            kv_norm: w.rms_norm("kv_norm", head_dim, args.rms_norm_eps)?,
            place: place.striding(ratio),
            ratio,
            head_dim,
        })
    }

    /// Adds the groups that the positions of `x` complete, and their keys for indexers.
    fn add(
        &self,
        x: &Array,
        offset: &Offset,
        index_keys: Option<&IndexKeys>,
        shared: &mut Shared,
        cache: &mut LayerCache,
    ) -> Result<()> {
        let (rows, length) = (self.rows(x, cache)?, x.dim(1)?);
        let (mut groups, mut index) = (Vec::new(), Vec::new());
        for (batch, position) in spans(offset, x.dim(0)?)? {
            // Positions before the beginning of a sequence are padding.
            let (skipped, position) = ((-position).clamp(0, length), position.max(0));
            let first = position / self.ratio;
            let latent = self.pool(&rows, &batch, skipped, position % self.ratio)?;
            let latent = latent.map(|latent| {
                let latent = ops::astype(&latent, x.dtype())?;
                ops::expand_dims(&self.kv_norm.forward(&latent)?, 1)
            });
            let latent = latent.transpose()?;
            let place = |x: &Array| self.place.forward(x, &Offset::All(first));
            let add = |at: usize, dims: i32, new: Option<Array>| {
                let old = cache.state(at).filter(|_| first > 0);
                let old = old.map(|old| old.index((batch.clone(), ..first))).transpose()?;
                match (old, new.map(|new| ops::squeeze(&new, 1)).transpose()?) {
                    (Some(old), Some(new)) => ops::concatenate([&old, &new], 1),
                    (Some(part), None) | (None, Some(part)) => Ok(part),
                    (None, None) => ops::zeros(&[batch.end - batch.start, 0, dims], x.dtype()),
                }
            };
            let new = latent.as_ref().map(|latent| round_fp4(&place(latent)?, 16, true)).transpose()?;
            groups.push(add(GROUPS, self.head_dim, new)?);
            if let Some(keys) = index_keys {
                let key = |latent: &Array| {
                    let key = keys.k_norm.forward(&keys.k_proj.forward(latent)?)?;
                    round_fp4(&place(&key)?, 32, false)
                };
                index.push(add(INDEX, keys.head_dim, latent.as_ref().map(key).transpose()?)?);
            }
        }
        let (groups, index) = (level(groups)?, level(index)?);
        for (at, state) in [(GROUPS, &groups), (INDEX, &index)] {
            if let Some(state) = state {
                cache.set_state(at, state.clone())?;
            }
        }
        cache.advance(length);
        shared.groups = groups;
        if index_keys.is_some() {
            shared.index = index;
        }
        Ok(())
    }

    /// What is pooled, and its gates, `[batch, ratio - 1 + length, head_dim]`: the last positions, and the new
    /// ones.
    fn rows(&self, x: &Array, cache: &mut LayerCache) -> Result<(Array, Option<Array>)> {
        let Some(gate_proj) = &self.gate_proj else { return Ok((self.kv_proj.forward(x)?, None)) };
        let (kept, wide) = (self.ratio - 1, ops::astype(x, Dtype::Float32)?);
        let mut rows = |at: usize, new: Array| {
            let rows = match cache.state(at) {
                Some(old) => ops::concatenate([old, &new], 1)?,
                None => ops::pad(&new, &[(0, 0), (kept, 0), (0, 0)], PadMode::Constant, 0.0)?,
            };
            let last = rows.index((.., rows.dim(1)? - kept..))?;
            cache.set_state(at, ops::contiguous(&last, false)?)?;
            Ok(rows)
        };
        Ok((rows(OPEN, self.kv_proj.forward(&wide)?)?, Some(rows(GATES, gate_proj.forward(&wide)?)?)))
    }

    /// The groups that are complete, `[sequences, groups, head_dim]`, of those sequences of the batch whose
    /// first new positions, so many, are `skipped`, and whose open group has `open` positions; `None` if none
    /// are.
    fn pool(
        &self,
        (kv, gates): &(Array, Option<Array>),
        batch: &Range<i32>,
        skipped: i32,
        open: i32,
    ) -> Result<Option<Array>> {
        let start = self.ratio - 1 + skipped - open;
        let full = (kv.dim(1)? - start) / self.ratio;
        if full == 0 {
            return Ok(None);
        }
        let Some(gates) = gates else { return kv.index((batch.clone(), start..)).map(Some) };
        let grouped = |x: &Array| {
            let x = x.index((batch.clone(), start..start + full * self.ratio))?;
            ops::unflatten(&x, 1, &[full, self.ratio])
        };
        ops::sum(&(grouped(kv)? * ops::softmax(&grouped(gates)?, 2, true)?)?, 2, false).map(Some)
    }
}

/// The sequences of a batch that are at one position, and that.
fn spans(offset: &Offset, batch: i32) -> Result<Vec<(Range<i32>, i32)>> {
    match offset {
        Offset::All(position) => Ok(vec![(0..batch, *position)]),
        Offset::Each(positions) => {
            Ok((0..batch).zip(positions.to_vec::<i32>()?).map(|(row, at)| (row..row + 1, at)).collect())
        }
    }
}

/// One array of parts of a batch, `[sequences, groups, dims]`, which get zeros behind them; `None` if there are
/// no groups.
fn level(parts: Vec<Array>) -> Result<Option<Array>> {
    let lengths = parts.iter().map(|part| part.dim(1)).collect::<Result<Vec<i32>>>()?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if longest == 0 {
        return Ok(None);
    }
    let fill = |(part, length): (&Array, i32)| {
        ops::pad(part, &[(0, 0), (0, longest - length), (0, 0)], PadMode::Constant, 0.0)
    };
    let parts = parts.iter().zip(lengths).map(fill).collect::<Result<Vec<Array>>>()?;
    ops::concatenate(&parts, 0).map(Some)
}

/// To the keys that groups are chosen by.
#[derive(Debug)]
struct IndexKeys {
    k_proj: Linear,
    k_norm: RmsNorm,
    head_dim: i32,
}

parameters!(IndexKeys { k_proj, k_norm });

/// Chooses the groups that a query sees: those with the largest sums over heads of rectified products.
#[derive(Debug)]
struct Indexer {
    q_b_proj: Linear,
    weights_proj: Linear,
    /// Of a layer that compresses.
    keys: Option<IndexKeys>,
    place: Place,
    ratio: i32,
    heads: i32,
    head_dim: i32,
    count: i32,
    /// How many blocks of how many groups this layer leaves for those after it.
    leaves: Option<[i32; 2]>,
}

parameters!(Indexer { q_b_proj, weights_proj, keys: "" });

impl Indexer {
    fn new(args: &Text, layer: usize, compresses: bool, place: &Place, w: &Weights) -> Result<Self> {
        let (heads, head_dim) = (args.index_n_heads, args.index_head_dim);
        let keys = || -> Result<IndexKeys> {
            Ok(IndexKeys {
                k_proj: w.linear("k_proj", args.head_dim, head_dim)?,
                k_norm: w.rms_norm("k_norm", head_dim, args.rms_norm_eps)?,
                head_dim,
            })
        };
        let leaves = i64::try_from(layer).is_ok_and(|layer| layer == args.candidate_source_layer_id);
        let blocks = [args.candidate_topk_blocks, args.candidate_block_size];
        Ok(Self {
            q_b_proj: w.linear("q_b_proj", args.q_lora_rank, heads * head_dim)?,
            weights_proj: w.linear("weights_proj", args.hidden_size, heads)?,
            keys: compresses.then(keys).transpose()?,
            place: place.clone(),
            ratio: args.ratio(layer),
            heads,
            head_dim,
            count: args.index_topk,
            leaves: Some(blocks).filter(|[count, _]| leaves && *count > 0),
        })
    }

    /// For each position of `x`.
    fn choose(&self, x: &Array, squeezed: &Array, offset: &Offset, shared: &mut Shared) -> Result<()> {
        let Some(keys) = &shared.index else {
            shared.chosen = None;
            return Ok(());
        };
        let (length, groups) = (x.dim(1)?, keys.dim(1)?);
        let queries = split_heads(&self.q_b_proj.forward(squeezed)?, self.heads)?;
        let queries = round_fp4(&self.place.forward(&queries, offset)?, 32, false)?;
        let wide = |x: &Array| ops::astype(x, Dtype::Float32);
        let keys = ops::swapaxes(&ops::expand_dims(&wide(keys)?, 1)?, -1, -2)?;
        let products = ops::maximum(&ops::matmul(&wide(&queries)?, &keys)?, 0)?;
        let products = (products * (self.head_dim as f32).powf(-0.5))?;
        let weights = (wide(&self.weights_proj.forward(x)?)? * (self.heads as f32).powf(-0.5))?;
        let weights = ops::expand_dims(&ops::swapaxes(&weights, -1, -2)?, -1)?;
        let scores = ops::sum(&(products * weights)?, 1, false)?;
        // A position sees the groups that end with it or before.
        let ends = (offset.positions(length)? + 1)?;
        let closed = ops::expand_dims(&ops::floor_divide(&ends, Array::from(self.ratio))?, -1)?;
        let visible = ops::less(&ops::arange(0, groups, 1, Dtype::Int32)?, &closed)?;
        let mut scores = ops::where_(&visible, &scores, f32::NEG_INFINITY)?;
        if let Some(blocks) = self.leaves {
            shared.candidates = Some(candidates(&scores, &closed, blocks)?);
        } else if let Some(candidates) = &shared.candidates {
            scores = ops::where_(candidates, &scores, f32::NEG_INFINITY)?;
        }
        let mut sees = ops::greater(&scores, f32::NEG_INFINITY)?;
        let mut rows = None;
        if groups > self.count {
            let best = ops::stop_gradient(&top_k(&scores, self.count)?)?;
            let some = ops::put_along_axis(&ops::zeros_like(&sees)?, &best, &Array::from(true), -1)?;
            sees = ops::logical_and(&sees, &some)?;
            rows = (length == 1).then(|| ops::squeeze(&best, 1)).transpose()?;
        }
        shared.chosen = Some((sees, rows));
        Ok(())
    }
}

/// The groups of the blocks with the best scores `[batch, length, groups]`, `bool` of the same shape, of which
/// `closed`, `[length, 1]` or `[batch, length, 1]`, are there. The newest block is among them: it is not full yet.
fn candidates(scores: &Array, closed: &Array, [count, size]: [i32; 2]) -> Result<Array> {
    let groups = scores.dim(-1)?;
    let blocks = (groups + size - 1) / size;
    let widths = [(0, 0), (0, 0), (0, blocks * size - groups)];
    let padded = ops::pad(scores, &widths, PadMode::Constant, f32::NEG_INFINITY)?;
    let best = ops::max(&ops::unflatten(&padded, -1, &[blocks, size])?, -1, false)?;
    let newest = ops::floor_divide(&(closed - 1)?, Array::from(size))?;
    let is_newest = ops::equal(&ops::arange(0, blocks, 1, Dtype::Int32)?, &newest)?;
    let best = ops::where_(&is_newest, f32::INFINITY, &best)?;
    let mut kept = ops::greater(&best, f32::NEG_INFINITY)?;
    if count < blocks {
        let chosen = ops::stop_gradient(&top_k(&best, count)?)?;
        let some = ops::put_along_axis(&ops::zeros_like(&kept)?, &chosen, &Array::from(true), -1)?;
        kept = ops::logical_and(&kept, &some)?;
    }
    ops::repeat(&kept, size, -1)?.index((Ellipsis, ..groups))
}

/// `x` in blocks of 32 features as 8-bit floats (e4m3) times a power of two, where 32 divides them.
fn round_fp8(x: &Array) -> Result<Array> {
    in_blocks(x, 32, |blocks, largest| {
        let scale = power_of_two(&(ops::maximum(largest, 1e-4)? / 448.0)?)?;
        let codes = ops::to_fp8(&ops::clip(&(blocks / &scale)?, -448.0..=448.0)?)?;
        ops::from_fp8(&codes, Dtype::Float32)? * scale
    })
}

/// `x` in blocks of so many features as 4-bit floats (e2m1) times a power of two, or an 8-bit float, where
/// the size divides them.
fn round_fp4(x: &Array, size: i32, fp8_scale: bool) -> Result<Array> {
    in_blocks(x, size, |blocks, largest| {
        let least = if fp8_scale { 6.0 * 2f32.powi(-9) } else { 6.0 * 2f32.powi(-126) };
        let scale = (ops::maximum(largest, least)? / 6.0)?;
        let scale = match fp8_scale {
            true => ops::from_fp8(&ops::to_fp8(&scale)?, Dtype::Float32)?,
            false => power_of_two(&scale)?,
        };
        let x = ops::clip(&(blocks / &scale)?, -6.0..=6.0)?;
        let size = ops::abs(&x)?;
        let step = |is_above: Array, height: f32| ops::astype(&is_above, Dtype::Float32)? * height;
        // Halfway, the even code.
        let mut code = ops::zeros_like(&x)?;
        for (from, height) in [(0.25, 0.5), (1.25, 0.5), (2.5, 1.0), (5.0, 2.0)] {
            code = (code + step(ops::greater(&size, from)?, height)?)?;
        }
        for (from, height) in [(0.75, 0.5), (1.75, 0.5), (3.5, 1.0)] {
            code = (code + step(ops::greater_equal(&size, from)?, height)?)?;
        }
        (ops::sign(&x)? * code)? * scale
    })
}

/// The least power of two that is no less.
fn power_of_two(x: &Array) -> Result<Array> {
    ops::power(2.0, &ops::ceil(&ops::log2(x)?)?)
}

/// `round` of blocks of so many features, in `float32`, and of the largest size in each.
fn in_blocks(x: &Array, size: i32, round: impl FnOnce(&Array, &Array) -> Result<Array>) -> Result<Array> {
    if x.dim(-1)? % size != 0 {
        return Ok(x.clone());
    }
    let blocks = ops::unflatten(&ops::astype(x, Dtype::Float32)?, -1, &[-1, size])?;
    let rounded = round(&blocks, &ops::max(&ops::abs(&blocks)?, -1, true)?)?;
    ops::astype(&ops::flatten(&rounded, -2, -1)?, x.dtype())
}

/// Experts, and a layer for all tokens. The router works in `float32`.
#[derive(Debug)]
struct Experts {
    moe: Moe,
    shared: Mlp,
    temperature: f32,
}

parameters!(Experts { moe: "", shared: "shared_experts" });

impl Experts {
    fn new(args: &Text, w: &Weights) -> Result<Self> {
        let (dims, hidden) = (args.hidden_size, args.moe_intermediate_size);
        let names = MoeNames { experts: "experts.switch_mlp", ..MoeNames::DEEPSEEK };
        let moe = Moe::new(w, names, args.routing(), dims, [args.n_routed_experts, hidden])?;
        Ok(Self {
            moe: Moe { experts: moe.experts.with(args.act()), ..moe },
            shared: Mlp::new(&w.pp("shared_experts"), dims, hidden, Activation::Silu)?.with(args.act()),
            temperature: args.gate_temp,
        })
    }
}

impl FeedForward for Experts {
    fn forward(&self, x: &Array) -> Result<Array> {
        let logits = (self.moe.gate.forward(&ops::astype(x, Dtype::Float32)?)? / self.temperature)?;
        let (experts, weights) = self.moe.routing.route(&logits, self.moe.correction.as_ref())?;
        weighted_sum(&self.moe.experts.forward(x, &experts)?, &weights)? + self.shared.forward(x)?
    }
}
