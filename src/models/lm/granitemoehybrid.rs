//! Granite 4: Mamba-2 with a few layers of attention, dense or with experts beside a layer for all tokens.

use serde::Deserialize;

use crate::array::Array;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, BlockNames, Decoder, FeedForward, HybridBlock, LogitsScale, Mamba2, Mamba2Sizes, Mixer,
    MixerType, Mlp, MlpNames, Moe, MoeNames, Names, Routing, Scoring,
};
use crate::models::{Checks, stage};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    attention_multiplier: f32,
    embedding_multiplier: f32,
    logits_scaling: f32,
    residual_multiplier: f32,
    layer_types: Option<Vec<MixerType>>,
    rms_norm_eps: f32,
    #[serde(default)]
    num_local_experts: Option<i32>,
    num_experts_per_tok: Option<i32>,
    shared_intermediate_size: Option<i32>,
    mamba_n_heads: Option<i32>,
    mamba_d_head: Option<serde_json::Value>,
    mamba_expand: Option<i32>,
    mamba_d_state: Option<i32>,
    mamba_d_conv: Option<i32>,
    mamba_n_groups: Option<i32>,
    time_step_limit: Option<[f32; 2]>,
    position_embedding_type: Option<String>,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let scaling = self.logits_scaling;
        let checks = Checks::new("granitemoehybrid")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("shared_intermediate_size", self.shared())
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.kv_heads(), None, self.hidden_size)
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .that(scaling.is_normal(), || format!("`logits_scaling` is {scaling}"))
            .eps("rms_norm_eps", self.rms_norm_eps);
        let checks = if (0..self.num_hidden_layers.min(1 << 16)).all(|i| self.attends(i)) {
            checks
        } else {
            self.sizes().check(checks)
        };
        match self.experts() {
            0 => checks.done(),
            experts => checks.routing(experts, &self.routing()).done(),
        }
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn shared(&self) -> i32 {
        self.shared_intermediate_size.unwrap_or(self.intermediate_size)
    }

    fn experts(&self) -> i32 {
        self.num_local_experts.unwrap_or(0)
    }

    fn routing(&self) -> Routing {
        Routing::new(self.num_experts_per_tok.unwrap_or(0), Scoring::SoftmaxOfChosen)
    }

    fn attends(&self, layer: usize) -> bool {
        self.layer_types.as_ref().is_some_and(|types| types[layer] == MixerType::Attention)
    }

    fn sizes(&self) -> Mamba2Sizes {
        let heads = self.mamba_n_heads.unwrap_or(128);
        let head_dim = self.mamba_d_head.as_ref().and_then(|size| i32::try_from(size.as_i64()?).ok());
        let width = self.mamba_expand.unwrap_or(2).saturating_mul(self.hidden_size);
        Mamba2Sizes {
            heads,
            head_dim: head_dim.unwrap_or(width.checked_div(heads).unwrap_or(0)),
            groups: self.mamba_n_groups.unwrap_or(1),
            state: self.mamba_d_state.unwrap_or(256),
            kernel: self.mamba_d_conv.unwrap_or(4),
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().transpose("*.conv1d.weight [_, 1, _]", &[0, 2, 1]);
    let rules = if args.experts() > 0 {
        let [gate, up, down] =
            ["gate", "up", "down"].map(|name| format!("*.block_sparse_moe.switch_mlp.{name}_proj.{{}}"));
        rules
            .split("*.block_sparse_moe.input_linear.{}", &[&gate, &up], 1, &[])
            .rename("*.block_sparse_moe.output_linear.{}", down)
    } else {
        rules
            .split("*.shared_mlp.input_linear.{}", &["*.mlp.gate_proj.{}", "*.mlp.up_proj.{}"], 0, &[])
            .rename("*.shared_mlp.output_linear.{}", "*.mlp.down_proj.{}")
    };
    match args.tie_word_embeddings {
        Some(true) => rules.drop("lm_head.*", "tied to the embeddings"),
        _ => rules,
    }
}

/// The sum of experts and a layer for all tokens.
#[derive(Debug)]
pub struct ExpertsAndShared {
    block_sparse_moe: Moe,
    shared_mlp: Mlp,
}

parameters!(ExpertsAndShared { block_sparse_moe, shared_mlp });

impl FeedForward for ExpertsAndShared {
    fn forward(&self, x: &Array) -> Result<Array> {
        let routed = stage("block_sparse_moe", || self.block_sparse_moe.forward(x))?;
        routed + stage("shared_mlp", || self.shared_mlp.forward(x))?
    }
}

/// The model.
pub type Model = Decoder<HybridBlock>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.rms_norm_eps, args.num_attention_heads);
    let turns = args.position_embedding_type.as_deref() == Some("rope");
    let rope = turns.then(|| Rope::new(dims / heads, &args.rope, 10_000.0)).transpose()?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layer = |i, w: &Weights| {
        let (mixer, name): (Box<dyn Mixer>, _) = if args.attends(i) {
            let attention = Attention::new(&w.pp("self_attn"), dims, heads, args.kv_heads(), dims / heads)?;
            let attention = Attention { rope: rope.clone(), scale: args.attention_multiplier, ..attention };
            (Box::new(attention), "self_attn")
        } else {
            let mixer = Mamba2::new(&w.pp("mamba"), dims, args.sizes(), args.sizes().groups, eps)?;
            (Box::new(mixer.with_time_step(args.time_step_limit)), "mamba")
        };
        let (mlp, mlp_name) = feed_forward(args, w)?;
        let names = BlockNames { mixer: name, mlp: mlp_name, ..BlockNames::LLAMA };
        let (norm1, norm2) = (w.rms_norm(names.norm1, dims, eps)?, w.rms_norm(names.norm2, dims, eps)?);
        let block = HybridBlock::new(mixer, mlp, norm1, norm2);
        Ok(HybridBlock { names, residual_scale: Some(args.residual_multiplier), ..block })
    };
    let sizes = [args.vocab_size, dims];
    let decoder =
        Decoder::new(w, Names::LLAMA, sizes, args.tie_word_embeddings, norm, args.num_hidden_layers, layer)?;
    Ok(Decoder {
        embed_scale: Some(args.embedding_multiplier),
        logits: LogitsScale { factor: Some(1.0 / args.logits_scaling), ..LogitsScale::default() },
        ..decoder
    })
}

/// The feed-forward layer of the layer at `w`, and its name there.
fn feed_forward(args: &Args, w: &Weights) -> Result<(Box<dyn FeedForward>, &'static str)> {
    let dims = args.hidden_size;
    if args.experts() == 0 {
        return Ok((Box::new(Mlp::new(&w.pp("mlp"), dims, args.shared(), Activation::Silu)?), "mlp"));
    }
    let names = MoeNames { gate: "router.layer", ..MoeNames::PLAIN };
    let experts = [args.experts(), args.intermediate_size];
    let shared = MlpNames { gate: "input_linear", down: "output_linear", ..MlpNames::LLAMA };
    let both = ExpertsAndShared {
        block_sparse_moe: Moe::new(&w.pp("block_sparse_moe"), names, args.routing(), dims, experts)?,
        shared_mlp: Mlp::fused_named(&w.pp("shared_mlp"), shared, dims, args.shared(), Activation::Silu)?,
    };
    Ok((Box::new(both), ""))
}
