//! RecurrentGemma: gated linear recurrences with some layers of local attention (De et al., "Griffin",
//! 2024).

use serde::Deserialize;

use crate::array::{Array, Dtype};
use crate::cache::{LayerCache, Masks, Offset};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, BlockNames, CausalConv, Decoder, HybridBlock, LogitsScale, Mixer, MixerType, Mlp, Names,
    diagonal_scan, unpadded,
};
use crate::nn::activations::{Activation, gelu_tanh, softplus};
use crate::nn::{Linear, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    head_dim: Option<i32>,
    lru_width: Option<i32>,
    #[serde(default = "four")]
    conv1d_width: i32,
    /// `null` for logits that nothing bends.
    #[serde(default = "default_cap")]
    logits_soft_cap: Option<f32>,
    rms_norm_eps: f32,
    attention_window_size: i32,
    block_types: Option<Vec<MixerType>>,
    #[serde(rename = "_block_types")]
    older_block_types: Option<Vec<MixerType>>,
    #[serde(default = "yes")]
    embeddings_scale_by_sqrt_dim: bool,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn four() -> i32 {
    4
}

fn default_cap() -> Option<f32> {
    Some(30.0)
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (width, heads) = (self.width(), self.num_attention_heads);
        Checks::new("recurrent_gemma")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("lru_width", width)
            .size("conv1d_width", self.conv1d_width)
            .size("attention_window_size", self.attention_window_size)
            .heads(heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .that(width.checked_rem(heads) == Some(0), || format!("`lru_width` {width} in {heads} heads"))
            .that(!self.types().is_empty(), || "no `block_types`".into())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn width(&self) -> i32 {
        self.lru_width.unwrap_or(self.hidden_size)
    }

    /// What the layers are, again and again.
    fn types(&self) -> &[MixerType] {
        self.block_types.as_deref().or(self.older_block_types.as_deref()).unwrap_or_default()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new().transpose("*.conv_1d.weight [_, 1, _]", &[0, 2, 1]).tied_head(args.tie_word_embeddings)
}

/// The gated linear recurrent unit: each channel decays as its gate says.
#[derive(Debug)]
pub struct GatedLru {
    recurrent_param: Array,
    input_gate_weight: Array,
    input_gate_bias: Array,
    recurrent_gate_weight: Array,
    recurrent_gate_bias: Array,
}

parameters!(GatedLru {
    recurrent_param,
    input_gate_weight,
    input_gate_bias,
    recurrent_gate_weight,
    recurrent_gate_bias
});

impl GatedLru {
    fn new(w: &Weights, heads: i32, width: i32) -> Result<Self> {
        let dims = width / heads;
        let (weight, bias) = ([heads, dims, dims], [heads, dims]);
        Ok(Self {
            recurrent_param: w.get_shaped("recurrent_param", &[width])?,
            input_gate_weight: w.get_shaped("input_gate_weight", &weight)?,
            input_gate_bias: w.get_shaped("input_gate_bias", &bias)?,
            recurrent_gate_weight: w.get_shaped("recurrent_gate_weight", &weight)?,
            recurrent_gate_bias: w.get_shaped("recurrent_gate_bias", &bias)?,
        })
    }

    /// The sigmoid of a linear layer for each head, `[batch, length, width]`.
    fn gate(x: &Array, weight: &Array, bias: &Array) -> Result<Array> {
        let by_head = ops::unflatten(x, -1, bias.shape())?;
        let out = ops::swapaxes(&ops::matmul(&ops::swapaxes(&by_head, 1, 2)?, weight)?, 1, 2)?;
        ops::sigmoid(&ops::flatten(&(out + bias)?, -2, -1)?)
    }

    /// `[batch, length, width]` to the same shape, continuing state number 1 of the cache.
    fn forward(&self, x: &Array, cache: &mut LayerCache) -> Result<Array> {
        let &[batch, length, width] = x.shape() else {
            return Err(crate::Error::argument("recurrent_gemma", format!("shape {:?}", x.shape())));
        };
        let float = |x: &Array| ops::astype(x, Dtype::Float32);
        let input = Self::gate(x, &self.input_gate_weight, &self.input_gate_bias)?;
        let decay = float(&Self::gate(x, &self.recurrent_gate_weight, &self.recurrent_gate_bias)?)?;
        let log_decay = ((decay * softplus(&float(&self.recurrent_param)?)?)? * -8.0)?;
        // What a step adds is scaled so that the variance stays; the first one adds all.
        let mut scale = ops::sqrt(&(1.0 - ops::exp(&(&log_decay * 2.0)?)?)?)?;
        let offset = cache.offset();
        if !matches!(offset, Offset::All(1..)) {
            let first = ops::equal(&offset.positions(length)?, 0)?;
            scale = ops::where_(&ops::expand_dims(&first, -1)?, 1.0, &scale)?;
        }
        let state = match cache.state(1) {
            Some(state) => float(state)?,
            None => ops::zeros(&[batch, width], Dtype::Float32)?,
        };
        let added = unpadded(&(float(&(x * input)?)? * scale)?, cache)?;
        let (states, last) = diagonal_scan(&unpadded(&log_decay, cache)?, &added, &state)?;
        cache.set_state(1, last)?;
        ops::astype(&states, x.dtype())
    }
}

/// The recurrent branch: a convolution and a [`GatedLru`], times a gate.
#[derive(Debug)]
pub struct Recurrence {
    linear_x: Linear,
    linear_y: Linear,
    linear_out: Linear,
    conv_1d: CausalConv,
    rg_lru: GatedLru,
}

parameters!(Recurrence { linear_x, linear_y, linear_out, conv_1d, rg_lru });

impl Mixer for Recurrence {
    fn forward(&self, x: &Array, _masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let gate = gelu_tanh(&self.linear_y.forward(x)?)?;
        let mixed = self.conv_1d.forward(&self.linear_x.forward(x)?, cache, 0)?;
        let mixed = self.rg_lru.forward(&mixed, cache)?;
        cache.advance(x.dim(1)?);
        self.linear_out.forward(&(mixed * gate)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(2))
    }
}

/// The model.
pub type Model = Decoder<HybridBlock>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.rms_norm_eps, args.num_attention_heads);
    let head_dim = args.head_dim.unwrap_or(dims / heads);
    let rope = Rope::new(args.rope.dims(head_dim, 0.5)?, &args.rope, 10_000.0)?;
    let types = args.types();
    let names = BlockNames {
        mixer: "temporal_block",
        mlp: "mlp_block",
        norm1: "temporal_pre_norm",
        norm2: "channel_pre_norm",
    };
    let layer = |i: usize, w: &Weights| {
        let at = w.pp(names.mixer);
        let mixer: Box<dyn Mixer> = match types[i % types.len()] {
            MixerType::Attention => Box::new(Attention {
                rope: Some(rope.clone()),
                window: Some(args.attention_window_size),
                ..Attention::new(&at, dims, heads, args.kv_heads(), head_dim)?
            }),
            MixerType::Recurrence => Box::new(Recurrence {
                linear_x: at.linear("linear_x", dims, args.width())?,
                linear_y: at.linear("linear_y", dims, args.width())?,
                linear_out: at.linear("linear_out", args.width(), dims)?,
                conv_1d: at.causal_conv("conv_1d", args.width(), args.conv1d_width)?,
                rg_lru: GatedLru::new(&at.pp("rg_lru"), heads, args.width())?,
            }),
        };
        let mlp = Mlp::new(&w.pp(names.mlp), dims, args.intermediate_size / 2, Activation::GeluTanh)?;
        let [norm1, norm2] =
            [w.shifted_norm(names.norm1, dims, eps)?, w.shifted_norm(names.norm2, dims, eps)?];
        Ok(HybridBlock { names, ..HybridBlock::new(mixer, Box::new(mlp), norm1, norm2) })
    };
    let norm = |name: &str| w.shifted_norm(name, dims, eps);
    let sizes = [args.vocab_size, dims];
    let names = Names { norm: "model.final_norm", ..Names::LLAMA };
    let decoder =
        Decoder::new(w, names, sizes, args.tie_word_embeddings, norm, args.num_hidden_layers, layer)?;
    // The source keeps the factor in bfloat16.
    let scale = half::bf16::from_f32((dims as f32).sqrt()).to_f32();
    let cap = args.logits_soft_cap.filter(|&cap| cap != 0.0);
    Ok(Decoder {
        embed_scale: args.embeddings_scale_by_sqrt_dim.then_some(scale),
        logits: LogitsScale { cap, ..LogitsScale::default() },
        ..decoder
    })
}
