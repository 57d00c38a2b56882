//! One row of `x` by codes of 4 bits, as bytes. Each multiple of [`fixed`](super::fixed) is two of them, which multiply
//! twice as many codes at a time. Sums in a group are exact either way, so the results are the same.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::fixed::{Bits, Codes, Float4, PART, group_sums, multiples};
use super::{
    CHUNK, COLUMNS, Eight, Matrix, Room, Scales, Weights, columns_of, lane_scales, read_groups, sums_of_four,
};
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
        let whole = multiples.as_chunks::<BLOCK>().0.iter().take(part.len() / BLOCK);
        blocks.extend(whole.map(|multiples| block_of(multiples, C::MIDDLE)));
        units.push(unit * C::UNIT);
    }
    Input { blocks, units, group_sums: group_sums(x, group) }
}

/// The multiples of a block, less `middle` of them in its offsets.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn block_of(multiples: &[i16; BLOCK], middle: i32) -> Block {
    let mut block = Block { factors: [[0; 32]; 4], offsets: [0; 8] };
    // SAFETY: sixteen numbers each.
    let all: [__m256i; 4] =
        std::array::from_fn(|i| unsafe { _mm256_loadu_si256(multiples.as_ptr().add(16 * i).cast()) });
    let upper = all.map(|m| _mm256_srai_epi16::<8>(_mm256_add_epi16(m, _mm256_set1_epi16(128))));
    let lower = all.map(|m| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(m)));
    let [even, odd] = [true, false].map(|even| {
        // Every other number of 16 bits, as a byte that it fits in.
        [&upper, &lower].map(|numbers| {
            let wide =
                numbers.map(|n| _mm256_srai_epi32::<16>(if even { _mm256_slli_epi32::<16>(n) } else { n }));
            let [a, b] = [[wide[0], wide[1]], [wide[2], wide[3]]]
                .map(|[a, b]| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b)));
            _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(a, b))
        })
    });
    for (out, bytes) in block.factors.iter_mut().zip([even[0], odd[0], even[1], odd[1]]) {
        // SAFETY: there is room for 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
    }
    let pairs = all.map(|m| _mm256_madd_epi16(m, _mm256_set1_epi16(1)));
    let fours = [_mm256_hadd_epi32(pairs[0], pairs[1]), _mm256_hadd_epi32(pairs[2], pairs[3])];
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let eights = _mm256_permutevar8x32_epi32(_mm256_hadd_epi32(fours[0], fours[1]), order);
    let offsets = _mm256_mullo_epi32(eights, _mm256_set1_epi32(-middle));
    // SAFETY: there is room for eight numbers.
    unsafe { _mm256_storeu_si256(block.offsets.as_mut_ptr().cast(), offsets) };
    block
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
        let sums = sums_of_four(sums);
        match columns {
            [a, b, c, d] => [*a, *b, *c, *d] = sums,
            _ => columns.copy_from_slice(&sums[..columns.len()]),
        }
    }
}

/// Partial sums of rows `n..n + 4` of the weights; those beyond the last are computed as the last.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four_rows<C: Nibbles, const LANES: usize>(matrix: &Matrix<'_>, n: usize, x: &Input) -> [__m256; 4] {
    let &Matrix { w, groups, row_bytes, group_shift } = matrix;
    assert!(x.blocks.len() * BLOCK == w.k && row_bytes * 2 == w.k && x.units.len() * PART >= w.k);
    assert!(w.codes.len() >= w.n * row_bytes && n < w.n);
    let rows: [usize; 4] = std::array::from_fn(|r| (n + r).min(w.n - 1));
    let mut middles = [[_mm256_setzero_ps()]; 4];
    let mut sums = [_mm256_setzero_ps(); 4];
    let chunk = COLUMNS[0] >> group_shift;
    for start in (0..groups).step_by(chunk) {
        let count = chunk.min(groups - start);
        let mut scales = [[MaybeUninit::uninit(); CHUNK + 8]; 4];
        let [first, end] = [start, start + count].map(|group| (group << group_shift) / BLOCK);
        let group_sums = x.group_sums[start..][..CHUNK].as_ptr();
        let middle = C::MIDDLE as f32 * C::UNIT;
        // SAFETY: this function has the CPU's features; there are as many sums as a chunk has groups, and scales and
        // four more behind each place in it; codes and `x` have all blocks of a row, and a chunk has whole parts.
        unsafe {
            let whole = n + 4 <= w.n && count.is_multiple_of(8);
            let part = n * groups + start..n * groups + start + 3 * groups + count;
            match (&w.scales, &w.biases) {
                (Scales::Bfloat16(s), Some(Scales::Bfloat16(b))) if whole => {
                    let both = [&s[part.clone()], &b[part]];
                    four_affine(both, [groups, count], middle, group_sums, &mut scales, &mut middles);
                }
                (Scales::Float16(s), Some(Scales::Float16(b))) if whole => {
                    let both = [&s[part.clone()], &b[part]];
                    four_affine(both, [groups, count], middle, group_sums, &mut scales, &mut middles);
                }
                _ => {
                    let groups = [start, count];
                    read_groups(matrix, rows, groups, middle, [group_sums], &mut scales, &mut middles);
                }
            }
            let (blocks, units) = (x.blocks.as_ptr().add(first), x.units.as_ptr().add(first * BLOCK / PART));
            let codes = w.codes.as_ptr().add(first * BLOCK / 2);
            for r in 0..4 {
                let codes = codes.add(rows[r] * row_bytes);
                sums[r] = add_row::<C, LANES>(
                    sums[r],
                    codes,
                    blocks,
                    end - first,
                    units,
                    scales[r].as_ptr().cast(),
                );
            }
        }
    }
    std::array::from_fn(|r| _mm256_add_ps(sums[r], middles[r][0]))
}

/// As [`read_groups`], of four rows of scales and biases, of which one begins `groups` after the other, and of `count`
/// groups each, a multiple of eight.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C; there must be `3 * groups + count` scales and biases, `count` sums, and room.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four_affine<T: Eight>(
    [scales, biases]: [&[T]; 2],
    [groups, count]: [usize; 2],
    middle: f32,
    sums: *const f32,
    rooms: &mut [Room; 4],
    totals: &mut [[__m256; 1]; 4],
) {
    let (scales, biases, middle) = (scales.as_ptr(), biases.as_ptr(), _mm256_set1_ps(middle));
    let rooms = rooms.each_mut().map(|room| room.as_mut_ptr().cast::<f32>());
    // SAFETY: the caller vouches for all of it. Nothing is read where a prefetch points.
    unsafe {
        for r in 0..4 {
            _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(r * groups + super::AHEAD).cast());
            _mm_prefetch::<_MM_HINT_T0>(biases.wrapping_add(r * groups + super::AHEAD).cast());
        }
        for at in (0..count).step_by(8) {
            let sums = _mm256_loadu_ps(sums.add(at));
            for r in 0..4 {
                let scales = T::eight(scales.add(r * groups + at));
                _mm256_storeu_ps(rooms[r].add(at), scales);
                let centred = _mm256_fmadd_ps(middle, scales, T::eight(biases.add(r * groups + at)));
                totals[r][0] = _mm256_fmadd_ps(centred, sums, totals[r][0]);
            }
        }
        for room in rooms {
            _mm256_storeu_ps(room.add(count), _mm256_setzero_ps());
        }
    }
}

/// `sum`, and the products of a row's codes with so many blocks from `x` on. Everything is read through pointers that
/// move on, so that little but the arithmetic is in the loop.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C, and everything must be there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_row<C: Nibbles, const LANES: usize>(
    mut sum: __m256,
    mut codes: *const u8,
    mut x: *const Block,
    blocks: usize,
    mut units: *const f32,
    mut scales: *const f32,
) -> __m256 {
    const BLOCKS: usize = PART / BLOCK;
    // SAFETY: the caller vouches for all of it. Nothing is read where a prefetch points.
    unsafe {
        let add = |part: __m256, i: usize, codes: *const u8, x: *const Block, scales: *const f32| {
            let scale = lane_scales::<LANES>(scales.add(i * 8 / LANES));
            _mm256_fmadd_ps(block::<C>(codes.add(i * BLOCK / 2), x.add(i)), scale, part)
        };
        for _ in 0..blocks / BLOCKS {
            let mut part = _mm256_setzero_ps();
            for i in 0..BLOCKS {
                if i.is_multiple_of(2) {
                    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(i * BLOCK / 2 + AHEAD).cast());
                }
                part = add(part, i, codes, x, scales);
            }
            sum = _mm256_fmadd_ps(part, _mm256_set1_ps(*units), sum);
            (codes, scales) = (codes.add(PART / 2), scales.add(PART / 8 / LANES));
            (x, units) = (x.add(BLOCKS), units.add(1));
        }
        if !blocks.is_multiple_of(BLOCKS) {
            let mut part = _mm256_setzero_ps();
            for i in 0..blocks % BLOCKS {
                part = add(part, i, codes, x, scales);
            }
            sum = _mm256_fmadd_ps(part, _mm256_set1_ps(*units), sum);
        }
    }
    sum
}

/// The products of the codes of one block, less their middle, with multiples of `x`: sums of 32 bits' lanes.
///
/// # Safety
/// The CPU must have AVX2, and codes of a block must be there.
#[inline(always)]
unsafe fn block<C: Nibbles>(codes: *const u8, x: *const Block) -> __m256 {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let Block { factors, offsets } = &*x;
        let [even, odd] = C::bytes(C::look_up(C::load(codes)));
        let factor = |i: usize| _mm256_load_si256(factors[i].as_ptr().cast());
        let upper =
            _mm256_add_epi16(_mm256_maddubs_epi16(even, factor(0)), _mm256_maddubs_epi16(odd, factor(1)));
        let lower =
            _mm256_add_epi16(_mm256_maddubs_epi16(even, factor(2)), _mm256_maddubs_epi16(odd, factor(3)));
        let upper = _mm256_madd_epi16(upper, _mm256_set1_epi16(256));
        let lower = _mm256_madd_epi16(lower, _mm256_set1_epi16(1));
        let offsets = _mm256_load_si256(offsets.as_ptr().cast());
        _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_add_epi32(upper, offsets), lower))
    }
}
