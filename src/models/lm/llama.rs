//! Llama, and what is built as it is: Mistral, IQuestCoder, XVERSE.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{Cache, KvCache, LayerCache, Mask, Masks, RotatingKvCache};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::fast::scaled_dot_product_attention;
use crate::models::blocks::{LayerType, Mlp, merge_heads, split_heads};
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::activations::Activation;
use crate::nn::{Embedding, Linear, RmsNorm, Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    head_dim: Option<i32>,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
    vocab_size: i32,
    /// By default the head is tied if the checkpoint has none.
    tie_word_embeddings: Option<bool>,
    layer_types: Option<Vec<LayerType>>,
    sliding_window: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("llama")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .heads(self.num_attention_heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// How many positions a layer sees; `None` for all. Mistral has no `layer_types`: all its layers
    /// slide, or none.
    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => self.model_type == "mistral",
        };
        self.sliding_window.filter(|_| slides)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
    match args.tie_word_embeddings {
        Some(true) => rules.drop("lm_head.*", "tied to the embeddings"),
        _ => rules,
    }
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    rope: Rope,
    heads: i32,
    kv_heads: i32,
    scale: f32,
}

parameters!(Attention { q_proj, k_proj, v_proj, o_proj });

impl Attention {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (dims, heads, kv_heads) = (args.hidden_size, args.num_attention_heads, args.kv_heads());
        let head_dim = args.head_dim();
        Ok(Self {
            q_proj: w.linear("q_proj", dims, heads * head_dim)?,
            k_proj: w.linear("k_proj", dims, kv_heads * head_dim)?,
            v_proj: w.linear("v_proj", dims, kv_heads * head_dim)?,
            o_proj: w.linear("o_proj", heads * head_dim, dims)?,
            rope: Rope::new(head_dim, &args.rope, 10_000.0)?,
            heads,
            kv_heads,
            scale: (head_dim as f32).powf(-0.5),
        })
    }

    fn forward(&self, x: &Array, mask: &Mask, cache: &mut LayerCache) -> Result<Array> {
        let queries = split_heads(&self.q_proj.forward(x)?, self.heads)?;
        let keys = split_heads(&self.k_proj.forward(x)?, self.kv_heads)?;
        let values = split_heads(&self.v_proj.forward(x)?, self.kv_heads)?;
        let queries = self.rope.forward(&queries, cache.offset())?;
        let keys = self.rope.forward(&keys, cache.offset())?;
        let (keys, values) = cache.update(&keys, &values)?;
        let out = scaled_dot_product_attention(&queries, &keys, &values, self.scale, mask, None)?;
        self.o_proj.forward(&merge_heads(&out)?)
    }
}

#[derive(Debug)]
struct Block {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    window: Option<i32>,
}

parameters!(Block { self_attn, mlp, input_layernorm, post_attention_layernorm });

impl Block {
    fn new(args: &Args, layer: usize, w: &Weights) -> Result<Self> {
        let norm = |name| w.rms_norm(name, args.hidden_size, args.rms_norm_eps);
        Ok(Self {
            self_attn: Attention::new(args, &w.pp("self_attn"))?,
            mlp: Mlp::new(&w.pp("mlp"), args.hidden_size, args.intermediate_size, args.hidden_act)?,
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            window: args.window(layer),
        })
    }

    fn forward(&self, x: &Array, mask: &Mask, cache: &mut LayerCache) -> Result<Array> {
        let normed = self.input_layernorm.forward(x)?;
        let h = (x + stage("self_attn", || self.self_attn.forward(&normed, mask, cache))?)?;
        let normed = self.post_attention_layernorm.forward(&h)?;
        h + stage("mlp", || self.mlp.forward(&normed))?
    }
}

/// The model.
#[derive(Debug)]
pub struct Model {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    /// `None` if tied to the embeddings.
    lm_head: Option<Linear>,
    vocab_size: i32,
}

parameters!(Model {
    embed_tokens: "model.embed_tokens",
    layers: "model.layers",
    norm: "model.norm",
    lm_head,
});

impl Model {
    /// Reads the weights that `args` call for.
    pub fn new(args: &Args, w: &Weights) -> Result<Self> {
        args.check()?;
        let (dims, vocab_size) = (args.hidden_size, args.vocab_size);
        let tied = args.tie_word_embeddings.unwrap_or(!w.contains("lm_head.weight"));
        let model = w.pp("model");
        let layer = |i| Block::new(args, i, &model.pp("layers").pp(i));
        Ok(Self {
            embed_tokens: model.embedding("embed_tokens", vocab_size, dims)?,
            layers: (0..args.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: model.rms_norm("norm", dims, args.rms_norm_eps)?,
            lm_head: if tied { None } else { Some(w.linear("lm_head", dims, vocab_size)?) },
            vocab_size,
        })
    }
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        stage("embeddings", || self.embed_tokens.forward(tokens))
    }

    fn forward_embeddings(&self, embeddings: &Array, cache: &mut Cache) -> Result<Array> {
        let mut h = embeddings.clone();
        let mut masks = Masks::new(h.dim(1)?);
        let caches = cache.layers_mut(self.layers.len())?;
        for (i, (layer, cache)) in self.layers.iter().zip(caches).enumerate() {
            let mask = masks.of(cache, layer.window)?;
            h = stage(format_args!("layers.{i}"), || layer.forward(&h, &mask, cache))?;
        }
        let h = stage("norm", || self.norm.forward(&h))?;
        stage("logits", || match &self.lm_head {
            Some(head) => head.forward(&h),
            None => self.embed_tokens.as_linear(&h),
        })
    }

    fn make_cache(&self) -> Cache {
        Cache::new(self.layers.iter().map(|layer| match layer.window {
            Some(window) => LayerCache::Rotating(RotatingKvCache::new(window, 0)),
            None => LayerCache::Kv(KvCache::new()),
        }))
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn vocab_size(&self) -> i32 {
        self.vocab_size
    }
}
