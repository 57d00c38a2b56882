//! Many queries of `bfloat16`: tiles of them against packed keys and values, which pairs of numbers multiply.
//!
//! A tile meets some keys at a time: their weights are those of the largest score so far, and what was summed before is
//! brought down where a larger one comes (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
//! "FlashAttention", 2022). Weights are rounded to `bfloat16` before they meet values, and add up to one as rounded.

use half::bf16;

use super::{Call, Sizes};
use crate::kernels::math::{self, Lanes, Loop};
use crate::kernels::product::{
    PAIRS as DEPTH, Pairs, ROWS as STEP, SLIVER, Side, join_pairs, multiply_pairs as multiply, pack_slivers,
};

/// Queries in a tile.
pub(super) const ROWS: usize = 12 * STEP;
// Pieces of rows are whole tiles of either kind.
const _: () = assert!(2 * super::tiles::ROWS == ROWS);
/// Keys that a tile meets at a time.
const KEYS: usize = 2 * DEPTH;

/// Rows of a pair from `first` on, into `out`, `[rows, value_dims]`. Leaves it as it is and returns false where values are so
/// large or small that products may be lost.
pub(super) fn attention(call: &Call<'_>, pair: usize, first: usize, out: &mut [f32]) -> bool {
    let Sizes { kv_heads, keys, dims, value_dims, .. } = call.sizes;
    let head = [pair / kv_heads, pair % kv_heads];
    let (key_lines, value_lines) = (call.k.lines(head), call.v.lines(head));
    let values = Side { lines: &*value_lines, count: value_dims, across: true };
    let Some(values) = Packed::new(call, values, keys, true) else { return false };
    let all_keys = Side { lines: &*key_lines, count: keys, across: false };
    let Some(all_keys) = Packed::new(call, all_keys, dims, false) else { return false };

    let mut query = vec![0.0; dims.next_multiple_of(2)];
    let mut queries = vec![0.0; dims.div_ceil(KEYS) * ROWS * DEPTH];
    let mut scores = vec![0.0; ROWS * KEYS];
    let mut weights = vec![0.0; ROWS * DEPTH];
    let mut sums = vec![0.0; ROWS * values.width];
    for (t, out) in out.chunks_mut(ROWS * value_dims).enumerate() {
        let (start, rows) = (first + t * ROWS, out.len() / value_dims);
        for row in 0..rows {
            let [batch, head, i] = call.row(pair, start + row);
            call.q.read(call.q.at([batch, head], i), &mut query[..dims]);
            for (block, query) in query.chunks(KEYS).enumerate() {
                let at = (block * ROWS + row) * DEPTH;
                join_pairs(query, &mut queries[at..][..query.len() / 2]);
            }
        }
        let sums = &mut sums[..rows * values.width];
        sums.fill(0.0);
        // The largest score, and the sum of weights.
        let mut seen = [[f32::NEG_INFINITY, 0.0]; ROWS];
        for (row, seen) in seen.iter_mut().enumerate().take(rows) {
            let sink = call.sink(pair, start + row);
            if sink != f32::NEG_INFINITY {
                *seen = [sink, 1.0];
            }
        }
        let range = call.seen(pair, start..start + rows);
        for at in (range.start - range.start % KEYS..range.end).step_by(KEYS) {
            let count = (range.end - at).min(KEYS);
            let scores = &mut scores[..rows * KEYS];
            scores.fill(0.0);
            for (block, queries) in queries.chunks_exact(ROWS * DEPTH).enumerate() {
                let depth = all_keys.depth(block);
                let keys = &all_keys.block(block)[at * depth..][..count.next_multiple_of(SLIVER) * depth];
                multiply(queries, keys, [depth, depth], scores, KEYS);
            }
            for (row, scores) in scores.chunks_exact_mut(KEYS).enumerate() {
                let scores = &mut scores[..count];
                math::run(call.path, Scale { scores, by: call.scale });
                call.look(pair, start + row, at, scores);
                let weights = bytemuck::cast_slice_mut(&mut weights[row * DEPTH..][..count.div_ceil(2)]);
                weights[count..].fill(bf16::ZERO);
                let [max, sum] = &mut seen[row];
                let step = Step { scores, max: *max, weights: &mut weights[..count] };
                let (new, more) = math::run(call.path, step);
                if new != *max && *sum != 0.0 {
                    let factor = (*max - new).exp();
                    *sum *= factor;
                    sums[row * values.width..][..values.width].iter_mut().for_each(|sum| *sum *= factor);
                }
                *max = new;
                *sum += more;
            }
            let block = at / KEYS;
            multiply(
                &weights,
                values.block(block),
                [values.depth(block), count.div_ceil(2)],
                sums,
                values.width,
            );
        }
        for ((out, sums), [_, sum]) in
            out.chunks_exact_mut(value_dims).zip(sums.chunks_exact(values.width)).zip(seen)
        {
            let factor = 1.0 / sum;
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * factor);
        }
    }
    true
}

/// A side in slivers of pairs, `[pairs / DEPTH, width / SLIVER, DEPTH, SLIVER]`.
struct Packed {
    all: Vec<f32>,
    width: usize,
    pairs: usize,
}

impl Packed {
    /// `None` where `near` is asked for and numbers are not.
    fn new(call: &Call<'_>, side: Side<'_>, k: usize, near: bool) -> Option<Self> {
        let (count, pairs) = (side.count, k.div_ceil(2));
        let width = count.next_multiple_of(SLIVER);
        let side = Pairs::new(side, k);
        let mut all = vec![0.0; width * pairs];
        let mut lines = vec![0.0; (SLIVER * DEPTH).max(width)];
        for (block, out) in all.chunks_mut(width * DEPTH).enumerate() {
            let depth = out.len() / width;
            pack_slivers(call.path, side.side(), 0..count, block * DEPTH, depth, &mut lines, out);
        }
        (!near || !side.are_far()).then_some(Self { all, width, pairs })
    }

    /// Pairs of a block.
    fn depth(&self, block: usize) -> usize {
        DEPTH.min(self.pairs - block * DEPTH)
    }

    fn block(&self, block: usize) -> &[f32] {
        &self.all[block * DEPTH * self.width..][..self.depth(block) * self.width]
    }
}

struct Scale<'a> {
    scores: &'a mut [f32],
    by: f32,
}

impl Loop for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let by = L::splat(self.by);
        math::map_in_place(self.scores, |score: L| score.mul(by));
    }
}

/// Makes weights of scores.
struct Step<'a> {
    scores: &'a [f32],
    /// The largest score before these.
    max: f32,
    weights: &'a mut [bf16],
}

impl Loop for Step<'_> {
    /// The largest score with these, and the sum of their weights.
    type Output = (f32, f32);

    #[inline(always)]
    fn run<L: Lanes>(self) -> (f32, f32) {
        let max = math::maximum::<L, f32>(self.scores).max(self.max);
        // Where all are minus infinity, none has any weight yet.
        let zero = L::splat(if max == f32::NEG_INFINITY { 0.0 } else { max });
        math::map(self.scores, self.weights, |_, score: L| score.sub(zero).exp());
        (max, math::sum::<L, bf16>(self.weights, |weight| weight))
    }
}
