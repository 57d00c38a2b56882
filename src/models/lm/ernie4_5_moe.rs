//! ERNIE 4.5 with experts: softmax scores with a correction for the choice, some layers dense.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Block, Decoder, FeedForward, Moe, MoeNames, Routing, Scoring, Sizes};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(alias = "num_experts")]
    moe_num_experts: i32,
    #[serde(alias = "num_experts_per_tok", default = "one")]
    moe_k: i32,
    moe_intermediate_size: Option<i32>,
    moe_num_shared_experts: Option<i32>,
    moe_layer_start_index: Option<Bounds>,
    moe_layer_end_index: Option<Bounds>,
    #[serde(default = "one")]
    moe_layer_interval: i32,
    #[serde(default)]
    moe_gate_act: Scoring,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn one() -> i32 {
    1
}

/// A layer, or one for text and one for images.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Bounds {
    One(i64),
    Each(Vec<i64>),
}

impl Bounds {
    fn all(&self) -> &[i64] {
        match self {
            Bounds::One(layer) => std::slice::from_ref(layer),
            Bounds::Each(layers) => layers,
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let interval = self.moe_layer_interval;
        self.sizes
            .checks("ernie4_5_moe")
            .size("moe_intermediate_size", self.expert_size())
            .size("moe_num_shared_experts", self.shared_size().unwrap_or(1))
            .routing(self.moe_num_experts, &self.routing())
            .that(interval > 0, || format!("`moe_layer_interval` is {interval}"))
            .done()
    }

    fn expert_size(&self) -> i32 {
        self.moe_intermediate_size.filter(|&size| size != 0).unwrap_or(self.sizes.intermediate_size)
    }

    fn shared_size(&self) -> Option<i32> {
        let count = self.moe_num_shared_experts.filter(|&count| count != 0)?;
        Some(count.saturating_mul(self.expert_size()))
    }

    fn routing(&self) -> Routing {
        Routing { normalize: true, ..Routing::new(self.moe_k, self.moe_gate_act) }
    }

    fn has_experts(&self, layer: usize) -> bool {
        let bound = |bounds: &Option<Bounds>| bounds.as_ref().map(Bounds::all).unwrap_or_default().to_vec();
        let start = bound(&self.moe_layer_start_index).into_iter().min().unwrap_or(0);
        // -1 stands for the last layer.
        let end = bound(&self.moe_layer_end_index).into_iter().max().filter(|&end| end != -1);
        let layer = layer as i64;
        (layer + 1) % i64::from(self.moe_layer_interval) == 0
            && layer >= start
            && end.is_none_or(|end| layer <= end)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes
        .tied()
        .rules()
        .drop("*.mtp_*", "predicts the tokens after the next")
        .reshape("*.mlp.moe_statics.e_score_correction_bias", &[-1])
        .stack_experts("*.mlp.experts", "*.mlp.switch_mlp")
}

/// The model.
pub type Model = Decoder<Block<Attention, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let sizes = &args.sizes.tied();
    sizes.decoder(w, |i, w| {
        sizes.block(w, attention(args, &w.pp("self_attn"))?, feed_forward(args, i, &w.pp("mlp"))?)
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let rope = RopeConfig { rope_traditional: true, ..args.rope.clone() };
    let rope = Rope::new(args.sizes.head_dim(), &rope, 500_000.0)?;
    Ok(Attention { rope: Some(rope), ..args.sizes.attention(w)? })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.sizes.hidden_size;
    if !args.has_experts(layer) {
        return Ok(Box::new(args.sizes.mlp(w)?));
    }
    // Checkpoints that mlx-lm has converted lack the correction.
    let correction = "moe_statics.e_score_correction_bias";
    let names = MoeNames { correction: w.contains(correction).then_some(correction), ..MoeNames::DEEPSEEK };
    let moe = Moe::new(w, names, args.routing(), dims, [args.moe_num_experts, args.expert_size()])?;
    Ok(Box::new(moe.with_shared(w, dims, args.shared_size())?))
}
