//! RWKV-7 (Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", 2025).

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{Cache, LayerCache};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{unpadded, wkv};
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::activations::{Activation, relu2};
use crate::nn::{Embedding, LayerNorm, Linear};
use crate::{fast, ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    vocab_size: i32,
    hidden_size: i32,
    intermediate_size: i32,
    norm_eps: f32,
    head_dim: i32,
    num_hidden_layers: usize,
    a_low_rank_dim: i32,
    v_low_rank_dim: i32,
    gate_low_rank_dim: i32,
    decay_low_rank_dim: i32,
    #[serde(default)]
    tie_word_embeddings: bool,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (dims, head_dim) = (self.hidden_size, self.head_dim);
        Checks::new("rwkv7")
            .size("vocab_size", self.vocab_size)
            .size("hidden_size", dims)
            .size("intermediate_size", self.intermediate_size)
            .size("head_dim", head_dim)
            .size("a_low_rank_dim", self.a_low_rank_dim)
            .size("v_low_rank_dim", self.v_low_rank_dim)
            .size("gate_low_rank_dim", self.gate_low_rank_dim)
            .size("decay_low_rank_dim", self.decay_low_rank_dim)
            .that(dims.checked_rem(head_dim) == Some(0), || format!("{dims} features in heads of {head_dim}"))
            .eps("norm_eps", self.norm_eps)
            .done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let by_head = [-1, args.head_dim];
    ["k_k", "k_a", "r_k", "g_norm.weight", "g_norm.bias"]
        .into_iter()
        .fold(Rules::new(), |rules, name| rules.reshape(&format!("*.attn.{name}"), &by_head))
        .tied_head(args.tie_word_embeddings)
}

/// Two layers through a few features.
#[derive(Debug)]
struct LowRank {
    down: Linear,
    up: Linear,
    act: Option<Activation>,
}

parameters!(LowRank { down: "lora.0", up: "lora.2" });

impl LowRank {
    fn new(w: &Weights, dims: i32, rank: i32, act: Option<Activation>) -> Result<Self> {
        Ok(Self { down: w.linear("lora.0", dims, rank)?, up: w.linear("lora.2", rank, dims)?, act })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let hidden = self.down.forward(x)?;
        self.up.forward(&self.act.map_or(Ok(hidden.clone()), |act| act.apply(&hidden))?)
    }
}

/// What each position had before it, with the last one kept as state number `slot`.
fn shifted(x: &Array, cache: &mut LayerCache, slot: usize) -> Result<Array> {
    let x = &unpadded(x, cache)?;
    let before = match cache.state(slot) {
        Some(state) => state.clone(),
        None => ops::zeros_like(&x.index((.., ..1))?)?,
    };
    cache.set_state(slot, x.index((.., -1..))?)?;
    ops::concatenate([&before, &x.index((.., ..-1))?], 1)
}

/// Mixes positions.
#[derive(Debug)]
struct TimeMixing {
    x_r: Array,
    x_w: Array,
    x_k: Array,
    x_v: Array,
    x_a: Array,
    x_g: Array,
    k_k: Array,
    k_a: Array,
    r_k: Array,
    r_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    g_weight: Array,
    g_bias: Array,
    w_lora: LowRank,
    v_lora: Option<LowRank>,
    a_lora: LowRank,
    g_lora: LowRank,
}

parameters!(TimeMixing {
    x_r,
    x_w,
    x_k,
    x_v,
    x_a,
    x_g,
    k_k,
    k_a,
    r_k,
    r_proj,
    k_proj,
    v_proj,
    o_proj,
    g_weight: "g_norm.weight",
    g_bias: "g_norm.bias",
    w_lora,
    v_lora,
    a_lora,
    g_lora
});

impl TimeMixing {
    fn new(args: &Args, layer: usize, w: &Weights) -> Result<Self> {
        let dims = args.hidden_size;
        let heads = [dims / args.head_dim, args.head_dim];
        let share = |name| w.get_shaped(name, &[1, 1, dims]);
        let of_heads = |name| w.get_shaped(name, &heads);
        let linear = |name| w.linear(name, dims, dims);
        let low_rank = |name, rank, act| LowRank::new(&w.pp(name), dims, rank, act);
        let v_lora = (layer > 0).then(|| low_rank("v_lora", args.v_low_rank_dim, None)).transpose()?;
        Ok(Self {
            x_r: share("x_r")?,
            x_w: share("x_w")?,
            x_k: share("x_k")?,
            x_v: share("x_v")?,
            x_a: share("x_a")?,
            x_g: share("x_g")?,
            k_k: of_heads("k_k")?,
            k_a: of_heads("k_a")?,
            r_k: of_heads("r_k")?,
            r_proj: linear("r_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            o_proj: linear("o_proj")?,
            g_weight: of_heads("g_norm.weight")?,
            g_bias: of_heads("g_norm.bias")?,
            w_lora: low_rank("w_lora", args.decay_low_rank_dim, Some(Activation::Tanh))?,
            v_lora,
            a_lora: low_rank("a_lora", args.a_low_rank_dim, None)?,
            g_lora: low_rank("g_lora", args.gate_low_rank_dim, Some(Activation::Sigmoid))?,
        })
    }

    /// `first` are the values of the first layer, which this sets if it is the first.
    fn forward(&self, x: &Array, first: &mut Option<Array>, cache: &mut LayerCache) -> Result<Array> {
        // Of each head's output; the source has it fixed.
        const EPS: f32 = 64e-5;
        let before = (shifted(x, cache, 0)? - x)?;
        let mix = |share: &Array| x + (&before * share)?;
        let by_head = |x: &Array| ops::unflatten(x, -1, self.k_k.shape());
        let xv = mix(&self.x_v)?;
        let r = by_head(&self.r_proj.forward(&mix(&self.x_r)?)?)?;
        let k = by_head(&self.k_proj.forward(&mix(&self.x_k)?)?)?;
        let mut v = by_head(&self.v_proj.forward(&xv)?)?;
        let rate = by_head(&ops::sigmoid(&self.a_lora.forward(&mix(&self.x_a)?)?)?)?;
        let gate = self.g_lora.forward(&mix(&self.x_g)?)?;
        match (&self.v_lora, &*first) {
            (Some(lora), Some(first)) => {
                let share = by_head(&ops::sigmoid(&lora.forward(&xv)?)?)?;
                v = (&v + ((first - &v)? * share)?)?;
            }
            _ => *first = Some(v.clone()),
        }
        // -exp(-1/2): the fastest decay.
        let decay = ops::sigmoid(&self.w_lora.forward(&mix(&self.x_w)?)?)? * -0.606531;
        let decay = unpadded(&by_head(&decay?)?, cache)?;
        let direction = (&k * &self.k_k)?;
        let length = ops::sqrt(&ops::sum(&ops::square(&direction)?, -1, true)?)?;
        let direction = (direction / ops::maximum(&length, 1e-7)?)?;
        let k = (k * (((&rate - 1.0)? * &self.k_a)? + 1.0)?)?;
        let (a, b) = (ops::negative(&direction)?, unpadded(&(direction * rate)?, cache)?);
        let (out, state) = wkv([&r, &decay, &unpadded(&k, cache)?, &v, &a, &b], cache.state(1))?;
        cache.set_state(1, state)?;
        let out = ((fast::layer_norm(&out, None, None, EPS)? * &self.g_weight)? + &self.g_bias)?;
        let bonus = (ops::sum(&((r * k)? * &self.r_k)?, -1, true)? * v)?;
        self.o_proj.forward(&(ops::flatten(&(out + bonus)?, -2, -1)? * gate)?)
    }
}

/// Works on each position and the one before it.
#[derive(Debug)]
struct ChannelMixing {
    x_k: Array,
    key: Linear,
    value: Linear,
}

parameters!(ChannelMixing { x_k, key, value });

impl ChannelMixing {
    fn forward(&self, x: &Array, cache: &mut LayerCache) -> Result<Array> {
        let mixed = (x + ((shifted(x, cache, 2)? - x)? * &self.x_k)?)?;
        self.value.forward(&relu2(&self.key.forward(&mixed)?)?)
    }
}

#[derive(Debug)]
struct Layer {
    pre_norm: Option<LayerNorm>,
    attn: TimeMixing,
    ffn: ChannelMixing,
    attn_norm: LayerNorm,
    ffn_norm: LayerNorm,
}

parameters!(Layer { pre_norm, attn, ffn, attn_norm, ffn_norm });

impl Layer {
    fn forward(&self, x: &Array, first: &mut Option<Array>, cache: &mut LayerCache) -> Result<Array> {
        let x = self.pre_norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(x))?;
        let normed = self.attn_norm.forward(&x)?;
        let h = (x + stage("attn", || self.attn.forward(&normed, first, cache))?)?;
        let normed = self.ffn_norm.forward(&h)?;
        let fed = stage("ffn", || self.ffn.forward(&normed, cache))?;
        cache.advance(h.dim(1)?);
        h + fed
    }
}

/// The model.
#[derive(Debug)]
pub struct Model {
    embeddings: Embedding,
    layers: Vec<Layer>,
    norm: LayerNorm,
    lm_head: Option<Linear>,
    vocab_size: i32,
}

parameters!(Model { embeddings: "model.embeddings", layers: "model.layers", norm: "model.norm", lm_head });

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.norm_eps);
    let layer = |i: usize| {
        let w = w.pp("model.layers").pp(i);
        let (attn, ffn) = (w.pp("attn"), w.pp("ffn"));
        Ok(Layer {
            pre_norm: (i == 0).then(|| w.layer_norm("pre_norm", dims, eps)).transpose()?,
            attn: TimeMixing::new(args, i, &attn)?,
            ffn: ChannelMixing {
                x_k: ffn.get_shaped("x_k", &[dims])?,
                key: ffn.linear("key", dims, args.intermediate_size)?,
                value: ffn.linear("value", args.intermediate_size, dims)?,
            },
            attn_norm: w.layer_norm("attn_norm", dims, eps)?,
            ffn_norm: w.layer_norm("ffn_norm", dims, eps)?,
        })
    };
    let tied = args.tie_word_embeddings;
    Ok(Model {
        embeddings: w.embedding("model.embeddings", args.vocab_size, dims)?,
        layers: (0..args.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        norm: w.layer_norm("model.norm", dims, eps)?,
        lm_head: (!tied).then(|| w.linear("lm_head", dims, args.vocab_size)).transpose()?,
        vocab_size: args.vocab_size,
    })
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        stage("embeddings", || self.embeddings.forward(tokens))
    }

    fn forward_embeddings(&self, embeddings: &Array, _tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let (mut h, mut first) = (embeddings.clone(), None);
        let caches = cache.layers_mut(self.layers.len())?.iter_mut();
        for (i, (layer, cache)) in self.layers.iter().zip(caches).enumerate() {
            h = stage(format_args!("layers.{i}"), || layer.forward(&h, &mut first, cache))?;
        }
        let h = stage("norm", || self.norm.forward(&h))?;
        stage("logits", || match &self.lm_head {
            Some(head) => head.forward(&h),
            None => self.embeddings.as_linear(&h),
        })
    }

    fn make_cache(&self) -> Cache {
        Cache::new(self.layers.iter().map(|_| LayerCache::states(3)))
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn vocab_size(&self) -> i32 {
        self.vocab_size
    }
}
