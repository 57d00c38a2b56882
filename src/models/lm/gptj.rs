//! GPT-J (Wang and Komatsuzaki, "GPT-J-6B", 2021).

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, AttentionNames, Block, BlockNames, Decoder, Names, Order, PlainMlp};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    n_embd: i32,
    n_head: i32,
    n_layer: usize,
    n_inner: Option<i32>,
    rotary_dim: Option<i32>,
    layer_norm_epsilon: f32,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    activation_function: Option<Activation>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let head_dim = self.n_embd.checked_div(self.n_head).unwrap_or(0);
        let rotary = self.rotary_dim();
        Checks::new("gptj")
            .size("n_embd", self.n_embd)
            .size("n_inner", self.n_inner.unwrap_or(1))
            .size("vocab_size", self.vocab_size)
            .heads(self.n_head, self.n_head, None, self.n_embd)
            .that(rotary <= head_dim, || format!("`rotary_dim` is {rotary} in heads of {head_dim}"))
            .eps("layer_norm_epsilon", self.layer_norm_epsilon)
            .done()
    }

    fn rotary_dim(&self) -> i32 {
        self.rotary_dim.filter(|dims| *dims != 0).or(self.n_embd.checked_div(self.n_head)).unwrap_or(0)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new()
        .drop("*.attn.bias", "the causal mask")
        .drop("*.attn.masked_bias", "the causal mask")
        .rename("transformer.*", "model.*")
        .tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Block<Attention, PlainMlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = Names { embed: "model.wte", layers: "model.h", norm: "model.ln_f", head: "lm_head" };
    let (dims, eps, heads) = (args.n_embd, args.layer_norm_epsilon, args.n_head);
    let rope = RopeConfig { rope_traditional: true, ..args.rope.clone() };
    let rope = Rope::new(args.rotary_dim(), &rope, 10_000.0)?;
    let hidden = args.n_inner.unwrap_or(4 * dims);
    let act = args.activation_function.unwrap_or(Activation::GeluTanh);
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.into());
    let layer = |_, w: &Weights| {
        let attention = AttentionNames { o: "out_proj", ..AttentionNames::LLAMA };
        let attention = Attention::named(&w.pp("attn"), attention, dims, [heads, heads, dims / heads])?;
        Ok(Block {
            names: BlockNames { mixer: "attn", mlp: "mlp", norm1: "ln_1", norm2: "" },
            mixer: Attention { rope: Some(rope.clone()), ..attention },
            mlp: PlainMlp::new(&w.pp("mlp"), ["fc_in", "fc_out"], dims, hidden, act)?,
            norm1: w.layer_norm("ln_1", dims, eps)?.into(),
            norm2: None,
            order: Order::Parallel,
            residual_scale: None,
        })
    };
    Decoder::new(w, names, [args.vocab_size, dims], args.tie_word_embeddings, norm, args.n_layer, layer)
}
