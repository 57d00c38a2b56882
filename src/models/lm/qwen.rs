//! Qwen (Bai et al., "Qwen Technical Report", 2023), the first.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, Mlp, MlpNames, Names, Qkv,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    kv_channels: i32,
    layer_norm_epsilon: f32,
    /// Of the gate and of what it gates together.
    intermediate_size: i32,
    vocab_size: i32,
    rotary_emb_base: Option<f64>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            hidden_size: 2048,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            kv_channels: 128,
            layer_norm_epsilon: 1e-6,
            intermediate_size: 11_008,
            vocab_size: 151_936,
            rotary_emb_base: None,
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (heads, channels) = (self.num_attention_heads, Some(self.kv_channels));
        let width = i64::from(heads) * i64::from(self.kv_channels);
        Checks::new("qwen")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(heads, heads, channels, self.hidden_size)
            .that(width == i64::from(self.hidden_size), || {
                format!(
                    "{heads} heads of `kv_channels` {} in a width of {}",
                    self.kv_channels, self.hidden_size
                )
            })
            .eps("layer_norm_epsilon", self.layer_norm_epsilon)
            .done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new()
        .drop("transformer.rotary_emb.inv_freq", "computed from the config")
        .drop("transformer.visual.*", "not of the language model")
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.layer_norm_epsilon, args.num_attention_heads);
    let head_dim = args.kv_channels;
    let rope = Rope::new(head_dim, &RopeConfig::default(), args.rotary_emb_base.unwrap_or(10_000.0))?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, layers) = ([args.vocab_size, dims], args.num_hidden_layers);
    Decoder::new(w, Names::GPT2, sizes, Some(false), norm, layers, |_, w| {
        let attention = AttentionNames::fused("c_attn", "c_proj");
        let sizes = [heads, heads, head_dim];
        let attention = Attention::fused(&w.pp("attn"), attention, Qkv::Joined, dims, sizes)?;
        let mlp = MlpNames { gate: "w2", up: "w1", down: "c_proj" };
        Ok(Block {
            names: BlockNames { mixer: "attn", mlp: "mlp", norm1: "ln_1", norm2: "ln_2" },
            ..Block::new(
                Attention { rope: Some(rope.clone()), ..attention },
                Mlp::named(&w.pp("mlp"), mlp, dims, args.intermediate_size / 2, Activation::Silu)?,
                w.rms_norm("ln_1", dims, eps)?,
                w.rms_norm("ln_2", dims, eps)?,
            )
        })
    })
}
