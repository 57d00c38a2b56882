//! Gemma 3: Gemma 2 without a cap of the scores, whatever the config says, with norms of the queries and
//! keys of each head, and windows, with rotary positions of their own, in most layers.

use serde::Deserialize;

use super::gemma2::Base;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, LayerType};
use crate::nn::Rope;

/// The config.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Args {
    #[serde(flatten)]
    base: Base,
    pub(super) vocab_size: Option<i32>,
    final_logit_softcapping: Option<f32>,
    /// Every so many layers one sees all positions, where there are no `layer_types`.
    sliding_window_pattern: Option<usize>,
    rope_local_base_freq: Option<f64>,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let caps = [None, self.final_logit_softcapping];
        self.base.checks("gemma3_text", self.vocab_size(), caps).done()
    }

    fn vocab_size(&self) -> i32 {
        self.vocab_size.unwrap_or(262_208)
    }

    fn slides(&self, layer: usize) -> bool {
        match &self.base.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => !(layer + 1).is_multiple_of(self.sliding_window_pattern.unwrap_or(6)),
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new().drop("*.rotary_emb.*", "computed from the config")
}

pub use super::gemma2::Model;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    args.base.model(w, args.vocab_size(), None, args.final_logit_softcapping, |i, w| attention(args, i, w))
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let (base, head_dim, slides) = (&args.base, args.base.head_dim, args.slides(layer));
    let norm = |name| w.shifted_norm(name, head_dim, base.rms_norm_eps).map(Some);
    let rope = match slides {
        true => base.rope.sliding(args.rope_local_base_freq.unwrap_or(10_000.0)),
        false => base.rope.full(),
    };
    Ok(Attention {
        q_norm: norm("q_norm")?,
        k_norm: norm("k_norm")?,
        rope: Some(Rope::new(head_dim, &rope, 1_000_000.0)?),
        window: base.sliding_window.filter(|_| slides),
        ..base.attention(w)?
    })
}
