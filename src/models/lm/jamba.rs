//! Jamba: Mamba layers, some of attention without positions, and experts.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, BlockNames, Decoder, FeedForward, HybridBlock, Mamba, MambaSizes, Mixer, MixerType, Mlp, Moe,
    MoeNames, Names, Routing, Scoring, TimeStepRank,
};
use crate::nn::activations::Activation;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    #[serde(default)]
    attn_layer_offset: usize,
    #[serde(default)]
    attn_layer_period: usize,
    expert_layer_offset: usize,
    expert_layer_period: usize,
    mamba_d_conv: i32,
    mamba_d_state: i32,
    mamba_expand: i32,
    mamba_dt_rank: Option<TimeStepRank>,
    num_experts: i32,
    num_experts_per_tok: i32,
    rms_norm_eps: f32,
    vocab_size: i32,
    layers_block_type: Option<Vec<MixerType>>,
    tie_word_embeddings: Option<bool>,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let period = self.layers_block_type.is_some() || self.attn_layer_period > 0;
        let checks = Checks::new("jamba")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("mamba_expand", self.mamba_expand)
            .heads(self.num_attention_heads, self.num_key_value_heads, None, self.hidden_size)
            .layer_types(self.num_hidden_layers, self.layers_block_type.as_deref())
            .that(period, || "`attn_layer_period` is 0".into())
            .that(self.expert_layer_period > 0, || "`expert_layer_period` is 0".into())
            .routing(self.num_experts, &self.routing())
            .eps("rms_norm_eps", self.rms_norm_eps);
        self.sizes().check(checks).done()
    }

    fn sizes(&self) -> MambaSizes {
        MambaSizes {
            width: self.mamba_expand.saturating_mul(self.hidden_size),
            state: self.mamba_d_state,
            kernel: self.mamba_d_conv,
            rank: self
                .mamba_dt_rank
                .clone()
                .unwrap_or(TimeStepRank::Auto(String::new()))
                .of(self.hidden_size),
        }
    }

    fn routing(&self) -> Routing {
        Routing::new(self.num_experts_per_tok.min(self.num_experts), Scoring::Softmax)
    }

    fn attends(&self, layer: usize) -> bool {
        match &self.layers_block_type {
            Some(types) => types[layer] == MixerType::Attention,
            None => layer % self.attn_layer_period == self.attn_layer_offset,
        }
    }

    fn has_experts(&self, layer: usize) -> bool {
        self.num_experts > 1 && layer % self.expert_layer_period == self.expert_layer_offset
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new()
        .transpose("*.conv1d.weight [_, 1, _]", &[0, 2, 1])
        .stack_experts("*.feed_forward.experts", "*.feed_forward.switch_mlp")
        .tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<HybridBlock>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layer = |i, w: &Weights| {
        let (mixer, name): (Box<dyn Mixer>, _) = if args.attends(i) {
            let (heads, kv_heads) = (args.num_attention_heads, args.num_key_value_heads);
            let attention = Attention::new(&w.pp("self_attn"), dims, heads, kv_heads, dims / heads)?;
            (Box::new(attention), "self_attn")
        } else {
            let w = w.pp("mamba");
            let norms = [
                w.rms_norm("dt_layernorm", args.sizes().rank, eps)?.into(),
                w.rms_norm("b_layernorm", args.mamba_d_state, eps)?.into(),
                w.rms_norm("c_layernorm", args.mamba_d_state, eps)?.into(),
            ];
            (Box::new(Mamba::new(&w, dims, args.sizes())?.with_norms(norms)), "mamba")
        };
        let names =
            BlockNames { mixer: name, mlp: "feed_forward", norm2: "pre_ff_layernorm", ..BlockNames::LLAMA };
        let norms = [w.rms_norm(names.norm1, dims, eps)?, w.rms_norm(names.norm2, dims, eps)?];
        let [norm1, norm2] = norms;
        Ok(HybridBlock {
            names,
            ..HybridBlock::new(mixer, feed_forward(args, i, &w.pp(names.mlp))?, norm1, norm2)
        })
    };
    let names = Names { norm: "model.final_layernorm", ..Names::LLAMA };
    let sizes = [args.vocab_size, dims];
    Decoder::new(w, names, sizes, args.tie_word_embeddings, norm, args.num_hidden_layers, layer)
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let (dims, hidden) = (args.hidden_size, args.intermediate_size);
    if !args.has_experts(layer) {
        return Ok(Box::new(Mlp::new(w, dims, hidden, Activation::Silu)?));
    }
    let names = MoeNames { gate: "router", ..MoeNames::PLAIN };
    Ok(Box::new(Moe::new(w, names, args.routing(), dims, [args.num_experts, hidden])?))
}
