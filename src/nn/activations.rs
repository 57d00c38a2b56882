//! Activation functions. All keep shape and dtype.

use std::f64::consts::{PI, SQRT_2};

use serde::{Deserialize, Serialize};

use crate::array::Array;
use crate::error::Result;
use crate::kernels::{self, Path, Unit};
use crate::ops;

/// `max(x, 0)`.
pub fn relu(x: &Array) -> Result<Array> {
    ops::maximum(x, 0)
}

/// `max(x, 0)^2`.
pub fn relu2(x: &Array) -> Result<Array> {
    ops::square(&relu(x)?)
}

/// `x sigmoid(x)`, also called swish.
pub fn silu(x: &Array) -> Result<Array> {
    x * ops::sigmoid(x)?
}

/// `x Phi(x)`, with the distribution function of the normal distribution.
pub fn gelu(x: &Array) -> Result<Array> {
    (x * (ops::erf(&(x / SQRT_2)?)? + 1)?)? / 2
}

/// The approximation of [`gelu`] with `tanh`.
pub fn gelu_tanh(x: &Array) -> Result<Array> {
    let cube = (cube(x)? * 0.044715)?;
    let inner = ((cube + x)? * (2.0 / PI).sqrt())?;
    (x * 0.5)? * (ops::tanh(&inner)? + 1)?
}

/// `x^3`: a power, as in MLX, has one rounding, products are faster.
fn cube(x: &Array) -> Result<Array> {
    match kernels::active() {
        Path::Reference => ops::power(x, 3),
        _ => ops::square(x)? * x,
    }
}

/// The approximation of [`gelu`] by `x sigmoid(1.702 x)`.
pub fn gelu_sigmoid(x: &Array) -> Result<Array> {
    x * ops::sigmoid(&(x * 1.702)?)?
}

/// `silu(gate) x`, the gated unit of most language models (Shazeer, "GLU Variants Improve
/// Transformer", 2020).
pub fn swiglu(gate: &Array, x: &Array) -> Result<Array> {
    Activation::Silu.gated(gate, x)
}

/// `gate sigmoid(alpha gate) (x + 1)`, with `gate` at most `limit` and `x` between `-limit` and `limit`
/// (OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025).
pub fn clamped_swiglu(gate: &Array, x: &Array, alpha: f32, limit: f32) -> Result<Array> {
    let gate = ops::minimum(gate, limit)?;
    let x = ops::clip(x, -limit..=limit)?;
    (&gate * ops::sigmoid(&(&gate * alpha)?)?)? * (x + 1)?
}

/// `ln(1 + e^x)`.
pub fn softplus(x: &Array) -> Result<Array> {
    ops::logaddexp(x, 0)
}

/// An activation function by the name that configs give it (`hidden_act`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// [`silu`].
    #[default]
    #[serde(alias = "swish")]
    Silu,
    /// [`gelu`].
    #[serde(alias = "gelu_python")]
    Gelu,
    /// [`gelu_tanh`].
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new", alias = "gelu_fast", alias = "gelu_accurate")]
    GeluTanh,
    /// [`gelu_sigmoid`].
    #[serde(rename = "quick_gelu")]
    GeluSigmoid,
    /// [`relu`].
    Relu,
    /// [`relu2`].
    Relu2,
    /// The sigmoid.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// What a kernel knows it as.
    pub(crate) fn unit(self) -> Option<Unit> {
        match self {
            Activation::Silu => Some(Unit::SILU),
            Activation::GeluTanh => Some(Unit::GELU_TANH),
            Activation::GeluSigmoid => Some(Unit::GELU_SIGMOID),
            _ => None,
        }
    }

    /// The function at `gate`, times `x`.
    pub fn gated(self, gate: &Array, x: &Array) -> Result<Array> {
        match self.unit().and_then(|unit| kernels::gated(unit, gate, x)) {
            Some(y) => y,
            None => self.apply(gate)? * x,
        }
    }

    /// The function at `x`.
    pub fn apply(self, x: &Array) -> Result<Array> {
        match self {
            Activation::Silu => silu(x),
            Activation::Gelu => gelu(x),
            Activation::GeluTanh => gelu_tanh(x),
            Activation::GeluSigmoid => gelu_sigmoid(x),
            Activation::Relu => relu(x),
            Activation::Relu2 => relu2(x),
            Activation::Sigmoid => ops::sigmoid(x),
            Activation::Tanh => ops::tanh(x),
        }
    }
}
