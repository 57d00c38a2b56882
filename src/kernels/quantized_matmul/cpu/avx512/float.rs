//! x86 with AVX-512 F, BW, DQ and VL.
//!
//! Codes of four bits: sixteen lanes of 32 bits hold eight each. A shift brings one code of every lane to
//! the bottom, where a table turns it into its number, less the middle of the codes; `x` is laid out to
//! match.
//!
//! Other codes are spread over lanes of 32 bits in their own order. Either way `x * scale * (code - middle)`
//! is summed per group, and `x * (bias + scale * middle)` through the sums of `x` per group.
//!
//! Sums that come out infinite or NaN are computed again by the portable implementation: an infinity in
//! `x`, or an overflow, may meet other partial sums here than on the direct way.

use std::arch::x86_64::*;

use super::super::portable::{Row, dot};
use super::super::{E2M1, Weights};
use crate::kernels::pool;
use crate::ops::QuantizationMode;

/// Groups whose scales are decoded at a time, at most.
const CHUNK: usize = 64;
/// Columns that are worked through at a time, so that what they meet of `x` stays in the nearest cache.
const COLUMNS: usize = 1024;
/// Codes of four bits that are loaded at once.
const BLOCK: usize = 128;

/// `columns[n, m] = x[m, k] @ w[n, k]`, `grain` rows of weights at a time.
pub fn product(w: &Weights<'_>, x: &[&[f32]], columns: &mut [f32], grain: usize) {
    match (w.how.mode, w.how.bits) {
        (QuantizationMode::Affine, 4) => rows::<Nibbles<0>>(w, x, columns, grain),
        (QuantizationMode::Affine, 1) => rows::<Packed<1, 0>>(w, x, columns, grain),
        (QuantizationMode::Affine, 2) => rows::<Packed<2, 0>>(w, x, columns, grain),
        (QuantizationMode::Affine, 3) => rows::<Packed<3, 0>>(w, x, columns, grain),
        (QuantizationMode::Affine, 5) => rows::<Packed<5, 0>>(w, x, columns, grain),
        (QuantizationMode::Affine, 6) => rows::<Packed<6, 0>>(w, x, columns, grain),
        (QuantizationMode::Affine, _) => rows::<Packed<8, 0>>(w, x, columns, grain),
        (QuantizationMode::Mxfp8, _) => rows::<Packed<8, 8>>(w, x, columns, grain),
        (_, _) => rows::<Nibbles<4>>(w, x, columns, grain),
    }
}

fn rows<C: Codes>(w: &Weights<'_>, x: &[&[f32]], columns: &mut [f32], grain: usize) {
    let x_rows = x.len();
    let inputs: Vec<Input> = x.iter().map(|x| Input::new::<C>(x, w)).collect();
    let chunk = COLUMNS / w.how.group_size as usize;
    // Rows of weights that pass over a part of `x` before the next part.
    let block = if x_rows > 2 { 32 } else { 4 };
    pool::for_each_piece(columns, grain * x_rows, |piece, columns| {
        let rows = columns.len() / x_rows;
        let first = piece * grain;
        let fours = x_rows.div_ceil(4);
        let mut totals = vec![Totals::default(); block / 4 * fours];
        for start in (0..rows).step_by(block) {
            let end = rows.min(start + block);
            totals.fill(Totals::default());
            for group in (0..w.groups()).step_by(chunk) {
                for (n, totals) in (start..end).step_by(4).zip(totals.chunks_exact_mut(fours)) {
                    for (inputs, totals) in inputs.chunks(4).zip(totals) {
                        let n = first + n;
                        // SAFETY: this path is taken only where the CPU has AVX-512 F, BW, DQ and VL.
                        unsafe {
                            match inputs {
                                [a] => C::strip::<4, 1>(w, n, [a], group, chunk, totals, 0),
                                [a, b] => C::strip::<4, 2>(w, n, [a, b], group, chunk, totals, 0),
                                [a, b, c] => {
                                    C::strip::<2, 3>(w, n, [a, b, c], group, chunk, totals, 0);
                                    C::strip::<2, 3>(w, n + 2, [a, b, c], group, chunk, totals, 2);
                                }
                                [a, b, c, d, ..] => {
                                    C::strip::<2, 4>(w, n, [a, b, c, d], group, chunk, totals, 0);
                                    C::strip::<2, 4>(w, n + 2, [a, b, c, d], group, chunk, totals, 2);
                                }
                                [] => {}
                            }
                        }
                    }
                }
            }
            for (n, totals) in (start..end).step_by(4).zip(totals.chunks_exact(fours)) {
                let rows = columns[n * x_rows..].chunks_exact_mut(x_rows).take((end - n).min(4));
                for (r, sums) in rows.enumerate() {
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
struct Totals([[[f32; 16]; 4]; 4]);

/// The sum of the lanes.
fn total(lanes: &[f32; 16]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// A row of `x`, laid out for a kind of codes.
struct Input {
    factors: Vec<f32>,
    /// `[groups]`, and zeros up to whole chunks.
    group_sums: Vec<f32>,
}

impl Input {
    fn new<C: Codes>(x: &[f32], w: &Weights<'_>) -> Self {
        let mut group_sums: Vec<f32> =
            x.chunks_exact(w.how.group_size as usize).map(|group| group.iter().sum()).collect();
        group_sums.resize(w.groups().next_multiple_of(CHUNK), 0.0);
        Self { factors: C::lay_out(x), group_sums }
    }
}

/// A kind of codes.
trait Codes {
    /// A row of `x` in the order in which the products take it.
    fn lay_out(x: &[f32]) -> Vec<f32>;

    /// Adds the products of rows `n..n + R` of the weights with `M` rows of `x`, over as many groups as
    /// `chunk` from group `start` on, to `all`, from its row `at` on. Rows beyond the last are computed as
    /// the last.
    ///
    /// # Safety
    /// The CPU must have AVX-512 F, BW, DQ and VL.
    unsafe fn strip<const R: usize, const M: usize>(
        w: &Weights<'_>,
        n: usize,
        x: [&Input; M],
        start: usize,
        chunk: usize,
        all: &mut Totals,
        at: usize,
    );
}

/// What a strip begins with: the rows of weights that it reads, their scales, and the sums so far, to which
/// the biases are added.
struct Begun<const R: usize, const M: usize> {
    rows: [usize; R],
    /// More than a chunk, for blocks that reach beyond it.
    scales: [[f32; CHUNK + 16]; R],
    totals: [[__m512; M]; R],
    groups: usize,
}

impl<const R: usize, const M: usize> Begun<R, M> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(
        w: &Weights<'_>,
        n: usize,
        x: [&Input; M],
        [start, chunk]: [usize; 2],
        middle: f32,
        all: &[[[f32; 16]; 4]],
    ) -> Self {
        assert!(chunk <= CHUNK && start.is_multiple_of(chunk) && chunk.is_multiple_of(8));
        let (groups, row_groups) = (chunk.min(w.groups() - start), w.groups());
        let rows: [usize; R] = std::array::from_fn(|r| (n + r).min(w.n - 1));
        let mut totals: [[__m512; M]; R] = std::array::from_fn(|r| {
            // SAFETY: sixteen numbers each.
            std::array::from_fn(|m| unsafe { _mm512_loadu_ps(all[r][m].as_ptr()) })
        });
        let mut scales = [[0.0f32; CHUNK + 16]; R];
        for r in 0..R {
            w.scales.read(rows[r] * row_groups + start, &mut scales[r][..groups]);
            let Some(biases) = &w.biases else { continue };
            let mut centred = [0.0f32; CHUNK];
            biases.read(rows[r] * row_groups + start, &mut centred[..groups]);
            for (bias, scale) in centred[..groups].iter_mut().zip(&scales[r]) {
                *bias += middle * scale;
            }
            for (at, biases) in centred[..groups.next_multiple_of(16)].chunks_exact(16).enumerate() {
                for m in 0..M {
                    let sums = &x[m].group_sums[start + at * 16..];
                    // SAFETY: the mask keeps to what is there, of which the biases beyond the groups are zero.
                    unsafe {
                        let biases = _mm512_loadu_ps(biases.as_ptr());
                        let mask = if sums.len() < 16 { 0xff } else { 0xffff };
                        let sums = _mm512_maskz_loadu_ps(mask, sums.as_ptr());
                        totals[r][m] = _mm512_fmadd_ps(biases, sums, totals[r][m]);
                    }
                }
            }
        }
        Self { rows, scales, totals, groups }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn end(self, all: &mut [[[f32; 16]; 4]]) {
        for (totals, all) in self.totals.iter().zip(all) {
            for (total, all) in totals.iter().zip(all) {
                // SAFETY: sixteen numbers.
                unsafe { _mm512_storeu_ps(all.as_mut_ptr(), *total) };
            }
        }
    }
}

/// Codes of four bits, which are integers or floats of `FLOAT` bits.
struct Nibbles<const FLOAT: usize>;

impl<const FLOAT: usize> Nibbles<FLOAT> {
    const MIDDLE: f32 = if FLOAT == 4 { 0.0 } else { 7.5 };
    const NUMBERS: [f32; 16] = {
        let mut numbers = E2M1;
        let mut i = 0;
        while FLOAT == 0 && i < 16 {
            numbers[i] = i as f32 - 7.5;
            i += 1;
        }
        numbers
    };

    /// # Safety
    /// The CPU must have AVX-512 F, BW, DQ and VL.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn sum<const R: usize, const M: usize>(
        w: &Weights<'_>,
        n: usize,
        x: [&Input; M],
        [start, chunk]: [usize; 2],
        all: &mut [[[f32; 16]; 4]],
    ) {
        let group = w.how.group_size as usize;
        let mut begun = Begun::<R, M>::new(w, n, x, [start, chunk], Self::MIDDLE, all);
        let blocks = (begun.groups * group).div_ceil(BLOCK);
        let per_block = (BLOCK / group).max(1);
        // Which scale of those of a block each lane takes.
        let lanes: [i32; 16] = std::array::from_fn(|lane| (lane * 8 / group) as i32);
        // SAFETY: masked loads keep to the codes of a row; there are scales for blocks beyond the groups, and
        // for each block as many numbers of `x` as the slice says.
        unsafe {
            let table = _mm512_loadu_ps(Self::NUMBERS.as_ptr());
            let which = _mm512_loadu_si512(lanes.as_ptr().cast());
            for block in 0..blocks {
                let place = start * group / BLOCK + block;
                let words = (w.k / 8 - place * 16).min(16);
                let mask = ((1u32 << words) - 1) as __mmask16;
                for r in 0..R {
                    let codes = w.codes.as_ptr().add(begun.rows[r] * w.row_bytes() + place * 64);
                    let codes = _mm512_maskz_loadu_epi32(mask, codes.cast());
                    let scales = _mm512_loadu_ps(begun.scales[r].as_ptr().add(block * per_block));
                    let scales = _mm512_permutexvar_ps(which, scales);
                    let mut sums = [_mm512_setzero_ps(); M];
                    for j in 0..8 {
                        let codes = _mm512_srl_epi32(codes, _mm_cvtsi32_si128(4 * j));
                        let numbers = _mm512_permutexvar_ps(codes, table);
                        for (sum, x) in sums.iter_mut().zip(x) {
                            let factors = x.factors[place * BLOCK + j as usize * 16..][..16].as_ptr();
                            *sum = _mm512_fmadd_ps(numbers, _mm512_loadu_ps(factors), *sum);
                        }
                    }
                    for (total, sum) in begun.totals[r].iter_mut().zip(sums) {
                        *total = _mm512_fmadd_ps(sum, scales, *total);
                    }
                }
            }
        }
        begun.end(all);
    }
}

impl<const FLOAT: usize> Codes for Nibbles<FLOAT> {
    /// `[blocks, 8, 16]`: what multiplies code `j` of each lane.
    fn lay_out(x: &[f32]) -> Vec<f32> {
        let place = |i: usize| i / BLOCK * BLOCK + i % 16 * 8 + i % BLOCK / 16;
        let padded = x.len().next_multiple_of(BLOCK);
        (0..padded).map(|i| x.get(place(i)).copied().unwrap_or(0.0)).collect()
    }

    unsafe fn strip<const R: usize, const M: usize>(
        w: &Weights<'_>,
        n: usize,
        x: [&Input; M],
        start: usize,
        chunk: usize,
        all: &mut Totals,
        at: usize,
    ) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { Self::sum::<R, M>(w, n, x, [start, chunk], &mut all.0[at..at + R]) }
    }
}

/// Codes of `BITS`, which are integers or floats of `FLOAT` bits.
struct Packed<const BITS: usize, const FLOAT: usize>;

impl<const BITS: usize, const FLOAT: usize> Packed<BITS, FLOAT> {
    const MIDDLE: f32 = if FLOAT == 8 { 0.0 } else { ((1 << BITS) - 1) as f32 / 2.0 };
    /// Where the two bytes are in which the code of each lane lies, and how far up in them.
    const PLACES: ([i8; 64], [i32; 16]) = {
        let (mut spread, mut shifts) = ([-1; 64], [0; 16]);
        let mut lane = 0;
        while lane < 16 {
            let bit = lane * BITS;
            spread[lane * 4] = (bit / 8) as i8;
            if bit % 8 + BITS > 8 {
                spread[lane * 4 + 1] = (bit / 8 + 1) as i8;
            }
            shifts[lane] = (bit % 8) as i32;
            lane += 1;
        }
        (spread, shifts)
    };

    /// # Safety
    /// The CPU must have AVX-512 F, BW, DQ and VL.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn sum<const R: usize, const M: usize>(
        w: &Weights<'_>,
        n: usize,
        x: [&Input; M],
        part: [usize; 2],
        all: &mut [[[f32; 16]; 4]],
    ) {
        let group = w.how.group_size as usize;
        assert!(group.is_multiple_of(16) && x.iter().all(|x| x.factors.len() == w.k));
        let mut begun = Begun::<R, M>::new(w, n, x, part, Self::MIDDLE, all);
        // SAFETY: sixteen codes are as many bytes as the mask keeps; sixteen numbers of `x` lie beside them.
        unsafe {
            let spread = _mm512_loadu_si512(Self::PLACES.0.as_ptr().cast());
            let shifts = _mm512_loadu_si512(Self::PLACES.1.as_ptr().cast());
            let mask = ((1u32 << (2 * BITS)) - 1) as __mmask16;
            for g in 0..begun.groups {
                let first = (part[0] + g) * group;
                let mut sums = [[_mm512_setzero_ps(); M]; R];
                for i in (first..first + group).step_by(16) {
                    let factors: [__m512; M] =
                        std::array::from_fn(|m| _mm512_loadu_ps(x[m].factors.as_ptr().add(i)));
                    for (row, sums) in begun.rows.iter().zip(&mut sums) {
                        let at = row * w.row_bytes() + i / 8 * BITS;
                        let bytes = _mm_maskz_loadu_epi8(mask, w.codes.as_ptr().add(at).cast());
                        let numbers = if FLOAT == 8 {
                            let top = _mm512_slli_epi32::<24>(_mm512_cvtepu8_epi32(bytes));
                            let kept = _mm512_set1_epi32(0x87f0_0000u32 as i32);
                            let bits = _mm512_and_si512(_mm512_srai_epi32::<4>(top), kept);
                            let unbias = _mm512_set1_ps(f32::from_bits((127 + 120) << 23));
                            _mm512_mul_ps(_mm512_castsi512_ps(bits), unbias)
                        } else {
                            let codes = if BITS == 8 {
                                _mm512_cvtepu8_epi32(bytes)
                            } else {
                                let lanes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), spread);
                                let code = _mm512_set1_epi32((1 << BITS) - 1);
                                _mm512_and_si512(_mm512_srlv_epi32(lanes, shifts), code)
                            };
                            _mm512_sub_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(Self::MIDDLE))
                        };
                        for (sum, factors) in sums.iter_mut().zip(factors) {
                            *sum = _mm512_fmadd_ps(numbers, factors, *sum);
                        }
                    }
                }
                for ((totals, sums), scales) in begun.totals.iter_mut().zip(sums).zip(&begun.scales) {
                    let scale = _mm512_set1_ps(scales[g]);
                    for (total, sum) in totals.iter_mut().zip(sums) {
                        *total = _mm512_fmadd_ps(sum, scale, *total);
                    }
                }
            }
        }
        begun.end(all);
    }
}

impl<const BITS: usize, const FLOAT: usize> Codes for Packed<BITS, FLOAT> {
    fn lay_out(x: &[f32]) -> Vec<f32> {
        x.to_vec()
    }

    unsafe fn strip<const R: usize, const M: usize>(
        w: &Weights<'_>,
        n: usize,
        x: [&Input; M],
        start: usize,
        chunk: usize,
        all: &mut Totals,
        at: usize,
    ) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { Self::sum::<R, M>(w, n, x, [start, chunk], &mut all.0[at..at + R]) }
    }
}
