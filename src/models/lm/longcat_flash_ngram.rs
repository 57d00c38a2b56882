//! LongCat-Flash with embeddings of the last few tokens together, found by a hash.

use serde::Deserialize;

use super::longcat_flash;
use crate::array::{Array, Dtype};
use crate::cache::{Cache, LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::{Embedding, Linear, Module, join};
use crate::ops::{self, PadMode};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(default = "ratio")]
    ngram_vocab_size_ratio: i32,
    #[serde(default = "four")]
    emb_neighbor_num: i32,
    #[serde(default = "four")]
    emb_split_num: i32,
    #[serde(flatten)]
    base: longcat_flash::Args,
}

fn ratio() -> i32 {
    78
}

fn four() -> i32 {
    4
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.base.check()?;
        let buckets = i64::from(self.ngram_vocab_size_ratio) * i64::from(self.base.vocab_size);
        Checks::new("longcat_flash_ngram")
            .that((2..=64).contains(&self.emb_neighbor_num), || {
                format!("`emb_neighbor_num` is {}", self.emb_neighbor_num)
            })
            .that((1..=64).contains(&self.emb_split_num), || {
                format!("`emb_split_num` is {}", self.emb_split_num)
            })
            .that((1..=1 << 30).contains(&buckets), || format!("tables of {buckets} embeddings"))
            .that(self.tables() <= self.base.hidden_size, || format!("{} tables", self.tables()))
            .done()
    }

    fn tables(&self) -> i32 {
        self.emb_split_num.saturating_mul(self.emb_neighbor_num - 1)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    longcat_flash::rules(&args.base).rename("model.embed_tokens.*", format!("{WORDS}.*"))
}

const WORDS: &str = "model.ngram_embeddings.word_embeddings";
const TABLES: &str = "model.ngram_embeddings.embedders";
const PROJECTIONS: &str = "model.ngram_embeddings.post_projs";

/// LongCat-Flash behind embeddings of several tokens.
#[derive(Debug)]
pub struct Model {
    decoder: longcat_flash::Model,
    tables: Vec<Table>,
    /// Tokens before its own that an embedding depends on.
    before: i32,
}

/// Embeddings of a token with those before it.
#[derive(Debug)]
struct Table {
    embeddings: Embedding,
    projection: Linear,
    size: i64,
    /// What the ids of the tokens before are multiplied with, nearest first.
    factors: Vec<i64>,
}

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, count, vocab_size) = (args.base.hidden_size, args.tables(), args.base.vocab_size);
    let table = |i: i32| {
        let size = args.ngram_vocab_size_ratio * vocab_size + 2 * i + 1;
        let mut power = 1i64;
        let factors = (0..=i / args.emb_split_num).map(|_| {
            power = power * i64::from(vocab_size) % i64::from(size);
            power
        });
        Ok(Table {
            factors: factors.collect(),
            embeddings: w.embedding(&format!("{TABLES}.{i}"), size, dims / count)?,
            projection: w.linear(&format!("{PROJECTIONS}.{i}"), dims / count, dims)?,
            size: i64::from(size),
        })
    };
    Ok(Model {
        decoder: args.base.decoder(w, WORDS)?,
        tables: (0..count).map(table).collect::<Result<_>>()?,
        before: args.emb_neighbor_num - 1,
    })
}

impl Model {
    /// The embeddings of `tokens`, `[batch, length]`, from those of each alone.
    fn mix(&self, embeddings: &Array, tokens: &Array, cache: &mut LayerCache) -> Result<Array> {
        let length = tokens.dim(1)?;
        let mut ids = ops::astype(tokens, Dtype::Int64)?;
        if let Some(mask) = cache.padding(length)? {
            ids = ops::where_(&mask, &ids, Array::from(0i64))?;
        }
        let missing = self.before - cache.state(0).map_or(Ok(0), |state| state.dim(1))?;
        let ids = match cache.state(0) {
            Some(state) => ops::concatenate([state, &ids], 1)?,
            None => ids,
        };
        let ids = ops::pad(&ids, &[(0, 0), (missing, 0)], PadMode::Constant, Array::from(0i64))?;
        cache.set_state(0, ids.index((.., length..))?)?;
        cache.advance(length);
        let back = |count: i32| ids.index((.., self.before - count..self.before - count + length));
        let mut sum = embeddings.clone();
        for Table { embeddings, projection, size, factors } in &self.tables {
            let mut bucket = back(0)?;
            for (count, &factor) in (1..).zip(factors) {
                bucket = (bucket + (back(count)? * Array::from(factor))?)?;
            }
            let bucket = ops::remainder(&bucket, Array::from(*size))?;
            sum = (sum + projection.forward(&embeddings.forward(&bucket)?)?)?;
        }
        sum / (1 + self.tables.len()) as f32
    }
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        self.decoder.embed(tokens)
    }

    fn forward_embeddings(&self, embeddings: &Array, tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let masks = Masks::new(embeddings.dim(1)?).expecting(cache.expected()?);
        let caches = cache.layers_mut(1 + self.decoder.layers.len())?;
        let (first, rest) = caches.split_at_mut(1);
        let h = stage("ngram_embeddings", || self.mix(embeddings, tokens, &mut first[0]))?;
        self.decoder.head(&self.decoder.run(h, masks, rest)?)
    }

    fn make_cache(&self) -> Cache {
        let layers = self.decoder.make_cache();
        Cache::new([LayerCache::states(1)].into_iter().chain(layers.layers().iter().cloned()))
    }

    fn num_layers(&self) -> usize {
        self.decoder.num_layers()
    }

    fn vocab_size(&self) -> i32 {
        self.decoder.vocab_size()
    }
}

impl Module for Model {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.decoder.visit(path, f);
        for (i, table) in self.tables.iter().enumerate() {
            table.embeddings.visit(&join(path, &format!("{TABLES}.{i}")), f);
            table.projection.visit(&join(path, &format!("{PROJECTIONS}.{i}")), f);
        }
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.decoder.visit_mut(path, f);
        for (i, table) in self.tables.iter_mut().enumerate() {
            table.embeddings.visit_mut(&join(path, &format!("{TABLES}.{i}")), f);
            table.projection.visit_mut(&join(path, &format!("{PROJECTIONS}.{i}")), f);
        }
    }
}
