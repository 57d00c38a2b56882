//! DeepSeek-V3 (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024): latent attention, and experts chosen
//! in groups by sigmoids with a correction. Kimi K2, JoyAI Flash and GLM-4.7 Flash are built as it is; what other
//! DeepSeek-like models share with it is here too.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Block, Decoder, FeedForward, Groups, LatentAttention, LatentConfig, Mixer, Mlp, MlpType, Moe, MoeNames,
    Names, Routing, Scoring,
};
use crate::nn::RopeConfig;
use crate::nn::activations::Activation;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    pub(super) hidden_size: i32,
    pub(super) num_hidden_layers: usize,
    pub(super) intermediate_size: i32,
    pub(super) vocab_size: i32,
    #[serde(default = "eps")]
    pub(super) rms_norm_eps: f32,
    #[serde(default)]
    pub(super) hidden_act: Activation,
    pub(super) tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    pub(super) latent: LatentConfig,
    #[serde(flatten)]
    pub(super) experts: Experts,
    #[serde(default = "yes")]
    pub(super) rope_interleave: bool,
    #[serde(flatten)]
    pub(super) rope: RopeConfig,
}

fn eps() -> f32 {
    1e-6
}

fn yes() -> bool {
    true
}

/// The part of a config that says which layers have experts, and how tokens get to them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Experts {
    moe_intermediate_size: Option<i32>,
    #[serde(alias = "num_experts", alias = "num_local_experts")]
    n_routed_experts: Option<i32>,
    n_shared_experts: Option<i32>,
    num_experts_per_tok: Option<i32>,
    routed_scaling_factor: Option<f32>,
    norm_topk_prob: Option<bool>,
    pub(super) n_group: Option<i32>,
    pub(super) topk_group: Option<i32>,
    pub(super) topk_method: Option<String>,
    moe_layer_freq: Option<usize>,
    first_k_dense_replace: usize,
    mlp_layer_types: Option<Vec<MlpType>>,
}

impl Experts {
    /// To the best groups, then to their best experts, whose weights sum to the factor.
    pub(super) fn routing(&self, scoring: Scoring) -> Routing {
        Routing {
            groups: Groups::by_best_two(self.n_group.unwrap_or(1), self.topk_group.unwrap_or(1)),
            normalize: self.norm_topk_prob.unwrap_or(true),
            scale: self.routed_scaling_factor.unwrap_or(1.0),
            ..Routing::new(self.num_experts_per_tok.unwrap_or(1), scoring)
        }
    }

    fn in_layer(&self, layer: usize) -> bool {
        match &self.mlp_layer_types {
            Some(types) => types[layer] == MlpType::Sparse,
            None => {
                layer >= self.first_k_dense_replace && layer.is_multiple_of(self.moe_layer_freq.unwrap_or(1))
            }
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.checks("deepseek_v3", &self.experts.routing(Scoring::Sigmoid)).done()
    }

    /// What every model of this kind needs.
    pub(super) fn checks(&self, model: &'static str, routing: &Routing) -> Checks {
        let experts = &self.experts;
        let hidden = i64::from(experts.moe_intermediate_size.unwrap_or(1));
        let shared = i64::from(experts.n_shared_experts.unwrap_or(0)) * hidden;
        let checks = Checks::new(model)
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("moe_intermediate_size", experts.moe_intermediate_size.unwrap_or(1))
            .that((0..=1 << 28).contains(&shared), || "`n_shared_experts` is out of range".into())
            .that(experts.moe_layer_freq != Some(0), || "`moe_layer_freq` is 0".into())
            .layer_types(self.num_hidden_layers, experts.mlp_layer_types.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .latent(&self.latent);
        match experts.n_routed_experts {
            Some(count) => checks.routing(count, routing),
            None => checks,
        }
    }

    /// The rotary part of the config, with neighbouring dimensions as pairs unless it says otherwise.
    pub(super) fn rope(&self) -> RopeConfig {
        RopeConfig { rope_traditional: self.rope_interleave, ..self.rope.clone() }
    }

    /// Latent attention of which only `eps`, that of the norms, and the base of the positions differ.
    pub(super) fn attention(&self, w: &Weights, eps: f32, theta: f64) -> Result<LatentAttention> {
        LatentAttention::new(w, self.hidden_size, &self.latent, eps, Some((&self.rope(), theta)))
    }

    /// A layer that is an [`Mlp`], or a [`Moe`] from the layer on where experts begin.
    pub(super) fn mlp(
        &self,
        w: &Weights,
        layer: usize,
        names: MoeNames,
        routing: Routing,
    ) -> Result<Box<dyn FeedForward>> {
        let (dims, experts) = (self.hidden_size, &self.experts);
        let Some(count) = experts.n_routed_experts.filter(|_| experts.in_layer(layer)) else {
            return Ok(Box::new(Mlp::new(w, dims, self.intermediate_size, self.hidden_act)?));
        };
        let hidden = experts.moe_intermediate_size.unwrap_or(self.intermediate_size);
        let moe = Moe::new(w, names, routing, dims, [count, hidden])?;
        Ok(match experts.n_shared_experts {
            Some(shared) if shared > 0 => Box::new(moe.with_shared(w, dims, hidden * shared)?),
            _ => Box::new(moe),
        })
    }

    /// The model of layers with this attention and these experts.
    pub(super) fn decoder<A: Mixer>(
        &self,
        w: &Weights,
        names: MoeNames,
        routing: Routing,
        attention: impl Fn(usize, &Weights) -> Result<A>,
    ) -> Result<Decoder<Layer<A>>> {
        let (dims, eps) = (self.hidden_size, self.rms_norm_eps);
        let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
        let (sizes, tied, layers) =
            ([self.vocab_size, dims], self.tie_word_embeddings, self.num_hidden_layers);
        Decoder::new(w, Names::LLAMA, sizes, tied, norm, layers, |i, w| {
            Ok(Block::new(
                attention(i, &w.pp("self_attn"))?,
                self.mlp(&w.pp("mlp"), i, names, routing)?,
                w.rms_norm("input_layernorm", dims, eps)?,
                w.rms_norm("post_attention_layernorm", dims, eps)?,
            ))
        })
    }
}

/// A layer of a model like this.
pub type Layer<A> = Block<A, Box<dyn FeedForward>>;

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.latent.split_rules(common_rules(args))
}

/// Rules of all models like this.
pub(super) fn common_rules(args: &Args) -> Rules {
    Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .drop(
            format!("*.layers.{{#{}..}}.*", args.num_hidden_layers),
            "predict further tokens, for speculation",
        )
        .stack("*.mlp.experts.{#}.{}.{}", "*.mlp.switch_mlp.{}.{}")
        .tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Layer<LatentAttention>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let routing = args.experts.routing(Scoring::Sigmoid);
    args.decoder(w, MoeNames::DEEPSEEK, routing, |_, w| args.attention(w, 1e-6, 10_000.0))
}
