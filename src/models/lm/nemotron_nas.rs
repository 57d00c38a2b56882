//! Llama-Nemotron (Bercovich et al., "Llama-Nemotron: Efficient Reasoning Models", 2025): Llama whose
//! branches a search made smaller, linear, or nothing, layer by layer.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Decoder, DecoderLayer, FeedForward, Mixer, Mlp, Names};
use crate::models::{Checks, stage};
use crate::nn::activations::Activation;
use crate::nn::{Linear, RmsNorm, Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    rms_norm_eps: f32,
    vocab_size: i32,
    block_configs: Vec<BlockArgs>,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct BlockArgs {
    attention: BranchArgs,
    ffn: BranchArgs,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct BranchArgs {
    no_op: bool,
    replace_with_linear: bool,
    /// Query heads for each key head.
    n_heads_in_group: Option<i32>,
    /// Of the width, times 3/2.
    ffn_mult: Option<f64>,
}

impl BranchArgs {
    fn is_whole(&self) -> bool {
        !self.no_op && !self.replace_with_linear
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let heads = self.num_attention_heads;
        let mut checks = Checks::new("nemotron-nas")
            .size("hidden_size", self.hidden_size)
            .size("vocab_size", self.vocab_size)
            .heads(heads, heads, None, self.hidden_size)
            .layer_types(self.num_hidden_layers, Some(&self.block_configs))
            .eps("rms_norm_eps", self.rms_norm_eps);
        for block in &self.block_configs {
            if block.attention.is_whole() {
                let group = block.attention.n_heads_in_group.unwrap_or(0);
                checks = checks.that(group > 0 && heads.checked_rem(group) == Some(0), || {
                    format!("`n_heads_in_group` is {group} for {heads} heads")
                });
            }
            if block.ffn.is_whole() {
                checks = checks.size("ffn_mult", self.hidden(&block.ffn));
            }
        }
        checks.done()
    }

    /// Two thirds of `ffn_mult` times the width, up to the next multiple of 256.
    fn hidden(&self, ffn: &BranchArgs) -> i32 {
        let mult = (ffn.ffn_mult.unwrap_or(0.0) * 1e6).round_ties_even() / 1e6;
        let width = (2.0 * mult * f64::from(self.hidden_size) / 3.0) as i32;
        width.saturating_add(255) / 256 * 256
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config").tied_head(args.tie_word_embeddings)
}

/// One linear layer in the place of a branch.
#[derive(Debug)]
struct Replacement {
    linear: Linear,
}

parameters!(Replacement { linear });

impl Mixer for Replacement {
    fn forward(&self, x: &Array, _: &mut Masks, _: &mut LayerCache) -> Result<Array> {
        self.linear.forward(x)
    }

    /// One that stays empty, as mlx-lm has it.
    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::kv())
    }
}

impl FeedForward for Replacement {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.linear.forward(x)
    }
}

/// A layer of Llama; any of its branches may be absent.
#[derive(Debug)]
pub struct Block {
    self_attn: Option<Box<dyn Mixer>>,
    mlp: Option<Box<dyn FeedForward>>,
    input_layernorm: Option<RmsNorm>,
    post_attention_layernorm: Option<RmsNorm>,
}

parameters!(Block { self_attn, mlp, input_layernorm, post_attention_layernorm });

impl Block {
    fn new(args: &Args, block: &BlockArgs, rope: &Rope, w: &Weights) -> Result<Self> {
        let (dims, heads) = (args.hidden_size, args.num_attention_heads);
        let linear = |name| -> Result<Replacement> {
            Ok(Replacement { linear: w.pp(name).linear("linear", dims, dims)? })
        };
        let norm = |name, branch: &BranchArgs| {
            (!branch.no_op).then(|| w.rms_norm(name, dims, args.rms_norm_eps)).transpose()
        };
        let self_attn: Option<Box<dyn Mixer>> = match &block.attention {
            BranchArgs { no_op: true, .. } => None,
            BranchArgs { replace_with_linear: true, .. } => Some(Box::new(linear("self_attn")?)),
            BranchArgs { n_heads_in_group, .. } => {
                let kv_heads = heads / n_heads_in_group.unwrap_or(1);
                let attention = Attention::new(&w.pp("self_attn"), dims, heads, kv_heads, dims / heads)?;
                Some(Box::new(Attention { rope: Some(rope.clone()), ..attention }))
            }
        };
        let mlp: Option<Box<dyn FeedForward>> = match &block.ffn {
            BranchArgs { no_op: true, .. } => None,
            BranchArgs { replace_with_linear: true, .. } => Some(Box::new(linear("mlp")?)),
            ffn => Some(Box::new(Mlp::new(&w.pp("mlp"), dims, args.hidden(ffn), args.hidden_act)?)),
        };
        Ok(Self {
            self_attn,
            mlp,
            input_layernorm: norm("input_layernorm", &block.attention)?,
            post_attention_layernorm: norm("post_attention_layernorm", &block.ffn)?,
        })
    }
}

impl DecoderLayer for Block {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let mut h = x.clone();
        if let (Some(norm), Some(attention)) = (&self.input_layernorm, &self.self_attn) {
            let normed = norm.forward(&h)?;
            h = (h + stage("self_attn", || attention.forward(&normed, masks, cache))?)?;
        }
        if let (Some(norm), Some(mlp)) = (&self.post_attention_layernorm, &self.mlp) {
            let normed = norm.forward(&h)?;
            h = (h + stage("mlp", || mlp.forward(&normed))?)?;
        }
        Ok(h)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.self_attn.as_ref().and_then(|mixer| mixer.make_cache())
    }
}

/// The model.
pub type Model = Decoder<Block>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let dims = args.hidden_size;
    let rope = Rope::new(dims / args.num_attention_heads, &args.rope, 500_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, args.rms_norm_eps)?.into());
    let (sizes, tied) = ([args.vocab_size, dims], Some(args.tie_word_embeddings));
    Decoder::new(w, Names::LLAMA, sizes, tied, norm, args.num_hidden_layers, |i, w| {
        Block::new(args, &args.block_configs[i], &rope, w)
    })
}
