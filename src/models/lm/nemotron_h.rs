//! Nemotron-H: layers of one part each, which is Mamba-2, attention without positions, a feed-forward
//! layer, or experts.

use serde::Deserialize;

use crate::array::Array;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Decoder, FeedForward, Groups, Mamba2, Mamba2Sizes, Mixer, MixerBlock, Names, PlainMlp,
    Positionwise, Routing, Scoring, SwitchMlp, weighted_sum,
};
use crate::nn::Linear;
use crate::nn::activations::Activation;
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: Option<i32>,
    mamba_num_heads: i32,
    mamba_head_dim: i32,
    ssm_state_size: i32,
    conv_kernel: i32,
    n_groups: i32,
    layer_norm_epsilon: f32,
    time_step_min: Option<f32>,
    hybrid_override_pattern: Option<Pattern>,
    layers_block_type: Option<Vec<Part>>,
    layer_types: Option<Vec<Part>>,
    moe_intermediate_size: Option<i32>,
    moe_shared_expert_intermediate_size: Option<i32>,
    moe_latent_size: Option<i32>,
    n_group: Option<i32>,
    topk_group: Option<i32>,
    n_routed_experts: Option<i32>,
    n_shared_experts: Option<i32>,
    num_experts_per_tok: Option<i32>,
    #[serde(default = "yes")]
    norm_topk_prob: bool,
    routed_scaling_factor: Option<f32>,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
}

fn yes() -> bool {
    true
}

/// What a layer is, as configs name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Part {
    #[serde(rename = "*", alias = "full_attention", alias = "attention")]
    Attention,
    #[serde(rename = "M", alias = "linear_attention", alias = "mamba", alias = "conv")]
    Mamba,
    #[serde(rename = "-", alias = "mlp")]
    Mlp,
    #[serde(rename = "E", alias = "moe")]
    Experts,
}

/// All parts, in one word or in a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Pattern {
    Word(String),
    List(Vec<Part>),
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let parts = self.parts();
        let known =
            || "no `hybrid_override_pattern`, or one of other letters than `*`, `M`, `-` and `E`".into();
        let checks = Checks::new("nemotron_h")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.hidden_size)
            .that(parts.is_some(), known)
            .eps("layer_norm_epsilon", self.layer_norm_epsilon);
        let checks = self.sizes().check(checks);
        if !parts.unwrap_or_default().contains(&Part::Experts) {
            return checks.done();
        }
        checks
            .routing(self.n_routed_experts.unwrap_or(0), &self.routing())
            .size("moe_intermediate_size", self.moe_intermediate_size.unwrap_or(0))
            .size(
                "moe_shared_expert_intermediate_size",
                self.moe_shared_expert_intermediate_size.unwrap_or(1),
            )
            .size("moe_latent_size", self.moe_latent_size.unwrap_or(1))
            .done()
    }

    /// What the layers are; `None` if the config does not say it.
    fn parts(&self) -> Option<Vec<Part>> {
        let letter = |letter| match letter {
            '*' => Some(Part::Attention),
            'M' => Some(Part::Mamba),
            '-' => Some(Part::Mlp),
            'E' => Some(Part::Experts),
            _ => None,
        };
        match (&self.hybrid_override_pattern, &self.layers_block_type, &self.layer_types) {
            (Some(Pattern::Word(word)), ..) => word.chars().map(letter).collect(),
            (Some(Pattern::List(parts)), ..) | (_, Some(parts), _) | (.., Some(parts)) => Some(parts.clone()),
            _ => None,
        }
    }

    fn sizes(&self) -> Mamba2Sizes {
        Mamba2Sizes {
            heads: self.mamba_num_heads,
            head_dim: self.mamba_head_dim,
            groups: self.n_groups,
            state: self.ssm_state_size,
            kernel: self.conv_kernel,
        }
    }

    fn routing(&self) -> Routing {
        let groups = Groups::by_best_two(self.n_group.unwrap_or(1), self.topk_group.unwrap_or(1));
        let top_k = self.num_experts_per_tok.unwrap_or(0);
        let scale = self.routed_scaling_factor.unwrap_or(1.0);
        Routing { groups, normalize: self.norm_topk_prob, scale, ..Routing::new(top_k, Scoring::Sigmoid) }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new()
        .drop("mtp.*", "predicts further tokens, which generation does not use")
        .rename("model.*", "backbone.*")
        .transpose("*.conv1d.weight [_, 1, _]", &[0, 2, 1])
        .stack("*.mixer.experts.{#}.up_proj.{}", "*.mixer.switch_mlp.fc1.{}")
        .stack("*.mixer.experts.{#}.down_proj.{}", "*.mixer.switch_mlp.fc2.{}")
        .rename("*.mixer.experts.up_proj", "*.mixer.switch_mlp.fc1.weight")
        .rename("*.mixer.experts.down_proj", "*.mixer.switch_mlp.fc2.weight")
}

/// Experts without gates, which may work on fewer features than the model has, and one for all tokens.
#[derive(Debug)]
pub struct Experts {
    gate: Linear,
    correction: Array,
    routing: Routing,
    switch_mlp: SwitchMlp,
    shared_experts: Option<PlainMlp>,
    fc1_latent_proj: Option<Linear>,
    fc2_latent_proj: Option<Linear>,
}

parameters!(Experts {
    gate,
    correction: "gate.e_score_correction_bias",
    switch_mlp,
    shared_experts,
    fc1_latent_proj,
    fc2_latent_proj
});

impl Experts {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (dims, latent) = (args.hidden_size, args.moe_latent_size);
        let (count, hidden) = (args.n_routed_experts.unwrap_or(0), args.moe_intermediate_size.unwrap_or(0));
        let experts = w.pp("switch_mlp");
        let shared = args.n_shared_experts.map(|_| {
            let hidden = args.moe_shared_expert_intermediate_size.unwrap_or(args.intermediate_size);
            PlainMlp::new(&w.pp("shared_experts"), MLP, dims, hidden, Activation::Relu2)
        });
        Ok(Self {
            gate: w.linear("gate", dims, count)?,
            correction: w.get_shaped("gate.e_score_correction_bias", &[count])?,
            routing: args.routing(),
            switch_mlp: SwitchMlp::new(&experts, count, latent.unwrap_or(dims), hidden, Activation::Relu2)?,
            shared_experts: shared.transpose()?,
            fc1_latent_proj: latent.map(|size| w.linear("fc1_latent_proj", dims, size)).transpose()?,
            fc2_latent_proj: latent.map(|size| w.linear("fc2_latent_proj", size, dims)).transpose()?,
        })
    }
}

impl FeedForward for Experts {
    fn forward(&self, x: &Array) -> Result<Array> {
        let (experts, weights) = self.routing.route(&self.gate.forward(x)?, Some(&self.correction))?;
        let through =
            |layer: &Option<Linear>, x: Array| layer.as_ref().map_or(Ok(x.clone()), |l| l.forward(&x));
        let routed = self.switch_mlp.forward(&through(&self.fc1_latent_proj, x.clone())?, &experts)?;
        let routed = through(&self.fc2_latent_proj, weighted_sum(&routed, &weights)?)?;
        match &self.shared_experts {
            Some(shared) => routed + shared.forward(x)?,
            None => Ok(routed),
        }
    }
}

/// The names of the layers of a feed-forward layer.
const MLP: [&str; 2] = ["up_proj", "down_proj"];

/// The model.
pub type Model = Decoder<MixerBlock<Box<dyn Mixer>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.layer_norm_epsilon, args.num_attention_heads);
    let parts = args.parts().unwrap_or_default();
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layer = |i: usize, w: &Weights| {
        let at = w.pp("mixer");
        let mixer: Box<dyn Mixer> = match parts[i] {
            Part::Attention => {
                let head_dim = args.head_dim.unwrap_or(dims / heads);
                Box::new(Attention::new(&at, dims, heads, args.num_key_value_heads, head_dim)?)
            }
            Part::Mamba => {
                let mixer = Mamba2::new(&at, dims, args.sizes(), args.n_groups, eps)?;
                Box::new(mixer.with_time_step(Some([args.time_step_min.unwrap_or(0.001), f32::INFINITY])))
            }
            Part::Mlp => {
                let mlp = PlainMlp::new(&at, MLP, dims, args.intermediate_size, Activation::Relu2)?;
                Box::new(Positionwise { layer: mlp })
            }
            Part::Experts => Box::new(Positionwise { layer: Experts::new(args, &at)? }),
        };
        Ok(MixerBlock { mixer, norm: w.rms_norm("norm", dims, eps)? })
    };
    // A head that is there is used, whatever the config says.
    let (sizes, tied) = ([args.vocab_size, dims], args.tie_word_embeddings.filter(|tied| !tied));
    Decoder::new(w, Names::MAMBA, sizes, tied, norm, parts.len(), layer)
}
