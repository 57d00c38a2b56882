//! The frame of a language model: embeddings, layers, a norm, a head.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::chained::{Recorded, Recording};
use crate::array::Array;
use crate::cache::{Appended, Cache, LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::{Error, Result};
use crate::kernels::{Chain, Node};
use crate::models::{LanguageModel, probe, stage};
use crate::nn::{Embedding, Linear, Module, Norm, join};
use crate::parameters;

/// What mixes the positions of a sequence: attention, a convolution, a recurrence.
pub trait Mixer: Module + std::fmt::Debug {
    /// `[batch, length, dims]` to the same shape.
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array>;

    /// The same of one position of each sequence in a chain, and what the cache is to keep of it. `None` where it is not a
    /// case for chains, and by default.
    fn record(
        &self,
        _chain: &mut Chain,
        _x: Node,
        _masks: &mut Masks,
        _cache: &LayerCache,
    ) -> Result<Option<(Node, Appended)>> {
        Ok(None)
    }

    /// An empty memory for it; `None` if it has none.
    fn make_cache(&self) -> Option<LayerCache>;
}

/// What works on each position alone.
pub trait FeedForward: Module + std::fmt::Debug {
    /// `[..., dims]` to the same shape.
    fn forward(&self, x: &Array) -> Result<Array>;

    /// The same of one position of each sequence in a chain; `None` where it is not a case for chains, and by default.
    fn record(&self, _chain: &mut Chain, _x: Node) -> Result<Option<Node>> {
        Ok(None)
    }
}

/// A layer of a [`Decoder`].
pub trait DecoderLayer: Module + std::fmt::Debug {
    /// `[batch, length, dims]` to the same shape.
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array>;

    /// The same of one position of each sequence in a chain, all of it or but for what [`feed`](Self::feed) does, and what the
    /// cache is to keep of it. `None` where it is not a case for chains, and by default.
    fn record(
        &self,
        _chain: &mut Chain,
        _x: Node,
        _masks: &mut Masks,
        _cache: &LayerCache,
    ) -> Result<Option<(Recorded, Appended)>> {
        Ok(None)
    }

    /// The rest of a layer of which a chain has the [mixer](Recorded::Mixed). Fails by default.
    fn feed(&self, _h: &Array, _normed: &Array) -> Result<Array> {
        Err(Error::argument("feed", "a layer that chains have whole or not at all"))
    }

    /// An empty memory for it; `None` if it has none.
    fn make_cache(&self) -> Option<LayerCache>;
}

/// Where a checkpoint has the parts of a [`Block`].
#[derive(Debug, Clone, Copy)]
pub struct BlockNames {
    /// What mixes positions.
    pub mixer: &'static str,
    /// The feed-forward layer.
    pub mlp: &'static str,
    /// The norm before the mixer.
    pub norm1: &'static str,
    /// The norm before the feed-forward layer.
    pub norm2: &'static str,
}

impl BlockNames {
    /// Those of Llama and most others.
    pub const LLAMA: Self =
        Self { mixer: "self_attn", mlp: "mlp", norm1: "input_layernorm", norm2: "post_attention_layernorm" };
}

/// A layer of two branches, each behind a norm.
#[derive(Debug)]
pub struct Block<A, F> {
    /// Where the checkpoint has the parts.
    pub names: BlockNames,
    /// Mixes positions.
    pub mixer: A,
    /// Works on each alone.
    pub mlp: F,
    /// Before the mixer.
    pub norm1: Norm,
    /// Before the feed-forward layer; `None` for one that gets what the mixer gets.
    pub norm2: Option<Norm>,
    /// How the branches go together.
    pub order: Order,
    /// Factor of what each branch adds.
    pub residual_scale: Option<f32>,
}

/// How the branches of a [`Block`] go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `h = x + mixer(norm1(x))`, then `h + mlp(norm2(h))`: Llama and most others.
    Sequential,
    /// `x + mixer(norm1(x)) + mlp(norm2(x))`: GPT-J, GPT-NeoX, Phi.
    Parallel,
}

impl<A: Mixer, F: FeedForward> Block<A, F> {
    /// One branch after the other, under Llama's names.
    pub fn new(mixer: A, mlp: F, norm1: impl Into<Norm>, norm2: impl Into<Norm>) -> Self {
        Self {
            names: BlockNames::LLAMA,
            mixer,
            mlp,
            norm1: norm1.into(),
            norm2: Some(norm2.into()),
            order: Order::Sequential,
            residual_scale: None,
        }
    }

    fn branch(&self, x: Array) -> Result<Array> {
        self.residual_scale.map_or(Ok(x.clone()), |scale| &x * scale)
    }
}

impl<A: Mixer, F: FeedForward> DecoderLayer for Block<A, F> {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let normed = self.norm1.forward(x)?;
        let mixed = stage(self.names.mixer, || self.mixer.forward(&normed, masks, cache))?;
        let mixed = self.branch(mixed)?;
        let [h, normed] = match (&self.norm2, self.order) {
            (Some(norm), Order::Sequential) => norm.forward_sum(x, &mixed)?,
            (Some(norm), Order::Parallel) => [(x + mixed)?, norm.forward(x)?],
            (None, _) => [(x + mixed)?, normed],
        };
        let fed = stage(self.names.mlp, || self.mlp.forward(&normed))?;
        h + self.branch(fed)?
    }

    fn record(
        &self,
        chain: &mut Chain,
        x: Node,
        masks: &mut Masks,
        cache: &LayerCache,
    ) -> Result<Option<(Recorded, Appended)>> {
        let (Some(norm2), Order::Sequential, None) = (&self.norm2, self.order, self.residual_scale) else {
            return Ok(None);
        };
        let Some(normed) = self.norm1.record(chain, x)? else { return Ok(None) };
        let Some((mixed, appended)) = self.mixer.record(chain, normed, masks, cache)? else {
            return Ok(None);
        };
        let Some([h, normed]) = norm2.record_sum(chain, x, mixed)? else { return Ok(None) };
        let mark = chain.mark();
        let whole = match self.mlp.record(chain, normed)? {
            Some(fed) => chain.add(h, fed)?,
            None => None,
        };
        if whole.is_none() {
            chain.back_to(mark);
        }
        Ok(Some((whole.map_or(Recorded::Mixed([h, normed]), Recorded::Whole), appended)))
    }

    fn feed(&self, h: &Array, normed: &Array) -> Result<Array> {
        h + self.mlp.forward(normed)?
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.mixer.make_cache()
    }
}

impl<A: Mixer, F: FeedForward> Module for Block<A, F> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.mixer.visit(&join(path, self.names.mixer), f);
        self.mlp.visit(&join(path, self.names.mlp), f);
        self.norm1.visit(&join(path, self.names.norm1), f);
        self.norm2.visit(&join(path, self.names.norm2), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.mixer.visit_mut(&join(path, self.names.mixer), f);
        self.mlp.visit_mut(&join(path, self.names.mlp), f);
        self.norm1.visit_mut(&join(path, self.names.norm1), f);
        self.norm2.visit_mut(&join(path, self.names.norm2), f);
    }
}

impl<M: Mixer + ?Sized> Mixer for Box<M> {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        (**self).forward(x, masks, cache)
    }
    fn record(
        &self,
        chain: &mut Chain,
        x: Node,
        masks: &mut Masks,
        cache: &LayerCache,
    ) -> Result<Option<(Node, Appended)>> {
        (**self).record(chain, x, masks, cache)
    }
    fn make_cache(&self) -> Option<LayerCache> {
        (**self).make_cache()
    }
}

impl<L: DecoderLayer + ?Sized> DecoderLayer for Box<L> {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        (**self).forward(x, masks, cache)
    }
    fn record(
        &self,
        chain: &mut Chain,
        x: Node,
        masks: &mut Masks,
        cache: &LayerCache,
    ) -> Result<Option<(Recorded, Appended)>> {
        (**self).record(chain, x, masks, cache)
    }
    fn feed(&self, h: &Array, normed: &Array) -> Result<Array> {
        (**self).feed(h, normed)
    }
    fn make_cache(&self) -> Option<LayerCache> {
        (**self).make_cache()
    }
}

impl<F: FeedForward + ?Sized> FeedForward for Box<F> {
    fn forward(&self, x: &Array) -> Result<Array> {
        (**self).forward(x)
    }
    fn record(&self, chain: &mut Chain, x: Node) -> Result<Option<Node>> {
        (**self).record(chain, x)
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

    /// Those of GPT-2, and of what is built as it is.
    pub const GPT2: Names = Names {
        embed: "transformer.wte",
        layers: "transformer.h",
        norm: "transformer.ln_f",
        head: "lm_head",
    };

    /// Those of Mamba.
    pub const MAMBA: Names = Names {
        embed: "backbone.embeddings",
        layers: "backbone.layers",
        norm: "backbone.norm_f",
        head: "lm_head",
    };
}

impl Rules {
    /// And without a head, but for its bias, where it is tied to the embeddings.
    pub fn tied_head(self, tied: impl Into<Option<bool>>) -> Self {
        if tied.into() != Some(true) {
            return self;
        }
        let drop = |rules: Self, part: &str| rules.drop(format!("lm_head.{part}"), "tied to the embeddings");
        ["weight*", "q*", "*scale*", "biases", "g_idx", "SCB"].into_iter().fold(self, drop)
    }
}

/// Of a model whose head is tied unless its config has `tied` as false: then the checkpoint decides (`None`).
pub fn tied_by_default(tied: Option<bool>) -> Option<bool> {
    (tied != Some(false)).then_some(true)
}

/// A language model whose layers come one after the other.
#[derive(Debug)]
pub struct Decoder<L> {
    /// Where the checkpoint has the parts.
    pub names: Names,
    /// Of the tokens.
    pub embed_tokens: Embedding,
    /// One after the other.
    pub layers: Vec<L>,
    /// After the last layer.
    pub norm: Norm,
    /// `None` if tied to the embeddings.
    pub lm_head: Option<Linear>,
    /// `[vocab_size]`: what a tied head adds.
    pub head_bias: Option<Array>,
    /// Learned positions, `[positions, dims]`, added to the embeddings, and where the checkpoint has them.
    pub positions: Option<(&'static str, Embedding)>,
    /// Factor of the embeddings.
    pub embed_scale: Option<f32>,
    /// Of the embeddings.
    pub embed_norm: Option<Norm>,
    /// What becomes of the logits of the head.
    pub logits: LogitsScale,
    /// Token ids that the model knows.
    pub vocab_size: i32,
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
        let (head, layers) = (w.pp(names.head), w.pp(names.layers));
        let tied = tied.unwrap_or_else(|| !head.contains("weight"));
        let bias = (tied && head.contains("bias")).then(|| head.get_shaped("bias", &[vocab_size]));
        Ok(Self {
            names,
            embed_tokens: w.embedding(names.embed, vocab_size, dims)?,
            layers: (0..count).map(|i| layer(i, &layers.pp(i))).collect::<Result<_>>()?,
            norm: norm(names.norm)?,
            lm_head: if tied { None } else { Some(w.linear(names.head, dims, vocab_size)?) },
            head_bias: bias.transpose()?,
            positions: None,
            embed_scale: None,
            embed_norm: None,
            logits: LogitsScale::default(),
            vocab_size,
        })
    }

    /// The embeddings with the learned positions of a cache's next tokens, where the model has them.
    fn placed(&self, embeddings: &Array, cache: &Cache) -> Result<Array> {
        let Some((_, positions)) = &self.positions else { return Ok(embeddings.clone()) };
        let (length, count) = (embeddings.dim(1)?, positions.weight.rows_count());
        if cache.offset().saturating_add(length) > count {
            let message = format!("{} tokens: the model has {count} positions", cache.offset() + length);
            return Err(Error::argument("forward", message));
        }
        embeddings + positions.forward(&cache.offsets().positions(length)?)?
    }

    /// What comes out of the last layer and its norm.
    pub fn hidden(&self, embeddings: &Array, cache: &mut Cache) -> Result<Array> {
        let h = self.placed(embeddings, cache)?;
        let masks = Masks::new(h.dim(1)?).expecting(cache.expected()?);
        let memories = self.layers.iter().filter(|layer| layer.make_cache().is_some()).count();
        self.run(h, masks, cache.layers_mut(memories)?)
    }

    /// As [`hidden`](Self::hidden), with the memories of the layers that have one. Layers with one position of each sequence are
    /// chains where they can be, and nobody watches what comes out of each.
    pub fn run(&self, mut h: Array, mut masks: Masks, caches: &mut [LayerCache]) -> Result<Array> {
        let chains = matches!(h.shape(), [_, 1, _]) && !probe::is_recording();
        let mut recording: Option<Recording<'_>> = None;
        let mut caches = caches.iter_mut();
        for (i, layer) in self.layers.iter().enumerate() {
            let mut cache = layer.make_cache().and_then(|_| caches.next());
            if let (true, Some(own)) = (chains, &cache) {
                let mut begun = recording.take().unwrap_or_else(|| Recording::new(&h));
                let mark = begun.chain.mark();
                let recorded = layer.record(&mut begun.chain, begun.last, &mut masks, own)?;
                match (recorded, cache.take()) {
                    (Some((Recorded::Whole(out), appended)), Some(own)) => {
                        begun.push(own, appended);
                        begun.last = out;
                        if begun.is_full(self.layers.len()) {
                            h = begun.output()?;
                        } else {
                            recording = Some(begun);
                        }
                        continue;
                    }
                    (Some((Recorded::Mixed(parts), appended)), Some(own)) => {
                        begun.push(own, appended);
                        let [mixed, normed] = begun.apply(parts)?;
                        h = layer.feed(&mixed, &normed)?;
                        continue;
                    }
                    (_, own) => {
                        begun.chain.back_to(mark);
                        if !begun.is_empty() {
                            h = begun.output()?;
                        }
                        cache = own;
                    }
                }
            }
            let mut none = LayerCache::Stateless;
            let cache = cache.unwrap_or(&mut none);
            h = stage(format_args!("layers.{i}"), || layer.forward(&h, &mut masks, cache))?;
        }
        if let Some(recording) = recording {
            h = recording.output()?;
        }
        stage("norm", || self.norm.forward(&h))
    }

    /// The logits of what [`hidden`](Self::hidden) gives.
    pub fn head(&self, h: &Array) -> Result<Array> {
        stage("logits", || {
            let mut logits = match &self.lm_head {
                Some(head) => head.forward(h)?,
                None => self.embed_tokens.as_linear(h)?,
            };
            if let Some(bias) = &self.head_bias {
                logits = (&logits + bias)?;
            }
            if let Some(factor) = self.logits.factor {
                logits = (logits * factor)?;
            }
            self.logits.cap.map_or(Ok(logits.clone()), |cap| super::soft_cap(&logits, cap))
        })
    }
}

impl<L: DecoderLayer> Module for Decoder<L> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.embed_tokens.visit(&join(path, self.names.embed), f);
        if let Some((name, positions)) = &self.positions {
            positions.visit(&join(path, name), f);
        }
        self.layers.visit(&join(path, self.names.layers), f);
        self.norm.visit(&join(path, self.names.norm), f);
        let head = join(path, self.names.head);
        self.lm_head.visit(&head, f);
        self.head_bias.visit(&join(&head, "bias"), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.embed_tokens.visit_mut(&join(path, self.names.embed), f);
        if let Some((name, positions)) = &mut self.positions {
            positions.visit_mut(&join(path, name), f);
        }
        self.layers.visit_mut(&join(path, self.names.layers), f);
        self.norm.visit_mut(&join(path, self.names.norm), f);
        let head = join(path, self.names.head);
        self.lm_head.visit_mut(&head, f);
        self.head_bias.visit_mut(&join(&head, "bias"), f);
    }
}

impl<L: DecoderLayer> LanguageModel for Decoder<L> {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        stage("embeddings", || {
            let mut x = self.embed_tokens.forward(tokens)?;
            if let Some(scale) = self.embed_scale {
                x = (x * scale)?;
            }
            self.embed_norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
        })
    }

    fn forward_embeddings(&self, embeddings: &Array, _tokens: &Array, cache: &mut Cache) -> Result<Array> {
        self.head(&self.hidden(embeddings, cache)?)
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

/// The config of a model with other parts: that of its language model is under `text_config`, or in old
/// files at the top, whose `model_type` holds where it has none.
#[derive(Debug, Clone)]
pub struct TextConfig<A>(pub A);

impl<'de, A: DeserializeOwned> Deserialize<'de> for TextConfig<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut whole = serde_json::Value::deserialize(deserializer)?;
        let model_type = whole.get("model_type").cloned();
        let mut text =
            whole.get_mut("text_config").filter(|text| text.is_object()).map(serde_json::Value::take);
        if let (Some(text), Some(model_type)) =
            (text.as_mut().and_then(|text| text.as_object_mut()), model_type)
        {
            text.entry("model_type").or_insert(model_type);
        }
        serde_json::from_value(text.unwrap_or(whole)).map(Self).map_err(serde::de::Error::custom)
    }
}

/// The rules of a [`TextPart`] whose language model has the rules `inner`: its weights may be under
/// `language_model.model`, `model.language_model` or `model`, and those of the other `parts` go.
pub fn text_rules(parts: &[&str], inner: Rules) -> Rules {
    let drop = |rules: Rules, part: &&str| {
        let why = "not of the language model";
        rules.drop(format!("{part}.*"), why).drop(format!("model.{part}.*"), why)
    };
    let rules = parts.iter().fold(Rules::new(), drop);
    rules
        .rename("model.language_model.*", "language_model.model.*")
        .rename("model.*", "language_model.model.*")
        .rename("lm_head.*", "language_model.lm_head.*")
        .append(inner.under("language_model."))
}

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
