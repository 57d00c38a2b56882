//! Phi-1, Phi-1.5 and Phi-2 (Li et al., "Textbooks Are All You Need II", 2023).

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, AttentionNames, Block, BlockNames, Decoder, Names, Order, PlainMlp};
use crate::nn::activations::Activation;
use crate::nn::{Norm, Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    layer_norm_eps: f32,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    hidden_act: Activation,
    qk_layernorm: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            hidden_size: 2560,
            num_hidden_layers: 32,
            intermediate_size: 10_240,
            num_attention_heads: 32,
            num_key_value_heads: None,
            layer_norm_eps: 1e-5,
            vocab_size: 51_200,
            tie_word_embeddings: None,
            hidden_act: Activation::GeluTanh,
            qk_layernorm: false,
            rope: RopeConfig::default(),
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("phi")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.kv_heads(), None, self.hidden_size)
            .eps("layer_norm_eps", self.layer_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
    rules.tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Block<Attention, PlainMlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = Names { norm: "model.final_layernorm", ..Names::LLAMA };
    let (dims, eps, heads) = (args.hidden_size, args.layer_norm_eps, args.num_attention_heads);
    let head_dim = dims / heads;
    let rope = Rope::new(args.rope.dims(head_dim, 0.4)?, &args.rope, 10_000.0)?;
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.into());
    let layer = |_, w: &Weights| {
        let at = w.pp("self_attn");
        let names = AttentionNames {
            o: "dense",
            q_norm: "q_layernorm",
            k_norm: "k_layernorm",
            ..AttentionNames::LLAMA
        };
        let head_norm = |name| -> Result<Option<Norm>> {
            args.qk_layernorm.then(|| at.layer_norm(name, head_dim, eps).map(Norm::from)).transpose()
        };
        Ok(Block {
            names: BlockNames::LLAMA,
            mixer: Attention {
                q_norm: head_norm("q_layernorm")?,
                k_norm: head_norm("k_layernorm")?,
                rope: Some(rope.clone()),
                ..Attention::named(&at, names, dims, [heads, args.kv_heads(), head_dim])?
            },
            mlp: PlainMlp::new(&w.pp("mlp"), ["fc1", "fc2"], dims, args.intermediate_size, args.hidden_act)?,
            norm1: w.layer_norm("input_layernorm", dims, eps)?.into(),
            norm2: None,
            order: Order::Parallel,
            residual_scale: None,
        })
    };
    let (sizes, tied) = ([args.vocab_size, dims], args.tie_word_embeddings);
    Decoder::new(w, names, sizes, tied, norm, args.num_hidden_layers, layer)
}
