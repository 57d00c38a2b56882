//! A few queries: keys and values are read once, as they lie, in pieces of the sequence.

use super::{Block, Call, Sizes};
use crate::kernels::math::{self, Lanes, Loop, Number};
use crate::kernels::path::Path;
use crate::kernels::pool;
use crate::kernels::product::Numbers;

/// Rows for which this is faster than tiles.
const FEW: usize = 16;
/// Keys in a piece, which has a softmax of its own (Dao et al., "Flash-Decoding for long-context inference", 2023).
/// Results depend on it, so it depends on nothing.
const PIECE: usize = 256;
/// Keys that are decoded at a time, where they are quantized, or fetched while those before them are worked on.
const NEAR: usize = 32;

pub(super) fn suits(call: &Call<'_>, rows: usize) -> bool {
    rows <= FEW && call.k.is_together() && call.v.is_together()
}

/// All rows, into `out`, `[pairs, rows, value_dims]`.
pub(super) fn attention(call: &Call<'_>, pairs: usize, rows: usize, out: &mut [f32]) {
    let Sizes { keys, dims, value_dims, .. } = call.sizes;
    let pieces = keys.div_ceil(PIECE);
    let mut queries = vec![0.0; pairs * rows * dims];
    for (i, query) in queries.chunks_exact_mut(dims).enumerate() {
        call.query(i / rows, i % rows, query);
    }
    let queries = |pair: usize| &queries[pair * rows * dims..][..rows * dims];
    if pieces == 1 {
        out.fill(0.0);
        pool::for_each_piece(out, rows * value_dims, |pair, sums| {
            let mut scores = vec![0.0; rows * PIECE];
            call.scores(pair, 0, queries(pair), &mut scores);
            for (row, scores) in scores.chunks_exact_mut(PIECE).enumerate() {
                call.weigh(pair, row, 0, &mut scores[..keys]);
            }
            call.add((pair, 0), &scores, PIECE, sums, None);
        });
        return;
    }
    // `[pairs, pieces, rows]`: the mean of a piece's values by its weights alone, its largest score, and its sum.
    let width = value_dims + 2;
    let mut parts = vec![0.0; pairs * pieces * rows * width];
    let grain = pool::share(pairs * pieces, 1);
    pool::for_each_piece(&mut parts, grain * rows * width, |first, parts| {
        let place = |i: usize| (i / pieces, i % pieces * PIECE);
        let count = parts.len() / (rows * width);
        let mut scores = vec![0.0; rows * PIECE];
        for (i, part) in parts.chunks_exact_mut(rows * width).enumerate() {
            let (pair, start) = place(first * grain + i);
            let (sums, shares) = part.split_at_mut(rows * value_dims);
            call.scores(pair, start, queries(pair), &mut scores);
            let each = scores.chunks_exact_mut(PIECE).zip(shares.as_chunks_mut().0).enumerate();
            for (row, (scores, share)) in each {
                *share = call.weigh_piece(pair, row, start, &mut scores[..PIECE.min(keys - start)]);
            }
            let next = (i + 1 < count).then(|| place(first * grain + i + 1));
            call.add((pair, start), &scores, PIECE, sums, next);
        }
    });
    out.fill(0.0);
    for (i, out) in out.chunks_exact_mut(value_dims).enumerate() {
        let (pair, row) = (i / rows, i % rows);
        let parts = parts[pair * pieces * rows * width..].chunks_exact(rows * width).take(pieces);
        let share = |part: &[f32]| [0, 1].map(|j| part[rows * value_dims + 2 * row + j]);
        let sink = call.sink(pair, row);
        let largest = parts.clone().map(|part| share(part)[0]).fold(sink, f32::max);
        let weight = |part: &[f32]| {
            let [max, sum] = share(part);
            sum * (max - largest).exp()
        };
        let all: f32 = parts.clone().map(weight).sum::<f32>() + (sink - largest).exp();
        for part in parts {
            let weight = weight(part) / all;
            let mean = &part[row * value_dims..][..value_dims];
            out.iter_mut().zip(mean).for_each(|(out, mean)| *out += weight * mean);
        }
    }
}

impl Call<'_> {
    /// The batch and key head of a pair.
    fn head(&self, pair: usize) -> [usize; 2] {
        [pair / self.sizes.kv_heads, pair % self.sizes.kv_heads]
    }

    /// The products of a pair's queries with the piece of keys from `start` on, `[rows, PIECE]`.
    fn scores(&self, pair: usize, start: usize, queries: &[f32], scores: &mut [f32]) {
        let Sizes { keys, dims, value_dims, .. } = self.sizes;
        let (count, mut room) = (PIECE.min(keys - start), Vec::new());
        for first in (0..count).step_by(NEAR) {
            let near = NEAR.min(count - first);
            match NEAR.min(count - first - near) {
                0 => self.v.fetch(self.head(pair), start, [NEAR.min(count), value_dims]),
                next => self.k.fetch(self.head(pair), start + first + near, [next, dims]),
            }
            let block = self.k.block(self.head(pair), start + first, [near, dims], &mut room);
            block.dot(self.path, queries, dims, near, &mut scores[first..]);
        }
    }

    /// Adds the piece of values from `start` on to `sums`, `[rows, value_dims]`, each times its weight. Those of a row
    /// are `stride` after those of the row before. Meanwhile the first keys of `next_piece` are brought near.
    fn add(
        &self,
        (pair, start): (usize, usize),
        weights: &[f32],
        stride: usize,
        sums: &mut [f32],
        next_piece: Option<(usize, usize)>,
    ) {
        let Sizes { keys, dims, value_dims, .. } = self.sizes;
        let (count, mut room) = (PIECE.min(keys - start), Vec::new());
        for first in (0..count).step_by(NEAR) {
            let near = NEAR.min(count - first);
            let next = NEAR.min(count - first - near);
            match next_piece {
                Some((pair, start)) if next == 0 => {
                    self.k.fetch(self.head(pair), start, [NEAR.min(keys - start), dims]);
                }
                _ => self.v.fetch(self.head(pair), start + first + near, [next, value_dims]),
            }
            let block = self.v.block(self.head(pair), start + first, [near, value_dims], &mut room);
            block.add(self.path, &weights[first..], stride, near, sums, value_dims);
        }
    }
}

impl Block<'_> {
    /// The products of queries, `[rows, dims]`, with the `count` positions, into `[rows, PIECE]`.
    fn dot(&self, path: Path, queries: &[f32], dims: usize, count: usize, scores: &mut [f32]) {
        let Self { origin, line, .. } = *self;
        match self.numbers {
            Numbers::Float32(w) => math::run(path, Dot { queries, dims, w, origin, line, count, scores }),
            Numbers::Float16(w) => math::run(path, Dot { queries, dims, w, origin, line, count, scores }),
            Numbers::Bfloat16(w) => math::run(path, Dot { queries, dims, w, origin, line, count, scores }),
        }
    }

    /// Adds to `sums`, `[rows, dims]`, each of the `count` positions times its weight. Those of a row are `stride`
    /// after those of the row before.
    fn add(&self, path: Path, weights: &[f32], stride: usize, count: usize, sums: &mut [f32], dims: usize) {
        let Self { origin, line, .. } = *self;
        match self.numbers {
            Numbers::Float32(w) => {
                math::run(path, Add { weights, stride, w, origin, line, count, sums, dims });
            }
            Numbers::Float16(w) => {
                math::run(path, Add { weights, stride, w, origin, line, count, sums, dims });
            }
            Numbers::Bfloat16(w) => {
                math::run(path, Add { weights, stride, w, origin, line, count, sums, dims });
            }
        }
    }
}

/// Line `i` of `w`.
#[inline(always)]
fn row<T>(w: &[T], origin: usize, line: isize, i: usize, dims: usize) -> &[T] {
    &w[origin.wrapping_add_signed(i as isize * line)..][..dims]
}

struct Dot<'a, T> {
    queries: &'a [f32],
    dims: usize,
    w: &'a [T],
    origin: usize,
    line: isize,
    count: usize,
    scores: &'a mut [f32],
}

impl<T: Number> Loop for Dot<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let whole = self.count - self.count % 4;
        let rows = self.queries.len() / self.dims;
        let mut query = 0;
        while query < rows {
            let few = match rows - query {
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            };
            for key in (0..whole).step_by(4) {
                match few {
                    1 => self.products::<L, 4, 1>(key, query),
                    2 => self.products::<L, 4, 2>(key, query),
                    _ => {
                        self.products::<L, 2, 4>(key, query);
                        self.products::<L, 2, 4>(key + 2, query);
                    }
                }
            }
            for key in whole..self.count {
                match few {
                    1 => self.products::<L, 1, 1>(key, query),
                    2 => self.products::<L, 1, 2>(key, query),
                    _ => self.products::<L, 1, 4>(key, query),
                }
            }
            query += few;
        }
    }
}

impl<T: Number> Dot<'_, T> {
    /// Of `R` keys with `M` queries.
    #[inline(always)]
    fn products<L: Lanes, const R: usize, const M: usize>(&mut self, key: usize, query: usize) {
        let dims = self.dims;
        let keys: [&[T]; R] = std::array::from_fn(|r| row(self.w, self.origin, self.line, key + r, dims));
        let queries: [&[f32]; M] = std::array::from_fn(|m| &self.queries[(query + m) * dims..][..dims]);
        let mut sums = [[L::splat(0.0); M]; R];
        let whole = dims - dims % L::WIDTH;
        for i in (0..whole).step_by(L::WIDTH) {
            for (key, sums) in keys.iter().zip(&mut sums) {
                let key = T::load::<L>(&key[i..]);
                for (query, sum) in queries.iter().zip(sums) {
                    *sum = key.mul_add(L::load(&query[i..]), *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (m, sum) in sums.iter().enumerate() {
                let rest = keys[r][whole..].iter().zip(&queries[m][whole..]);
                let rest = rest.fold(0.0, |sum, (key, query)| sum + key.number() * query);
                self.scores[(query + m) * PIECE + key + r] = sum.sum() + rest;
            }
        }
    }
}

struct Add<'a, T> {
    weights: &'a [f32],
    stride: usize,
    w: &'a [T],
    origin: usize,
    line: isize,
    count: usize,
    sums: &'a mut [f32],
    dims: usize,
}

impl<T: Number> Loop for Add<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let (rows, whole) = (self.sums.len() / self.dims, self.count - self.count % 8);
        let pairs = rows - rows % 2;
        for first in (0..whole).step_by(8) {
            for row in (0..pairs).step_by(2) {
                self.rows::<L, 4, 2>(first, row);
                self.rows::<L, 4, 2>(first + 4, row);
            }
            if pairs < rows {
                self.rows::<L, 8, 1>(first, pairs);
            }
        }
        for first in whole..self.count {
            for row in 0..rows {
                self.rows::<L, 1, 1>(first, row);
            }
        }
    }
}

impl<T: Number> Add<'_, T> {
    /// `R` positions from `first` on, to the sums of `M` rows from `row` on.
    #[inline(always)]
    fn rows<L: Lanes, const R: usize, const M: usize>(&mut self, first: usize, row: usize) {
        let dims = self.dims;
        let values: [&[T]; R] =
            std::array::from_fn(|r| self::row(self.w, self.origin, self.line, first + r, dims));
        let factors: [[f32; R]; M] = std::array::from_fn(|m| {
            std::array::from_fn(|r| self.weights[(row + m) * self.stride + first + r])
        });
        let wide = factors.map(|factors| factors.map(L::splat));
        let sums = &mut self.sums[row * dims..][..M * dims];
        let whole = dims - dims % L::WIDTH;
        for i in (0..whole).step_by(L::WIDTH) {
            let values: [L; R] = std::array::from_fn(|r| T::load::<L>(&values[r][i..]));
            for (m, wide) in wide.iter().enumerate() {
                let mut sum = L::load(&sums[m * dims + i..]);
                for (value, factor) in values.iter().zip(wide) {
                    sum = value.mul_add(*factor, sum);
                }
                sum.store(&mut sums[m * dims + i..]);
            }
        }
        for (sums, factors) in sums.chunks_exact_mut(dims).zip(factors) {
            for (i, sum) in sums.iter_mut().enumerate().skip(whole) {
                for (value, factor) in values.iter().zip(factors) {
                    *sum += value[i].number() * factor;
                }
            }
        }
    }
}
