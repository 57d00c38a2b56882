//! OLMo Hybrid: gated delta nets with some layers of OLMo 2's attention.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, BlockNames, CausalConv, Decoder, DecoderLayer, GatedDeltaSizes, Mixer, MixerType, Sandwich,
    Sequence, Sizes, gated_delta, gated_norm, log_decay, sandwich, unit_length, unpadded,
};
use crate::nn::{Linear, RmsNorm, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    linear_num_key_heads: i32,
    linear_num_value_heads: i32,
    linear_key_head_dim: i32,
    linear_value_head_dim: i32,
    linear_conv_kernel_dim: i32,
    #[serde(default = "yes")]
    linear_allow_neg_eigval: bool,
    layer_types: Option<Vec<MixerType>>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let layers = self.sizes.num_hidden_layers;
        let checks = self.sizes.checks("olmo_hybrid").layer_types(layers, self.layer_types.as_deref());
        self.delta_sizes().check(checks).done()
    }

    fn delta_sizes(&self) -> GatedDeltaSizes {
        GatedDeltaSizes {
            key_heads: self.linear_num_key_heads,
            heads: self.linear_num_value_heads,
            key_dim: self.linear_key_head_dim,
            value_dim: self.linear_value_head_dim,
            kernel: self.linear_conv_kernel_dim,
        }
    }

    fn attends(&self, layer: usize) -> bool {
        match &self.layer_types {
            Some(types) => types[layer] == MixerType::Attention,
            None => layer % 4 == 3,
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes
        .rules()
        .rename("*.attention_layer_norm.{}", "*.input_layernorm.{}")
        .rename("*.feedforward_layer_norm.{}", "*.post_attention_layernorm.{}")
        .transpose("*_conv1d.weight [_, 1, _]", &[0, 2, 1])
}

/// A gated delta net with a projection and a convolution of its own for queries, keys and values.
#[derive(Debug)]
pub struct DeltaNet {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    a_proj: Linear,
    b_proj: Linear,
    g_proj: Linear,
    o_proj: Linear,
    q_conv1d: CausalConv,
    k_conv1d: CausalConv,
    v_conv1d: CausalConv,
    a_log: Array,
    dt_bias: Array,
    o_norm: RmsNorm,
    sizes: GatedDeltaSizes,
    /// 2 if a correction may go beyond what is wrong, else 1.
    reach: f32,
}

parameters!(DeltaNet {
    q_proj,
    k_proj,
    v_proj,
    a_proj,
    b_proj,
    g_proj,
    o_proj,
    q_conv1d,
    k_conv1d,
    v_conv1d,
    a_log: "A_log",
    dt_bias,
    o_norm
});

impl DeltaNet {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        // transformers has it fixed.
        const EPS: f32 = 1e-5;
        let (dims, sizes) = (args.sizes.hidden_size, args.delta_sizes());
        let (keys, values, heads, kernel) = (sizes.keys(), sizes.values(), sizes.heads, sizes.kernel);
        Ok(Self {
            q_proj: w.linear("q_proj", dims, keys)?,
            k_proj: w.linear("k_proj", dims, keys)?,
            v_proj: w.linear("v_proj", dims, values)?,
            a_proj: w.linear("a_proj", dims, heads)?,
            b_proj: w.linear("b_proj", dims, heads)?,
            g_proj: w.linear("g_proj", dims, values)?,
            o_proj: w.linear("o_proj", values, dims)?,
            q_conv1d: w.causal_conv("q_conv1d", keys, kernel)?,
            k_conv1d: w.causal_conv("k_conv1d", keys, kernel)?,
            v_conv1d: w.causal_conv("v_conv1d", values, kernel)?,
            a_log: w.get_shaped("A_log", &[heads])?,
            dt_bias: w.get_shaped("dt_bias", &[heads])?,
            o_norm: w.rms_norm("o_norm", sizes.value_dim, EPS)?,
            sizes,
            reach: if args.linear_allow_neg_eigval { 2.0 } else { 1.0 },
        })
    }
}

impl Mixer for DeltaNet {
    fn forward(&self, x: &Array, _masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let GatedDeltaSizes { key_heads, heads, key_dim, value_dim, .. } = self.sizes;
        let mut mixed = |proj: &Linear, conv: &CausalConv, slot, heads: i32, dims: i32| {
            let x = conv.forward_silu(&proj.forward(x)?, cache, slot)?;
            ops::unflatten(&x, -1, &[heads, dims])
        };
        let q = unit_length(&mixed(&self.q_proj, &self.q_conv1d, 0, key_heads, key_dim)?)?;
        let k = unit_length(&mixed(&self.k_proj, &self.k_conv1d, 1, key_heads, key_dim)?)?;
        let v = mixed(&self.v_proj, &self.v_conv1d, 2, heads, value_dim)?;
        let q = (q * (key_dim as f32).powf(-0.5))?;
        let decay = unpadded(&log_decay(&self.a_proj.forward(x)?, &self.a_log, &self.dt_bias)?, cache)?;
        let beta = unpadded(&(ops::sigmoid(&self.b_proj.forward(x)?)? * self.reach)?, cache)?;
        let state = cache.state(3);
        let sequence = Sequence { queries: &q, keys: &k, values: &v, log_decay: &decay, state };
        let (out, state) = gated_delta(&sequence, &beta)?;
        cache.set_state(3, state)?;
        cache.advance(x.dim(1)?);
        let gate = ops::unflatten(&self.g_proj.forward(x)?, -1, &[heads, value_dim])?;
        self.o_proj.forward(&ops::flatten(&gated_norm(&self.o_norm, &out, &gate)?, -2, -1)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(4))
    }
}

/// The model.
pub type Model = Decoder<Box<dyn DecoderLayer>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (sizes, head_dim) = (&args.sizes, args.sizes.head_dim());
    // A config without a base, where one belongs, has no positions; a missing one was filled in.
    let turns = args.rope.rope_parameters.as_ref().map_or(args.rope.rope_theta, |p| p.rope_theta).is_some();
    let rope = turns.then(|| Rope::new(head_dim, &args.rope, 10_000.0)).transpose()?;
    sizes.decoder(w, |i, w| -> Result<Box<dyn DecoderLayer>> {
        let mlp = sizes.mlp(&w.pp("mlp"))?;
        if args.attends(i) {
            let at = w.pp("self_attn");
            let attention = Attention {
                q_norm: sizes.heads_norm(&at, "q_norm", sizes.num_attention_heads)?,
                k_norm: sizes.heads_norm(&at, "k_norm", sizes.kv_heads())?,
                norms_all_heads: true,
                rope: rope.clone(),
                ..sizes.attention(&at)?
            };
            let norm = |name: &str| sizes.norm(w, name);
            return Ok(Box::new(Sandwich::new(attention, mlp, sandwich::AFTER, norm)?));
        }
        let names = BlockNames { mixer: "linear_attn", ..BlockNames::LLAMA };
        let mixer = DeltaNet::new(args, &w.pp(names.mixer))?;
        Ok(Box::new(sizes.named_block(w, names, mixer, mlp)?))
    })
}
