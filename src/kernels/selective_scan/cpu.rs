//! Some channels through a few positions, one channel after the other.

use crate::kernels::lanes::{LANES, Lane};
use crate::kernels::math::{Lanes, Loop};

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

impl Loop for &mut Part {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let width = self.width;
        let channels = self.a.chunks_exact(width).zip(self.state.chunks_exact_mut(width));
        for (channel, (a, state)) in channels.take(self.channels).enumerate() {
            let positions = self.b.chunks_exact(width).zip(self.c.chunks_exact(width));
            for (t, (b, c)) in positions.take(self.count).enumerate() {
                let (x, dt) = (self.x[t][channel], self.dt[t][channel]);
                let (added, dt) = (L::splat(x * dt), L::splat(dt));
                let mut sum = L::splat(0.0);
                for (((a, b), c), state) in a.iter().zip(b).zip(c).zip(&mut *state) {
                    let decay = dt.mul(L::load(a)).exp();
                    let new = L::load(state).mul_add(decay, added.mul(L::load(b)));
                    new.store(state);
                    sum = new.mul_add(L::load(c), sum);
                }
                self.outputs[t][channel] = sum.sum();
            }
        }
    }
}
