//! Many queries: tiles of them against packed keys and values.

use super::{Call, Sizes};
use crate::kernels::product::{PANEL, SLIVER, Side, pack_slivers, tile};

/// Queries in a tile.
pub(super) const ROWS: usize = 4 * PANEL;

/// Rows of a pair from `first` on, into `out`, `[rows, value_dims]`.
pub(super) fn attention(call: &Call<'_>, pair: usize, first: usize, out: &mut [f32]) {
    let (path, Sizes { kv_heads, keys, dims, value_dims, .. }) = (call.path, call.sizes);
    let head = [pair / kv_heads, pair % kv_heads];
    let (padded_keys, padded_values) = (keys.next_multiple_of(SLIVER), value_dims.next_multiple_of(SLIVER));
    let mut lines = vec![0.0; (SLIVER * dims).max(padded_values)];
    let mut k = vec![0.0; padded_keys * dims];
    let (key_lines, value_lines) = (call.k.lines(head), call.v.lines(head));
    let side = Side { lines: &*key_lines, count: keys, across: false };
    pack_slivers(path, side, 0..keys, 0, dims, &mut lines, &mut k);
    let mut v = vec![0.0; padded_values * keys];
    let side = Side { lines: &*value_lines, count: value_dims, across: true };
    pack_slivers(path, side, 0..value_dims, 0, keys, &mut lines, &mut v);

    let mut query = vec![0.0; dims];
    let mut panels = vec![0.0; ROWS * dims.max(keys)];
    let mut scores = vec![0.0; ROWS * padded_keys];
    let mut sums = vec![0.0; ROWS * padded_values];
    for (t, out) in out.chunks_mut(ROWS * value_dims).enumerate() {
        let (start, rows) = (first + t * ROWS, out.len() / value_dims);
        let seen = call.seen(pair, start..start + rows);
        let seen = seen.start - seen.start % SLIVER..seen.end;
        let (count, width) = (seen.len(), seen.len().next_multiple_of(SLIVER));

        panels[..rows.next_multiple_of(PANEL) * dims].fill(0.0);
        for row in 0..rows {
            call.query(pair, start + row, &mut query);
            put(&query, row, &mut panels);
        }
        let scores = &mut scores[..rows * width];
        scores.fill(0.0);
        for (s, sliver) in k[seen.start * dims..].chunks_exact(dims * SLIVER).take(width / SLIVER).enumerate()
        {
            for (p, panel) in panels.chunks_exact(dims * PANEL).take(rows.div_ceil(PANEL)).enumerate() {
                let (row, few) = (p * PANEL, PANEL.min(rows - p * PANEL));
                tile(path, panel, sliver, few, &mut scores[row * width + s * SLIVER..], width);
            }
        }
        panels[..rows.next_multiple_of(PANEL) * count].fill(0.0);
        for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
            call.weigh(pair, start + row, seen.start, &mut scores[..count]);
            put(&scores[..count], row, &mut panels);
        }
        let sums = &mut sums[..rows * padded_values];
        sums.fill(0.0);
        for (s, sliver) in v.chunks_exact(keys * SLIVER).enumerate() {
            let sliver = &sliver[seen.start * SLIVER..seen.end * SLIVER];
            for (p, panel) in panels.chunks_exact(count * PANEL).take(rows.div_ceil(PANEL)).enumerate() {
                let (row, few) = (p * PANEL, PANEL.min(rows - p * PANEL));
                let sums = &mut sums[row * padded_values + s * SLIVER..];
                tile(path, panel, sliver, few, sums, padded_values);
            }
        }
        for (out, sums) in out.chunks_exact_mut(value_dims).zip(sums.chunks_exact(padded_values)) {
            out.copy_from_slice(&sums[..value_dims]);
        }
    }
}

/// Puts a row into panels, `[rows / PANEL, row's length, PANEL]`.
fn put(values: &[f32], row: usize, panels: &mut [f32]) {
    let panel = &mut panels[row / PANEL * values.len() * PANEL..][..values.len() * PANEL];
    for (out, value) in panel.chunks_exact_mut(PANEL).zip(values) {
        out[row % PANEL] = *value;
    }
}
