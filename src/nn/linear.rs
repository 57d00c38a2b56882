//! Linear layers and embeddings.

use super::Weight;
use crate::array::Array;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::kernels::{Chain, Node};
use crate::{ops, parameters};

/// `x W^T + b`. Whether `W` is dense or quantized is the checkpoint's business.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Array>,
}

parameters!(Linear { weight: "", bias });

impl Linear {
    /// `[..., in]` to `[..., out]`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        match (&self.weight, &self.bias) {
            (Weight::Dense(weight), Some(bias)) => {
                ops::addmm(bias, x, &ops::swapaxes(weight, 0, 1)?, 1.0, 1.0)
            }
            (weight, Some(bias)) => weight.project(x)? + bias,
            (weight, None) => weight.project(x),
        }
    }

    /// [`forward`](Self::forward) of several layers, which read `x` once where they are quantized alike.
    pub fn forward_all<const N: usize>(layers: [&Linear; N], x: &Array) -> Result<[Array; N]> {
        if layers.iter().any(|layer| !matches!(layer.weight, Weight::Quantized { .. })) {
            return ops::exactly(layers.iter().map(|layer| layer.forward(x)).collect::<Result<_>>()?);
        }
        let mut all = Weight::project_all(&layers.map(|layer| &layer.weight), x)?;
        for (y, bias) in all.iter_mut().zip(layers.map(|layer| &layer.bias)) {
            if let Some(bias) = bias {
                *y = (&*y + bias)?;
            }
        }
        ops::exactly(all)
    }
}

/// A table of vectors, one for each id.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[vocabulary, dims]`.
    pub weight: Weight,
}

parameters!(Embedding { weight: "" });

impl Linear {
    /// [`forward_all`](Self::forward_all) of a few rows in a chain; `None` where chains do not have it.
    pub(crate) fn record<const N: usize>(
        layers: [&Linear; N],
        chain: &mut Chain,
        x: Node,
    ) -> Result<Option<[Node; N]>> {
        let Some(mut all) = Weight::record_all(&layers.map(|layer| &layer.weight), chain, x)? else {
            return Ok(None);
        };
        for (y, bias) in all.iter_mut().zip(layers.map(|layer| &layer.bias)) {
            let Some(bias) = bias else { continue };
            let bias = chain.constant(bias);
            let Some(sum) = chain.add(*y, bias)? else { return Ok(None) };
            *y = sum;
        }
        Ok(all.try_into().ok())
    }
}

impl Embedding {
    /// The vectors of `ids`: integers `[...]` to `[..., dims]`. Ids outside the table wrap around.
    pub fn forward(&self, ids: &Array) -> Result<Array> {
        self.weight.rows(ids)
    }

    /// The table as the weight of a linear layer, for heads that are tied to it:
    /// `[..., dims]` to `[..., vocabulary]`.
    pub fn as_linear(&self, x: &Array) -> Result<Array> {
        self.weight.project(x)
    }
}

impl Weights {
    /// The linear layer `name`, from `input` to `output` features, with a bias if there is one.
    pub fn linear(&self, name: &str, input: i32, output: i32) -> Result<Linear> {
        let w = self.pp(name);
        let bias = if w.contains("bias") { Some(w.get_shaped("bias", &[output])?) } else { None };
        Ok(Linear { weight: Weight::load(&w, &[output, input])?, bias })
    }

    /// The embedding `name`, of `vocabulary` vectors.
    pub fn embedding(&self, name: &str, vocabulary: i32, dims: i32) -> Result<Embedding> {
        Ok(Embedding { weight: Weight::load(&self.pp(name), &[vocabulary, dims])? })
    }
}
