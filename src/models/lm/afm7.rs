//! AFM 7B (Apple, "Apple Intelligence Foundation Language Models Tech Report 2025"): keys and values
//! rounded to 8 bits, and a second part of layers that all attend to those of the last layer before.

use serde::Deserialize;

use crate::array::{Array, Dtype};
use crate::cache::{Cache, KeysValues, LayerCache, Mask, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::{Error, Result};
use crate::models::blocks::{
    Attention, AttentionNames, FeedForward, Mlp, Qkv, attend, merge_heads, split_heads,
};
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::activations::Activation;
use crate::nn::{Embedding, Linear, RmsNorm, Rope, RopeConfig};
use crate::{ops, parameters};

/// The eps of the norms of queries and keys.
const HEAD_EPS: f32 = 1e-5;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_dim: i32,
    num_layers: usize,
    num_kv_reuse_layers: usize,
    num_heads: i32,
    num_kv_heads: i32,
    hidden_dim_scale_factor: Option<f64>,
    rms_norm_eps: Option<f32>,
    vocab_size: i32,
    rope_theta: Option<f64>,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (layers, reusing) = (self.num_layers, self.num_kv_reuse_layers);
        Checks::new("afm7")
            .size("hidden_dim", self.hidden_dim)
            .size("hidden_dim_scale_factor", self.hidden())
            .size("vocab_size", self.vocab_size)
            .heads(self.num_heads, self.num_kv_heads, None, self.hidden_dim)
            .eps("rms_norm_eps", self.eps())
            .that(reusing < layers, || format!("{reusing} of {layers} layers take the keys of another"))
            .done()
    }

    fn eps(&self) -> f32 {
        self.rms_norm_eps.unwrap_or(1e-5)
    }

    fn hidden(&self) -> i32 {
        (f64::from(self.hidden_dim) * self.hidden_dim_scale_factor.unwrap_or(3.25)) as i32
    }

    fn rope(&self) -> Result<Rope> {
        let config = RopeConfig { rope_traditional: true, ..RopeConfig::default() };
        Rope::new(self.hidden_dim / self.num_heads, &config, self.rope_theta.unwrap_or(50_000.0))
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new()
}

/// A layer with keys and values of its own.
#[derive(Debug)]
struct Block {
    self_attn: Attention,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    quant_key_scale: Array,
    quant_value_scale: Array,
    rest: Rest,
}

parameters!(Block {
    self_attn,
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    quant_key_scale: "self_attn.quant_key_scale",
    quant_value_scale: "self_attn.quant_value_scale",
    rest: "",
});

/// What both kinds of layers have around their attention.
#[derive(Debug)]
struct Rest {
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
}

parameters!(Rest { mlp, input_layernorm, post_attention_layernorm });

impl Rest {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (dims, eps) = (args.hidden_dim, args.eps());
        Ok(Self {
            mlp: Mlp::new(&w.pp("mlp"), dims, args.hidden(), Activation::Silu)?,
            input_layernorm: w.rms_norm("input_layernorm", dims, eps)?,
            post_attention_layernorm: w.rms_norm("post_attention_layernorm", dims, eps)?,
        })
    }

    fn forward(&self, x: &Array, attention: impl FnOnce(&Array) -> Result<Array>) -> Result<Array> {
        let normed = self.input_layernorm.forward(x)?;
        let h = (x + stage("self_attn", || attention(&normed))?)?;
        let normed = self.post_attention_layernorm.forward(&h)?;
        h + stage("mlp", || self.mlp.forward(&normed))?
    }
}

/// `x` as 8-bit integers with this scale would have it.
fn rounded(x: &Array, scale: &Array) -> Result<Array> {
    let codes = ops::round(&(ops::astype(x, Dtype::Float32)? / scale)?, 0)?;
    ops::astype(&(ops::clip(&codes, -128.0..=127.0)? * scale)?, x.dtype())
}

impl Block {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (at, dims, heads) = (w.pp("self_attn"), args.hidden_dim, args.num_heads);
        let head_dim = dims / heads;
        let names = AttentionNames::fused("qkv_proj", "out_proj");
        let sizes = [heads, args.num_kv_heads, head_dim];
        Ok(Self {
            self_attn: Attention {
                rope: Some(args.rope()?),
                ..Attention::fused(&at, names, Qkv::Joined, dims, sizes)?
            },
            q_norm: at.rms_norm("q_norm", head_dim, HEAD_EPS)?,
            k_norm: at.rms_norm("k_norm", head_dim, HEAD_EPS)?,
            quant_key_scale: at.get_shaped("quant_key_scale", &[])?,
            quant_value_scale: at.get_shaped("quant_value_scale", &[])?,
            rest: Rest::new(args, w)?,
        })
    }

    /// The layer's output, and the keys and values that it attended to.
    fn forward(&self, x: &Array, mask: &Mask, cache: &mut LayerCache) -> Result<(Array, KeysValues)> {
        let mut seen = None;
        let out = self.rest.forward(x, |normed| {
            let attention = &self.self_attn;
            let [queries, keys, values] = attention.project(normed)?;
            let queries = self.q_norm.forward(&attention.turn(&queries, cache)?)?;
            let keys = self.k_norm.forward(&attention.turn(&keys, cache)?)?;
            let keys = rounded(&keys, &self.quant_key_scale)?;
            let all = cache.update(&keys, &rounded(&values, &self.quant_value_scale)?)?;
            let out = attend(&queries, &all, attention.scale, mask, None)?;
            seen = Some(all);
            attention.o_proj.forward(&merge_heads(&out)?)
        })?;
        let seen = seen.ok_or_else(|| Error::argument("afm7", "no keys"))?;
        Ok((out, seen))
    }
}

/// A layer that attends to the keys and values of another.
#[derive(Debug)]
struct ReusingBlock {
    q_proj: Linear,
    out_proj: Linear,
    q_norm: RmsNorm,
    rest: Rest,
    rope: Rope,
    heads: i32,
    scale: f32,
}

parameters!(ReusingBlock {
    q_proj: "self_attn.q_proj",
    out_proj: "self_attn.out_proj",
    q_norm: "self_attn.q_norm",
    rest: "",
});

impl ReusingBlock {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (at, dims, heads) = (w.pp("self_attn"), args.hidden_dim, args.num_heads);
        let head_dim = dims / heads;
        Ok(Self {
            q_proj: at.linear("q_proj", dims, dims)?,
            out_proj: at.linear("out_proj", dims, dims)?,
            q_norm: at.rms_norm("q_norm", head_dim, HEAD_EPS)?,
            rest: Rest::new(args, w)?,
            rope: args.rope()?,
            heads,
            scale: (head_dim as f32).powf(-0.5),
        })
    }
}

/// The model.
#[derive(Debug)]
pub struct Model {
    embedding: Embedding,
    layers: Vec<Block>,
    kv_reuse_layers: Vec<ReusingBlock>,
    output_norm: RmsNorm,
    vocab_size: i32,
}

parameters!(Model {
    embedding: "model.embedding",
    layers: "model.layers",
    kv_reuse_layers: "model.kv_reuse_layers",
    output_norm: "model.output_norm",
});

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let w = w.pp("model");
    let own = 0..args.num_layers - args.num_kv_reuse_layers;
    let reusing = 0..args.num_kv_reuse_layers;
    Ok(Model {
        embedding: w.embedding("embedding", args.vocab_size, args.hidden_dim)?,
        layers: own.map(|i| Block::new(args, &w.pp("layers").pp(i))).collect::<Result<_>>()?,
        kv_reuse_layers: reusing
            .map(|i| ReusingBlock::new(args, &w.pp("kv_reuse_layers").pp(i)))
            .collect::<Result<_>>()?,
        output_norm: w.rms_norm("output_norm", args.hidden_dim, args.eps())?,
        vocab_size: args.vocab_size,
    })
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        stage("embeddings", || self.embedding.forward(tokens))
    }

    fn forward_embeddings(&self, embeddings: &Array, _tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let mut h = embeddings.clone();
        let offset = cache.offsets();
        let mut masks = Masks::new(h.dim(1)?);
        let caches = cache.layers_mut(self.layers.len())?;
        let mut last = None;
        for (i, (layer, cache)) in self.layers.iter().zip(caches).enumerate() {
            let mask = masks.of(cache, None)?;
            h = stage(format_args!("layers.{i}"), || {
                let (out, seen) = layer.forward(&h, &mask, cache)?;
                last = Some((seen, mask));
                Ok(out)
            })?;
        }
        let (seen, mask) = last.ok_or_else(|| Error::argument("afm7", "no layer has keys"))?;
        for (i, layer) in self.kv_reuse_layers.iter().enumerate() {
            h = stage(format_args!("layers.{}", self.layers.len() + i), || {
                layer.rest.forward(&h, |normed| {
                    let queries = split_heads(&layer.q_proj.forward(normed)?, layer.heads)?;
                    let queries = layer.q_norm.forward(&layer.rope.forward(&queries, &offset)?)?;
                    let out = attend(&queries, &seen, layer.scale, &mask, None)?;
                    layer.out_proj.forward(&merge_heads(&out)?)
                })
            })?;
        }
        let h = stage("norm", || self.output_norm.forward(&h))?;
        stage("logits", || self.embedding.as_linear(&h))
    }

    fn make_cache(&self) -> Cache {
        Cache::new(self.layers.iter().map(|_| LayerCache::kv()))
    }

    fn num_layers(&self) -> usize {
        self.layers.len() + self.kv_reuse_layers.len()
    }

    fn vocab_size(&self) -> i32 {
        self.vocab_size
    }
}
