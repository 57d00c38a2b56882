//! One row of `x` by codes of 4 bits, as bytes. Each multiple of [`fixed`](super::fixed) is two of them, which multiply
//! twice as many codes at a time. Sums in a group are exact either way, so the results are the same.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::fixed::{Bits, Codes, Float4, PART, group_sums, multiples};
use super::{CHUNK, COLUMNS, Matrix, Weights, columns_of, lane_scales, read_groups, sums_of_four};
use crate::ops::QuantizationMode;

/// Columns in a block.
const BLOCK: usize = 64;
/// Bytes between the codes that are read and those that are fetched.
const AHEAD: usize = 2048;

/// Whether this is for such weights.
pub fn suits(w: &Weights<'_>) -> bool {
    w.how.bits == 4 && w.k.is_multiple_of(BLOCK)
}

/// As [`super::product`], of one row.
pub fn product(weights: &[Weights<'_>], x: &[f32], columns: &mut [f32], grain: usize) {
    match weights[0].how.mode {
        QuantizationMode::Affine => lanes::<Bits<4>>(weights, x, columns, grain),
        _ => lanes::<Float4>(weights, x, columns, grain),
    }
}

/// As [`product`], by how many lanes of 32 bits share a scale.
fn lanes<C: Nibbles>(weights: &[Weights<'_>], x: &[f32], columns: &mut [f32], grain: usize) {
    // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C.
    let input = unsafe { input_of::<C>(x, weights[0].how.group_size as usize) };
    columns_of(weights, &[x], columns, grain, |w, first, columns| {
        // SAFETY: as above.
        unsafe {
            match w.w.how.group_size / 8 {
                2 => rows::<C, 2>(w, first, &input, columns),
                4 => rows::<C, 4>(w, first, &input, columns),
                8 => rows::<C, 8>(w, first, &input, columns),
                _ => rows::<C, 16>(w, first, &input, columns),
            }
        }
    });
}

/// A row of `x`, laid out for bytes.
struct Input {
    blocks: Vec<Block>,
    /// `[parts]`: what a multiple stands for.
    units: Vec<f32>,
    /// `[groups]`, and zeros up to whole chunks.
    group_sums: Vec<f32>,
}

/// What multiplies the codes of a block.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Block {
    /// Upper bytes of those of even and of odd columns, and lower bytes of them.
    factors: [[i8; 32]; 4],
    /// The middle of the codes times the sum of a lane of 32 bits, negative.
    offsets: [i32; 8],
}

#[target_feature(enable = "avx2,fma,f16c")]
fn input_of<C: Codes>(x: &[f32], group: usize) -> Input {
    let mut blocks = Vec::with_capacity(x.len() / BLOCK);
    let mut units = Vec::with_capacity(x.len().div_ceil(PART));
    for part in x.chunks(PART) {
        let (unit, multiples) = multiples(part);
        for multiples in multiples.as_chunks::<BLOCK>().0.iter().take(part.len() / BLOCK) {
            let mut block = Block { factors: [[0; 32]; 4], offsets: [0; 8] };
            for (i, pair) in multiples.as_chunks::<2>().0.iter().enumerate() {
                for (parity, multiple) in pair.iter().enumerate() {
                    let upper = multiple.wrapping_add(128) >> 8;
                    block.factors[parity][i] = upper as i8;
                    block.factors[2 + parity][i] = *multiple as i8;
                }
            }
            for (offset, eight) in block.offsets.iter_mut().zip(multiples.as_chunks::<8>().0) {
                *offset = -C::MIDDLE * eight.iter().map(|&multiple| i32::from(multiple)).sum::<i32>();
            }
            blocks.push(block);
        }
        units.push(unit * C::UNIT);
    }
    Input { blocks, units, group_sums: group_sums(x, group) }
}

/// Codes of 4 bits as bytes: those of even columns, and those of odd ones.
trait Nibbles: Codes {
    /// # Safety
    /// The CPU must have AVX2.
    unsafe fn bytes(loaded: Self::Loaded) -> [__m256i; 2];
}

impl Nibbles for Bits<4> {
    #[inline(always)]
    unsafe fn bytes(loaded: __m256i) -> [__m256i; 2] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let nibble = _mm256_set1_epi8(15);
            [_mm256_and_si256(loaded, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(loaded), nibble)]
        }
    }
}

impl Nibbles for Float4 {
    #[inline(always)]
    unsafe fn bytes(loaded: [__m256i; 2]) -> [__m256i; 2] {
        loaded
    }
}

/// The products of the rows of weights from `first` on.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<C: Nibbles, const LANES: usize>(w: &Matrix<'_>, first: usize, x: &Input, columns: &mut [f32]) {
    for (four, columns) in columns.chunks_mut(4).enumerate() {
        // SAFETY: the caller vouches for the CPU.
        let sums = unsafe { four_rows::<C, LANES>(w, first + 4 * four, x) };
        columns.copy_from_slice(&sums_of_four(sums)[..columns.len()]);
    }
}

/// Partial sums of rows `n..n + 4` of the weights; those beyond the last are computed as the last.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four_rows<C: Nibbles, const LANES: usize>(matrix: &Matrix<'_>, n: usize, x: &Input) -> [__m256; 4] {
    const BLOCKS: usize = PART / BLOCK;
    let &Matrix { w, groups, row_bytes, group_shift } = matrix;
    let rows: [usize; 4] = std::array::from_fn(|r| (n + r).min(w.n - 1));
    assert!(x.blocks.len() * BLOCK == w.k && row_bytes * 2 == w.k && x.units.len() * PART >= w.k);
    let mut middles = [[_mm256_setzero_ps()]; 4];
    let mut sums = [_mm256_setzero_ps(); 4];
    let chunk = COLUMNS[0] >> group_shift;
    for start in (0..groups).step_by(chunk) {
        let count = chunk.min(groups - start);
        let mut scales = [[MaybeUninit::uninit(); CHUNK + 8]; 4];
        let (first, end) = ((start << group_shift) / BLOCK, ((start + count) << group_shift) / BLOCK);
        // SAFETY: this function has the CPU's features; there are as many sums as a chunk has groups, and scales and
        // four more behind each place in it; codes and `x` have all blocks of a row.
        unsafe {
            let group_sums = [x.group_sums[start..][..CHUNK].as_ptr()];
            let middle = C::MIDDLE as f32 * C::UNIT;
            read_groups(matrix, rows, [start, count], middle, group_sums, &mut scales, &mut middles);
            for r in 0..4 {
                let codes = w.codes[rows[r] * row_bytes..][..row_bytes].as_ptr();
                let scales = scales[r].as_ptr().cast::<f32>();
                for part in (first..end).step_by(BLOCKS) {
                    let (codes, x_blocks) = (codes.add(part * BLOCK / 2), x.blocks.as_ptr().add(part));
                    let scales = scales.add((part - first) * 8 / LANES);
                    let mut part_sums = _mm256_setzero_ps();
                    if end - part >= BLOCKS {
                        for i in 0..BLOCKS {
                            add_block::<C, LANES>(i, codes, x_blocks, scales, &mut part_sums);
                        }
                    } else {
                        for i in 0..end - part {
                            add_block::<C, LANES>(i, codes, x_blocks, scales, &mut part_sums);
                        }
                    }
                    let unit = _mm256_set1_ps(x.units[part / BLOCKS]);
                    sums[r] = _mm256_fmadd_ps(part_sums, unit, sums[r]);
                }
            }
        }
    }
    std::array::from_fn(|r| _mm256_add_ps(sums[r], middles[r][0]))
}

/// Adds to `sums` the products of the codes of one block, the one of number `i` where codes, blocks and scales begin.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C, and everything must be there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_block<C: Nibbles, const LANES: usize>(
    i: usize,
    codes: *const u8,
    x: *const Block,
    scales: *const f32,
    sums: &mut __m256,
) {
    // SAFETY: the caller vouches for all of it. Nothing is read where the prefetch points.
    unsafe {
        let Block { factors, offsets } = &*x.add(i);
        let codes = codes.add(i * BLOCK / 2);
        if i.is_multiple_of(2) {
            _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD).cast());
        }
        let [even, odd] = C::bytes(C::look_up(C::load(codes)));
        let factors: [__m256i; 4] = std::array::from_fn(|j| _mm256_load_si256(factors[j].as_ptr().cast()));
        let upper =
            _mm256_add_epi16(_mm256_maddubs_epi16(even, factors[0]), _mm256_maddubs_epi16(odd, factors[1]));
        let lower =
            _mm256_add_epi16(_mm256_maddubs_epi16(even, factors[2]), _mm256_maddubs_epi16(odd, factors[3]));
        let upper = _mm256_madd_epi16(upper, _mm256_set1_epi16(256));
        let lower = _mm256_madd_epi16(lower, _mm256_set1_epi16(1));
        let offsets = _mm256_load_si256(offsets.as_ptr().cast());
        let whole = _mm256_add_epi32(_mm256_add_epi32(upper, lower), offsets);
        let scale = lane_scales::<LANES>(scales.add(i * 8 / LANES));
        *sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, *sums);
    }
}
