//! Some channels through a few positions.

use crate::kernels::lanes::{LANES, Lane};
use crate::kernels::math::{Lanes, Loop};

/// Lanes of channels that are worked on at once.
pub(super) const LANES_AT_ONCE: usize = 16;

/// So many lanes of channels.
type Row = [Lane; LANES_AT_ONCE];

/// Some positions, whose inputs begin `weights.len() - 1` positions before them.
pub(super) struct Part {
    /// Lanes that are in use.
    pub width: usize,
    /// Positions.
    pub count: usize,
    pub weights: Vec<Row>,
    pub bias: Row,
    pub inputs: Vec<Row>,
    pub outputs: Vec<Row>,
    silu: bool,
}

impl Part {
    /// Room for `count` positions.
    pub fn new(kernel: usize, count: usize, silu: bool) -> Self {
        let row = [[0.0; LANES]; LANES_AT_ONCE];
        Self {
            width: 0,
            count: 0,
            weights: vec![row; kernel],
            bias: row,
            inputs: vec![row; count + kernel - 1],
            outputs: vec![row; count],
            silu,
        }
    }
}

impl Loop for &mut Part {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let one = L::splat(1.0);
        for t in 0..self.count {
            let inputs = &self.inputs[t..];
            for lane in 0..self.width {
                let mut sum = L::load(&self.bias[lane]);
                for (weight, x) in self.weights.iter().zip(inputs) {
                    sum = L::load(&weight[lane]).mul_add(L::load(&x[lane]), sum);
                }
                if self.silu {
                    let away = sum.mul(L::splat(-1.0)).exp();
                    sum = sum.div(one.add(away));
                }
                sum.store(&mut self.outputs[t][lane]);
            }
        }
    }
}
