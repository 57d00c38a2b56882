//! Llama 4: attention within chunks, every fourth layer to all positions and without rotary ones, and
//! experts whose input is scaled. MobileLLM-R1 is the same without chunks and experts.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::array::Array;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, FeedForward, Mlp, Names, Sizes, SwitchGlu, top_k,
};
use crate::nn::{Linear, Norm, QueryGrowth, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    /// Their `intermediate_size` is that of an expert, and of the layer beside them.
    #[serde(flatten)]
    sizes: Sizes,
    /// Of the layers without experts.
    intermediate_size_mlp: i32,
    #[serde(default)]
    num_local_experts: Option<i32>,
    #[serde(default = "one")]
    num_experts_per_tok: i32,
    moe_layers: Option<Vec<usize>>,
    interleave_moe_layer_step: Option<usize>,
    #[serde(default = "yes")]
    use_qk_norm: bool,
    /// 0 for layers without rotary positions; if empty, as `no_rope_layer_interval` says.
    no_rope_layers: Option<Vec<i32>>,
    no_rope_layer_interval: Option<usize>,
    layer_types: Option<Vec<LayerType>>,
    #[serde(default = "chunk")]
    attention_chunk_size: Option<i32>,
    #[serde(default = "yes", deserialize_with = "truth")]
    attn_temperature_tuning: bool,
    #[serde(default = "floor_scale")]
    floor_scale: f32,
    #[serde(default = "attn_scale")]
    attn_scale: f32,
    #[serde(flatten)]
    rope: RopeConfig,
}

/// What a layer attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LayerType {
    ChunkedAttention,
    FullAttention,
}

fn one() -> i32 {
    1
}

fn yes() -> bool {
    true
}

fn chunk() -> Option<i32> {
    Some(8192)
}

fn floor_scale() -> f32 {
    8192.0
}

fn attn_scale() -> f32 {
    0.1
}

/// Old configs have a number for what newer ones have as a boolean.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Bool(value) => value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        _ => false,
    })
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (experts, top_k) = (self.num_local_experts.unwrap_or(0), self.num_experts_per_tok);
        let (floor, scale, layers) = (self.floor_scale, self.attn_scale, self.sizes.num_hidden_layers);
        self.sizes
            .checks("llama4_text")
            .size("intermediate_size_mlp", self.intermediate_size_mlp)
            .size("attention_chunk_size", self.attention_chunk_size.unwrap_or(1))
            .that((0..=1 << 28).contains(&experts), || format!("`num_local_experts` is {experts}"))
            .that(experts == 0 || (1..=experts).contains(&top_k), || format!("{top_k} of {experts} experts"))
            .that(floor > 0.0 && floor.is_finite(), || format!("`floor_scale` is {floor}"))
            .that(scale.is_finite(), || format!("`attn_scale` is {scale}"))
            .layer_types(layers, self.no_rope_layers.as_deref().filter(|l| !l.is_empty()))
            .layer_types(layers, self.layer_types.as_deref())
            .done()
    }

    fn has_rope(&self, layer: usize) -> bool {
        match self.no_rope_layers.as_deref().filter(|layers| !layers.is_empty()) {
            Some(turn) => turn[layer] != 0,
            None => !(layer + 1).is_multiple_of(self.no_rope_layer_interval.unwrap_or(4)),
        }
    }

    fn has_experts(&self, layer: usize) -> bool {
        self.num_local_experts.unwrap_or(0) > 0
            && match &self.moe_layers {
                Some(layers) => layers.contains(&layer),
                None => (layer + 1).is_multiple_of(self.interleave_moe_layer_step.unwrap_or(1)),
            }
    }

    fn chunk(&self, layer: usize) -> Option<i32> {
        let chunked = match &self.layer_types {
            Some(types) => types[layer] == LayerType::ChunkedAttention,
            None => self.has_rope(layer),
        };
        self.attention_chunk_size.filter(|_| chunked)
    }
}

/// The names: the head is `output`.
const NAMES: Names = Names { head: "output", ..Names::LLAMA };

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    inner_rules(args).rename("lm_head.*", "output.*")
}

/// As [`rules`], for a head of Llama's name.
pub(super) fn inner_rules(args: &Args) -> Rules {
    let parts = ["*.feed_forward.experts.gate_proj.weight", "*.feed_forward.experts.up_proj.weight"];
    let down = "*.feed_forward.experts.down_proj";
    args.sizes
        .rules()
        .transpose("*.feed_forward.experts.gate_up_proj", &[0, 2, 1])
        .split("*.feed_forward.experts.gate_up_proj", &parts, 1, &[])
        .transpose(down, &[0, 2, 1])
        .rename(down, format!("{down}.weight"))
}

/// The model.
pub type Model = Decoder<Block<Attention, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    named(args, w, NAMES, true)
}

/// As [`model`], under other names; `keeps_all`: see [`Attention::keeps_all`].
pub(super) fn named(args: &Args, w: &Weights, names: Names, keeps_all: bool) -> Result<Model> {
    args.check()?;
    args.sizes.named_decoder(w, names, Sizes::norm, |i, w| {
        let names = BlockNames { mlp: "feed_forward", ..BlockNames::LLAMA };
        let attention = Attention { keeps_all, ..attention(args, i, &w.pp(names.mixer))? };
        args.sizes.named_block(w, names, attention, feed_forward(args, i, &w.pp(names.mlp))?)
    })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let turns = args.has_rope(layer);
    let norm = (args.use_qk_norm && turns).then_some(Norm::Plain { eps: args.sizes.rms_norm_eps });
    let rope = RopeConfig { rope_traditional: true, ..args.rope.clone() };
    let growth = || QueryGrowth::from_one(args.attn_scale, args.floor_scale);
    Ok(Attention {
        q_norm: norm.clone(),
        k_norm: norm,
        norms_after_rope: true,
        growth: (args.attn_temperature_tuning && !turns).then(growth),
        rope: turns.then(|| Rope::new(args.sizes.head_dim(), &rope, 500_000.0)).transpose()?,
        chunk: args.chunk(layer),
        ..args.sizes.attention(w)?
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let &Sizes { hidden_size: dims, intermediate_size: hidden, hidden_act: act, .. } = &args.sizes;
    let count = match args.num_local_experts {
        Some(count) if args.has_experts(layer) => count,
        _ => return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size_mlp, act)?)),
    };
    let experts = SwitchGlu::new(&w.pp("experts"), count, dims, hidden)?;
    Ok(Box::new(ScaledInputMoe {
        router: w.linear("router", dims, count)?,
        experts: experts.with(move |gate, x| act.gated(gate, x)),
        shared_expert: Mlp::new(&w.pp("shared_expert"), dims, hidden, act)?,
        top_k: args.num_experts_per_tok,
    }))
}

/// Experts whose input, not output, is scaled by how much they count, and a layer for all tokens.
#[derive(Debug)]
struct ScaledInputMoe {
    router: Linear,
    experts: SwitchGlu,
    shared_expert: Mlp,
    top_k: i32,
}

parameters!(ScaledInputMoe { router, experts, shared_expert });

impl FeedForward for ScaledInputMoe {
    fn forward(&self, x: &Array) -> Result<Array> {
        let logits = self.router.forward(x)?;
        let chosen = ops::stop_gradient(&top_k(&logits, self.top_k)?)?;
        let chosen_logits = ops::take_along_axis(&logits, &chosen, -1)?;
        let scores = ops::sigmoid(&ops::astype(&chosen_logits, crate::Dtype::Float32)?)?;
        let scores = ops::expand_dims(&ops::astype(&scores, x.dtype())?, -1)?;
        // Each token once for each of its experts: `[..., top_k, dims]`.
        let scaled = (ops::expand_dims(x, -2)? * scores)?;
        let routed = self.experts.forward(&scaled, &ops::expand_dims(&chosen, -1)?)?;
        ops::sum(&routed, [-3, -2], false)? + self.shared_expert.forward(x)?
    }
}
