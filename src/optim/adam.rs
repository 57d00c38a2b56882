//! Adam and AdamW.

use super::{Optimizer, Schedule, check};
use crate::array::Array;
use crate::error::Result;
use crate::ops;

/// Adam (Kingma and Ba, 2015), and with `weight_decay` AdamW (Loshchilov and Hutter, 2019).
///
/// With `m = b1 m + (1 - b1) g` and `v = b2 v + (1 - b2) g^2`, a parameter `w` becomes
/// `w (1 - rate weight_decay) - rate m / (sqrt(v) + eps)`; with `bias_correction`, `m` and `v` are
/// divided by `1 - b1^t` and `1 - b2^t` at step `t = 1, 2, ...` where they are used. MLX leaves the
/// correction out unless asked, PyTorch always makes it.
#[derive(Debug)]
pub struct Adam {
    /// By step.
    pub learning_rate: Schedule,
    /// Decay of the averages of the gradient and of its square.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// How much of a parameter is taken away, in units of the learning rate.
    pub weight_decay: f64,
    /// Whether the averages are corrected for their start at zero.
    pub bias_correction: bool,
    steps: u64,
    /// `m` and `v` of each parameter.
    moments: Vec<[Array; 2]>,
}

impl Adam {
    /// Adam with MLX's defaults: betas 0.9 and 0.999, eps 1e-8, no decay, no bias correction.
    pub fn new(learning_rate: impl Into<Schedule>) -> Self {
        let learning_rate = learning_rate.into();
        let (betas, eps) = ([0.9, 0.999], 1e-8);
        Self {
            learning_rate,
            betas,
            eps,
            weight_decay: 0.0,
            bias_correction: false,
            steps: 0,
            moments: Vec::new(),
        }
    }

    /// AdamW: [`new`](Self::new) with `weight_decay` (MLX's default is 0.01).
    pub fn adamw(learning_rate: impl Into<Schedule>, weight_decay: f64) -> Self {
        Self { weight_decay, ..Self::new(learning_rate) }
    }

    /// One parameter's new value and moments.
    fn update(&self, g: &Array, w: &Array, moments: Option<&[Array; 2]>) -> Result<(Array, [Array; 2])> {
        let [b1, b2] = self.betas;
        let (m, v) = ((1.0 - b1) * g, (1.0 - b2) * ops::square(g)?);
        let (m, v) = match moments {
            None => (m?, v?),
            Some([m0, v0]) => ((m + (b1 * m0)?)?, (v + (b2 * v0)?)?),
        };
        let rate = self.learning_rate.at(self.steps);
        let (mut scale, mut root) = (rate, ops::sqrt(&v)?);
        if self.bias_correction {
            let t = (self.steps + 1) as f64;
            scale /= 1.0 - b1.powf(t);
            root = (root * (1.0 - b2.powf(t)).sqrt().recip())?;
        }
        let step = ((scale * &m)? / (root + self.eps)?)?;
        let kept = if self.weight_decay == 0.0 { w.clone() } else { (w * (1.0 - rate * self.weight_decay))? };
        Ok(((kept - step)?, [m, v]))
    }
}

impl Optimizer for Adam {
    fn apply(&mut self, gradients: &[Array], parameters: &[Array]) -> Result<Vec<Array>> {
        check(gradients, parameters, self.moments.iter().map(|[m, _]| m))?;
        let pairs = gradients.iter().zip(parameters).enumerate();
        let updates = pairs.map(|(i, (g, w))| self.update(g, w, self.moments.get(i)));
        let (values, moments) = updates.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        self.moments = moments;
        self.steps += 1;
        Ok(values)
    }

    fn state(&self) -> Vec<&Array> {
        self.moments.iter().flatten().collect()
    }

    fn steps(&self) -> u64 {
        self.steps
    }
}
