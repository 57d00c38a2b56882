//! MiniMax-01 (MiniMax, "MiniMax-01: Scaling Foundation Models with Lightning Attention", 2025): linear
//! attention, and softmax attention every few layers, with experts.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, BlockNames, Decoder, DecoderLayer, ExpertCount, FeedForward, Mixer, MixerType, Moe, MoeNames,
    Routing, Scoring, Sequence, Sizes, linear_attention, unpadded,
};
use crate::models::stage;
use crate::nn::activations::silu;
use crate::nn::{Linear, RmsNorm, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config, under the names of transformers or those of the first release.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    num_experts_per_tok: i32,
    #[serde(flatten)]
    experts: ExpertCount,
    rotary_dim: Option<i32>,
    /// How many positions a layer that attends sees; `None` for all.
    sliding_window: Option<i32>,
    layer_types: Option<Vec<MixerType>>,
    /// 0 for linear attention.
    attn_type_list: Option<Vec<u8>>,
    #[serde(default = "one", alias = "layernorm_full_attention_alpha")]
    full_attn_alpha_factor: f32,
    #[serde(default = "one", alias = "layernorm_full_attention_beta")]
    full_attn_beta_factor: f32,
    #[serde(default = "one", alias = "layernorm_linear_attention_alpha")]
    linear_attn_alpha_factor: f32,
    #[serde(default = "one", alias = "layernorm_linear_attention_beta")]
    linear_attn_beta_factor: f32,
    #[serde(default = "one", alias = "layernorm_mlp_alpha")]
    mlp_alpha_factor: f32,
    #[serde(default = "one", alias = "layernorm_mlp_beta")]
    mlp_beta_factor: f32,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn one() -> f32 {
    1.0
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let layers = self.sizes.num_hidden_layers;
        let factors =
            [self.factors(true), self.factors(false), [self.mlp_alpha_factor, self.mlp_beta_factor]];
        let width = 3 * i64::from(self.sizes.num_attention_heads) * i64::from(self.sizes.head_dim());
        self.sizes
            .checks("minimax_01")
            .that(factors.as_flattened().iter().all(|f| f.is_finite()), || format!("factors of {factors:?}"))
            .that((1..=1 << 28).contains(&width), || format!("projections to {width} features"))
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .layer_types(layers, self.layer_types.as_deref())
            .layer_types(layers, self.attn_type_list.as_deref())
            .routing(self.experts.get(), &self.routing())
            .done()
    }

    fn routing(&self) -> Routing {
        Routing::new(self.num_experts_per_tok, Scoring::SoftmaxOfChosen)
    }

    fn attends(&self, layer: usize) -> bool {
        match (&self.layer_types, &self.attn_type_list) {
            (Some(types), _) => types[layer] == MixerType::Attention,
            (None, Some(types)) => types[layer] != 0,
            (None, None) => layer.is_multiple_of(2),
        }
    }

    /// Of the residual and of what attention adds, in a layer that attends or one that does not.
    fn factors(&self, attends: bool) -> [f32; 2] {
        match attends {
            true => [self.full_attn_alpha_factor, self.full_attn_beta_factor],
            false => [self.linear_attn_alpha_factor, self.linear_attn_beta_factor],
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let decays = ["slope_rate", "query_decay", "key_decay", "diagonal_decay"];
    let rules = decays.iter().fold(args.sizes.rules(), |rules, name| {
        rules.drop(format!("*.self_attn.{name}"), "computed from the config")
    });
    rules.stack_experts("*.block_sparse_moe.experts", "*.block_sparse_moe.switch_mlp")
}

/// The model.
pub type Model = Decoder<Layer>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (sizes, names) = (&args.sizes, BlockNames::MIXTRAL);
    let (dims, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
    let experts = [args.experts.get(), sizes.intermediate_size];
    sizes.decoder(w, |i, w| {
        let (at, attends) = (w.pp(names.mixer), args.attends(i));
        let self_attn: Box<dyn Mixer> =
            if attends { Box::new(attention(args, &at)?) } else { Box::new(Lightning::new(args, i, &at)?) };
        Ok(Layer {
            self_attn,
            mlp: Moe::new(&w.pp(names.mlp), MoeNames::PLAIN, args.routing(), dims, experts)?,
            input_layernorm: w.rms_norm(names.norm1, dims, eps)?,
            post_attention_layernorm: w.rms_norm(names.norm2, dims, eps)?,
            factors: [args.factors(attends), [args.mlp_alpha_factor, args.mlp_beta_factor]],
        })
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let turning = args.rotary_dim.map_or_else(|| args.rope.dims(args.sizes.head_dim(), 1.0), Ok)?;
    let rope = Some(Rope::new(turning, &args.rope, 1e6)?);
    Ok(Attention { rope, window: args.sliding_window, keeps_all: true, ..args.sizes.attention(w)? })
}

/// A layer whose residuals are what its norms give: `h = alpha n(x) + beta attention(n(x))`, and so on.
#[derive(Debug)]
pub struct Layer {
    self_attn: Box<dyn Mixer>,
    mlp: Moe,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    /// Alpha and beta of both branches.
    factors: [[f32; 2]; 2],
}

parameters!(Layer { self_attn, mlp: "block_sparse_moe", input_layernorm, post_attention_layernorm });

impl DecoderLayer for Layer {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let add = |x: Array, y: Array, [alpha, beta]: [f32; 2]| (x * alpha)? + (y * beta)?;
        let x = self.input_layernorm.forward(x)?;
        let mixed = stage("self_attn", || self.self_attn.forward(&x, masks, cache))?;
        let x = self.post_attention_layernorm.forward(&add(x, mixed, self.factors[0])?)?;
        let fed = stage("mlp", || self.mlp.forward(&x))?;
        add(x, fed, self.factors[1])
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.self_attn.make_cache()
    }
}

/// Lightning attention (Qin et al., "Lightning Attention-2", 2024): linear attention whose heads decay at
/// speeds of their own, which never change.
#[derive(Debug)]
struct Lightning {
    /// To a query, a key and a value for each head.
    qkv_proj: Linear,
    out_proj: Linear,
    output_gate: Linear,
    norm: RmsNorm,
    log_decay: Array,
    heads: i32,
}

parameters!(Lightning { qkv_proj, out_proj, output_gate, norm });

impl Lightning {
    fn new(args: &Args, layer: usize, w: &Weights) -> Result<Self> {
        let (dims, heads) = (args.sizes.hidden_size, args.sizes.num_attention_heads);
        let width = heads * args.sizes.head_dim();
        let last = args.sizes.num_hidden_layers as f64 - 1.0;
        let depth = 1.0 - layer as f64 / (last + 1e-5) + 1e-5;
        let slope = |head: i32| (-8.0 * f64::from(head + 1) / f64::from(heads)).exp2();
        let log_decay: Vec<f32> = (0..heads).map(|head| (-slope(head) * depth) as f32).collect();
        Ok(Self {
            qkv_proj: w.linear("qkv_proj", dims, 3 * width)?,
            out_proj: w.linear("out_proj", width, dims)?,
            output_gate: w.linear("output_gate", dims, width)?,
            norm: w.rms_norm("norm", width, 1e-6)?,
            log_decay: Array::from_slice(&log_decay, &[heads])?,
            heads,
        })
    }
}

impl Mixer for Lightning {
    fn forward(&self, x: &Array, _masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let (batch, length) = (x.dim(0)?, x.dim(1)?);
        let all = unpadded(&silu(&self.qkv_proj.forward(x)?)?, cache)?;
        let all = ops::unflatten(&all, -1, &[self.heads, -1])?;
        let [queries, keys, values] = ops::exactly(ops::split(&all, 3, -1)?)?;
        let log_decay = ops::broadcast_to(&self.log_decay, &[batch, length, self.heads])?;
        let log_decay = &unpadded(&log_decay, cache)?;
        let state = cache.state(0);
        let sequence = Sequence { queries: &queries, keys: &keys, values: &values, log_decay, state };
        let (out, state) = linear_attention(&sequence)?;
        cache.set_state(0, state)?;
        cache.advance(length);
        let out = self.norm.forward(&ops::flatten(&out, -2, -1)?)?;
        self.out_proj.forward(&(ops::sigmoid(&self.output_gate.forward(x)?)? * out)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(1))
    }
}
