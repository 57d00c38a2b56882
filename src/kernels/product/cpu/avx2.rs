//! x86 with AVX2, FMA and F16C.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{PANEL, SLIVER};
use crate::kernels::pool;
use crate::kernels::product::Sums;

/// As [`super::tile`], of one run.
pub fn tile(panel: &[f32], sliver: &[f32], rows: usize, out: &mut [f32], stride: usize) {
    let depth = sliver.len() / SLIVER;
    assert!(panel.len() >= depth * PANEL && out.len() >= (rows - 1) * stride + SLIVER);
    // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C; the lengths are checked.
    unsafe {
        match rows {
            1 => tile_of::<1>(depth, panel.as_ptr(), sliver.as_ptr(), out.as_mut_ptr(), stride),
            2 => tile_of::<2>(depth, panel.as_ptr(), sliver.as_ptr(), out.as_mut_ptr(), stride),
            3 => tile_of::<3>(depth, panel.as_ptr(), sliver.as_ptr(), out.as_mut_ptr(), stride),
            4 => tile_of::<4>(depth, panel.as_ptr(), sliver.as_ptr(), out.as_mut_ptr(), stride),
            5 => tile_of::<5>(depth, panel.as_ptr(), sliver.as_ptr(), out.as_mut_ptr(), stride),
            _ => tile_of::<6>(depth, panel.as_ptr(), sliver.as_ptr(), out.as_mut_ptr(), stride),
        }
    }
}

/// # Safety
/// The CPU must have AVX2 and FMA; `[depth, PANEL]` numbers must lie at `panel`, `[depth, SLIVER]` at
/// `sliver`, and `ROWS` times `SLIVER` at `out`, `stride` apart.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_of<const ROWS: usize>(
    depth: usize,
    panel: *const f32,
    sliver: *const f32,
    out: *mut f32,
    stride: usize,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for i in 0..depth {
        // SAFETY: within what the caller vouches for.
        unsafe {
            let low = _mm256_loadu_ps(sliver.add(i * SLIVER));
            let high = _mm256_loadu_ps(sliver.add(i * SLIVER + 8));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = _mm256_broadcast_ss(&*panel.add(i * PANEL + r));
                sums[0] = _mm256_fmadd_ps(a, low, sums[0]);
                sums[1] = _mm256_fmadd_ps(a, high, sums[1]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: within what the caller vouches for.
        unsafe {
            let out = out.add(r * stride);
            _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), sums[0]));
            _mm256_storeu_ps(out.add(8), _mm256_add_ps(_mm256_loadu_ps(out.add(8)), sums[1]));
        }
    }
}

/// As [`super::interleave`].
pub fn interleave(lines: &[f32], out: &mut [f32]) {
    let depth = lines.len() / SLIVER;
    assert!(lines.len() == depth * SLIVER && out.len() == lines.len());
    // SAFETY: this path is taken only where the CPU has AVX2; the lengths are checked.
    unsafe { interleave_of(lines, depth, out) }
}

/// # Safety
/// The CPU must have AVX2; `lines` and `out` must have `depth * SLIVER` numbers.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn interleave_of(lines: &[f32], depth: usize, out: &mut [f32]) {
    let whole = depth - depth % 8;
    for i in (0..whole).step_by(8) {
        for half in [0, 8] {
            // SAFETY: eight columns of eight lines, within both.
            unsafe {
                let rows =
                    std::array::from_fn(|r| _mm256_loadu_ps(lines.as_ptr().add((half + r) * depth + i)));
                for (c, column) in transposed(rows).into_iter().enumerate() {
                    _mm256_storeu_ps(out.as_mut_ptr().add((i + c) * SLIVER + half), column);
                }
            }
        }
    }
    for i in whole..depth {
        for v in 0..SLIVER {
            out[i * SLIVER + v] = lines[v * depth + i];
        }
    }
}

/// Eight columns of eight rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn transposed(r: [__m256; 8]) -> [__m256; 8] {
    let pairs: [__m256; 8] = std::array::from_fn(|i| {
        let (a, b) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
        if i % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
    });
    let fours: [__m256; 8] = std::array::from_fn(|i| {
        let (a, b) = (pairs[i / 4 * 4 + i % 4 / 2], pairs[i / 4 * 4 + i % 4 / 2 + 2]);
        if i % 2 == 0 { _mm256_shuffle_ps::<0x44>(a, b) } else { _mm256_shuffle_ps::<0xee>(a, b) }
    });
    std::array::from_fn(|i| {
        let (a, b) = (fours[i % 4], fours[i % 4 + 4]);
        if i < 4 { _mm256_permute2f128_ps::<0x20>(a, b) } else { _mm256_permute2f128_ps::<0x31>(a, b) }
    })
}

/// Numbers that eight lanes are loaded from.
pub(crate) trait Stored: Copy + Sync {
    /// # Safety
    /// The CPU must have AVX2 and F16C; eight numbers must lie at `from`.
    unsafe fn load(from: *const Self) -> __m256;
    fn number(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> __m256 {
        // SAFETY: the caller vouches for both.
        unsafe { _mm256_loadu_ps(from) }
    }
    fn number(self) -> f32 {
        self
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> __m256 {
        // SAFETY: the caller vouches for both.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    fn number(self) -> f32 {
        self.to_f32()
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> __m256 {
        // SAFETY: the caller vouches for both.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    fn number(self) -> f32 {
        crate::kernels::product::number(self)
    }
}

/// Columns of the result that a thread takes at a time, where rows are dotted and where they are added up.
const DOT_STRIP: usize = 32;
const SUM_STRIP: usize = 512;

/// `x @ w.T`, `[count, n]`, for a few rows `x`, `[count, k]`: row `i` of `w` begins at `origin + i * line`.
pub fn dot_rows<E: Stored>(x: &[f32], k: usize, w: &[E], origin: usize, line: usize, n: usize) -> Sums {
    let count = x.len() / k;
    let mut values = vec![0.0; n.div_ceil(DOT_STRIP) * DOT_STRIP * count];
    let strips = (super::super::WORK / (k * count * DOT_STRIP)).max(1);
    pool::for_each_piece(&mut values, strips * DOT_STRIP * count, |piece, values| {
        for (s, sums) in values.chunks_exact_mut(DOT_STRIP * count).enumerate() {
            let start = (piece * strips + s) * DOT_STRIP;
            dot_block(x, k, w, origin + start * line, line, DOT_STRIP.min(n - start), sums, DOT_STRIP);
        }
    });
    Sums { values, width: DOT_STRIP, few: 0..count, many: n, turned: false }
}

/// As [`dot_rows`], into rows of `sums` that are `stride` apart, a multiple of four.
#[allow(clippy::too_many_arguments)]
pub fn dot_block<E: Stored>(
    x: &[f32],
    k: usize,
    w: &[E],
    origin: usize,
    line: usize,
    n: usize,
    sums: &mut [f32],
    stride: usize,
) {
    assert!(n > 0 && n <= stride && stride.is_multiple_of(4) && origin + (n - 1) * line + k <= w.len());
    for first in (0..n).step_by(4) {
        let rows = |r: usize| origin + (first + r).min(n - 1) * line;
        for (m, x) in x.chunks(4 * k).enumerate() {
            let mut put = |r: usize, i: usize, sum: f32| sums[(m * 4 + i) * stride + first + r] = sum;
            // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C; every row has `k` numbers.
            unsafe {
                match x.len() / k {
                    1 => dots::<E, 4, 1, 2>(w, rows, x, k, &mut put),
                    2 => dots::<E, 4, 2, 1>(w, rows, x, k, &mut put),
                    3 => dots::<E, 4, 3, 1>(w, rows, x, k, &mut put),
                    _ => {
                        dots::<E, 2, 4, 1>(w, rows, x, k, &mut put);
                        dots::<E, 2, 4, 1>(w, |r| rows(r + 2), x, k, |r, i, sum| put(r + 2, i, sum));
                    }
                }
            }
        }
    }
}

/// The products of `R` rows of `w`, which begin at `rows`, with `M` rows of `x`, in `U` partial sums.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C; each row must have `k` numbers.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<E: Stored, const R: usize, const M: usize, const U: usize>(
    w: &[E],
    rows: impl Fn(usize) -> usize,
    x: &[f32],
    k: usize,
    mut put: impl FnMut(usize, usize, f32),
) {
    let mut sums = [[[_mm256_setzero_ps(); M]; R]; U];
    // SAFETY: within the slices, by the caller.
    let w: [*const E; R] = std::array::from_fn(|r| unsafe { w.as_ptr().add(rows(r)) });
    let whole = k - k % (8 * U);
    for i in (0..whole).step_by(8 * U) {
        for (u, sums) in sums.iter_mut().enumerate() {
            let i = i + 8 * u;
            // SAFETY: eight numbers from `i` on are in each row.
            unsafe {
                let x: [__m256; M] = std::array::from_fn(|m| _mm256_loadu_ps(x.as_ptr().add(m * k + i)));
                for r in 0..R {
                    let w = E::load(w[r].add(i));
                    for m in 0..M {
                        sums[r][m] = _mm256_fmadd_ps(w, x[m], sums[r][m]);
                    }
                }
            }
        }
    }
    for r in 0..R {
        for m in 0..M {
            let all = sums.iter().skip(1).fold(sums[0][r][m], |all, sums| _mm256_add_ps(all, sums[r][m]));
            let mut all = sum(all);
            for i in whole..k {
                // SAFETY: `i` is in the row.
                all = unsafe { (*w[r].add(i)).number() }.mul_add(x[m * k + i], all);
            }
            put(r, m, all);
        }
    }
}

/// `x @ w`, `[count, n]`, for a few rows `x`, `[count, k]`: row `i` of `w`, of `n` numbers, begins at
/// `origin + i * line`.
pub fn add_rows<E: Stored>(x: &[f32], k: usize, w: &[E], origin: usize, line: usize, n: usize) -> Sums {
    let count = x.len() / k;
    assert!(k > 0 && origin + (k - 1) * line + n <= w.len());
    let mut values = vec![0.0; n.div_ceil(SUM_STRIP) * SUM_STRIP * count];
    pool::for_each_piece(&mut values, SUM_STRIP * count, |strip, sums| {
        let start = strip * SUM_STRIP;
        let width = SUM_STRIP.min(n - start);
        for i in (0..k).step_by(8) {
            for m in 0..count {
                let x = &x[m * k + i..][..8.min(k - i)];
                let sums = &mut sums[m * SUM_STRIP..][..width];
                add_block(x, w, origin + i * line + start, line, sums);
            }
        }
    });
    Sums { values, width: SUM_STRIP, few: 0..count, many: n, turned: false }
}

/// Adds to `sums` each row times its factor: row `i` begins at `origin + i * line`.
pub fn add_block<E: Stored>(factors: &[f32], w: &[E], origin: usize, line: usize, sums: &mut [f32]) {
    let Some(last) = factors.len().checked_sub(1) else { return };
    assert!(origin + last * line + sums.len() <= w.len());
    // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C; the rows are in `w`.
    unsafe {
        if let &[a, b, c, d, e, f, g, h] = factors {
            return add_scaled([a, b, c, d, e, f, g, h], &w[origin..], line, sums);
        }
        for (r, &factor) in factors.iter().enumerate() {
            add_scaled([factor], &w[origin + r * line..], line, sums);
        }
    }
}

/// As [`add_block`].
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C; each row must have as many numbers as `sums`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_scaled<E: Stored, const R: usize>(
    factors: [f32; R],
    rows: &[E],
    line: usize,
    sums: &mut [f32],
) {
    let whole = sums.len() - sums.len() % 8;
    let wide = factors.map(|f| _mm256_set1_ps(f));
    for i in (0..whole).step_by(8) {
        // SAFETY: eight numbers from `i` on are in each row.
        unsafe {
            let out = sums.as_mut_ptr().add(i);
            let mut all = _mm256_loadu_ps(out);
            for (r, factor) in wide.iter().enumerate() {
                all = _mm256_fmadd_ps(E::load(rows.as_ptr().add(r * line + i)), *factor, all);
            }
            _mm256_storeu_ps(out, all);
        }
    }
    for (i, sum) in sums.iter_mut().enumerate().skip(whole) {
        for (r, factor) in factors.iter().enumerate() {
            *sum = rows[r * line + i].number().mul_add(*factor, *sum);
        }
    }
}

/// The sum of the lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}
