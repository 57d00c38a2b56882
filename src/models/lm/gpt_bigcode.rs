//! GPT-BigCode: GPT-2 with one head for all keys and values (StarCoder; Li et al., "StarCoder: may the
//! source be with you!", 2023).

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, AttentionNames, Block, BlockNames, Decoder, Names, PlainMlp, Qkv};
use crate::nn::activations::Activation;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    n_embd: i32,
    n_head: i32,
    n_layer: usize,
    n_positions: i32,
    n_inner: Option<i32>,
    layer_norm_epsilon: f32,
    vocab_size: i32,
    activation_function: Option<Activation>,
    #[serde(default = "yes")]
    multi_query: bool,
    tie_word_embeddings: Option<bool>,
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("gpt_bigcode")
            .size("n_embd", self.n_embd)
            .size("n_positions", self.n_positions)
            .size("n_inner", self.n_inner.unwrap_or(1))
            .size("vocab_size", self.vocab_size)
            .heads(self.n_head, self.n_head, None, self.n_embd)
            .eps("layer_norm_epsilon", self.layer_norm_epsilon)
            .done()
    }

    fn tied(&self) -> bool {
        self.tie_word_embeddings.unwrap_or(true)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new()
        .drop("transformer.h.{}.attn.bias", "the causal mask")
        .drop("transformer.h.{}.attn.masked_bias", "the causal mask")
        .tied_head(args.tied())
}

/// The model.
pub type Model = Decoder<Block<Attention, PlainMlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.n_embd, args.layer_norm_epsilon, args.n_head);
    // With one key head for each query head the projection goes head by head.
    let (kv_heads, qkv): (i32, fn(_) -> Qkv) =
        if args.multi_query { (1, Qkv::Joined) } else { (heads, Qkv::Grouped) };
    let sizes = [heads, kv_heads, dims / heads];
    let hidden = args.n_inner.unwrap_or(4 * dims);
    let act = args.activation_function.unwrap_or(Activation::Gelu);
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.into());
    let layer = |_, w: &Weights| {
        let attention = AttentionNames::fused("c_attn", "c_proj");
        Ok(Block {
            names: BlockNames { mixer: "attn", mlp: "mlp", norm1: "ln_1", norm2: "ln_2" },
            ..Block::new(
                Attention::fused(&w.pp("attn"), attention, qkv, dims, sizes)?,
                PlainMlp::new(&w.pp("mlp"), ["c_fc", "c_proj"], dims, hidden, act)?,
                w.layer_norm("ln_1", dims, eps)?,
                w.layer_norm("ln_2", dims, eps)?,
            )
        })
    };
    Ok(Decoder {
        positions: Some(("transformer.wpe", w.embedding("transformer.wpe", args.n_positions, dims)?)),
        ..Decoder::new(w, Names::GPT2, [args.vocab_size, dims], Some(args.tied()), norm, args.n_layer, layer)?
    })
}
