//! PLaMo 2: Mamba-2 and attention in turn, in layers as PLaMo 3 has them.

use serde::Deserialize;

use super::plamo3::Block;
use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, CausalConv, Decoder, Mamba2Sizes, Mixer, Names, Qkv, StateHeads, attend,
    merge_heads,
};
use crate::nn::activations::silu;
use crate::nn::{Linear, Rope, RopeConfig};
use crate::{fast, ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    hidden_size_per_head: i32,
    rms_norm_eps: f32,
    vocab_size: i32,
    tie_word_embeddings: bool,
    mamba_enabled: bool,
    mamba_step: usize,
    mamba_num_heads: i32,
    mamba_d_state: i32,
    mamba_d_conv: i32,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            hidden_size: 4096,
            num_hidden_layers: 32,
            intermediate_size: 13_312,
            num_attention_heads: 32,
            num_key_value_heads: 4,
            hidden_size_per_head: 128,
            rms_norm_eps: 1e-6,
            vocab_size: 32_000,
            tie_word_embeddings: true,
            mamba_enabled: true,
            mamba_step: 2,
            mamba_num_heads: 64,
            mamba_d_state: 64,
            mamba_d_conv: 4,
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let head_dim = Some(self.hidden_size_per_head);
        let checks = Checks::new("plamo2")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .that(self.mamba_step > 1, || format!("`mamba_step` is {}", self.mamba_step))
            .heads(self.num_attention_heads, self.num_key_value_heads, head_dim, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps);
        self.sizes().check(checks).done()
    }

    fn sizes(&self) -> Mamba2Sizes {
        Mamba2Sizes {
            heads: self.mamba_num_heads,
            head_dim: self.hidden_size_per_head,
            groups: 1,
            state: self.mamba_d_state,
            kernel: self.mamba_d_conv,
        }
    }

    fn attends(&self, layer: usize) -> bool {
        let half = self.mamba_step / 2;
        let last = layer + 1 == self.num_hidden_layers;
        let turn = if self.num_hidden_layers <= half { last } else { layer % self.mamba_step == half };
        turn || !self.mamba_enabled
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new().transpose("*.conv1d.weight [_, 1, _]", &[0, 2, 1]).tied_head(args.tie_word_embeddings)
}

/// Mamba-2 whose time steps, and what states are written and read with, come from what the convolution
/// gives, each with a norm.
#[derive(Debug)]
struct Mamba {
    in_proj: Linear,
    conv1d: CausalConv,
    bcdt_proj: Linear,
    dt_proj: Linear,
    heads: StateHeads,
    b_norm: Array,
    c_norm: Array,
    dt_norm: Array,
    out_proj: Linear,
    sizes: Mamba2Sizes,
    eps: f32,
}

parameters!(Mamba {
    in_proj,
    conv1d,
    bcdt_proj,
    dt_proj,
    heads: "",
    b_norm: "B_norm_weight",
    c_norm: "C_norm_weight",
    dt_norm: "dt_norm_weight",
    out_proj
});

impl Mamba {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (dims, sizes) = (args.hidden_size, args.sizes());
        let (width, state, rank) = (sizes.width(), sizes.state, (dims / 16).max(64));
        Ok(Self {
            in_proj: w.linear("in_proj", dims, 2 * width)?,
            conv1d: w.causal_conv("conv1d", width, sizes.kernel)?,
            bcdt_proj: w.linear("bcdt_proj", width, rank + 2 * state)?,
            dt_proj: w.linear("dt_proj", rank, sizes.heads)?,
            heads: StateHeads::new(w, sizes.heads)?,
            b_norm: w.get_shaped("B_norm_weight", &[state])?,
            c_norm: w.get_shaped("C_norm_weight", &[state])?,
            dt_norm: w.get_shaped("dt_norm_weight", &[rank])?,
            out_proj: w.linear("out_proj", width, dims)?,
            sizes,
            eps: args.rms_norm_eps,
        })
    }
}

impl Mixer for Mamba {
    fn forward(&self, x: &Array, _masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let Mamba2Sizes { heads, head_dim, state, .. } = self.sizes;
        // For each head its gates, then its values.
        let both = ops::unflatten(&self.in_proj.forward(x)?, -1, &[heads, 2, head_dim])?;
        let part = |i: i32| ops::flatten(&both.index((.., .., .., i))?, -2, -1);
        let values = silu(&self.conv1d.forward(&part(1)?, cache, 0)?)?;
        let parts = ops::split(&self.bcdt_proj.forward(&values)?, [state, 2 * state], -1)?;
        let norm = |i: usize, weight: &Array| fast::rms_norm(&parts[i], Some(weight), self.eps);
        let group = |x: Array| ops::expand_dims(&x, -2);
        let (keys, queries) = (group(norm(0, &self.b_norm)?)?, group(norm(1, &self.c_norm)?)?);
        let dt = self.dt_proj.forward(&norm(2, &self.dt_norm)?)?;
        let values = ops::unflatten(&values, -1, &[heads, head_dim])?;
        let out = self.heads.forward(&values, &dt, [&keys, &queries], cache)?;
        self.out_proj.forward(&(ops::astype(&out, x.dtype())? * silu(&part(0)?)?)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(2))
    }
}

/// Attention whose queries and keys are normed with factors of each head's own.
#[derive(Debug)]
struct NormedAttention {
    attention: Attention,
    q_weight: Array,
    k_weight: Array,
}

parameters!(NormedAttention { attention: "", q_weight, k_weight });

impl NormedAttention {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (heads, kv_heads) = (args.num_attention_heads, args.num_key_value_heads);
        let head_dim = args.hidden_size_per_head;
        let (names, sizes) = (AttentionNames::fused("qkv_proj", "o_proj"), [heads, kv_heads, head_dim]);
        Ok(Self {
            attention: Attention {
                rope: Some(Rope::new(head_dim, &RopeConfig::default(), 10_000.0)?),
                ..Attention::fused(w, names, Qkv::Joined, args.hidden_size, sizes)?
            },
            q_weight: w.get_shaped("q_weight", &[heads, head_dim])?,
            k_weight: w.get_shaped("k_weight", &[kv_heads, head_dim])?,
        })
    }
}

impl Mixer for NormedAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let mask = masks.of(cache, None)?;
        let [queries, keys, values] = self.attention.project(x)?;
        let place = |x: &Array, weight: &Array| {
            let x = (fast::rms_norm(x, None, 1e-6)? * ops::expand_dims(weight, 1)?)?;
            self.attention.turn(&x, cache)
        };
        let (queries, keys) = (place(&queries, &self.q_weight)?, place(&keys, &self.k_weight)?);
        let seen = cache.update(&keys, &values)?;
        let heads = attend(&queries, &seen, self.attention.scale, &mask, None)?;
        self.attention.o_proj.forward(&merge_heads(&heads)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::kv())
    }
}

/// The model.
pub type Model = Decoder<Block<Box<dyn Mixer>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let names = Names { layers: "model.layers.layers", ..Names::LLAMA };
    let norm = |name: &str| w.shifted_norm(name, dims, eps);
    let (sizes, tied) = ([args.vocab_size, dims], Some(args.tie_word_embeddings));
    Decoder::new(w, names, sizes, tied, norm, args.num_hidden_layers, |i, w| {
        let at = w.pp("mixer");
        let mixer: Box<dyn Mixer> = match args.attends(i) {
            true => Box::new(NormedAttention::new(args, &at)?),
            false => Box::new(Mamba::new(args, &at)?),
        };
        Block::new(w, mixer, [dims, args.intermediate_size], eps)
    })
}
