//! Normalisation layers.

use std::borrow::Cow;

use super::{Module, join};
use crate::array::Array;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::kernels::{Chain, Node};
use crate::{fast, ops, parameters};

/// Root-mean-square normalisation over the last axis; see [`fast::rms_norm`].
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[dims]`.
    pub weight: Array,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight for the factor.
    pub offset: f32,
}

parameters!(RmsNorm { weight });

impl RmsNorm {
    /// `[..., dims]` to the same shape.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        fast::rms_norm(x, Some(&*factor(&self.weight, self.offset)?), self.eps)
    }

    /// With `weight + offset` as the factor.
    pub fn shifted(self, offset: f32) -> Self {
        Self { offset, ..self }
    }
}

/// Layer normalisation over the last axis; see [`fast::layer_norm`].
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[dims]`.
    pub weight: Option<Array>,
    /// `[dims]`.
    pub bias: Option<Array>,
    /// Added to the variance.
    pub eps: f32,
    /// Added to the weight for the factor.
    pub offset: f32,
}

parameters!(LayerNorm { weight, bias });

impl LayerNorm {
    /// `[..., dims]` to the same shape.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let weight = self.weight.as_ref().map(|weight| factor(weight, self.offset)).transpose()?;
        fast::layer_norm(x, weight.as_deref(), self.bias.as_ref(), self.eps)
    }

    /// With `weight + offset` as the factor.
    pub fn shifted(self, offset: f32) -> Self {
        Self { offset, ..self }
    }
}

fn factor(weight: &Array, offset: f32) -> Result<Cow<'_, Array>> {
    if offset == 0.0 { Ok(Cow::Borrowed(weight)) } else { Ok(Cow::Owned((weight + offset)?)) }
}

/// One of the norms, where a config or an architecture says which.
#[derive(Debug, Clone)]
pub enum Norm {
    /// [`RmsNorm`].
    Rms(RmsNorm),
    /// [`LayerNorm`].
    Layer(LayerNorm),
    /// [`LayerNorm`] of `[batch, heads, length, head_dim]`, whose weight is `[heads, head_dim]` (Cohere).
    PerHead(LayerNorm),
    /// The same with a weight `norms.i`, `[head_dim]`, for each head (StableLM 2).
    EachHead(Vec<LayerNorm>),
    /// Root-mean-square normalisation without a weight.
    Plain {
        /// Added to the mean square.
        eps: f32,
    },
}

impl Norm {
    /// `[..., dims]` to the same shape.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Norm::Rms(norm) => norm.forward(x),
            Norm::Layer(norm) => norm.forward(x),
            Norm::PerHead(norm) => {
                let x = fast::layer_norm(x, None, None, norm.eps)?;
                norm.weight.as_ref().map_or(Ok(x.clone()), |weight| x * ops::expand_dims(weight, 1)?)
            }
            Norm::EachHead(norms) => {
                let weights: Vec<&Array> = norms.iter().filter_map(|norm| norm.weight.as_ref()).collect();
                let weight = Some(ops::stack(weights, 0)?);
                let eps = norms.first().map_or(0.0, |norm| norm.eps);
                Norm::PerHead(LayerNorm { weight, bias: None, eps, offset: 0.0 }).forward(x)
            }
            Norm::Plain { eps } => fast::rms_norm(x, None, *eps),
        }
    }

    /// `x + y`, and what [`forward`](Self::forward) gives for it.
    pub fn forward_sum(&self, x: &Array, y: &Array) -> Result<[Array; 2]> {
        if let Some((weight, eps)) = self.rms()? {
            return fast::add_rms_norm(x, y, &weight, eps);
        }
        let sum = (x + y)?;
        let normed = self.forward(&sum)?;
        Ok([sum, normed])
    }

    /// [`forward`](Self::forward) in a chain; `None` where chains do not have it.
    pub(crate) fn record(&self, chain: &mut Chain, x: Node) -> Result<Option<Node>> {
        let Some((weight, eps)) = self.rms()? else { return Ok(None) };
        chain.rms_norm(x, &weight, eps)
    }

    /// [`forward_sum`](Self::forward_sum) in a chain; `None` where chains do not have it.
    pub(crate) fn record_sum(&self, chain: &mut Chain, x: Node, y: Node) -> Result<Option<[Node; 2]>> {
        let Some((weight, eps)) = self.rms()? else { return Ok(None) };
        chain.add_rms_norm(x, y, &weight, eps)
    }

    /// The factor and what is added to the mean square, of an RMS norm with a weight.
    pub(crate) fn rms(&self) -> Result<Option<(Cow<'_, Array>, f32)>> {
        match self {
            Norm::Rms(norm) => Ok(Some((factor(&norm.weight, norm.offset)?, norm.eps))),
            _ => Ok(None),
        }
    }
}

impl From<RmsNorm> for Norm {
    fn from(norm: RmsNorm) -> Self {
        Norm::Rms(norm)
    }
}

impl From<LayerNorm> for Norm {
    fn from(norm: LayerNorm) -> Self {
        Norm::Layer(norm)
    }
}

impl Module for Norm {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        match self {
            Norm::Rms(norm) => norm.visit(path, f),
            Norm::Layer(norm) | Norm::PerHead(norm) => norm.visit(path, f),
            Norm::EachHead(norms) => norms.visit(&join(path, "norms"), f),
            Norm::Plain { .. } => {}
        }
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        match self {
            Norm::Rms(norm) => norm.visit_mut(path, f),
            Norm::Layer(norm) | Norm::PerHead(norm) => norm.visit_mut(path, f),
            Norm::EachHead(norms) => norms.visit_mut(&join(path, "norms"), f),
            Norm::Plain { .. } => {}
        }
    }
}

impl Weights {
    /// The RMS norm `name` of so many features.
    pub fn rms_norm(&self, name: &str, dims: i32, eps: f32) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: self.pp(name).get_shaped("weight", &[dims])?, eps, offset: 0.0 })
    }

    /// The RMS norm `name`, whose factor is `1 + weight`.
    pub fn shifted_norm(&self, name: &str, dims: i32, eps: f32) -> Result<Norm> {
        Ok(Norm::Rms(self.rms_norm(name, dims, eps)?.shifted(1.0)))
    }

    /// The layer norm `name` of so many features, with a weight and a bias where the checkpoint has them.
    pub fn layer_norm(&self, name: &str, dims: i32, eps: f32) -> Result<LayerNorm> {
        let w = self.pp(name);
        let part = |part| w.contains(part).then(|| w.get_shaped(part, &[dims])).transpose();
        Ok(LayerNorm { weight: part("weight")?, bias: part("bias")?, eps, offset: 0.0 })
    }
}
