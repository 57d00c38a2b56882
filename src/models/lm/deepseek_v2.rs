//! DeepSeek-V2 (DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language
//! Model", 2024): latent attention whose cache has keys and values, and experts chosen by a softmax.

use serde::Deserialize;

use super::deepseek_v3::{self, Layer};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Decoder, Groups, LatentAttention, MoeNames, Routing, Scoring};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Args(deepseek_v3::Args);

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.0.checks("deepseek_v2", &self.routing()).done()
    }

    /// The best experts, by default of all; their weights are their scores.
    fn routing(&self) -> Routing {
        let experts = &self.0.experts;
        let limited = experts.topk_method.as_deref() == Some("group_limited_greedy");
        let [count, used] = [experts.n_group, experts.topk_group].map(|groups| groups.unwrap_or(1));
        Routing {
            groups: limited.then_some(Groups { count, used, best: 1 }),
            normalize: false,
            ..experts.routing(Scoring::Softmax)
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    deepseek_v3::common_rules(&args.0)
}

/// The model.
pub type Model = Decoder<Layer<LatentAttention>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = MoeNames { correction: None, ..MoeNames::DEEPSEEK };
    args.0.decoder(w, names, args.routing(), |_, w| args.0.attention(w, 1e-6, 10_000.0))
}
