//! A layer whose branches are normed before and after, or only after.

use super::{DecoderLayer, FeedForward, Mixer};
use crate::array::{Array, Dtype};
use crate::cache::{LayerCache, Masks};
use crate::error::Result;
use crate::models::stage;
use crate::nn::{Module, Norm, join};
use crate::ops;

/// `h = x + norm(mixer(norm(x)))`, then `h + norm(mlp(norm(h)))`, where any of the norms may be absent:
/// Gemma 2 and GLM-4 have all four, OLMo 2 and EXAONE 4 those after the branches.
#[derive(Debug)]
pub struct Sandwich<A, F> {
    mixer_name: &'static str,
    mixer: A,
    mlp: F,
    norms: [Option<(&'static str, Norm)>; 4],
}

/// The names of all four norms in Gemma's checkpoints.
pub const GEMMA: [&str; 4] = [
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
];

/// The names of the norms after the branches, without any before (OLMo 2, EXAONE 4).
pub const AFTER: [&str; 4] = ["", "post_attention_layernorm", "", "post_feedforward_layernorm"];

impl<A: Mixer, F: FeedForward> Sandwich<A, F> {
    /// `names` are those of the norms before and after the mixer, and before and after the feed-forward
    /// layer, empty where there is none; `norm` reads one by its name.
    pub fn new(
        mixer: A,
        mlp: F,
        names: [&'static str; 4],
        norm: impl Fn(&str) -> Result<Norm>,
    ) -> Result<Self> {
        let mut norms = [const { None }; 4];
        for (slot, name) in norms.iter_mut().zip(names).filter(|(_, name)| !name.is_empty()) {
            *slot = Some((name, norm(name)?));
        }
        Ok(Self { mixer_name: "self_attn", mixer, mlp, norms })
    }

    /// For a checkpoint that has the mixer under another name than `self_attn`.
    pub fn mixed_by(self, mixer_name: &'static str) -> Self {
        Self { mixer_name, ..self }
    }

    fn norm(&self, index: usize, x: &Array) -> Result<Array> {
        self.norms[index].as_ref().map_or(Ok(x.clone()), |(_, norm)| norm.forward(x))
    }
}

/// `x + y`. In `float16` it stays finite: the residuals of such layers grow large.
pub fn add_finite(x: &Array, y: &Array) -> Result<Array> {
    if x.dtype() != Dtype::Float16 {
        return x + y;
    }
    let sum = ops::astype(x, Dtype::Float32)? + ops::astype(y, Dtype::Float32)?;
    let most = half::f16::MAX.to_f32();
    ops::astype(&ops::clip(&sum?, -most..=most)?, Dtype::Float16)
}

impl<A: Mixer, F: FeedForward> DecoderLayer for Sandwich<A, F> {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let normed = self.norm(0, x)?;
        let mixed = stage(self.mixer_name, || self.mixer.forward(&normed, masks, cache))?;
        let h = add_finite(x, &self.norm(1, &mixed)?)?;
        let normed = self.norm(2, &h)?;
        let fed = stage("mlp", || self.mlp.forward(&normed))?;
        add_finite(&h, &self.norm(3, &fed)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.mixer.make_cache()
    }
}

impl<A: Mixer, F: FeedForward> Module for Sandwich<A, F> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.mixer.visit(&join(path, self.mixer_name), f);
        self.mlp.visit(&join(path, "mlp"), f);
        for (name, norm) in self.norms.iter().flatten() {
            norm.visit(&join(path, name), f);
        }
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.mixer.visit_mut(&join(path, self.mixer_name), f);
        self.mlp.visit_mut(&join(path, "mlp"), f);
        for (name, norm) in self.norms.iter_mut().flatten() {
            norm.visit_mut(&join(path, name), f);
        }
    }
}
