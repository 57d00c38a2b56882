//! Talkie: norms without weights, learned factors of every branch, and the embeddings added again after
//! each layer.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{Cache, LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, AttentionNames, FeedForward, Mlp, MlpNames, attend, merge_heads};
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::activations::Activation;
use crate::nn::{Embedding, Rope, RopeConfig};
use crate::{fast, ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    head_dim: i32,
    vocab_size: i32,
    rms_norm_eps: f32,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            hidden_size: 5120,
            num_hidden_layers: 40,
            intermediate_size: 13_696,
            num_attention_heads: 40,
            head_dim: 128,
            vocab_size: 65_540,
            rms_norm_eps: f32::EPSILON,
            rope: RopeConfig::default(),
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let heads = self.num_attention_heads;
        Checks::new("talkie")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(heads, heads, Some(self.head_dim), self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    ["*rotary*", "*cos", "*sin"]
        .into_iter()
        .fold(Rules::new(), |rules, key| rules.drop(key, "computed from the config"))
}

/// A learned factor.
#[derive(Debug)]
struct Gain {
    factor: Array,
}

parameters!(Gain { factor: "a_g" });

impl Gain {
    fn new(w: &Weights, name: &str) -> Result<Self> {
        Ok(Self { factor: w.pp(name).get_shaped("a_g", &[1])? })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        x * ops::astype(&self.factor, x.dtype())?
    }
}

#[derive(Debug)]
struct Block {
    attn: Attention,
    /// One factor of the queries for each head.
    head_gain: Array,
    attn_gain: Gain,
    mlp: Mlp,
    mlp_gain: Gain,
    embed_skip: Gain,
    eps: f32,
}

parameters!(Block { attn, head_gain: "attn.head_gain.head_g", attn_gain, mlp, mlp_gain, embed_skip });

impl Block {
    fn new(args: &Args, rope: &Rope, w: &Weights) -> Result<Self> {
        let (dims, heads, head_dim) = (args.hidden_size, args.num_attention_heads, args.head_dim);
        let names = AttentionNames {
            q: "attn_query",
            k: "attn_key",
            v: "attn_value",
            o: "attn_resid",
            ..AttentionNames::LLAMA
        };
        let mlp = MlpNames { gate: "mlp_gate", up: "mlp_linear", down: "mlp_resid" };
        let attention = Attention::named(&w.pp("attn"), names, dims, [heads, heads, head_dim])?;
        Ok(Self {
            attn: Attention { rope: Some(rope.clone()), ..attention },
            head_gain: w.pp("attn.head_gain").get_shaped("head_g", &[heads])?,
            attn_gain: Gain::new(w, "attn_gain")?,
            mlp: Mlp::named(&w.pp("mlp"), mlp, dims, args.intermediate_size, Activation::Silu)?,
            mlp_gain: Gain::new(w, "mlp_gain")?,
            embed_skip: Gain::new(w, "embed_skip")?,
            eps: args.rms_norm_eps,
        })
    }

    fn attention(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let mask = masks.of(cache, None)?;
        let [queries, keys, values] = self.attn.project(x)?;
        let norm = |x: &Array| fast::rms_norm(&self.attn.turn(x, cache)?, None, self.eps);
        let (queries, keys) = (norm(&queries)?, norm(&keys)?);
        let gain = ops::expand_dims(&ops::astype(&self.head_gain, queries.dtype())?, [-2, -1])?;
        let seen = cache.update(&keys, &values)?;
        let out = attend(&(queries * gain)?, &seen, self.attn.scale, &mask, None)?;
        self.attn.o_proj.forward(&merge_heads(&out)?)
    }

    fn forward(
        &self,
        x: &Array,
        embedded: &Array,
        masks: &mut Masks,
        cache: &mut LayerCache,
    ) -> Result<Array> {
        let normed = fast::rms_norm(x, None, self.eps)?;
        let mixed = stage("attn", || self.attention(&normed, masks, cache))?;
        let h = (x + self.attn_gain.forward(&mixed)?)?;
        let normed = fast::rms_norm(&h, None, self.eps)?;
        let fed = stage("mlp", || self.mlp.forward(&normed))?;
        (h + self.mlp_gain.forward(&fed)?)? + self.embed_skip.forward(embedded)?
    }
}

/// The model.
#[derive(Debug)]
pub struct Model {
    embed: Embedding,
    blocks: Vec<Block>,
    /// `[vocab_size, dims]`.
    lm_head: Array,
    lm_head_gain: Array,
    eps: f32,
    vocab_size: i32,
}

parameters!(Model {
    embed: "model.embed",
    blocks: "model.blocks",
    lm_head,
    lm_head_gain: "lm_head_gain.w_g",
});

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, vocab_size) = (args.hidden_size, args.vocab_size);
    let rope = Rope::new(args.head_dim, &args.rope, 1_000_000.0)?.backwards()?;
    let blocks = w.pp("model.blocks");
    Ok(Model {
        embed: w.embedding("model.embed", vocab_size, dims)?,
        blocks: (0..args.num_hidden_layers)
            .map(|i| Block::new(args, &rope, &blocks.pp(i)))
            .collect::<Result<_>>()?,
        lm_head: w.get_shaped("lm_head", &[vocab_size, dims])?,
        lm_head_gain: w.pp("lm_head_gain").get_shaped("w_g", &[1])?,
        eps: args.rms_norm_eps,
        vocab_size,
    })
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        stage("embeddings", || self.embed.forward(tokens))
    }

    fn forward_embeddings(&self, embeddings: &Array, _tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let embedded = fast::rms_norm(embeddings, None, self.eps)?;
        let mut h = embedded.clone();
        let mut masks = Masks::new(h.dim(1)?);
        let caches = cache.layers_mut(self.blocks.len())?;
        for (i, (block, cache)) in self.blocks.iter().zip(caches).enumerate() {
            h = stage(format_args!("layers.{i}"), || block.forward(&h, &embedded, &mut masks, cache))?;
        }
        let h = stage("norm", || fast::rms_norm(&h, None, self.eps))?;
        stage("logits", || {
            let logits = ops::matmul(&h, &ops::swapaxes(&self.lm_head, 0, 1)?)?;
            let gain = ops::astype(&self.lm_head_gain, logits.dtype())?;
            logits * gain
        })
    }

    fn make_cache(&self) -> Cache {
        Cache::new(self.blocks.iter().map(|_| LayerCache::kv()))
    }

    fn num_layers(&self) -> usize {
        self.blocks.len()
    }

    fn vocab_size(&self) -> i32 {
        self.vocab_size
    }
}
