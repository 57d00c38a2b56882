//! The inner loops of a product.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) mod bf16;

#[allow(unsafe_code)]
pub(crate) mod shared;

use crate::kernels::path::Path;

/// Vectors of the smaller side in a panel.
pub(crate) const PANEL: usize = 6;
/// Vectors of the larger side in a sliver.
pub(crate) const SLIVER: usize = 16;

/// Products in `float32` that are summed before their sum joins the others: long sums lose more.
#[cfg(target_arch = "x86_64")]
const RUN: usize = 64;

/// Adds `panel.T @ sliver`, of which the first `rows` rows, to `out`, whose rows are `stride` apart: `panel`
/// is `[depth, PANEL]`, `sliver` `[depth, SLIVER]`.
pub(crate) fn tile(path: Path, panel: &[f32], sliver: &[f32], rows: usize, out: &mut [f32], stride: usize) {
    match path {
        #[cfg(target_arch = "x86_64")]
        path if path >= Path::Avx2 => {
            let tile = if path == Path::Avx2 { avx2::tile } else { avx512::tile };
            for (panel, sliver) in panel.chunks(RUN * PANEL).zip(sliver.chunks(RUN * SLIVER)) {
                tile(panel, sliver, rows, out, stride);
            }
        }
        _ => portable_tile(panel, sliver, rows, out, stride),
    }
}

/// In `f64`, where products are exact: MLX's own product, which its compiler gives fused multiply-adds, is
/// closer than plain `float32` would be.
fn portable_tile(panel: &[f32], sliver: &[f32], rows: usize, out: &mut [f32], stride: usize) {
    let mut sums = [[0.0f64; SLIVER]; PANEL];
    for (a, b) in panel.chunks_exact(PANEL).zip(sliver.chunks_exact(SLIVER)) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            sums.iter_mut().zip(b).for_each(|(sum, &b)| *sum += f64::from(a) * f64::from(b));
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_mut(stride)).take(rows) {
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = (f64::from(*out) + sum) as f32);
    }
}

/// `lines`, `[SLIVER, depth]`, as `[depth, SLIVER]`.
pub(super) fn interleave(path: Path, lines: &[f32], out: &mut [f32]) {
    match path {
        #[cfg(target_arch = "x86_64")]
        path if path >= Path::Avx2 => avx2::interleave(lines, out),
        _ => {
            let depth = lines.len() / SLIVER;
            for (i, out) in out.chunks_exact_mut(SLIVER).enumerate() {
                out.iter_mut().zip(lines[i..].iter().step_by(depth)).for_each(|(out, v)| *out = *v);
            }
        }
    }
}
