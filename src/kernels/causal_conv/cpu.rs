//! Some channels through a few positions.

use crate::kernels::lanes::{LANES, Lane, Simd, Task};

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

impl Task for &mut Part {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let one = simd.splat(1.0);
        for t in 0..self.count {
            let inputs = &self.inputs[t..];
            for lane in 0..self.width {
                let mut sum = simd.load(&self.bias[lane]);
                for (weight, x) in self.weights.iter().zip(inputs) {
                    sum = simd.mul_add(simd.load(&weight[lane]), simd.load(&x[lane]), sum);
                }
                if self.silu {
                    let away = simd.exp(simd.mul(sum, simd.splat(-1.0)));
                    sum = simd.div(sum, simd.add(one, away));
                }
                simd.store(sum, &mut self.outputs[t][lane]);
            }
        }
    }
}
