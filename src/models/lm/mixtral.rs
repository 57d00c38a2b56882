//! Mixtral: Mistral with experts.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, ExpertCount, Moe, MoeNames, Routing, Scoring, Sizes,
};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    sliding_window: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes()
            .checks("mixtral")
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .routing(self.experts.get(), &self.routing())
            .done()
    }

    fn sizes(&self) -> Sizes {
        Sizes { num_key_value_heads: self.sizes.num_key_value_heads.or(Some(8)), ..self.sizes.clone() }
    }

    fn routing(&self) -> Routing {
        Routing::new(self.num_experts_per_tok, Scoring::SoftmaxOfChosen)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes.rules().stack_experts("*.block_sparse_moe.experts", "*.block_sparse_moe.switch_mlp")
}

/// The model.
pub type Model = Decoder<Block<Attention, Moe>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (sizes, names) = (args.sizes(), BlockNames::MIXTRAL);
    let experts = [args.experts.get(), sizes.intermediate_size];
    sizes.decoder(w, |_, w| {
        let attention = Attention {
            rope: Some(Rope::new(sizes.head_dim(), &args.rope, 1e6)?),
            window: args.sliding_window,
            keeps_all: true,
            ..sizes.attention(&w.pp(names.mixer))?
        };
        let moe = Moe::new(&w.pp(names.mlp), MoeNames::PLAIN, args.routing(), sizes.hidden_size, experts)?;
        sizes.named_block(w, names, attention, moe)
    })
}
