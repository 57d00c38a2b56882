//! MiniCPM (Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models", 2024): Llama with
//! factors of the embeddings, the residual branches and the logits.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, Block, Decoder, LogitsScale, Mlp, Names};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    dim_model_base: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    rms_norm_eps: f32,
    vocab_size: i32,
    scale_depth: f32,
    scale_emb: f32,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("minicpm")
            .size("hidden_size", self.hidden_size)
            .size("dim_model_base", self.dim_model_base)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.kv_heads(), None, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
    if args.tie_word_embeddings { rules.drop("lm_head.*", "tied to the embeddings") } else { rules }
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.rms_norm_eps, args.num_attention_heads);
    let head_dim = dims / heads;
    let rope = Rope::new(head_dim, &args.rope, 1_000_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layer = |_, w: &Weights| {
        let attention = Attention::new(&w.pp("self_attn"), dims, heads, args.kv_heads(), head_dim)?;
        Ok(Block {
            residual_scale: Some(args.scale_depth / (args.num_hidden_layers as f32).sqrt()),
            ..Block::new(
                Attention { rope: Some(rope.clone()), ..attention },
                Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?,
                w.rms_norm("input_layernorm", dims, eps)?,
                w.rms_norm("post_attention_layernorm", dims, eps)?,
            )
        })
    };
    // A checkpoint without a head is tied whatever its config says.
    let tied = args.tie_word_embeddings.then_some(true);
    let factor = args.dim_model_base as f32 / dims as f32;
    Ok(Decoder {
        embed_scale: Some(args.scale_emb),
        logits: LogitsScale { factor: Some(factor), cap: None },
        ..Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, args.num_hidden_layers, layer)?
    })
}
