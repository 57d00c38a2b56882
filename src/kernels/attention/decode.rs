//! A few queries: keys and values are read once, as they lie, in pieces of the sequence.

use std::ops::Range;

use super::source::Source;
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
/// Keys that are decoded at a time, where they are quantized.
const NEAR: usize = 16;
/// How many positions before they are worked on those that are not quantized are fetched.
const AHEAD: usize = 16;
/// Vectors of a query that meet keys at a time.
const STRIP: usize = 4;

/// Some of the positions of a pair of batch and key head.
#[derive(Clone, Copy)]
struct Piece {
    pair: usize,
    start: usize,
    count: usize,
}

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
    // `[pairs, pieces, rows]`: the mean of a piece's values by its weights alone, its largest score, and its sum.
    let width = value_dims + 2;
    let mut parts = vec![0.0; pairs * pieces * rows * width];
    let grain = (pairs * pieces / (2 * pool::threads())).clamp(1, 16);
    pool::for_each_piece(&mut parts, grain * rows * width, |first, parts| {
        let place = |i: usize| {
            let (pair, start) = ((first * grain + i) / pieces, (first * grain + i) % pieces * PIECE);
            Piece { pair, start, count: PIECE.min(keys - start) }
        };
        let count = parts.len() / (rows * width);
        let mut scores = vec![0.0; rows * PIECE];
        call.fetch(place(0), 0..AHEAD);
        for (i, part) in parts.chunks_exact_mut(rows * width).enumerate() {
            let piece = place(i);
            let next = (i + 1 < count).then(|| place(i + 1));
            let (sums, shares) = part.split_at_mut(rows * value_dims);
            call.scores(piece, next, queries(piece.pair), &mut scores);
            let each = scores.chunks_exact_mut(PIECE).zip(shares.as_chunks_mut().0).enumerate();
            for (row, (scores, share)) in each {
                *share = call.weigh_piece(piece.pair, row, piece.start, &mut scores[..piece.count]);
            }
            call.add(piece, next, &scores, sums);
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

    /// Brings these positions of a piece near: those of its keys, and from `count` on those of its values.
    fn fetch(&self, piece: Piece, positions: Range<usize>) {
        let Sizes { dims, value_dims, .. } = self.sizes;
        let Piece { pair, start, count } = piece;
        let within = |from: usize| {
            let [a, b] = [positions.start, positions.end].map(|i| i.saturating_sub(from).min(count));
            (start + a, b - a)
        };
        let ((k, keys), (v, values)) = (within(0), within(count));
        self.k.fetch(self.head(pair), k, [keys, dims]);
        self.v.fetch(self.head(pair), v, [values, value_dims]);
    }

    /// The same of those that come [`AHEAD`] of `near` ones from `first` on, in this piece and then in the next.
    fn fetch_ahead(&self, piece: Piece, next: Option<Piece>, first: usize, near: usize) {
        let positions = first + AHEAD..first + near + AHEAD;
        self.fetch(piece, positions.clone());
        if let Some(next) = next {
            let whole = 2 * piece.count;
            self.fetch(next, positions.start.saturating_sub(whole)..positions.end.saturating_sub(whole));
        }
    }

    /// The products of a pair's queries with a piece of the keys, `[rows, PIECE]`.
    fn scores(&self, piece: Piece, next: Option<Piece>, queries: &[f32], scores: &mut [f32]) {
        let Sizes { dims, .. } = self.sizes;
        if let Source::Coded(coded) = &self.k {
            let keys = piece.start..piece.start + piece.count;
            if coded.matrix(self.head(piece.pair)).dot(keys, queries, scores, PIECE) {
                return;
            }
        }
        let mut room = Vec::new();
        for first in (0..piece.count).step_by(NEAR) {
            let near = NEAR.min(piece.count - first);
            self.fetch_ahead(piece, next, first, near);
            let block = self.k.block(self.head(piece.pair), piece.start + first, [near, dims], &mut room);
            block.dot(self.path, queries, dims, near, &mut scores[first..]);
        }
    }

    /// Adds a piece of the values to `sums`, `[rows, value_dims]`, each times its weight, of `[rows, PIECE]`.
    fn add(&self, piece: Piece, next: Option<Piece>, weights: &[f32], sums: &mut [f32]) {
        let Sizes { value_dims, .. } = self.sizes;
        if let Source::Coded(coded) = &self.v {
            let values = piece.start..piece.start + piece.count;
            if coded.matrix(self.head(piece.pair)).add(values, weights, PIECE, sums) {
                return;
            }
        }
        let mut room = Vec::new();
        for first in (0..piece.count).step_by(NEAR) {
            let near = NEAR.min(piece.count - first);
            self.fetch_ahead(piece, next, piece.count + first, near);
            let block =
                self.v.block(self.head(piece.pair), piece.start + first, [near, value_dims], &mut room);
            block.add(self.path, &weights[first..], near, sums, value_dims);
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

    /// Adds to `sums`, `[rows, dims]`, each of the `count` positions times its weight, of `[rows, PIECE]`.
    fn add(&self, path: Path, weights: &[f32], count: usize, sums: &mut [f32], dims: usize) {
        let Self { origin, line, .. } = *self;
        match self.numbers {
            Numbers::Float32(w) => {
                math::run(path, Add { weights, w, origin, line, count, sums, dims });
            }
            Numbers::Float16(w) => {
                math::run(path, Add { weights, w, origin, line, count, sums, dims });
            }
            Numbers::Bfloat16(w) => {
                math::run(path, Add { weights, w, origin, line, count, sums, dims });
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
        let strips = dims - dims % (STRIP * L::WIDTH);
        let whole = dims - dims % L::WIDTH;
        for at in (0..strips).step_by(STRIP * L::WIDTH) {
            strip::<L, T, STRIP, R, M>(keys, queries, at, &mut sums);
        }
        for at in (strips..whole).step_by(L::WIDTH) {
            strip::<L, T, 1, R, M>(keys, queries, at, &mut sums);
        }
        let mut each = [0.0; 8];
        if R * M == 8 {
            let mut all = [L::splat(0.0); 8];
            for (all, sum) in all.iter_mut().zip(sums.as_flattened()) {
                *all = *sum;
            }
            each = L::sum_eight(all);
        } else {
            for (each, sum) in each.iter_mut().zip(sums.as_flattened()) {
                *each = sum.sum();
            }
        }
        for (i, sum) in each[..R * M].iter().enumerate() {
            let (r, m) = (i / M, i % M);
            let rest = keys[r][whole..].iter().zip(&queries[m][whole..]);
            let rest = rest.fold(0.0, |sum, (key, query)| sum + key.number() * query);
            self.scores[(query + m) * PIECE + key + r] = sum + rest;
        }
    }
}

/// Adds the products of `C` vectors from `at` on of keys and queries.
#[inline(always)]
fn strip<L: Lanes, T: Number, const C: usize, const R: usize, const M: usize>(
    keys: [&[T]; R],
    queries: [&[f32]; M],
    at: usize,
    sums: &mut [[L; M]; R],
) {
    let mut q = [[L::splat(0.0); C]; M];
    for (q, query) in q.iter_mut().zip(queries) {
        let query = &query[at..][..C * L::WIDTH];
        for (c, q) in q.iter_mut().enumerate() {
            *q = L::load(&query[c * L::WIDTH..]);
        }
    }
    for (key, sums) in keys.iter().zip(sums) {
        let key = &key[at..][..C * L::WIDTH];
        for c in 0..C {
            let key = T::load::<L>(&key[c * L::WIDTH..]);
            for (q, sum) in q.iter().zip(&mut *sums) {
                *sum = key.mul_add(q[c], *sum);
            }
        }
    }
}

struct Add<'a, T> {
    weights: &'a [f32],
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
        let rows = self.sums.len() / self.dims;
        let mut row = 0;
        while row < rows {
            // Half of the registers: sixteen vectors with AVX-512, eight with others.
            row += match (rows - row, L::WIDTH) {
                (1, _) => self.rows::<L, 8, 1>(row),
                (2 | 3, 16) => self.rows::<L, 8, 2>(row),
                (2 | 3, _) => self.rows::<L, 4, 2>(row),
                (_, 16) => self.rows::<L, 4, 4>(row),
                _ => self.rows::<L, 2, 4>(row),
            };
        }
    }
}

impl<T: Number> Add<'_, T> {
    /// To the sums of `M` rows from `row` on, of which `C` vectors are in registers. Returns `M`.
    #[inline(always)]
    fn rows<L: Lanes, const C: usize, const M: usize>(&mut self, row: usize) -> usize {
        let dims = self.dims;
        let mut at = 0;
        while dims - at >= C * L::WIDTH {
            self.strip::<L, C, M>(row, at);
            at += C * L::WIDTH;
        }
        if C > 4 && dims - at >= 4 * L::WIDTH {
            self.strip::<L, 4, M>(row, at);
            at += 4 * L::WIDTH;
        }
        while dims - at >= L::WIDTH {
            self.strip::<L, 1, M>(row, at);
            at += L::WIDTH;
        }
        for i in at..dims {
            for m in row..row + M {
                let weights = &self.weights[m * PIECE..][..self.count];
                let values = (0..self.count).map(|p| self::row(self.w, self.origin, self.line, p, dims)[i]);
                let products = weights.iter().zip(values).map(|(weight, value)| weight * value.number());
                self.sums[m * dims + i] += products.sum::<f32>();
            }
        }
        M
    }

    /// To `C` vectors from `at` on of these sums.
    #[inline(always)]
    fn strip<L: Lanes, const C: usize, const M: usize>(&mut self, row: usize, at: usize) {
        let Self { weights, dims, count, .. } = *self;
        let mut sums = [[L::splat(0.0); C]; M];
        for (m, sums) in sums.iter_mut().enumerate() {
            let from = &self.sums[(row + m) * dims + at..][..C * L::WIDTH];
            for (c, sum) in sums.iter_mut().enumerate() {
                *sum = L::load(&from[c * L::WIDTH..]);
            }
        }
        let weights: [&[f32]; M] = std::array::from_fn(|m| &weights[(row + m) * PIECE..][..count]);
        for p in 0..count {
            let values = &self::row(self.w, self.origin, self.line, p, dims)[at..][..C * L::WIDTH];
            let mut factors = [L::splat(0.0); M];
            for (factor, weights) in factors.iter_mut().zip(weights) {
                *factor = L::splat(weights[p]);
            }
            for c in 0..C {
                let value = T::load::<L>(&values[c * L::WIDTH..]);
                for (sums, factor) in sums.iter_mut().zip(factors) {
                    sums[c] = value.mul_add(factor, sums[c]);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            let to = &mut self.sums[(row + m) * dims + at..][..C * L::WIDTH];
            for (c, sum) in sums.iter().enumerate() {
                sum.store(&mut to[c * L::WIDTH..]);
            }
        }
    }
}
