//! EXAONE 3 (LG AI Research, "EXAONE 3.0 7.8B Instruction Tuned Language Model", 2024): Llama under
//! other names.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, AttentionNames, Block, BlockNames, Decoder, Mlp, MlpNames, Names};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    #[serde(alias = "num_hidden_layers")]
    num_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: Option<i32>,
    layer_norm_epsilon: f32,
    vocab_size: i32,
    activation_function: Option<Activation>,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("exaone")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.hidden_size)
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
        .drop("transformer.h.{}.attn.attention.rotary.inv_freq", "computed from the config")
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .tied_head(args.tied())
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.layer_norm_epsilon, args.num_attention_heads);
    let head_dim = args.head_dim.unwrap_or(dims / heads);
    let rope = Rope::new(head_dim, &args.rope, 10_000.0)?;
    let act = args.activation_function.unwrap_or_default();
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    Decoder::new(w, Names::GPT2, [args.vocab_size, dims], Some(args.tied()), norm, args.num_layers, |_, w| {
        let names = AttentionNames { o: "out_proj", ..AttentionNames::LLAMA };
        let sizes = [heads, args.num_key_value_heads, head_dim];
        let attention = Attention::named(&w.pp("attn.attention"), names, dims, sizes)?;
        let names = MlpNames { gate: "c_fc_0", up: "c_fc_1", down: "c_proj" };
        Ok(Block {
            names: BlockNames { mixer: "attn.attention", mlp: "mlp", norm1: "ln_1", norm2: "ln_2" },
            ..Block::new(
                Attention { rope: Some(rope.clone()), ..attention },
                Mlp::named(&w.pp("mlp"), names, dims, args.intermediate_size, act)?,
                w.rms_norm("ln_1", dims, eps)?,
                w.rms_norm("ln_2", dims, eps)?,
            )
        })
    })
}
