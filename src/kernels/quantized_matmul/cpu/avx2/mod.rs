//! x86 with AVX2, FMA and F16C.
//!
//! A row of weights meets a row of `x` in one of two [`Form`]s. Either way, with `c` the middle of the codes,
//! `x * scale * (code - c)` is summed per group, and `x * (bias + scale * c)` through the sums of `x` per group:
//! to subtract the middle keeps the two parts small, so that little is lost where they cancel.
//!
//! Sums that come out infinite or NaN are computed again by the portable implementation: an infinity in
//! `x`, or an overflow, may meet other partial sums here than on the direct way.

mod fixed;
pub mod float;

use std::arch::x86_64::*;
use std::ops::Range;

use super::portable::{Row, dot};
use super::{E2M1, Scales, Weights};
use crate::kernels::pool;
use crate::ops::QuantizationMode;

/// Numbers `start..start + out.len()` of row `n`; both are multiples of eight.
pub fn decode(w: &Weights<'_>, n: usize, start: usize, out: &mut [f32]) {
    let bits = w.how.bits as usize;
    let codes = &w.codes[n * w.row_bytes() + start / 8 * bits..];
    assert!(start + out.len() <= w.k && out.len().is_multiple_of(8) && codes.len() >= out.len() / 8 * bits);
    let affine = w.how.mode == QuantizationMode::Affine;
    // SAFETY: this path is taken only where the CPU has AVX2; there are codes for all of `out`.
    unsafe {
        match bits {
            1 => decode_as::<1, 0>(w, n, start, codes, out),
            2 => decode_as::<2, 0>(w, n, start, codes, out),
            3 => decode_as::<3, 0>(w, n, start, codes, out),
            4 if affine => decode_as::<4, 0>(w, n, start, codes, out),
            4 => decode_as::<4, 4>(w, n, start, codes, out),
            5 => decode_as::<5, 0>(w, n, start, codes, out),
            6 => decode_as::<6, 0>(w, n, start, codes, out),
            _ if affine => decode_as::<8, 0>(w, n, start, codes, out),
            _ => decode_as::<8, 8>(w, n, start, codes, out),
        }
    }
}

/// Codes of `BITS`, which are integers or floats of `FLOAT` bits.
///
/// # Safety
/// The CPU must have AVX2 and FMA; `codes` must hold `BITS` bytes for each eight of `out`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode_as<const BITS: usize, const FLOAT: usize>(
    w: &Weights<'_>,
    n: usize,
    start: usize,
    codes: &[u8],
    out: &mut [f32],
) {
    // Each lane takes the two bytes in which its code is, and shifts it down.
    let mut spread = [-1i8; 32];
    let mut shifts = [0i32; 8];
    for (lane, shift) in shifts.iter_mut().enumerate() {
        let bit = lane * BITS;
        spread[lane * 4] = (bit / 8) as i8;
        spread[lane * 4 + 1] = if bit % 8 + BITS > 8 { (bit / 8 + 1) as i8 } else { -1 };
        *shift = (bit % 8) as i32;
    }
    let group = w.how.group_size as usize;
    let (mut scale, mut bias) = ([0.0], [0.0]);
    // SAFETY: plain vector instructions; loads and stores stay in arrays and slices.
    unsafe {
        let spread = _mm256_loadu_si256(spread.as_ptr().cast());
        let shifts = _mm256_loadu_si256(shifts.as_ptr().cast());
        let mask = _mm256_set1_epi32((1 << BITS) - 1);
        let table = _mm256_loadu_ps(E2M1.as_ptr());
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            let at = start + i * 8;
            if i == 0 || at.is_multiple_of(group) {
                let index = n * w.groups() + at / group;
                w.scales.read(index, &mut scale);
                w.biases.iter().for_each(|biases| biases.read(index, &mut bias));
            }
            let here = &codes[i * BITS..];
            let eight = if here.len() >= 16 {
                _mm_loadu_si128(here.as_ptr().cast())
            } else {
                let mut padded = [0u8; 16];
                padded[..here.len()].copy_from_slice(here);
                _mm_loadu_si128(padded.as_ptr().cast())
            };
            let lanes = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(eight), spread);
            let codes = _mm256_and_si256(_mm256_srlv_epi32(lanes, shifts), mask);
            let values = match FLOAT {
                4 => {
                    let sign = _mm256_slli_epi32::<28>(_mm256_and_si256(codes, _mm256_set1_epi32(8)));
                    let magnitude = _mm256_permutevar8x32_ps(table, codes);
                    _mm256_or_ps(magnitude, _mm256_castsi256_ps(sign))
                }
                8 => {
                    let top = _mm256_srai_epi32::<4>(_mm256_slli_epi32::<24>(codes));
                    let bits = _mm256_and_si256(top, _mm256_set1_epi32(0x87f0_0000u32 as i32));
                    let unbias = _mm256_set1_ps(f32::from_bits((127 + 120) << 23));
                    _mm256_mul_ps(_mm256_castsi256_ps(bits), unbias)
                }
                _ => _mm256_cvtepi32_ps(codes),
            };
            let scale = _mm256_set1_ps(scale[0]);
            let values = _mm256_fmadd_ps(values, scale, _mm256_set1_ps(bias[0]));
            _mm256_storeu_ps(out.as_mut_ptr(), values);
        }
    }
}

/// Groups whose scales are decoded at a time, at most.
const CHUNK: usize = 64;
/// Columns that are worked through at a time, so that what they meet of `x` stays in the nearest cache.
const COLUMNS: usize = 1024;

/// `columns[n, m] = x[m, k] @ w[n, k]`, `grain` rows of weights at a time. Rows of `x` whose numbers have `digits`
/// bits at most are taken in fixed point where that says the same of them; `float` multiplies the others.
pub fn product(
    w: &Weights<'_>,
    x: &[f32],
    columns: &mut [f32],
    grain: usize,
    digits: Option<u32>,
    float: impl Fn(&Weights<'_>, &[&[f32]], &mut [f32], usize),
) {
    let x: Vec<&[f32]> = x.chunks_exact(w.k).collect();
    let Some(digits) = digits.filter(|_| w.how.mode != QuantizationMode::Mxfp8) else {
        return float(w, &x, columns, grain);
    };
    let fits: Vec<bool> = x.iter().map(|x| fixed::suits(x, digits)).collect();
    if fits.iter().all(|&fits| fits) {
        return fixed::product(w, &x, columns, grain);
    }
    for form in [false, true] {
        let rows: Vec<usize> = (0..x.len()).filter(|&m| fits[m] == form).collect();
        let some: Vec<&[f32]> = rows.iter().map(|&m| x[m]).collect();
        let mut sums = vec![0.0; rows.len() * w.n];
        match (form, some.is_empty()) {
            (_, true) => continue,
            (false, _) => float(w, &some, &mut sums, grain),
            (true, _) => fixed::product(w, &some, &mut sums, grain),
        }
        for (out, sums) in columns.chunks_exact_mut(x.len()).zip(sums.chunks_exact(rows.len())) {
            rows.iter().zip(sums).for_each(|(&m, sum)| out[m] = *sum);
        }
    }
}

/// How codes and `x` are multiplied.
trait Form: Sync {
    /// A row of `x`, laid out for it.
    type Input: Sync;

    fn input(x: &[f32], w: &Weights<'_>) -> Self::Input;

    /// Adds the products of rows `n..n + R` of the weights with `M` rows of `x`, over as many groups as `chunk`
    /// from group `start` on, to `all`, from its row `at` on. Rows beyond the last are computed as the last.
    ///
    /// # Safety
    /// The CPU must have AVX2, FMA and F16C.
    unsafe fn strip<const R: usize, const M: usize>(
        w: &Weights<'_>,
        n: usize,
        x: [&Self::Input; M],
        start: usize,
        chunk: usize,
        all: &mut Totals,
        at: usize,
    );
}

/// As [`product`], in one form.
fn blocks<F: Form>(w: &Weights<'_>, x: &[&[f32]], columns: &mut [f32], grain: usize) {
    let x_rows = x.len();
    let inputs: Vec<F::Input> = x.iter().map(|x| F::input(x, w)).collect();
    let chunk = COLUMNS / w.how.group_size as usize;
    // Rows of weights that pass over a part of `x` before the next part.
    let block = if x_rows > 2 { 32 } else { 4 };
    pool::for_each_piece(columns, grain * x_rows, |piece, columns| {
        let rows = columns.len() / x_rows;
        let first = piece * grain;
        let quads = x_rows.div_ceil(4);
        let mut totals = vec![Totals::default(); block / 4 * quads];
        for start in (0..rows).step_by(block) {
            let end = rows.min(start + block);
            totals.fill(Totals::default());
            for group in (0..w.groups()).step_by(chunk) {
                for (n, totals) in (start..end).step_by(4).zip(totals.chunks_exact_mut(quads)) {
                    for (inputs, totals) in inputs.chunks(4).zip(totals) {
                        let n = first + n;
                        // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C.
                        unsafe {
                            match inputs {
                                [a] => F::strip::<4, 1>(w, n, [a], group, chunk, totals, 0),
                                [a, b] => F::strip::<4, 2>(w, n, [a, b], group, chunk, totals, 0),
                                [a, b, c] => {
                                    F::strip::<2, 3>(w, n, [a, b, c], group, chunk, totals, 0);
                                    F::strip::<2, 3>(w, n + 2, [a, b, c], group, chunk, totals, 2);
                                }
                                [a, b, c, d, ..] => {
                                    F::strip::<2, 4>(w, n, [a, b, c, d], group, chunk, totals, 0);
                                    F::strip::<2, 4>(w, n + 2, [a, b, c, d], group, chunk, totals, 2);
                                }
                                [] => {}
                            }
                        }
                    }
                }
            }
            for (n, totals) in (start..end).step_by(4).zip(totals.chunks_exact(quads)) {
                for (r, sums) in
                    columns[n * x_rows..].chunks_exact_mut(x_rows).take((end - n).min(4)).enumerate()
                {
                    for (m, out) in sums.iter_mut().enumerate() {
                        *out = total(&totals[m / 4].0[r][m % 4]);
                    }
                }
            }
        }
        let mut row = None;
        for (n, sums) in columns.chunks_exact_mut(x_rows).enumerate() {
            for (sum, x) in sums.iter_mut().zip(x).filter(|(sum, _)| !sum.is_finite()) {
                *sum = dot(x, row.get_or_insert_with(|| Row::new(w)).decode(first + n));
            }
        }
    });
}

/// Partial sums of four rows of weights and four of `x`.
#[derive(Clone, Copy, Default)]
struct Totals([[[f32; 8]; 4]; 4]);

/// The sum of the lanes.
fn total(lanes: &[f32; 8]) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Eight lanes of four bytes.
#[inline(always)]
unsafe fn load_all(codes: *const u8) -> __m256i {
    // SAFETY: the caller vouches for 32 bytes.
    unsafe { _mm256_loadu_si256(codes.cast()) }
}

/// Two times four lanes, whose bytes `spread` picks.
#[inline(always)]
unsafe fn load_spread(codes: *const u8, half: usize, spread: [i8; 16]) -> __m256i {
    // SAFETY: the caller vouches for `half + 16` bytes.
    unsafe {
        let low = _mm_loadu_si128(codes.cast());
        let high = _mm_loadu_si128(codes.add(half).cast());
        let control = _mm256_broadcastsi128_si256(_mm_loadu_si128(spread.as_ptr().cast()));
        _mm256_shuffle_epi8(_mm256_set_m128i(high, low), control)
    }
}

/// Reads the scales of groups `range`, all of one row of weights, and adds to `totals` what is not `x` times a code
/// less `middle`: the biases, through the sums of `x` of these groups.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn read_groups<const M: usize>(
    w: &Weights<'_>,
    range: Range<usize>,
    middle: f32,
    sums: [&[f32]; M],
    scales: &mut [f32; CHUNK + 8],
    totals: &mut [__m256; M],
) {
    let count = range.len();
    // SAFETY: this function has the CPU's features.
    unsafe { read_scales(&w.scales, range.start, &mut scales[..count]) };
    let Some(biases) = &w.biases else { return };
    let mut read = [0.0f32; CHUNK];
    // SAFETY: as above; eight numbers each, as the sums have after the last group too.
    unsafe {
        read_scales(biases, range.start, &mut read[..count]);
        for at in (0..count).step_by(8) {
            let scales = _mm256_loadu_ps(scales[at..][..8].as_ptr());
            let biases = _mm256_loadu_ps(read[at..][..8].as_ptr());
            let centred = _mm256_fmadd_ps(_mm256_set1_ps(middle), scales, biases);
            for m in 0..M {
                let sums = _mm256_loadu_ps(sums[m][at..][..8].as_ptr());
                totals[m] = _mm256_fmadd_ps(centred, sums, totals[m]);
            }
        }
    }
}

/// As [`Scales::read`].
///
/// # Safety
/// The CPU must have AVX2 and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn read_scales(scales: &Scales<'_>, start: usize, out: &mut [f32]) {
    let whole = out.len() - out.len() % 8;
    macro_rules! eights {
        ($all:ident, |$at:ident| $eight:expr) => {
            for (eight, out) in $all[start..][..whole].chunks_exact(8).zip(out[..whole].chunks_exact_mut(8)) {
                let $at = eight.as_ptr();
                // SAFETY: eight numbers each.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), $eight) };
            }
        };
    }
    match scales {
        Scales::Float32(all) => eights!(all, |at| _mm256_loadu_ps(at)),
        Scales::Float16(all) => eights!(all, |at| _mm256_cvtph_ps(_mm_loadu_si128(at.cast()))),
        Scales::Bfloat16(all) => eights!(all, |at| {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }),
        Scales::Float8(all) => eights!(all, |at| {
            let codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()));
            let bits =
                _mm256_and_si256(_mm256_slli_epi32::<20>(codes), _mm256_set1_epi32(0x87f0_0000u32 as i32));
            _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(f32::from_bits((127 + 120) << 23)))
        }),
        Scales::Exponent(all) => eights!(all, |at| {
            let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
            _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32::<23>(codes), _mm256_set1_epi32(1 << 22)))
        }),
    }
    scales.read(start + whole, &mut out[whole..]);
}

/// The scale of each of eight lanes, from the scale of the first on; `LANES` lanes share one, eight or more
/// one for all.
///
/// # Safety
/// The CPU must have AVX2; four numbers must lie from `first` on, and eight where a lane has its own.
#[inline(always)]
unsafe fn lane_scales<const LANES: usize>(first: *const f32) -> __m256 {
    // SAFETY: the caller vouches for both.
    unsafe {
        if LANES >= 8 {
            return _mm256_set1_ps(*first);
        }
        if LANES == 1 {
            return _mm256_loadu_ps(first);
        }
        let which = match LANES {
            4 => _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1),
            _ => _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3),
        };
        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(first)), which)
    }
}
