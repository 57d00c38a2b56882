//! Stochastic gradient descent.

use super::{Optimizer, Schedule, check};
use crate::array::Array;
use crate::error::Result;

/// Gradient descent with momentum, as MLX's `SGD`.
///
/// With `g` the gradient plus `weight_decay w`, and `v = momentum v + (1 - dampening) g`, a parameter
/// `w` becomes `w - rate v`; with `nesterov`, `w - rate (g + momentum v)`.
#[derive(Debug)]
pub struct Sgd {
    /// By step.
    pub learning_rate: Schedule,
    /// How much of the last direction is kept; with 0 there is no state.
    pub momentum: f64,
    /// How much less than a whole gradient enters the direction.
    pub dampening: f64,
    /// Looks one step ahead along the direction.
    pub nesterov: bool,
    /// The L2 penalty.
    pub weight_decay: f64,
    steps: u64,
    velocities: Vec<Array>,
}

impl Sgd {
    /// Plain gradient descent: no momentum, no decay.
    pub fn new(learning_rate: impl Into<Schedule>) -> Self {
        Self {
            learning_rate: learning_rate.into(),
            momentum: 0.0,
            dampening: 0.0,
            nesterov: false,
            weight_decay: 0.0,
            steps: 0,
            velocities: Vec::new(),
        }
    }

    /// One parameter's new value and direction.
    fn update(&self, g: &Array, w: &Array, velocity: Option<&Array>) -> Result<(Array, Array)> {
        let g = if self.weight_decay == 0.0 { g.clone() } else { (g + (self.weight_decay * w)?)? };
        let v = if self.dampening == 0.0 { g.clone() } else { (&g * (1.0 - self.dampening))? };
        let v = match velocity {
            None => v,
            Some(last) => (v + (self.momentum * last)?)?,
        };
        let step = if self.nesterov { (g + (self.momentum * &v)?)? } else { v.clone() };
        Ok(((w - (self.learning_rate.at(self.steps) * step)?)?, v))
    }
}

impl Optimizer for Sgd {
    fn apply(&mut self, gradients: &[Array], parameters: &[Array]) -> Result<Vec<Array>> {
        check(gradients, parameters, self.velocities.iter())?;
        let pairs = gradients.iter().zip(parameters).enumerate();
        let updates = pairs.map(|(i, (g, w))| self.update(g, w, self.velocities.get(i)));
        let (values, velocities) = updates.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        self.velocities = if self.momentum == 0.0 { Vec::new() } else { velocities };
        self.steps += 1;
        Ok(values)
    }

    fn state(&self) -> Vec<&Array> {
        self.velocities.iter().collect()
    }

    fn steps(&self) -> u64 {
        self.steps
    }
}
