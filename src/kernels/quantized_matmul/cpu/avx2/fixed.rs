//! Codes as 16-bit integers, and `x` as 16-bit multiples of a power of two, one for each [`PART`] of a row. Products
//! and their sums in a group are then exact, and take half the instructions of `float32`. Numbers of half precision
//! keep all their digits so, but those that are far smaller than the largest beside them.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::{
    CHUNK, COLUMNS, E2M1, Form, Totals, Weights, blocks, lane_scales, load_all, load_spread, read_groups,
};
use crate::ops::QuantizationMode;

/// Columns that share a power of two: a divisor of [`COLUMNS`], and a multiple of what a block of codes has.
const PART: usize = 256;

/// As [`super::product`].
pub fn product(w: &Weights<'_>, x: &[&[f32]], columns: &mut [f32], grain: usize) {
    match (w.how.mode, w.how.bits) {
        (QuantizationMode::Affine, 1) => lanes::<Bits<1>>(w, x, columns, grain),
        (QuantizationMode::Affine, 2) => lanes::<Bits<2>>(w, x, columns, grain),
        (QuantizationMode::Affine, 3) => lanes::<Bits<3>>(w, x, columns, grain),
        (QuantizationMode::Affine, 4) => lanes::<Bits<4>>(w, x, columns, grain),
        (QuantizationMode::Affine, 5) => lanes::<Bits<5>>(w, x, columns, grain),
        (QuantizationMode::Affine, 6) => lanes::<Bits<6>>(w, x, columns, grain),
        (QuantizationMode::Affine, _) => lanes::<Bits<8>>(w, x, columns, grain),
        _ => lanes::<Float4>(w, x, columns, grain),
    }
}

/// As [`product`], by how many lanes of 32 bits share a scale.
fn lanes<C: Codes>(w: &Weights<'_>, x: &[&[f32]], columns: &mut [f32], grain: usize) {
    match w.how.group_size as usize / (2 * C::PER) {
        1 => blocks::<Fixed<C, 1>>(w, x, columns, grain),
        2 => blocks::<Fixed<C, 2>>(w, x, columns, grain),
        4 => blocks::<Fixed<C, 4>>(w, x, columns, grain),
        _ => blocks::<Fixed<C, 8>>(w, x, columns, grain),
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

/// The sum of what fixed point takes from each number, and the sum of the magnitudes.
#[target_feature(enable = "avx2,fma,f16c")]
fn loss(x: &[f32]) -> [f32; 2] {
    let mut sums = [0.0f32; 2];
    for part in x.chunks(PART) {
        let unit = unit_of(part);
        let inverse = 1.0 / unit;
        let mut here = [[0.0f32; 8]; 2];
        for (i, x) in part.iter().enumerate() {
            // Adding and taking away 1.5 * 2^23 rounds to an integer.
            let rounded = (x * inverse + 12_582_912.0) - 12_582_912.0;
            here[0][i % 8] += (x - rounded * unit).abs();
            here[1][i % 8] += x.abs();
        }
        for (sum, here) in sums.iter_mut().zip(here) {
            *sum += here.iter().sum::<f32>();
        }
    }
    sums
}

/// The power of two of which the numbers are less than 2^15 multiples.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unit_of(x: &[f32]) -> f32 {
    // Bits of magnitudes are in order as integers.
    let largest = x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff));
    f32::from_bits((largest >> 23).saturating_sub(14).max(1) << 23)
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
    let block = 16 * C::PER;
    let padded = x.len().next_multiple_of(PART);
    let mut factors = vec![0i16; padded];
    let mut offsets = vec![0i32; padded / (2 * C::PER)];
    let mut units = Vec::with_capacity(padded / PART);
    let parts = factors.chunks_exact_mut(PART).zip(offsets.chunks_exact_mut(PART / (2 * C::PER)));
    for (x, (factors, offsets)) in x.chunks(PART).zip(parts) {
        let unit = unit_of(x);
        let inverse = 1.0 / unit;
        let mut multiples = [0i16; PART];
        for (multiple, x) in multiples.iter_mut().zip(x) {
            *multiple = ((x * inverse + 12_582_912.0) - 12_582_912.0) as i32 as i16;
        }
        for (offset, lane) in offsets.iter_mut().zip(multiples.chunks_exact(2 * C::PER)) {
            *offset = -C::MIDDLE * lane.iter().map(|&q| i32::from(q)).sum::<i32>();
        }
        for (factors, multiples) in factors.chunks_exact_mut(block).zip(multiples.chunks_exact(block)) {
            for (j, factors) in factors.chunks_exact_mut(16).enumerate() {
                for (lane, factor) in factors.iter_mut().enumerate() {
                    *factor = multiples[lane * C::PER + j];
                }
            }
        }
        units.push(unit * C::UNIT);
    }
    let mut group_sums: Vec<f32> = x
        .chunks_exact(group)
        .map(|group| {
            let mut lanes = [0.0f32; 8];
            for eight in group.chunks_exact(8) {
                lanes.iter_mut().zip(eight).for_each(|(lane, x)| *lane += x);
            }
            super::total(&lanes)
        })
        .collect();
    group_sums.resize(group_sums.len().next_multiple_of(CHUNK) + CHUNK, 0.0);
    Input { factors, offsets, units, group_sums }
}

/// A kind of codes: how 16 lanes of 16 bits are loaded, and how code `j` of each becomes an integer.
trait Codes: Sync {
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
    unsafe fn load(codes: *const u8) -> Self::Loaded;

    /// Code `j` of each lane.
    ///
    /// # Safety
    /// The CPU must have AVX2; `j` must be less than `PER`.
    unsafe fn code(loaded: Self::Loaded, j: usize) -> __m256i;
}

/// Integers. A lane takes the two bytes in which its codes are; those that begin in the middle of a byte are
/// multiplied into place, at the top of the lane.
struct Bits<const BITS: usize>;

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
struct Float4;

impl Codes for Float4 {
    const PER: usize = 4;
    const HALF: usize = 16;
    const MIDDLE: i32 = 12;
    const UNIT: f32 = 0.5;
    type Loaded = [__m256i; 2];

    #[inline(always)]
    unsafe fn load(codes: *const u8) -> [__m256i; 2] {
        const BYTES: [u8; 16] = {
            let mut bytes = [0; 16];
            let mut i = 0;
            while i < 16 {
                bytes[i] = (2.0 * E2M1[i] + 12.0) as u8;
                i += 1;
            }
            bytes
        };
        // SAFETY: the caller vouches for the bytes and the CPU.
        unsafe {
            let (codes, nibble) = (load_all(codes), _mm256_set1_epi8(15));
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
        w: &Weights<'_>,
        n: usize,
        x: [&Input; M],
        start: usize,
        chunk: usize,
        all: &mut Totals,
        at: usize,
    ) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { strip::<C, LANES, R, M>(w, n, x, start, chunk, all, at) }
    }
}

/// As [`Form::strip`].
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn strip<C: Codes, const LANES: usize, const R: usize, const M: usize>(
    w: &Weights<'_>,
    n: usize,
    x: [&Input; M],
    start: usize,
    chunk: usize,
    all: &mut Totals,
    at: usize,
) {
    let (groups, row_bytes, group) = (w.groups(), w.row_bytes(), w.how.group_size as usize);
    let rows: [usize; R] = std::array::from_fn(|r| (n + r).min(w.n - 1));
    let (block, block_bytes) = (16 * C::PER, 2 * C::HALF);
    let lanes_shift = (group / (2 * C::PER)).trailing_zeros();
    let padded = w.k.next_multiple_of(PART);
    assert!(x.iter().all(|x| x.factors.len() == padded && x.offsets.len() * 2 * C::PER == padded));
    assert!(chunk <= CHUNK && chunk * group == COLUMNS && start.is_multiple_of(chunk));
    // Blocks that can be read where they are, in the last of the rows and so in each.
    let room = (w.codes.len() - rows[R - 1] * row_bytes).saturating_sub(C::HALF + 16 - block_bytes);
    let direct = (row_bytes / block_bytes).min(room / block_bytes);
    let mut totals: [[__m256; M]; R] =
        // SAFETY: eight numbers each.
        std::array::from_fn(|r| std::array::from_fn(|m| unsafe { _mm256_loadu_ps(all.0[at + r][m].as_ptr()) }));
    let count = chunk.min(groups - start);
    let mut scales = [[0.0f32; CHUNK + 8]; R];
    let sums = x.map(|x| &x.group_sums[start..][..CHUNK]);
    for r in 0..R {
        let range = rows[r] * groups + start..rows[r] * groups + start + count;
        let middle = C::MIDDLE as f32 * C::UNIT;
        // SAFETY: this function has the CPU's features.
        unsafe { read_groups(w, range, middle, sums, &mut scales[r], &mut totals[r]) };
    }
    let factors = x.map(|x| x.factors.as_ptr());
    let offsets = x.map(|x| x.offsets.as_ptr());
    let mut rests = [[0u8; 48]; R];
    let (first, end) = (start * group, (start + count) * group);
    for part in (first..end).step_by(PART) {
        let mut sums = [[_mm256_setzero_ps(); M]; R];
        for column in (part..end.min(part + PART)).step_by(block) {
            let at = column / block;
            if at >= direct {
                for r in 0..R {
                    copy_rest(&w.codes[rows[r] * row_bytes..][..row_bytes], at * block_bytes, &mut rests[r]);
                }
            }
            // SAFETY: a direct block has all the bytes that are read; the blocks of whole parts are in each row
            // of `x`; four scales lie behind each place in a chunk. Nothing is read where a prefetch points.
            unsafe {
                let mut whole = [[_mm256_setzero_si256(); M]; R];
                for m in 0..M {
                    let offset = _mm256_loadu_si256(offsets[m].add(at * 8).cast());
                    whole.iter_mut().for_each(|whole| whole[m] = offset);
                }
                let mut from = [w.codes.as_ptr(); R];
                for r in 0..R {
                    from[r] = if at < direct {
                        w.codes.as_ptr().add(rows[r] * row_bytes + at * block_bytes)
                    } else {
                        rests[r].as_ptr()
                    };
                    _mm_prefetch::<_MM_HINT_T0>(from[r].wrapping_add(4 * row_bytes).cast());
                }
                let mut loaded = [C::load(from[0]); R];
                for r in 1..R {
                    loaded[r] = C::load(from[r]);
                }
                for j in 0..C::PER {
                    for r in 0..R {
                        let code = C::code(loaded[r], j);
                        for m in 0..M {
                            let factors = _mm256_loadu_si256(factors[m].add((at * C::PER + j) * 16).cast());
                            let products = _mm256_madd_epi16(code, factors);
                            whole[r][m] = _mm256_add_epi32(whole[r][m], products);
                        }
                    }
                }
                for r in 0..R {
                    let first = ((at * 8) >> lanes_shift) - start;
                    let scale = lane_scales::<LANES>(scales[r].as_ptr().add(first));
                    for m in 0..M {
                        sums[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[r][m]), scale, sums[r][m]);
                    }
                }
            }
        }
        for m in 0..M {
            let unit = _mm256_set1_ps(x[m].units[part / PART]);
            for r in 0..R {
                totals[r][m] = _mm256_fmadd_ps(sums[r][m], unit, totals[r][m]);
            }
        }
    }
    for (r, totals) in totals.iter().enumerate() {
        for (m, total) in totals.iter().enumerate() {
            // SAFETY: eight numbers each.
            unsafe { _mm256_storeu_ps(all.0[at + r][m].as_mut_ptr(), *total) };
        }
    }
}

/// The codes of a row from byte `at`, and zeros after the last.
#[cold]
fn copy_rest(row: &[u8], at: usize, out: &mut [u8; 48]) {
    let rest = &row[at..row.len().min(at + 32)];
    out[..rest.len()].copy_from_slice(rest);
    out[rest.len()..].fill(0);
}
