//! Phixtral: several Phi-2 whose feed-forward layers are the experts of one model.

use serde::Deserialize;

use crate::array::Array;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, FeedForward, Names, Order, Qkv, SwitchMlp, top_k,
    weighted_sum,
};
use crate::nn::activations::Activation;
use crate::nn::{Linear, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Args {
    #[serde(alias = "vocab_size")]
    num_vocab: i32,
    #[serde(alias = "n_embd")]
    model_dim: i32,
    #[serde(alias = "n_head")]
    num_heads: i32,
    #[serde(alias = "n_layer")]
    num_layers: usize,
    rotary_dim: i32,
    num_experts_per_tok: i32,
    num_local_experts: i32,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            num_vocab: 51_200,
            model_dim: 2560,
            num_heads: 32,
            num_layers: 32,
            rotary_dim: 32,
            num_experts_per_tok: 2,
            num_local_experts: 4,
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (each, experts) = (self.num_experts_per_tok, self.num_local_experts);
        Checks::new("phixtral")
            .size("num_vocab", self.num_vocab)
            .size("model_dim", self.model_dim)
            .size("num_local_experts", experts)
            .heads(self.num_heads, self.num_heads, None, self.model_dim)
            .that((1..=experts).contains(&each), || format!("{each} of {experts} experts for a token"))
            .done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .stack("transformer.h.{}.moe.mlp.{#}.{}.{}", "transformer.h.{}.moe.switch_mlp.{}.{}")
}

/// Experts without a gate, weighted by the softmax of the scores of those chosen.
#[derive(Debug)]
pub struct Experts {
    gate: Linear,
    switch_mlp: SwitchMlp,
    each: i32,
}

parameters!(Experts { gate, switch_mlp });

impl FeedForward for Experts {
    fn forward(&self, x: &Array) -> Result<Array> {
        let scores = self.gate.forward(x)?;
        let experts = top_k(&scores, self.each)?;
        let weights = ops::softmax(&ops::take_along_axis(&scores, &experts, -1)?, -1, true)?;
        weighted_sum(&self.switch_mlp.forward(x, &experts)?, &weights)
    }
}

/// The model.
pub type Model = Decoder<Block<Attention, Experts>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = Names {
        embed: "transformer.embd.wte",
        layers: "transformer.h",
        norm: "lm_head.ln",
        head: "lm_head.linear",
    };
    const EPS: f32 = 1e-5;
    let (dims, heads, experts) = (args.model_dim, args.num_heads, args.num_local_experts);
    let rope = Rope::new(args.rotary_dim, &RopeConfig::default(), 10_000.0)?;
    let norm = |name: &str| Ok(w.layer_norm(name, dims, EPS)?.into());
    Decoder::new(w, names, [args.num_vocab, dims], Some(false), norm, args.num_layers, |_, w| {
        let attention = AttentionNames::fused("Wqkv", "out_proj");
        let sizes = [heads, heads, dims / heads];
        let attention = Attention::fused(&w.pp("mixer"), attention, Qkv::Joined, dims, sizes)?;
        let moe = w.pp("moe");
        let switch_mlp = moe.pp("switch_mlp");
        Ok(Block {
            names: BlockNames { mixer: "mixer", mlp: "moe", norm1: "ln", norm2: "" },
            mixer: Attention { rope: Some(rope.clone()), ..attention },
            mlp: Experts {
                gate: moe.linear("gate", dims, experts)?,
                switch_mlp: SwitchMlp::new(&switch_mlp, experts, dims, 4 * dims, Activation::GeluTanh)?,
                each: args.num_experts_per_tok,
            },
            norm1: w.layer_norm("ln", dims, EPS)?.into(),
            norm2: None,
            order: Order::Parallel,
            residual_scale: None,
        })
    })
}
