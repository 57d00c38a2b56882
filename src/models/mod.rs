//! Models: one file for each architecture, and the registry that finds it.
//!
//! A new model is one new file and one line in `registry.rs`. A model file has, in this order: `Args`
//! (the config, with its checks), `rules` (how the names of a checkpoint become the model's), what of
//! its layers [`blocks`] does not have, and `model`, which reads the weights.

pub mod blocks;
mod checks;
pub mod lm;
pub mod probe;
mod registry;
mod status;

pub use checks::Checks;
pub use probe::stage;
pub use registry::{MODEL_TYPES, architecture, load, load_as, load_weights, module_of, takes_limit};
pub use status::{ModelStatus, has_no_reference, model_statuses};

use crate::array::Array;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::nn::Module;

/// A model that gives each token of a sequence a distribution over the next.
pub trait LanguageModel: Module + std::fmt::Debug {
    /// The embeddings of token ids: integers `[batch, length]` to `[batch, length, dims]`. Ids outside
    /// the vocabulary wrap around: see [`check_tokens`].
    fn embed(&self, tokens: &Array) -> Result<Array>;

    /// Logits `[batch, length, vocab_size]` of the embeddings of a sequence, `[batch, length, dims]`,
    /// which continues what is in `cache` and is added to it. `tokens`, `[batch, length]`, are the ids
    /// that the embeddings stand for: some models look them up elsewhere too.
    fn forward_embeddings(&self, embeddings: &Array, tokens: &Array, cache: &mut Cache) -> Result<Array>;

    /// Logits `[batch, length, vocab_size]` of token ids, integers `[batch, length]`, which continue
    /// what is in `cache` and are added to it.
    fn forward(&self, tokens: &Array, cache: &mut Cache) -> Result<Array> {
        self.forward_embeddings(&self.embed(tokens)?, tokens, cache)
    }

    /// An empty cache for one batch.
    fn make_cache(&self) -> Cache;

    /// Layers.
    fn num_layers(&self) -> usize;

    /// Token ids that the model knows: `0..vocab_size`.
    fn vocab_size(&self) -> i32;
}

impl<M: LanguageModel + ?Sized> LanguageModel for Box<M> {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        (**self).embed(tokens)
    }
    fn forward_embeddings(&self, embeddings: &Array, tokens: &Array, cache: &mut Cache) -> Result<Array> {
        (**self).forward_embeddings(embeddings, tokens, cache)
    }
    fn make_cache(&self) -> Cache {
        (**self).make_cache()
    }
    fn num_layers(&self) -> usize {
        (**self).num_layers()
    }
    fn vocab_size(&self) -> i32 {
        (**self).vocab_size()
    }
}

/// Fails unless all `tokens` are in the vocabulary of `model`.
pub fn check_tokens(model: &dyn LanguageModel, tokens: &[i32]) -> Result<()> {
    let size = model.vocab_size();
    match tokens.iter().find(|id| !(0..size).contains(id)) {
        Some(id) => Err(Error::argument("tokens", format!("id {id} is not in the vocabulary of {size}"))),
        None => Ok(()),
    }
}
