//! Falcon-H1: each layer has Mamba-2 and attention side by side.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, LogitsScale, Mamba2, Mamba2Sizes, Mixer, Mlp, Names,
};
use crate::models::{Checks, stage};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: Option<i32>,
    rms_norm_eps: f32,
    mamba_n_heads: i32,
    /// By default the width of the state-space layer is divided among its heads.
    mamba_d_head: Option<HeadDim>,
    /// That width; `null` if it is `mamba_expand` times the features of the model.
    #[serde(default = "width")]
    mamba_d_ssm: Option<i32>,
    mamba_expand: i32,
    mamba_d_state: i32,
    mamba_d_conv: i32,
    mamba_n_groups: i32,
    #[serde(default)]
    mamba_norm_before_gate: bool,
    #[serde(default = "one")]
    attention_in_multiplier: f32,
    #[serde(default = "one")]
    attention_out_multiplier: f32,
    #[serde(default = "one")]
    embedding_multiplier: f32,
    #[serde(default = "one")]
    key_multiplier: f32,
    #[serde(default = "one")]
    lm_head_multiplier: f32,
    #[serde(default = "one")]
    ssm_in_multiplier: f32,
    #[serde(default = "one")]
    ssm_out_multiplier: f32,
    ssm_multipliers: Option<[f32; 5]>,
    mlp_multipliers: Option<[f32; 2]>,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

/// Features of a head, or that they follow from others.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum HeadDim {
    Size(i32),
    Auto(Auto),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Auto {
    Auto,
}

fn width() -> Option<i32> {
    Some(1024)
}

fn one() -> f32 {
    1.0
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let scale = self.embedding_multiplier;
        let checks = Checks::new("falcon_h1")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.hidden_size)
            .that(scale.is_normal(), || format!("`embedding_multiplier` is {scale}"))
            .eps("rms_norm_eps", self.rms_norm_eps);
        self.sizes().check(checks).done()
    }

    fn mamba_width(&self) -> i32 {
        self.mamba_d_ssm.unwrap_or_else(|| self.mamba_expand.saturating_mul(self.hidden_size))
    }

    fn sizes(&self) -> Mamba2Sizes {
        Mamba2Sizes {
            heads: self.mamba_n_heads,
            head_dim: match self.mamba_d_head {
                Some(HeadDim::Size(size)) => size,
                _ => self.mamba_width().checked_div(self.mamba_n_heads).unwrap_or(0),
            },
            groups: self.mamba_n_groups,
            state: self.mamba_d_state,
            kernel: self.mamba_d_conv,
        }
    }
}

/// How the names of a checkpoint become the model's. The published ones have their factors in the config.
pub fn rules(args: &Args) -> Rules {
    let [gate, down] = args.mlp_multipliers.unwrap_or([1.0; 2]);
    let input = args.attention_in_multiplier;
    let factors = [
        ("*embed_tokens.weight", args.embedding_multiplier),
        ("*lm_head.weight", args.lm_head_multiplier),
        ("*.q_proj.weight", input),
        ("*.k_proj.weight", input * args.key_multiplier),
        ("*.k_proj.bias", args.key_multiplier),
        ("*.v_proj.weight", input),
        ("*.o_proj.{}", args.attention_out_multiplier),
        ("*.mamba.out_proj.{}", args.ssm_out_multiplier),
        ("*.gate_proj.{}", gate),
        ("*.down_proj.{}", down),
        ("*.mamba.in_proj.weight", args.ssm_in_multiplier),
    ];
    let published = factors.into_iter().filter(|(_, factor)| *factor != 1.0);
    let published = published.fold(Rules::new(), |rules, (key, factor)| rules.scale(key, factor));
    // Gates, values, keys, queries and time steps of the state-space layer have a factor each.
    let parts = [0, 1, 2, 3, 4].map(|part| format!("*.mamba.in_proj.{part}.{{}}"));
    let names = parts.each_ref().map(String::as_str);
    let Mamba2Sizes { heads, head_dim, groups, state, .. } = args.sizes();
    let (width, shared) = (heads.saturating_mul(head_dim), groups.saturating_mul(state));
    let published = published.split("*.mamba.in_proj.{}", &names, 0, &[width, width, shared, shared, heads]);
    let each = names.iter().zip(args.ssm_multipliers.unwrap_or([1.0; 5]));
    let published = each
        .fold(published, |rules, (part, factor)| rules.scale(part, factor))
        .merge(&names, "*.mamba.in_proj.{}", 0)
        .transpose("*.conv1d.weight [_, 1, _]", &[0, 2, 1]);
    let rules = match args.tie_word_embeddings {
        Some(true) => Rules::new().drop("lm_head.*", "tied to the embeddings"),
        _ => Rules::new(),
    };
    rules.when("*.conv1d.weight [_, 1, _]", published)
}

/// A state-space layer and attention, which get the same input.
#[derive(Debug)]
pub struct Both {
    mamba: Mamba2,
    self_attn: Attention,
}

parameters!(Both { mamba, self_attn });

impl Mixer for Both {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let states = stage("mamba", || self.mamba.forward(x, masks, cache.part(0)?))?;
        states + stage("self_attn", || self.self_attn.forward(x, masks, cache.part(1)?))?
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::List(vec![LayerCache::states(2), LayerCache::kv()]))
    }
}

/// The model.
pub type Model = Decoder<Block<Both, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.rms_norm_eps, args.num_attention_heads);
    let head_dim = args.head_dim.unwrap_or(dims / heads);
    let rope = Rope::new(head_dim, &args.rope, 1e11)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let names = BlockNames { mixer: "", mlp: "feed_forward", norm2: "pre_ff_layernorm", ..BlockNames::LLAMA };
    let layer = |_, w: &Weights| {
        let mamba = Mamba2::new(&w.pp("mamba"), dims, args.sizes(), args.mamba_n_groups, eps)?;
        let attention = Attention::new(&w.pp("self_attn"), dims, heads, args.num_key_value_heads, head_dim)?;
        let both = Both {
            mamba: mamba.with_norm_before_gate(args.mamba_norm_before_gate),
            self_attn: Attention { rope: Some(rope.clone()), ..attention },
        };
        let mlp = Mlp::new(&w.pp(names.mlp), dims, args.intermediate_size, Activation::Silu)?;
        let [norm1, norm2] = [w.rms_norm(names.norm1, dims, eps)?, w.rms_norm(names.norm2, dims, eps)?];
        Ok(Block { names, ..Block::new(both, mlp, norm1, norm2) })
    };
    let sizes = [args.vocab_size, dims];
    let names = Names { norm: "model.final_layernorm", ..Names::LLAMA };
    let decoder =
        Decoder::new(w, names, sizes, args.tie_word_embeddings, norm, args.num_hidden_layers, layer)?;
    // A head that is tied has the factor of the embeddings.
    let factor = decoder.lm_head.is_none().then_some(args.lm_head_multiplier / args.embedding_multiplier);
    Ok(Decoder { logits: LogitsScale { factor, ..LogitsScale::default() }, ..decoder })
}
