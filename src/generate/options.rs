//! What to generate, and when to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Penalties, Sampling};
use crate::ops::Quantization;

/// What to generate.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// What is changed in their logits before.
    pub penalties: Penalties,
    /// Tokens that end the generation; they are returned too.
    pub stop: Vec<i32>,
    /// Tokens of the prompt that go through the model at a time.
    pub prefill_step: usize,
    /// Whether keys and values are quantized, and from where on.
    pub kv_quantization: Option<KvQuantization>,
}

/// When the keys and values of a cache are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvQuantization {
    /// How: affine.
    pub how: Quantization,
    /// Once the cache has seen so many tokens.
    pub start: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: Sampling::default(),
            penalties: Penalties::default(),
            stop: Vec::new(),
            prefill_step: 512,
            kv_quantization: None,
        }
    }
}

/// Ends a generation from outside: clones share it, also with other threads.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the generations that watch it: after the token, or the piece of the prompt, at work.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
