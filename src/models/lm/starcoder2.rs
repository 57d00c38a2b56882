//! StarCoder2 (Lozhkov et al., "StarCoder 2 and The Stack v2", 2024).

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
    norm_epsilon: Option<f32>,
    vocab_size: Option<i32>,
    hidden_act: Option<Activation>,
    tie_word_embeddings: Option<bool>,
    sliding_window: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("starcoder2")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size())
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .heads(self.num_attention_heads, self.num_key_value_heads, None, self.hidden_size)
            .eps("norm_epsilon", self.eps())
            .done()
    }

    fn eps(&self) -> f32 {
        self.norm_epsilon.unwrap_or(1e-5)
    }

    fn vocab_size(&self) -> i32 {
        self.vocab_size.unwrap_or(49_152)
    }

    fn tied(&self) -> bool {
        self.tie_word_embeddings.unwrap_or(true)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new().tied_head(args.tied())
}

/// The model.
pub type Model = Decoder<Block<Attention, PlainMlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.eps(), args.num_attention_heads);
    let head_dim = dims / heads;
    let rope = Rope::new(head_dim, &args.rope, 100_000.0)?;
    let act = args.hidden_act.unwrap_or(Activation::Gelu);
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.into());
    let (sizes, layers) = ([args.vocab_size(), dims], args.num_hidden_layers);
    Decoder::new(w, Names::LLAMA, sizes, Some(args.tied()), norm, layers, |_, w| {
        let attention = Attention {
            rope: Some(rope.clone()),
            window: args.sliding_window,
            keeps_all: true,
            ..Attention::new(&w.pp("self_attn"), dims, heads, args.num_key_value_heads, head_dim)?
        };
        Ok(Block::new(
            attention,
            PlainMlp::new(&w.pp("mlp"), ["c_fc", "c_proj"], dims, args.intermediate_size, act)?,
            w.layer_norm("input_layernorm", dims, eps)?,
            w.layer_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}
