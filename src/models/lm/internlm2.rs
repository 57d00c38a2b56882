//! InternLM2 (Cai et al., "InternLM2 Technical Report", 2024): Llama with one projection to queries,
//! keys and values.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, Mlp, MlpNames, Names, Qkv, Sizes,
};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes.checks("internlm2").done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.attention.rope.inv_freq", "computed from the config");
    if args.sizes.tie_word_embeddings == Some(true) {
        rules.drop("output.*", "tied to the embeddings")
    } else {
        rules
    }
}

const NAMES: Names = Names { embed: "model.tok_embeddings", head: "output", ..Names::LLAMA };

const BLOCK: BlockNames =
    BlockNames { mixer: "attention", mlp: "feed_forward", norm1: "attention_norm", norm2: "ffn_norm" };

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (sizes, dims) = (&args.sizes, args.sizes.hidden_size);
    // Not given, the longest sequence is 32768.
    let mut rope = args.rope.clone();
    rope.max_position_embeddings.get_or_insert(32_768);
    let rope = Rope::new(sizes.head_dim(), &rope, 10_000.0)?;
    sizes.named_decoder(w, NAMES, Sizes::norm, |_, w| {
        let names = AttentionNames::fused("wqkv", "wo");
        let attention = Attention::fused(&w.pp(BLOCK.mixer), names, Qkv::Grouped, dims, sizes.heads())?;
        let attention = Attention { rope: Some(rope.clone()), ..attention };
        let names = MlpNames { gate: "w1", up: "w3", down: "w2" };
        let mlp = Mlp::named(&w.pp(BLOCK.mlp), names, dims, sizes.intermediate_size, sizes.hidden_act)?;
        sizes.named_block(w, BLOCK, attention, mlp)
    })
}
