//! x86 with AVX-512 F, BW, DQ and VL.

use std::arch::x86_64::*;

use super::{PANEL, RUN, SLIVER};

/// Vectors of the smaller side whose panels stay in a core's cache.
const NEAR: usize = 8 * 2 * PANEL;

/// Adds the product of panels and slivers of `depth` to `sums`, `[count, width]`: two panels meet two slivers
/// at a time.
pub fn multiply(panels: &[f32], slivers: &[f32], depth: usize, count: usize, sums: &mut [f32]) {
    let width = sums.len() / count;
    assert!(panels.len() >= count.next_multiple_of(PANEL) * depth && slivers.len() <= width * depth);
    for near in (0..count).step_by(NEAR) {
        for (s, pair) in slivers.chunks(2 * depth * SLIVER).enumerate() {
            for row in (near..count.min(near + NEAR)).step_by(2 * PANEL) {
                let rows = [count.min(row + PANEL) - row, count.saturating_sub(row + PANEL).min(PANEL)];
                let out = &mut sums[row * width + s * 2 * SLIVER..];
                let panels = &panels[row * depth..];
                // SAFETY: this path is taken only where the CPU has AVX-512; there are panels and slivers of
                // `depth`, and `out` has all rows, of a part of `width`.
                unsafe {
                    match (pair.len() > depth * SLIVER, rows[1] > 0) {
                        (true, true) => tiles::<2, 2>(depth, panels, pair, out, width, rows),
                        (true, false) => tiles::<1, 2>(depth, panels, pair, out, width, rows),
                        (false, true) => tiles::<2, 1>(depth, panels, pair, out, width, rows),
                        (false, false) => tiles::<1, 1>(depth, panels, pair, out, width, rows),
                    }
                }
            }
        }
    }
}

/// As [`super::tile`], of one run.
pub fn tile(panel: &[f32], sliver: &[f32], rows: usize, out: &mut [f32], stride: usize) {
    let depth = sliver.len() / SLIVER;
    assert!(panel.len() >= depth * PANEL && out.len() >= (rows - 1) * stride + SLIVER);
    let tile = match rows {
        1 => tile_of::<1>,
        2 => tile_of::<2>,
        3 => tile_of::<3>,
        4 => tile_of::<4>,
        5 => tile_of::<5>,
        _ => tile_of::<6>,
    };
    // SAFETY: this path is taken only where the CPU has AVX-512; the lengths are checked.
    unsafe { tile(depth, panel.as_ptr(), sliver.as_ptr(), out.as_mut_ptr(), stride) }
}

/// Sums of every other number, which are twice as many at a time as those of one panel and one sliver.
///
/// # Safety
/// The CPU must have AVX-512 F; `[depth, PANEL]` numbers must lie at `panel`, `[depth, SLIVER]` at `sliver`, and `ROWS` times
/// `SLIVER` at `out`, `stride` apart.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tile_of<const ROWS: usize>(
    depth: usize,
    panel: *const f32,
    sliver: *const f32,
    out: *mut f32,
    stride: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    // SAFETY: within what the caller vouches for.
    unsafe {
        for i in 0..depth / 2 {
            let b = [0, 1].map(|j| _mm512_loadu_ps(sliver.add((2 * i + j) * SLIVER)));
            for (r, sums) in sums.iter_mut().enumerate() {
                for j in 0..2 {
                    let a = _mm512_set1_ps(*panel.add((2 * i + j) * PANEL + r));
                    sums[j] = _mm512_fmadd_ps(a, b[j], sums[j]);
                }
            }
        }
        if !depth.is_multiple_of(2) {
            let b = _mm512_loadu_ps(sliver.add((depth - 1) * SLIVER));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*panel.add((depth - 1) * PANEL + r));
                sums[0] = _mm512_fmadd_ps(a, b, sums[0]);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let out = out.add(r * stride);
            let sum = _mm512_add_ps(sums[0], sums[1]);
            _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sum));
        }
    }
}

/// Adds the products of `P` panels with `S` slivers to `out`, of whose rows in each panel as many are there as
/// `rows` says.
///
/// # Safety
/// The CPU must have AVX-512 F; there must be `P` panels and `S` slivers of `depth`, and in `out` for each
/// row `S` times [`SLIVER`] numbers, `stride` apart.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tiles<const P: usize, const S: usize>(
    depth: usize,
    panels: &[f32],
    slivers: &[f32],
    out: &mut [f32],
    stride: usize,
    rows: [usize; 2],
) {
    for first in (0..depth).step_by(RUN) {
        let mut sums = [[[_mm512_setzero_ps(); S]; PANEL]; P];
        for i in first..depth.min(first + RUN) {
            // SAFETY: within what the caller vouches for.
            unsafe {
                let b: [__m512; S] = std::array::from_fn(|s| {
                    _mm512_loadu_ps(slivers.as_ptr().add(s * depth * SLIVER + i * SLIVER))
                });
                for (p, sums) in sums.iter_mut().enumerate() {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let a = _mm512_set1_ps(*panels.as_ptr().add((p * depth + i) * PANEL + r));
                        for s in 0..S {
                            sums[s] = _mm512_fmadd_ps(a, b[s], sums[s]);
                        }
                    }
                }
            }
        }
        for (p, sums) in sums.iter().enumerate() {
            for (r, sums) in sums.iter().enumerate().take(rows[p]) {
                for (s, sum) in sums.iter().enumerate() {
                    let out = out[(p * PANEL + r) * stride + s * SLIVER..][..SLIVER].as_mut_ptr();
                    // SAFETY: sixteen numbers.
                    unsafe { _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), *sum)) };
                }
            }
        }
    }
}
