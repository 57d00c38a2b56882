//! x86 with AVX-512 F, BW, DQ and VL.

use std::arch::x86_64::*;

use super::{PANEL, SLIVER};

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
                        (true, true) => tile::<2, 2>(depth, panels, pair, out, width, rows),
                        (true, false) => tile::<1, 2>(depth, panels, pair, out, width, rows),
                        (false, true) => tile::<2, 1>(depth, panels, pair, out, width, rows),
                        (false, false) => tile::<1, 1>(depth, panels, pair, out, width, rows),
                    }
                }
            }
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
unsafe fn tile<const P: usize, const S: usize>(
    depth: usize,
    panels: &[f32],
    slivers: &[f32],
    out: &mut [f32],
    stride: usize,
    rows: [usize; 2],
) {
    let mut sums = [[[_mm512_setzero_ps(); S]; PANEL]; P];
    for i in 0..depth {
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
