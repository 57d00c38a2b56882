//! Hunyuan dense: Llama with norms of queries and keys after they have turned.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, AttentionNames, Block, Decoder, Mlp, Names};
use crate::nn::activations::Activation;
use crate::nn::{Norm, Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    head_dim: Option<i32>,
    rms_norm_eps: f32,
    vocab_size: i32,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default = "yes")]
    use_qk_norm: bool,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("hunyuan_v1_dense")
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
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.rms_norm_eps, args.num_attention_heads);
    let head_dim = args.head_dim.unwrap_or(dims / heads);
    let rope = Rope::new(head_dim, &args.rope, 10_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, layers) = ([args.vocab_size, dims], args.num_hidden_layers);
    Decoder::new(w, Names::LLAMA, sizes, args.tie_word_embeddings, norm, layers, |_, w| {
        let at = w.pp("self_attn");
        let (q_norm, k_norm) = ("query_layernorm", "key_layernorm");
        let names = AttentionNames { q_norm, k_norm, ..AttentionNames::LLAMA };
        let head_norm = |name| -> Result<Option<Norm>> {
            args.use_qk_norm.then(|| at.rms_norm(name, head_dim, eps).map(Norm::from)).transpose()
        };
        let attention = Attention {
            q_norm: head_norm(q_norm)?,
            k_norm: head_norm(k_norm)?,
            norms_after_rope: true,
            rope: Some(rope.clone()),
            ..Attention::named(&at, names, dims, [heads, args.kv_heads(), head_dim])?
        };
        Ok(Block::new(
            attention,
            Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}
