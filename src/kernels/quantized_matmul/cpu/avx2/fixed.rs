//! Codes as 16-bit integers, and `x` as 16-bit multiples of a power of two, one for each [`PART`] of a row. Products
//! and their sums in a group are then exact, and take half the instructions of `float32`. Numbers of half precision
//! keep all their digits so, but those that are far smaller than the largest beside them.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::{
    CHUNK, E2M1, Form, Matrix, Totals, Weights, blocks, bytes, keep, lane_scales, lane_sums, load_all,
    load_spread, read_groups, resume,
};
use crate::ops::QuantizationMode;

/// Columns that share a power of two: a divisor of [`COLUMNS`](super::COLUMNS), and a multiple of what a group
/// and a block of codes have.
pub const PART: usize = 256;

/// As [`super::product`].
pub fn product(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
    if let ([x], true) = (x, bytes::suits(&weights[0])) {
        return bytes::product(weights, x, columns, grain);
    }
    match (weights[0].how.mode, weights[0].how.bits) {
        (QuantizationMode::Affine, 1) => lanes::<Bits<1>>(weights, x, columns, grain),
        (QuantizationMode::Affine, 2) => lanes::<Bits<2>>(weights, x, columns, grain),
        (QuantizationMode::Affine, 3) => lanes::<Bits<3>>(weights, x, columns, grain),
        (QuantizationMode::Affine, 4) => lanes::<Bits<4>>(weights, x, columns, grain),
        (QuantizationMode::Affine, 5) => lanes::<Bits<5>>(weights, x, columns, grain),
        (QuantizationMode::Affine, 6) => lanes::<Bits<6>>(weights, x, columns, grain),
        (QuantizationMode::Affine, _) => lanes::<Bits<8>>(weights, x, columns, grain),
        _ => lanes::<Float4>(weights, x, columns, grain),
    }
}

/// As [`product`], by how many lanes of 32 bits share a scale.
fn lanes<C: Codes>(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
    match weights[0].how.group_size as usize / (2 * C::PER) {
        1 => blocks::<Fixed<C, 1>>(weights, x, columns, grain),
        2 => blocks::<Fixed<C, 2>>(weights, x, columns, grain),
        4 => blocks::<Fixed<C, 4>>(weights, x, columns, grain),
        _ => blocks::<Fixed<C, 8>>(weights, x, columns, grain),
    }
}

/// Codes of kind `C`, of which `LANES` lanes share a scale; eight stand for more.
struct Fixed<C, const LANES: usize>(PhantomData<C>);

/// Whether a row, whose numbers have `digits` bits, loses so little in fixed point that it is less than what
/// rounding to these digits has cost already.
pub fn suits(x: &[f32], digits: u32) -> bool {
    // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C.
    let [lost, all] = unsafe { loss(x) };
    lost * (16u32 << digits) as f32 <= all
}

/// The sum of what fixed point takes from each number, and the sum of the magnitudes that may cover it: not of those
/// near the largest of their part, which may be outliers whose weights are zero.
#[target_feature(enable = "avx2,fma,f16c")]
fn loss(x: &[f32]) -> [f32; 2] {
    let mut sums = [[0.0f32; 8]; 2];
    for part in x.chunks(PART) {
        let unit = unit_of(part);
        let (inverse, large) = (1.0 / unit, 8192.0 * unit);
        // Groups have multiples of eight columns.
        for eight in part.as_chunks::<8>().0 {
            for (i, x) in eight.iter().enumerate() {
                let rounded = round(x * inverse);
                sums[0][i] += (x - rounded * unit).abs();
                sums[1][i] += if x.abs() < large { x.abs() } else { 0.0 };
            }
        }
    }
    sums.map(|sums| sums.iter().sum())
}

/// What fixed point takes from each number.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn rest_of(x: &[f32]) -> Vec<f32> {
    let mut rest = x.to_vec();
    for part in rest.chunks_mut(PART) {
        let unit = unit_of(part);
        let inverse = 1.0 / unit;
        part.iter_mut().for_each(|x| *x -= round(*x * inverse) * unit);
    }
    rest
}

/// What a multiple stands for in a part of a row, of eights of numbers, and the multiples.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn multiples(part: &[f32]) -> (f32, [i16; PART]) {
    let (unit, mut multiples) = (unit_of(part), [0; PART]);
    let inverse = _mm256_set1_ps(1.0 / unit);
    for (eight, out) in part.as_chunks::<8>().0.iter().zip(multiples.as_chunks_mut::<8>().0) {
        // SAFETY: eight numbers each.
        unsafe {
            let whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(eight.as_ptr()), inverse));
            let (low, high) = (_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_packs_epi32(low, high));
        }
    }
    (unit, multiples)
}

/// To the nearest integer: adding and taking away 1.5 * 2^23 leaves no other.
#[inline(always)]
fn round(x: f32) -> f32 {
    (x + 12_582_912.0) - 12_582_912.0
}

/// The power of two of which the numbers are so many multiples that two signed bytes hold them, 127 * 256 + 127.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unit_of(x: &[f32]) -> f32 {
    // Bits of magnitudes are in order as integers.
    let largest = x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff));
    let up = largest + (0x7f_ffff - 32_639f32.to_bits() % (1 << 23));
    f32::from_bits((up >> 23).saturating_sub(14).max(1) << 23)
}

/// A row of `x`, laid out for a kind of codes.
struct Input {
    /// `[blocks, PER, 16]`: what multiplies code `j` of each lane of 16 bits.
    factors: Vec<i16>,
    /// `[blocks, 8]`: the middle of the codes times the sum of a lane of 32 bits, negative.
    offsets: Vec<i32>,
    /// `[parts]`: what a multiple stands for.
    units: Vec<f32>,
    /// `[groups]`, and zeros up to whole chunks.
    group_sums: Vec<f32>,
}

#[target_feature(enable = "avx2,fma,f16c")]
fn input_of<C: Codes>(x: &[f32], group: usize) -> Input {
    let padded = x.len().next_multiple_of(PART);
    let mut factors = vec![0i16; padded];
    let mut offsets = vec![0i32; padded / (2 * C::PER)];
    let mut units = Vec::with_capacity(padded / PART);
    let parts = factors.chunks_exact_mut(PART).zip(offsets.chunks_exact_mut(PART / (2 * C::PER)));
    for (x, (factors, offsets)) in x.chunks(PART).zip(parts) {
        let (unit, multiples) = multiples(x);
        let blocks = factors.chunks_exact_mut(16 * C::PER).zip(offsets.chunks_exact_mut(8));
        for (multiples, (factors, offsets)) in multiples.chunks_exact(16 * C::PER).zip(blocks) {
            lay_out::<C>(multiples, factors, offsets);
        }
        units.push(unit * C::UNIT);
    }
    Input { factors, offsets, units, group_sums: group_sums(x, group) }
}

/// `[groups]`, and zeros up to whole chunks.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn group_sums(x: &[f32], group: usize) -> Vec<f32> {
    let mut sums: Vec<f32> = x.chunks_exact(group).map(|group| lane_sums(group)).collect();
    sums.resize(sums.len().next_multiple_of(CHUNK) + CHUNK, 0.0);
    sums
}

/// Factors and offsets of one block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn lay_out<C: Codes>(multiples: &[i16], factors: &mut [i16], offsets: &mut [i32]) {
    assert!(multiples.len() == 16 * C::PER && factors.len() == 16 * C::PER && offsets.len() == 8);
    let mut lanes = [_mm256_setzero_si256(); 16];
    for (i, lanes) in lanes[..C::PER].iter_mut().enumerate() {
        // SAFETY: sixteen numbers each.
        *lanes = unsafe { _mm256_loadu_si256(multiples.as_ptr().add(16 * i).cast()) };
    }
    // Each pass parts numbers of even and odd places, first of all, then within each half, and so on.
    let mut run = C::PER;
    while run > 1 {
        for lanes in lanes[..C::PER].chunks_exact_mut(run) {
            let mut parted = [_mm256_setzero_si256(); 16];
            for i in 0..run / 2 {
                let [a, b] = [lanes[2 * i], lanes[2 * i + 1]];
                let low = _mm256_set1_epi32(0xffff);
                let even = _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
                let odd = _mm256_packus_epi32(_mm256_srli_epi32::<16>(a), _mm256_srli_epi32::<16>(b));
                parted[i] = _mm256_permute4x64_epi64::<0b11_01_10_00>(even);
                parted[run / 2 + i] = _mm256_permute4x64_epi64::<0b11_01_10_00>(odd);
            }
            lanes.copy_from_slice(&parted[..run]);
        }
        run /= 2;
    }
    let mut sums = _mm256_setzero_si256();
    for (i, lanes) in lanes[..C::PER].iter().enumerate() {
        // The bits of the place, the lowest first, have led here.
        let j = i.reverse_bits() >> (usize::BITS - C::PER.trailing_zeros());
        // SAFETY: sixteen numbers from there on.
        unsafe { _mm256_storeu_si256(factors.as_mut_ptr().add(16 * j).cast(), *lanes) };
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(*lanes, _mm256_set1_epi16(1)));
    }
    let offset = _mm256_mullo_epi32(sums, _mm256_set1_epi32(-C::MIDDLE));
    // SAFETY: eight numbers.
    unsafe { _mm256_storeu_si256(offsets.as_mut_ptr().cast(), offset) };
}

/// A kind of codes: how 16 lanes of 16 bits are loaded, and how code `j` of each becomes an integer.
pub trait Codes: Sync {
    /// Codes in a lane.
    const PER: usize;
    /// Bytes in eight lanes.
    const HALF: usize;
    /// A code minus this, times `UNIT`, is the number that it stands for.
    const MIDDLE: i32;
    const UNIT: f32 = 1.0;
    type Loaded: Copy;

    /// Reads `HALF` bytes twice, and up to 16 from where each begins.
    ///
    /// # Safety
    /// The CPU must have AVX2, and `codes` must point to `HALF + 16` bytes.
    unsafe fn load(codes: *const u8) -> __m256i;

    /// # Safety
    /// The CPU must have AVX2.
    unsafe fn look_up(lanes: __m256i) -> Self::Loaded;

    /// Code `j` of each lane.
    ///
    /// # Safety
    /// The CPU must have AVX2; `j` must be less than `PER`.
    unsafe fn code(loaded: Self::Loaded, j: usize) -> __m256i;
}

/// Integers. A lane takes the two bytes in which its codes are; those that begin in the middle of a byte are
/// multiplied into place, at the top of the lane.
pub struct Bits<const BITS: usize>;

impl<const BITS: usize> Codes for Bits<BITS> {
    const PER: usize = match BITS {
        1 => 16,
        2 => 8,
        3 | 4 => 4,
        _ => 2,
    };
    const HALF: usize = BITS * Self::PER;
    const MIDDLE: i32 = 1 << (BITS - 1);
    type Loaded = __m256i;

    #[inline(always)]
    unsafe fn load(codes: *const u8) -> __m256i {
        // SAFETY: the caller vouches for the bytes and the CPU.
        unsafe {
            let (spread, powers): (_, [i16; 4]) = match BITS {
                // 12 bits to a lane.
                3 | 6 => ([0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11], [16, 1, 16, 1]),
                // 10 bits to a lane.
                5 => ([0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9], [64, 16, 4, 1]),
                _ => return load_all(codes),
            };
            let [a, b, c, d] = powers;
            let powers = _mm256_setr_epi16(a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d);
            _mm256_mullo_epi16(load_spread(codes, Self::HALF, spread), powers)
        }
    }

    #[inline(always)]
    unsafe fn look_up(lanes: __m256i) -> __m256i {
        lanes
    }

    #[inline(always)]
    unsafe fn code(loaded: __m256i, j: usize) -> __m256i {
        let shift = (16 - (Self::PER - j) * BITS) as i32;
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let down = if shift == 0 { loaded } else { _mm256_srl_epi16(loaded, _mm_cvtsi32_si128(shift)) };
            if j + 1 == Self::PER { down } else { _mm256_and_si256(down, _mm256_set1_epi16((1 << BITS) - 1)) }
        }
    }
}

/// e2m1: a table turns each code into a byte, twice its number plus 12.
pub struct Float4;

impl Codes for Float4 {
    const PER: usize = 4;
    const HALF: usize = 16;
    const MIDDLE: i32 = 12;
    const UNIT: f32 = 0.5;
    type Loaded = [__m256i; 2];

    #[inline(always)]
    unsafe fn load(codes: *const u8) -> __m256i {
        // SAFETY: the caller vouches for the bytes.
        unsafe { load_all(codes) }
    }

    #[inline(always)]
    unsafe fn look_up(codes: __m256i) -> [__m256i; 2] {
        const BYTES: [u8; 16] = {
            let mut bytes = [0; 16];
            let mut i = 0;
            while i < 16 {
                bytes[i] = (2.0 * E2M1[i] + 12.0) as u8;
                i += 1;
            }
            bytes
        };
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let nibble = _mm256_set1_epi8(15);
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(BYTES.as_ptr().cast()));
            let low = _mm256_and_si256(codes, nibble);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
            [_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)]
        }
    }

    #[inline(always)]
    unsafe fn code(loaded: [__m256i; 2], j: usize) -> __m256i {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            match j {
                0 | 1 => _mm256_and_si256(loaded[j], _mm256_set1_epi16(255)),
                _ => _mm256_srli_epi16::<8>(loaded[j - 2]),
            }
        }
    }
}

impl<C: Codes, const LANES: usize> Form for Fixed<C, LANES> {
    type Input = Input;

    fn input(x: &[f32], w: &Weights<'_>) -> Input {
        // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C.
        unsafe { input_of::<C>(x, w.how.group_size as usize) }
    }

    unsafe fn strip<const R: usize, const M: usize>(
        w: &Matrix<'_>,
        n: usize,
        x: [&Input; M],
        groups: [usize; 2],
        totals: &mut [Totals; R],
    ) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { strip::<C, LANES, R, M>(w, n, x, groups, totals) }
    }
}

/// As [`Form::strip`].
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn strip<C: Codes, const LANES: usize, const R: usize, const M: usize>(
    matrix: &Matrix<'_>,
    n: usize,
    x: [&Input; M],
    [start, count]: [usize; 2],
    totals: &mut [Totals; R],
) {
    let &Matrix { w, row_bytes, group_shift, .. } = matrix;
    let rows: [usize; R] = std::array::from_fn(|r| (n + r).min(w.n - 1));
    let (block, block_bytes) = (16 * C::PER, 2 * C::HALF);
    let lanes_shift = group_shift - (2 * C::PER).trailing_zeros();
    let padded = w.k.next_multiple_of(PART);
    assert!(x.iter().all(|x| x.factors.len() == padded && x.offsets.len() * 2 * C::PER == padded));
    assert!(count <= CHUNK && (start << group_shift).is_multiple_of(PART));
    // Blocks that can be read where they are, in the last of the rows and so in each.
    let room = (w.codes.len() - rows[R - 1] * row_bytes).saturating_sub(C::HALF + 16 - block_bytes);
    let direct = (row_bytes / block_bytes).min(room / block_bytes);
    let mut rooms = [[MaybeUninit::uninit(); CHUNK + 8]; R];
    let group_sums = x.map(|x| x.group_sums[start..][..CHUNK].as_ptr());
    let mut middles = resume::<R, M>(totals, |of| &of.middles, start);
    // SAFETY: this function has the CPU's features; there are as many sums as a chunk has groups.
    unsafe {
        read_groups(
            matrix,
            rows,
            [start, count],
            C::MIDDLE as f32 * C::UNIT,
            group_sums,
            &mut rooms,
            &mut middles,
        );
    }
    let mut codes = resume::<R, M>(totals, |of| &of.codes, start);
    let mut rests = [[0u8; 48]; R];
    let (first, end) = (start << group_shift, (start + count) << group_shift);
    for part in (first..end).step_by(PART) {
        let mut sums = [[_mm256_setzero_ps(); M]; R];
        let (at, groups) = (part / block, (part >> group_shift) - start);
        let blocks = (end.min(part + PART) - part).div_ceil(block);
        // SAFETY: a direct block has all the bytes that are read, and so has what is left of a row and zeros;
        // the blocks of whole parts are in each row of `x`; four scales lie behind each place in a chunk.
        // Nothing is read where a prefetch points.
        unsafe {
            let factors = x.map(|x| x.factors.as_ptr().add(part));
            let offsets = x.map(|x| x.offsets.as_ptr().add(at * 8));
            let scales: [*const f32; R] =
                std::array::from_fn(|r| rooms[r].as_ptr().cast::<f32>().add(groups));
            if at + PART / block <= direct && blocks == PART / block {
                let codes = rows.map(|row| w.codes.as_ptr().add(row * row_bytes + at * block_bytes));
                for i in 0..PART / block {
                    if (i * block_bytes).is_multiple_of(64) {
                        codes.iter().for_each(|codes| {
                            let ahead = codes.add(i * block_bytes).wrapping_add(1024);
                            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        });
                    }
                    let codes = codes.map(|codes| codes.add(i * block_bytes));
                    add_block::<C, LANES, R, M>(i, codes, factors, offsets, scales, lanes_shift, &mut sums);
                }
            } else {
                for i in 0..blocks {
                    let from = (at + i) * block_bytes;
                    if at + i >= direct {
                        for (&row, rest) in rows.iter().zip(&mut rests) {
                            copy_rest(&w.codes[row * row_bytes..][..row_bytes], from, rest);
                        }
                    }
                    let codes: [*const u8; R] = std::array::from_fn(|r| match at + i < direct {
                        true => w.codes.as_ptr().add(rows[r] * row_bytes + from),
                        false => rests[r].as_ptr(),
                    });
                    add_block::<C, LANES, R, M>(i, codes, factors, offsets, scales, lanes_shift, &mut sums);
                }
            }
        }
        for m in 0..M {
            let unit = _mm256_set1_ps(x[m].units[part / PART]);
            for r in 0..R {
                codes[r][m] = _mm256_fmadd_ps(sums[r][m], unit, codes[r][m]);
            }
        }
    }
    for (r, totals) in totals.iter_mut().enumerate() {
        keep(&codes[r], &mut totals.codes);
        keep(&middles[r], &mut totals.middles);
    }
}

/// Adds to `sums` the products of the codes of one block, the one of number `i` where factors, offsets and scales
/// begin; `lanes_shift` is the logarithm of how many lanes share a scale.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C, and everything must be there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_block<C: Codes, const LANES: usize, const R: usize, const M: usize>(
    i: usize,
    codes: [*const u8; R],
    factors: [*const i16; M],
    offsets: [*const i32; M],
    scales: [*const f32; R],
    lanes_shift: u32,
    sums: &mut [[__m256; M]; R],
) {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let offsets = offsets.map(|offsets| _mm256_loadu_si256(offsets.add(i * 8).cast()));
        let mut whole = [offsets; R];
        let loaded = codes.map(|codes| C::look_up(C::load(codes)));
        for j in 0..C::PER {
            for r in 0..R {
                let code = C::code(loaded[r], j);
                for m in 0..M {
                    let factors = _mm256_loadu_si256(factors[m].add((i * C::PER + j) * 16).cast());
                    whole[r][m] = _mm256_add_epi32(whole[r][m], _mm256_madd_epi16(code, factors));
                }
            }
        }
        for r in 0..R {
            let scale = lane_scales::<LANES>(scales[r].add((i * 8) >> lanes_shift));
            for m in 0..M {
                sums[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[r][m]), scale, sums[r][m]);
            }
        }
    }
}

/// The codes of a row from byte `at`, and zeros after the last.
#[cold]
pub fn copy_rest(row: &[u8], at: usize, out: &mut [u8; 48]) {
    let rest = &row[at..row.len().min(at + 32)];
    out[..rest.len()].copy_from_slice(rest);
    out[rest.len()..].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_do_not_cover_what_others_lose() {
        if !crate::kernels::path::Path::Avx2.is_available() {
            return;
        }
        let row = |outlier: f32| {
            let mut row: Vec<f32> = (0..512).map(|i| 1.0 + (i % 100) as f32 / 128.0).collect();
            row[7] = outlier;
            row
        };
        assert!(suits(&row(1.0), 8) && suits(&row(2f32.powi(6)), 8));
        for exponent in 12..60 {
            assert!(!suits(&row(2f32.powi(exponent)), 8), "2^{exponent}");
        }
    }
}
