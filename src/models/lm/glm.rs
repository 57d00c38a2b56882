//! GLM-4: Llama with a joined gate, half of each head turning, and in GLM-4-0414 norms on both sides of the
//! branches.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, Decoder, Mlp, Names, Sandwich};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    head_dim: Option<i32>,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
    vocab_size: i32,
    /// By default the head is tied if the checkpoint has none.
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("glm")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
    match args.tie_word_embeddings {
        Some(true) => rules.drop("lm_head.*", "tied to the embeddings"),
        _ => rules,
    }
}

/// The model.
pub type Model = Decoder<Sandwich<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let names = match args.model_type.as_str() {
        "glm4" => {
            ["input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"]
        }
        _ => ["input_layernorm", "", "post_attention_layernorm", ""],
    };
    let layers = args.num_hidden_layers;
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], args.tie_word_embeddings, norm, layers, |_, w| {
        let mlp = Mlp::fused(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?;
        let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
        Sandwich::new(attention(args, &w.pp("self_attn"))?, mlp, names, norm)
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.kv_heads(), args.head_dim());
    let rope = RopeConfig { rope_traditional: true, ..args.rope.clone() };
    Ok(Attention {
        rope: Some(Rope::new(rope.dims(head_dim, 0.5)?, &rope, 10_000.0)?),
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}
