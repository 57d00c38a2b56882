//! A few queries: keys and values are read once, as they lie, in pieces of the sequence.

use super::{Call, Sizes};
use crate::kernels::path::Path;
use crate::kernels::pool;
#[cfg(target_arch = "x86_64")]
use crate::kernels::product::Numbers;

/// Rows for which this is faster than tiles.
const FEW: usize = 8;
/// Keys in a piece. Results depend on it, so it depends on nothing.
const PIECE: usize = 256;

pub(super) fn suits(call: &Call<'_>, rows: usize) -> bool {
    call.path == Path::Avx2
        && rows <= FEW
        && [&call.k, &call.v].iter().all(|heads| heads.step() == 1 && heads.strides[2] >= 0)
}

/// All rows, `[pairs, rows, value_dims]`.
pub(super) fn attention(call: &Call<'_>, pairs: usize, rows: usize) -> Vec<f32> {
    let Sizes { kv_heads, keys, dims, value_dims, .. } = call.sizes;
    let pieces = keys.div_ceil(PIECE);
    let mut queries = vec![0.0; pairs * rows * dims];
    for (i, query) in queries.chunks_exact_mut(dims).enumerate() {
        call.query(i / rows, i % rows, query);
    }
    // `[pairs, pieces, rows, PIECE]`.
    let mut scores = vec![0.0; pairs * pieces * rows * PIECE];
    pool::for_each_piece(&mut scores, rows * PIECE, |i, scores| {
        let (pair, start) = (i / pieces, i % pieces * PIECE);
        let count = PIECE.min(keys - start);
        let origin = call.k.at(pair / kv_heads, pair % kv_heads, start);
        dot(call, &queries[pair * rows * dims..][..rows * dims], origin, count, scores);
    });
    let mut weights = vec![0.0; pairs * rows * keys];
    pool::for_each_piece(&mut weights, rows * keys, |pair, weights| {
        let scores = &scores[pair * pieces * rows * PIECE..];
        for (row, weights) in weights.chunks_exact_mut(keys).enumerate() {
            for (piece, weights) in weights.chunks_mut(PIECE).enumerate() {
                weights.copy_from_slice(&scores[(piece * rows + row) * PIECE..][..weights.len()]);
            }
            call.weigh(pair, row, 0, weights);
        }
    });
    // `[pairs, pieces, rows, value_dims]`.
    let mut parts = vec![0.0; pairs * pieces * rows * value_dims];
    pool::for_each_piece(&mut parts, rows * value_dims, |i, sums| {
        let (pair, start) = (i / pieces, i % pieces * PIECE);
        let count = PIECE.min(keys - start);
        let origin = call.v.at(pair / kv_heads, pair % kv_heads, start);
        let weights = &weights[pair * rows * keys..][..rows * keys];
        for first in (0..count).step_by(8) {
            for (weights, sums) in weights.chunks_exact(keys).zip(sums.chunks_exact_mut(value_dims)) {
                let eight = &weights[start + first..start + count.min(first + 8)];
                add(call, eight, origin + first * call.v.strides[2] as usize, sums);
            }
        }
    });
    let mut out = vec![0.0; pairs * rows * value_dims];
    for (out, parts) in
        out.chunks_exact_mut(rows * value_dims).zip(parts.chunks_exact(pieces * rows * value_dims))
    {
        for part in parts.chunks_exact(rows * value_dims) {
            out.iter_mut().zip(part).for_each(|(out, part)| *out += part);
        }
    }
    out
}

/// The products of queries with the keys from `origin` on, `[rows, PIECE]`.
#[cfg(target_arch = "x86_64")]
fn dot(call: &Call<'_>, queries: &[f32], origin: usize, count: usize, scores: &mut [f32]) {
    use crate::kernels::product::cpu::avx2::dot_block;
    let (k, line) = (call.sizes.dims, call.k.strides[2] as usize);
    match call.k.numbers {
        Numbers::Float32(w) => dot_block(queries, k, w, origin, line, count, scores, PIECE),
        Numbers::Float16(w) => dot_block(queries, k, w, origin, line, count, scores, PIECE),
        Numbers::Bfloat16(w) => dot_block(queries, k, w, origin, line, count, scores, PIECE),
    }
}

/// Adds each of the values from `origin` on times its weight.
#[cfg(target_arch = "x86_64")]
fn add(call: &Call<'_>, weights: &[f32], origin: usize, sums: &mut [f32]) {
    use crate::kernels::product::cpu::avx2::add_block;
    let line = call.v.strides[2] as usize;
    match call.v.numbers {
        Numbers::Float32(w) => add_block(weights, w, origin, line, sums),
        Numbers::Float16(w) => add_block(weights, w, origin, line, sums),
        Numbers::Bfloat16(w) => add_block(weights, w, origin, line, sums),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn dot(_: &Call<'_>, _: &[f32], _: usize, _: usize, _: &mut [f32]) {
    unreachable!("this CPU has no such path")
}

#[cfg(not(target_arch = "x86_64"))]
fn add(_: &Call<'_>, _: &[f32], _: usize, _: &mut [f32]) {
    unreachable!("this CPU has no such path")
}
