//! Nemotron and Minitron (Parmar et al., "Nemotron-4 15B Technical Report", 2024).

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, Block, Decoder, Names, PlainMlp};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: Option<i32>,
    norm_eps: f32,
    vocab_size: i32,
    hidden_act: Option<Activation>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("nemotron")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.hidden_size)
            .eps("norm_eps", self.norm_eps)
            .done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config").tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Block<Attention, PlainMlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.norm_eps, args.num_attention_heads);
    let head_dim = args.head_dim.unwrap_or(dims / heads);
    let rope = Rope::new(args.rope.dims(head_dim, 0.5)?, &args.rope, 10_000.0)?;
    let act = args.hidden_act.unwrap_or(Activation::Relu2);
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.shifted(1.0).into());
    let (sizes, tied) = ([args.vocab_size, dims], Some(args.tie_word_embeddings));
    Decoder::new(w, Names::LLAMA, sizes, tied, norm, args.num_hidden_layers, |_, w| {
        let attention = Attention::new(&w.pp("self_attn"), dims, heads, args.num_key_value_heads, head_dim)?;
        Ok(Block::new(
            Attention { rope: Some(rope.clone()), ..attention },
            PlainMlp::new(&w.pp("mlp"), ["up_proj", "down_proj"], dims, args.intermediate_size, act)?,
            w.layer_norm("input_layernorm", dims, eps)?.shifted(1.0),
            w.layer_norm("post_attention_layernorm", dims, eps)?.shifted(1.0),
        ))
    })
}
