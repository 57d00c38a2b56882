//! The frame of a language model: embeddings, layers, a norm, a head.

use crate::array::Array;
use crate::cache::{Cache, LayerCache, Masks};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::models::{LanguageModel, stage};
use crate::nn::{Embedding, Linear, Module, Norm, join};
use crate::parameters;

/// What mixes the positions of a sequence: attention, a convolution, a recurrence.
pub trait Mixer: Module + std::fmt::Debug {
    /// `[batch, length, dims]` to the same shape.
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array>;

    /// An empty memory for it; `None` if it has none.
    fn make_cache(&self) -> Option<LayerCache>;
}

/// What works on each position alone.
pub trait FeedForward: Module + std::fmt::Debug {
    /// `[..., dims]` to the same shape.
    fn forward(&self, x: &Array) -> Result<Array>;
}

/// A layer of a [`Decoder`].
pub trait DecoderLayer: Module + std::fmt::Debug {
    /// `[batch, length, dims]` to the same shape.
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array>;

    /// An empty memory for it; `None` if it has none.
    fn make_cache(&self) -> Option<LayerCache>;
}

/// The layer of Llama and many others: `h = x + mix(norm(x))`, then `h + feed_forward(norm(h))`.
#[derive(Debug)]
pub struct Block<A, F> {
    /// Mixes positions.
    pub self_attn: A,
    /// Works on each alone.
    pub mlp: F,
    /// Before the mixer.
    pub input_layernorm: Norm,
    /// Before the feed-forward layer.
    pub post_attention_layernorm: Norm,
}

parameters!(<A: Mixer, F: FeedForward> Block<A, F> { self_attn, mlp, input_layernorm, post_attention_layernorm });

impl<A: Mixer, F: FeedForward> DecoderLayer for Block<A, F> {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let normed = self.input_layernorm.forward(x)?;
        let h = (x + stage("self_attn", || self.self_attn.forward(&normed, masks, cache))?)?;
        let normed = self.post_attention_layernorm.forward(&h)?;
        h + stage("mlp", || self.mlp.forward(&normed))?
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.self_attn.make_cache()
    }
}

/// Where a checkpoint has the parts of a [`Decoder`].
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The embeddings.
    pub embed: &'static str,
    /// The layers.
    pub layers: &'static str,
    /// The last norm.
    pub norm: &'static str,
    /// The head.
    pub head: &'static str,
}

impl Names {
    /// Those of Llama and most others.
    pub const LLAMA: Names =
        Names { embed: "model.embed_tokens", layers: "model.layers", norm: "model.norm", head: "lm_head" };
}

/// A language model whose layers come one after the other.
#[derive(Debug)]
pub struct Decoder<L> {
    names: Names,
    /// Of the tokens.
    pub embed_tokens: Embedding,
    /// One after the other.
    pub layers: Vec<L>,
    /// After the last layer; some models have none.
    pub norm: Option<Norm>,
    /// `None` if tied to the embeddings.
    pub lm_head: Option<Linear>,
    /// Factor of the embeddings.
    pub embed_scale: Option<f32>,
    /// What becomes of the logits of the head.
    pub logits: LogitsScale,
    vocab_size: i32,
}

/// What becomes of the logits of a head.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogitsScale {
    /// Their factor.
    pub factor: Option<f32>,
    /// Where [`soft_cap`](super::soft_cap) bends them, after the factor.
    pub cap: Option<f32>,
}

impl<L: DecoderLayer> Decoder<L> {
    /// Reads embeddings of `vocab_size` tokens with `dims` features, `count` layers by `layer`, which
    /// gets its number and its weights, and the head, unless it is tied to the embeddings: by default
    /// if the checkpoint has none. `norm` reads the last norm by its name.
    pub fn new(
        w: &Weights,
        names: Names,
        [vocab_size, dims]: [i32; 2],
        tied: Option<bool>,
        norm: impl FnOnce(&str) -> Result<Norm>,
        count: usize,
        layer: impl Fn(usize, &Weights) -> Result<L>,
    ) -> Result<Self> {
        let tied = tied.unwrap_or_else(|| {
            let head = w.pp(names.head);
            !head.contains("weight")
        });
        let layers = w.pp(names.layers);
        Ok(Self {
            names,
            embed_tokens: w.embedding(names.embed, vocab_size, dims)?,
            layers: (0..count).map(|i| layer(i, &layers.pp(i))).collect::<Result<_>>()?,
            norm: Some(norm(names.norm)?),
            lm_head: if tied { None } else { Some(w.linear(names.head, dims, vocab_size)?) },
            embed_scale: None,
            logits: LogitsScale::default(),
            vocab_size,
        })
    }

    /// What comes out of the last layer and its norm.
    pub fn hidden(&self, embeddings: &Array, cache: &mut Cache) -> Result<Array> {
        let mut h = embeddings.clone();
        let mut masks = Masks::new(h.dim(1)?);
        let memories = self.layers.iter().filter(|layer| layer.make_cache().is_some()).count();
        let mut caches = cache.layers_mut(memories)?.iter_mut();
        for (i, layer) in self.layers.iter().enumerate() {
            let mut none = LayerCache::Stateless;
            let cache = layer.make_cache().and_then(|_| caches.next()).unwrap_or(&mut none);
            h = stage(format_args!("layers.{i}"), || layer.forward(&h, &mut masks, cache))?;
        }
        match &self.norm {
            Some(norm) => stage("norm", || norm.forward(&h)),
            None => Ok(h),
        }
    }
}

impl<L: DecoderLayer> Module for Decoder<L> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.embed_tokens.visit(&join(path, self.names.embed), f);
        self.layers.visit(&join(path, self.names.layers), f);
        self.norm.visit(&join(path, self.names.norm), f);
        self.lm_head.visit(&join(path, self.names.head), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.embed_tokens.visit_mut(&join(path, self.names.embed), f);
        self.layers.visit_mut(&join(path, self.names.layers), f);
        self.norm.visit_mut(&join(path, self.names.norm), f);
        self.lm_head.visit_mut(&join(path, self.names.head), f);
    }
}

impl<L: DecoderLayer> LanguageModel for Decoder<L> {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        stage("embeddings", || {
            let x = self.embed_tokens.forward(tokens)?;
            self.embed_scale.map_or(Ok(x.clone()), |scale| &x * scale)
        })
    }

    fn forward_embeddings(&self, embeddings: &Array, _tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let h = self.hidden(embeddings, cache)?;
        stage("logits", || {
            let mut logits = match &self.lm_head {
                Some(head) => head.forward(&h)?,
                None => self.embed_tokens.as_linear(&h)?,
            };
            if let Some(factor) = self.logits.factor {
                logits = (logits * factor)?;
            }
            self.logits.cap.map_or(Ok(logits.clone()), |cap| super::soft_cap(&logits, cap))
        })
    }

    fn make_cache(&self) -> Cache {
        Cache::new(self.layers.iter().filter_map(DecoderLayer::make_cache))
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn vocab_size(&self) -> i32 {
        self.vocab_size
    }
}

/// The language model of a model that has other parts too, which its checkpoint keeps under
/// `language_model`.
#[derive(Debug)]
pub struct TextPart<M> {
    /// The language model.
    pub language_model: M,
}

parameters!(<M: LanguageModel> TextPart<M> { language_model });

impl<M: LanguageModel> LanguageModel for TextPart<M> {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        self.language_model.embed(tokens)
    }
    fn forward_embeddings(&self, embeddings: &Array, tokens: &Array, cache: &mut Cache) -> Result<Array> {
        self.language_model.forward_embeddings(embeddings, tokens, cache)
    }
    fn make_cache(&self) -> Cache {
        self.language_model.make_cache()
    }
    fn num_layers(&self) -> usize {
        self.language_model.num_layers()
    }
    fn vocab_size(&self) -> i32 {
        self.language_model.vocab_size()
    }
}
