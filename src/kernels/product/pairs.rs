//! Products of `bfloat16`, of which pairs of neighbours along `k` are multiplied at a time.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::cpu::bf16::{DEPTH, ROWS, join, join_pairs, multiply};
use super::{Lines, Side, in_strips};
use crate::kernels::path::Path;
use crate::kernels::pool;

/// Numbers that are joined at a time.
const JOINED: usize = 128;
/// Numbers that are read as pairs at a time.
const READ: usize = 2 * JOINED;

/// A side of a product whose lines are pairs along `k`: `k / 2` of them, the last with a zero where `k` is odd.
pub(crate) struct Pairs<'a> {
    side: Side<'a>,
    k: usize,
    far: AtomicBool,
}

impl<'a> Pairs<'a> {
    /// Of a side whose numbers are `bfloat16`.
    pub fn new(side: Side<'a>, k: usize) -> Self {
        Self { side, k, far: AtomicBool::new(false) }
    }

    pub fn side(&self) -> Side<'_> {
        Side { lines: self, ..self.side }
    }

    /// Whether numbers have been read whose products may be lost; see [`join`].
    pub fn are_far(&self) -> bool {
        self.far.load(Relaxed)
    }
}

impl Lines for Pairs<'_> {
    fn read(&self, line: usize, start: usize, out: &mut [f32]) {
        let Self { side, k, .. } = *self;
        let mut far = false;
        let mut room = [0.0; READ];
        for (i, out) in out.chunks_mut(JOINED).enumerate() {
            let start = start + i * JOINED;
            let (first, second) = room.split_at_mut(JOINED);
            if side.across {
                let (first, second) = (&mut first[..out.len()], &mut second[..out.len()]);
                side.lines.read(2 * line, start, first);
                // Or the zeros that it begins as.
                if 2 * line + 1 < k {
                    side.lines.read(2 * line + 1, start, second);
                }
                far |= join(first, second, out);
            } else {
                let all = &mut room[..2 * out.len()];
                let there = all.len().min(k - 2 * start);
                side.lines.read(line, 2 * start, &mut all[..there]);
                all[there..].fill(0.0);
                far |= join_pairs(all, out);
            }
        }
        if far {
            self.far.store(true, Relaxed);
        }
    }
}

/// The products of vectors of the smaller side with all of the larger, `[many / width, few, width]`; `None` where some of
/// them may have lost what they have.
pub(super) fn block(
    few: Side<'_>,
    vectors: Range<usize>,
    many: Side<'_>,
    k: usize,
    width: usize,
) -> Option<Vec<f32>> {
    let (count, pairs) = (vectors.len(), k.div_ceil(2));
    let (few, wide) = (Pairs::new(few, k), Pairs::new(many, k));
    let rows = pack_rows(&few, vectors, pairs);
    let size = count.next_multiple_of(ROWS) * DEPTH;
    let add = |start: usize, depth: usize, slivers: &[f32], sums: &mut [f32]| {
        multiply(&rows[start / DEPTH * size..][..size], slivers, [depth, depth], sums, width);
    };
    let values = in_strips(Path::Avx512Bf16, wide.side(), pairs, DEPTH, [count, width], add);
    let lost = (few.are_far() || wide.are_far()) && any_small(&values, [count, width, many.count]);
    (!lost).then_some(values)
}

/// Whether any of `[n / width, count, width]` sums is so small that the products and sums that were taken for zeros, each below
/// 2^-126, may count.
fn any_small(values: &[f32], [count, width, n]: [usize; 3]) -> bool {
    const SMALL: f32 = 1.0 / (1u128 << 96) as f32;
    values.chunks_exact(count * width).zip((0..n).step_by(width)).any(|(strip, first)| {
        let filled = width.min(n - first);
        strip.chunks_exact(width).any(|row| row[..filled].iter().any(|value| value.abs() < SMALL))
    })
}

/// `[pairs / DEPTH, count, DEPTH]`, and any numbers where a row or a multiple of [`ROWS`] has more.
fn pack_rows(side: &Pairs<'_>, vectors: Range<usize>, pairs: usize) -> Vec<f32> {
    let size = vectors.len().next_multiple_of(ROWS) * DEPTH;
    let mut packed = vec![0.0f32; pairs.div_ceil(DEPTH) * size];
    pool::for_each_piece(&mut packed, size, |block, out| {
        let first = block * DEPTH;
        let depth = DEPTH.min(pairs - first);
        if !side.side.across {
            for (v, row) in vectors.clone().zip(out.chunks_exact_mut(DEPTH)) {
                side.read(v, first, &mut row[..depth]);
            }
            return;
        }
        let mut line = vec![0.0; vectors.len()];
        for i in 0..depth {
            side.read(first + i, vectors.start, &mut line);
            for (row, value) in out.chunks_exact_mut(DEPTH).zip(&line) {
                row[i] = *value;
            }
        }
    });
    packed
}
