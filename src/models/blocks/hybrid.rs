//! Models whose layers mix positions in different ways, or not at all.

use serde::Deserialize;

use super::{Block, DecoderLayer, FeedForward, Mixer};
use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::error::Result;
use crate::models::stage;
use crate::nn::RmsNorm;
use crate::parameters;

/// How a layer of a hybrid model mixes positions, as configs name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum MixerType {
    /// By attention.
    #[serde(rename = "full_attention", alias = "attention")]
    Attention,
    /// By a recurrence or a convolution.
    #[serde(rename = "linear_attention", alias = "mamba", alias = "conv", alias = "recurrent")]
    Recurrence,
}

/// A layer with any mixer and any feed-forward layer.
pub type HybridBlock = Block<Box<dyn Mixer>, Box<dyn FeedForward>>;

/// The layer of Mamba: `x + mixer(norm(x))`.
#[derive(Debug)]
pub struct MixerBlock<M> {
    /// Mixes positions.
    pub mixer: M,
    /// Before it.
    pub norm: RmsNorm,
}

parameters!(<M: Mixer> MixerBlock<M> { mixer, norm });

impl<M: Mixer> DecoderLayer for MixerBlock<M> {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        x + stage("mixer", || self.mixer.forward(&self.norm.forward(x)?, masks, cache))?
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.mixer.make_cache()
    }
}

/// A feed-forward layer in the place of a mixer.
#[derive(Debug)]
pub struct Positionwise<F> {
    /// The layer.
    pub layer: F,
}

parameters!(<F: FeedForward> Positionwise<F> { layer: "" });

impl<F: FeedForward> Mixer for Positionwise<F> {
    fn forward(&self, x: &Array, _masks: &mut Masks, _cache: &mut LayerCache) -> Result<Array> {
        self.layer.forward(x)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        None
    }
}
