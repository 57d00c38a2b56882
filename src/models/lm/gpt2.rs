//! GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).

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
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("gpt2")
            .size("n_embd", self.n_embd)
            .size("n_positions", self.n_positions)
            .size("n_inner", self.n_inner.unwrap_or(1))
            .size("vocab_size", self.vocab_size)
            .heads(self.n_head, self.n_head, None, self.n_embd)
            .eps("layer_norm_epsilon", self.layer_norm_epsilon)
            .done()
    }
}

/// How the names of a checkpoint become the model's. The published weights are those of convolutions of
/// width 1: transposed.
pub fn rules(_: &Args) -> Rules {
    let mut rules = Rules::new();
    for prefix in ["", "transformer."] {
        let key = |name: &str| format!("{prefix}h.{{}}.{name}");
        rules = rules
            .drop(key("attn.bias"), "the causal mask")
            .drop(key("attn.masked_bias"), "the causal mask")
            .transpose(&key("attn.c_attn.weight"), &[1, 0])
            .transpose(&key("*.c_proj.weight"), &[1, 0])
            .transpose(&key("mlp.c_fc.weight"), &[1, 0]);
    }
    rules
        .drop("lm_head.weight", "tied to the embeddings")
        .rename("transformer.*", "model.*")
        .rename("h.*", "model.h.*")
        .rename("wte.*", "model.wte.*")
        .rename("wpe.*", "model.wpe.*")
        .rename("ln_f.*", "model.ln_f.*")
}

/// The model.
pub type Model = Decoder<Block<Attention, PlainMlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = Names { embed: "model.wte", layers: "model.h", norm: "model.ln_f", head: "lm_head" };
    let (dims, eps, heads) = (args.n_embd, args.layer_norm_epsilon, args.n_head);
    let sizes = [heads, heads, dims / heads];
    let hidden = args.n_inner.unwrap_or(4 * dims);
    let act = args.activation_function.unwrap_or(Activation::GeluTanh);
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.into());
    let layer = |_, w: &Weights| {
        let attention = AttentionNames::fused("c_attn", "c_proj");
        Ok(Block {
            names: BlockNames { mixer: "attn", mlp: "mlp", norm1: "ln_1", norm2: "ln_2" },
            ..Block::new(
                Attention::fused(&w.pp("attn"), attention, Qkv::Joined, dims, sizes)?,
                PlainMlp::new(&w.pp("mlp"), ["c_fc", "c_proj"], dims, hidden, act)?,
                w.layer_norm("ln_1", dims, eps)?,
                w.layer_norm("ln_2", dims, eps)?,
            )
        })
    };
    Ok(Decoder {
        positions: Some(("model.wpe", w.embedding("model.wpe", args.n_positions, dims)?)),
        ..Decoder::new(w, names, [args.vocab_size, dims], Some(true), norm, args.n_layer, layer)?
    })
}
