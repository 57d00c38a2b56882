//! Optimizers, learning-rate schedules and gradient clipping, as MLX's Python `mlx.optimizers` defines them.
//!
//! An optimizer works on lists of arrays, the same order at every step:
//!
//! ```
//! use mlxport::optim::{Adam, Optimizer};
//! use mlxport::Array;
//!
//! let mut optimizer = Adam::adamw(0.01, 0.1);
//! let w = Array::from_slice(&[1.0f32, -1.0], &[2])?;
//! let g = Array::from_slice(&[0.5f32, 0.5], &[2])?;
//! let w = optimizer.apply(&[g], &[w])?.remove(0);
//! assert!(w.to_vec::<f32>()?[0] < 1.0);
//! # Ok::<(), mlxport::Error>(())
//! ```

mod adam;
mod clip;
mod schedule;
mod sgd;

pub use adam::Adam;
pub use clip::clip_grad_norm;
pub use schedule::Schedule;
pub use sgd::Sgd;

use crate::array::Array;
use crate::error::{Error, Result};

/// Turns gradients into new parameter values.
///
/// The values returned, and the optimizer's [`state`](Self::state), are lazy: evaluate both once a
/// step, or the graph grows from step to step.
pub trait Optimizer {
    /// `parameters` after one step against `gradients`, in the same order. State is kept by position,
    /// so every call takes the same parameters in the same order; fails if counts or shapes differ.
    fn apply(&mut self, gradients: &[Array], parameters: &[Array]) -> Result<Vec<Array>>;

    /// What the optimizer remembers between steps: momenta, in an order of its own.
    fn state(&self) -> Vec<&Array>;

    /// Steps taken so far.
    fn steps(&self) -> u64;
}

/// Refuses gradients, or a state of earlier steps, that do not go with `parameters`.
fn check<'a>(
    gradients: &'a [Array],
    parameters: &'a [Array],
    state: impl ExactSizeIterator<Item = &'a Array>,
) -> Result<()> {
    let (g, p, s) = (gradients.len(), parameters.len(), state.len());
    if g != p || (s != p && s != 0) {
        let message = format!("{g} gradients for {p} parameters, with state for {s}");
        return Err(Error::argument("optimizer", message));
    }
    let others = gradients.iter().zip(parameters).chain(state.zip(parameters));
    for (other, parameter) in others {
        if other.shape() != parameter.shape() {
            let (lhs, rhs) = (other.shape().to_vec(), parameter.shape().to_vec());
            return Err(Error::Shape { op: "optimizer", lhs, rhs });
        }
    }
    Ok(())
}
