//! Phi-3.5 MoE: layer norms, biases, and experts that a token weighs one after the other.

use serde::Deserialize;

use crate::array::{Array, Dtype};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, ExpertCount, FeedForward, Names, Routing, Scoring, Sizes,
    SwitchGlu, weighted_sum,
};
use crate::nn::{Linear, Norm, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    #[serde(default = "jitter")]
    router_jitter_noise: f32,
    sliding_window: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn jitter() -> f32 {
    0.01
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let routing = Routing::new(self.num_experts_per_tok, Scoring::Softmax);
        self.sizes
            .checks("phimoe")
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .routing(self.experts.get(), &routing)
            .done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let [from, to] = ["experts", "switch_mlp"].map(|name| format!("*.block_sparse_moe.{name}"));
    args.sizes.rules().stack_experts(&from, &to)
}

/// The model.
pub type Model = Decoder<Block<Attention, SparseMixer>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (sizes, names) = (&args.sizes, BlockNames::MIXTRAL);
    sizes.named_decoder(w, Names::LLAMA, norm, |_, w| {
        let block = Block::new(
            attention(args, &w.pp(names.mixer))?,
            SparseMixer::new(args, &w.pp(names.mlp))?,
            norm(sizes, w, names.norm1)?,
            norm(sizes, w, names.norm2)?,
        );
        Ok(Block { names, ..block })
    })
}

fn norm(sizes: &Sizes, w: &Weights, name: &str) -> Result<Norm> {
    Ok(w.layer_norm(name, sizes.hidden_size, sizes.rms_norm_eps)?.into())
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    Ok(Attention {
        rope: Some(Rope::new(args.sizes.head_dim(), &args.rope, 10_000.0)?),
        window: args.sliding_window,
        keeps_all: true,
        ..args.sizes.attention(w)?
    })
}

/// Experts whose weights come from one softmax each, over the logits that are close to the best of those
/// left (Liu et al., "GRIN: GRadient-INformed MoE", 2024).
#[derive(Debug)]
pub struct SparseMixer {
    gate: Linear,
    switch_mlp: SwitchGlu,
    top_k: i32,
    /// A logit is close if it is at most twice this part of itself away.
    jitter: f32,
}

parameters!(SparseMixer { gate, switch_mlp });

impl SparseMixer {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (dims, experts) = (args.sizes.hidden_size, args.experts.get());
        Ok(Self {
            gate: w.linear("gate", dims, experts)?,
            switch_mlp: SwitchGlu::new(&w.pp("switch_mlp"), experts, dims, args.sizes.intermediate_size)?,
            top_k: args.num_experts_per_tok,
            jitter: args.router_jitter_noise,
        })
    }
}

impl FeedForward for SparseMixer {
    fn forward(&self, x: &Array) -> Result<Array> {
        let logits = ops::astype(&self.gate.forward(x)?, Dtype::Float32)?;
        let never = Array::from(f32::NEG_INFINITY);
        let (mut left, mut experts, mut weights) = (logits.clone(), Vec::new(), Vec::new());
        for _ in 0..self.top_k {
            let best = ops::max(&left, -1, true)?;
            let expert = ops::stop_gradient(&ops::argmax(&left, -1, true)?)?;
            let size = ops::maximum(&ops::abs(&logits)?, &best)?;
            let far = ops::greater(&((&best - &logits)? / size)?, 2.0 * self.jitter)?;
            let shares = ops::softmax(&ops::where_(&far, &never, &left)?, -1, true)?;
            weights.push(ops::take_along_axis(&shares, &expert, -1)?);
            left = ops::put_along_axis(&left, &expert, &never, -1)?;
            experts.push(expert);
        }
        let (experts, weights) = (ops::concatenate(&experts, -1)?, ops::concatenate(&weights, -1)?);
        weighted_sum(&self.switch_mlp.forward(x, &experts)?, &weights)
    }
}
