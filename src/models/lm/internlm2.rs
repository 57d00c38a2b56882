//! InternLM2 (Cai et al., "InternLM2 Technical Report", 2024): Llama with one projection to queries,
//! keys and values.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, Mlp, MlpNames, Names, Qkv,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    rms_norm_eps: f32,
    vocab_size: i32,
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
        Checks::new("internlm2")
            .size("hidden_size", self.hidden_size)
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
    let rules = Rules::new().drop("*.attention.rope.inv_freq", "computed from the config");
    if args.tie_word_embeddings { rules.drop("output.*", "tied to the embeddings") } else { rules }
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = Names { embed: "model.tok_embeddings", head: "output", ..Names::LLAMA };
    let (dims, eps, heads) = (args.hidden_size, args.rms_norm_eps, args.num_attention_heads);
    let head_dim = dims / heads;
    // Not given, the longest sequence is 32768.
    let mut rope = args.rope.clone();
    rope.max_position_embeddings.get_or_insert(32_768);
    let rope = Rope::new(head_dim, &rope, 10_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, tied) = ([args.vocab_size, dims], Some(args.tie_word_embeddings));
    Decoder::new(w, names, sizes, tied, norm, args.num_hidden_layers, |_, w| {
        let sizes = [heads, args.kv_heads(), head_dim];
        let attention = AttentionNames::fused("wqkv", "wo");
        let attention = Attention::fused(&w.pp("attention"), attention, Qkv::Grouped, dims, sizes)?;
        let mlp = MlpNames { gate: "w1", up: "w3", down: "w2" };
        Ok(Block {
            names: BlockNames {
                mixer: "attention",
                mlp: "feed_forward",
                norm1: "attention_norm",
                norm2: "ffn_norm",
            },
            ..Block::new(
                Attention { rope: Some(rope.clone()), ..attention },
                Mlp::named(&w.pp("feed_forward"), mlp, dims, args.intermediate_size, args.hidden_act)?,
                w.rms_norm("attention_norm", dims, eps)?,
                w.rms_norm("ffn_norm", dims, eps)?,
            )
        })
    })
}
