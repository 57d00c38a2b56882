//! Some channels through a few positions, one channel after the other.

use crate::kernels::lanes::{LANES, Lane, Simd, Task};

/// Channels that are worked on at once.
pub(super) const CHANNELS: usize = 64;
/// Positions that are in the nearest cache at once.
pub(super) const STEPS: usize = 32;

/// At most [`STEPS`] positions of at most [`CHANNELS`] channels. States and what meets them are `width` lanes
/// each, with zeros behind their ends.
pub(super) struct Part {
    pub width: usize,
    pub channels: usize,
    pub count: usize,
    /// For each channel.
    pub a: Vec<Lane>,
    pub state: Vec<Lane>,
    /// For each position.
    pub b: Vec<Lane>,
    pub c: Vec<Lane>,
    pub x: Vec<[f32; CHANNELS]>,
    pub dt: Vec<[f32; CHANNELS]>,
    pub outputs: Vec<[f32; CHANNELS]>,
}

impl Part {
    pub fn new(width: usize, count: usize) -> Self {
        let vectors = |count: usize| vec![[0.0; LANES]; count * width];
        let rows = || vec![[0.0; CHANNELS]; count];
        Self {
            width,
            channels: 0,
            count: 0,
            a: vectors(CHANNELS),
            state: vectors(CHANNELS),
            b: vectors(count),
            c: vectors(count),
            x: rows(),
            dt: rows(),
            outputs: rows(),
        }
    }
}

impl Task for &mut Part {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.width;
        let channels = self.a.chunks_exact(width).zip(self.state.chunks_exact_mut(width));
        for (channel, (a, state)) in channels.take(self.channels).enumerate() {
            let positions = self.b.chunks_exact(width).zip(self.c.chunks_exact(width));
            for (t, (b, c)) in positions.take(self.count).enumerate() {
                let (x, dt) = (self.x[t][channel], self.dt[t][channel]);
                let (added, dt) = (simd.splat(x * dt), simd.splat(dt));
                let mut sum = simd.splat(0.0);
                for (((a, b), c), state) in a.iter().zip(b).zip(c).zip(&mut *state) {
                    let decay = simd.exp(simd.mul(dt, simd.load(a)));
                    let new = simd.mul_add(simd.load(state), decay, simd.mul(added, simd.load(b)));
                    simd.store(new, state);
                    sum = simd.mul_add(new, simd.load(c), sum);
                }
                self.outputs[t][channel] = simd.sum(sum);
            }
        }
    }
}
