//! Codes as `float32`.
//!
//! They are never shifted into place. Eight 32-bit lanes hold `P` codes each; a mask leaves one code per
//! lane, the conversion to `float32` is exact, and what the code's place multiplies it by is divided out of
//! `x` beforehand, which is laid out to match.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::{
    CHUNK, E2M1, Form, Matrix, Totals, Weights, blocks, keep, lane_scales, load_all, load_spread,
    read_groups, resume,
};
use crate::ops::QuantizationMode;

/// As [`super::product`].
pub fn product(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
    match (weights[0].how.mode, weights[0].how.bits) {
        (QuantizationMode::Affine, 1) => lanes::<Bits1>(weights, x, columns, grain),
        (QuantizationMode::Affine, 2) => lanes::<Bits2>(weights, x, columns, grain),
        (QuantizationMode::Affine, 3) => lanes::<Bits3>(weights, x, columns, grain),
        (QuantizationMode::Affine, 4) => lanes::<Bits4>(weights, x, columns, grain),
        (QuantizationMode::Affine, 5) => lanes::<Bits5>(weights, x, columns, grain),
        (QuantizationMode::Affine, 6) => lanes::<Bits6>(weights, x, columns, grain),
        (QuantizationMode::Affine, _) => lanes::<Bits8>(weights, x, columns, grain),
        (QuantizationMode::Mxfp8, _) => lanes::<Float8>(weights, x, columns, grain),
        (QuantizationMode::Mxfp4 | QuantizationMode::Nvfp4, _) => lanes::<Float4>(weights, x, columns, grain),
    }
}

/// As [`product`], by how many lanes share a scale.
fn lanes<C: Codes + Sync>(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
    match weights[0].how.group_size as usize / C::P {
        1 => blocks::<Floats<C, 1>>(weights, x, columns, grain),
        2 => blocks::<Floats<C, 2>>(weights, x, columns, grain),
        4 => blocks::<Floats<C, 4>>(weights, x, columns, grain),
        _ => blocks::<Floats<C, 8>>(weights, x, columns, grain),
    }
}

/// Codes of kind `C`, of which `LANES` lanes share a scale; eight stand for more.
struct Floats<C, const LANES: usize>(PhantomData<C>);

/// A row of `x`, laid out for a kind of codes.
pub struct Input {
    /// `[blocks, P, 8]`: what multiplies code `j` of each lane.
    factors: Vec<f32>,
    /// `[blocks, 8]`: the middle of the codes times the sum of a lane, negative.
    offsets: Vec<f32>,
    /// `[groups]`, and zeros up to whole chunks.
    group_sums: Vec<f32>,
}

impl Input {
    fn new<C: Codes>(x: &[f32], w: &Weights<'_>) -> Self {
        let block = 8 * C::P;
        let blocks = x.len().div_ceil(block);
        let mut factors = vec![0.0; blocks * block];
        let mut offsets = vec![0.0; blocks * 8];
        let places: Vec<(usize, f32)> = (0..block)
            .map(|i| {
                let (j, lane) = (i / 8, i % 8);
                let (code, bit) = C::place(j, lane);
                (lane * C::P + code, C::UNIT / (1u64 << bit) as f32)
            })
            .collect();
        let outputs = factors.chunks_exact_mut(block).zip(offsets.chunks_exact_mut(8));
        for (x, (factors, offsets)) in x.chunks(block).zip(outputs) {
            for (factor, &(at, unit)) in factors.iter_mut().zip(&places) {
                *factor = x.get(at).map_or(0.0, |x| x * unit);
            }
            for (offset, lane) in offsets.iter_mut().zip(x.chunks(C::P)) {
                *offset = -C::MIDDLE * C::UNIT * lane.iter().sum::<f32>();
            }
        }
        let mut group_sums: Vec<f32> =
            x.chunks_exact(w.how.group_size as usize).map(|group| group.iter().sum()).collect();
        group_sums.resize(w.groups().next_multiple_of(CHUNK) + CHUNK, 0.0);
        Self { factors, offsets, group_sums }
    }
}

/// A kind of codes: how 8 lanes are loaded, and how code `j` of each becomes a number.
trait Codes {
    /// Codes in a lane.
    const P: usize;
    /// Bytes in four lanes.
    const HALF: usize;
    /// A code minus this, times `UNIT`, is the number that it stands for.
    const MIDDLE: f32;
    const UNIT: f32 = 1.0;
    type Loaded: Copy;

    /// Reads `HALF` bytes twice, and up to 16 from where each begins.
    ///
    /// # Safety
    /// The CPU must have AVX2, and `codes` must point to `HALF + 16` bytes.
    unsafe fn load(codes: *const u8) -> Self::Loaded;

    /// Code `j` of each lane, times two to the power of its place.
    ///
    /// # Safety
    /// The CPU must have AVX2; `j` must be less than `P`.
    unsafe fn number(loaded: Self::Loaded, j: usize) -> __m256;

    /// Which code of the lane `number` gives for `j`, and at which bit.
    fn place(j: usize, lane: usize) -> (usize, u32);
}

/// The bits of `mask` in each lane, as a number. Those at the top come down, or they would be a sign.
#[inline(always)]
unsafe fn masked(loaded: __m256i, mask: u32) -> __m256 {
    // SAFETY: plain vector instructions, which the caller vouches for.
    unsafe {
        let bits = if mask >> 31 == 1 {
            _mm256_srl_epi32(loaded, _mm_cvtsi32_si128(mask.trailing_zeros() as i32))
        } else {
            _mm256_and_si256(loaded, _mm256_set1_epi32(mask as i32))
        };
        _mm256_cvtepi32_ps(bits)
    }
}

/// Three bytes to a lane of four.
const THREES: [i8; 16] = [0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1];

macro_rules! packed {
    ($($name:ident: $bits:literal bits, $p:literal to a lane, |$codes:ident| $load:expr;)*) => { $(
        struct $name;

        impl Codes for $name {
            const P: usize = $p;
            const HALF: usize = $bits * $p / 2;
            const MIDDLE: f32 = ((1 << $bits) - 1) as f32 / 2.0;
            type Loaded = __m256i;

            #[inline(always)]
            unsafe fn load($codes: *const u8) -> __m256i {
                // SAFETY: the caller vouches for the bytes.
                unsafe { $load }
            }

            #[inline(always)]
            unsafe fn number(loaded: __m256i, j: usize) -> __m256 {
                // SAFETY: the caller vouches for the CPU.
                unsafe { masked(loaded, ((1 << $bits) - 1) << (j * $bits)) }
            }

            fn place(j: usize, _: usize) -> (usize, u32) {
                let top = (j + 1) * $bits == 32;
                (j, if top { 0 } else { j as u32 * $bits })
            }
        }
    )* };
}

packed! {
    Bits1: 1 bits, 32 to a lane, |codes| load_all(codes);
    Bits2: 2 bits, 16 to a lane, |codes| load_all(codes);
    Bits3: 3 bits, 8 to a lane, |codes| load_spread(codes, 12, THREES);
    Bits4: 4 bits, 8 to a lane, |codes| load_all(codes);
    Bits6: 6 bits, 4 to a lane, |codes| load_spread(codes, 12, THREES);
    Bits8: 8 bits, 4 to a lane, |codes| load_all(codes);
}

/// Eight codes are five bytes: an even lane takes the first three, an odd lane the last three, in which its
/// codes begin four bits later.
struct Bits5;

impl Codes for Bits5 {
    const P: usize = 4;
    const HALF: usize = 10;
    const MIDDLE: f32 = 15.5;
    type Loaded = __m256i;

    #[inline(always)]
    unsafe fn load(codes: *const u8) -> __m256i {
        const SPREAD: [i8; 16] = [0, 1, 2, -1, 2, 3, 4, -1, 5, 6, 7, -1, 7, 8, 9, -1];
        // SAFETY: the caller vouches for the bytes.
        unsafe { load_spread(codes, Self::HALF, SPREAD) }
    }

    #[inline(always)]
    unsafe fn number(loaded: __m256i, j: usize) -> __m256 {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let mask = _mm256_set1_epi64x((31 | 31 << 36) << (j * 5));
            _mm256_cvtepi32_ps(_mm256_and_si256(loaded, mask))
        }
    }

    fn place(j: usize, lane: usize) -> (usize, u32) {
        (j, j as u32 * 5 + if lane % 2 == 1 { 4 } else { 0 })
    }
}

/// e2m1: a table turns each code into a byte, twice its number plus 12.
struct Float4;

impl Codes for Float4 {
    const P: usize = 8;
    const HALF: usize = 16;
    const MIDDLE: f32 = 12.0;
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
            let high = _mm256_and_si256(_mm256_srli_epi32::<4>(codes), nibble);
            [_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)]
        }
    }

    #[inline(always)]
    unsafe fn number(loaded: [__m256i; 2], j: usize) -> __m256 {
        // SAFETY: the caller vouches for the CPU.
        unsafe { masked(loaded[j / 4], 255 << (j % 4 * 8)) }
    }

    fn place(j: usize, _: usize) -> (usize, u32) {
        let byte = j % 4;
        (2 * byte + j / 4, if byte == 3 { 0 } else { byte as u32 * 8 })
    }
}

/// e4m3: the bits go where a `float32` has its own, whose exponent has another bias.
struct Float8;

impl Codes for Float8 {
    const P: usize = 4;
    const HALF: usize = 16;
    const MIDDLE: f32 = 0.0;
    type Loaded = __m256i;

    #[inline(always)]
    unsafe fn load(codes: *const u8) -> __m256i {
        // SAFETY: the caller vouches for the bytes.
        unsafe { load_all(codes) }
    }

    #[inline(always)]
    unsafe fn number(loaded: __m256i, j: usize) -> __m256 {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let top = _mm256_sll_epi32(loaded, _mm_cvtsi32_si128(24 - 8 * j as i32));
            let spread =
                _mm256_and_si256(_mm256_srai_epi32::<4>(top), _mm256_set1_epi32(0x87f0_0000u32 as i32));
            let unbias = _mm256_set1_ps(f32::from_bits((127 + 120) << 23));
            _mm256_mul_ps(_mm256_castsi256_ps(spread), unbias)
        }
    }

    fn place(j: usize, _: usize) -> (usize, u32) {
        (j, 0)
    }
}

impl<C: Codes + Sync, const LANES: usize> Form for Floats<C, LANES> {
    type Input = Input;

    fn input(x: &[f32], w: &Weights<'_>) -> Input {
        Input::new::<C>(x, w)
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
    let block_bytes = 2 * C::HALF;
    let lanes_shift = group_shift - C::P.trailing_zeros();
    let blocks = w.k.div_ceil(8 * C::P);
    assert!(x.iter().all(|x| x.factors.len() == blocks * 8 * C::P && x.offsets.len() == blocks * 8));
    assert!(count <= CHUNK);
    // Blocks that can be read where they are, in the last of the rows and so in each.
    let room = (w.codes.len() - rows[R - 1] * row_bytes).saturating_sub(C::HALF + 16 - block_bytes);
    let direct = (row_bytes / block_bytes).min(room / block_bytes);
    let mut rooms = [[MaybeUninit::uninit(); CHUNK + 8]; R];
    let group_sums = x.map(|x| x.group_sums[start..][..CHUNK].as_ptr());
    let mut middles = resume::<R, M>(totals, |of| &of.middles, start);
    // SAFETY: this function has the CPU's features; there are as many sums as a chunk has groups.
    unsafe {
        read_groups(matrix, rows, [start, count], C::MIDDLE, group_sums, &mut rooms, &mut middles);
    }
    let mut codes = resume::<R, M>(totals, |of| &of.codes, start);
    let first_block = (start << lanes_shift) / 8;
    for block in 0..(count << lanes_shift).div_ceil(8) {
        let at = first_block + block;
        // SAFETY: a direct block has all the bytes that are read; `blocks` are in each row of `x`, eight
        // numbers for each of its places; four scales lie behind each place in a chunk.
        unsafe {
            let loaded: [C::Loaded; R] = std::array::from_fn(|r| {
                if at < direct {
                    C::load(w.codes.as_ptr().add(rows[r] * row_bytes + at * block_bytes))
                } else {
                    load_rest::<C>(&w.codes[rows[r] * row_bytes..][..row_bytes], at * block_bytes)
                }
            });
            let mut sums = [[_mm256_setzero_ps(); M]; R];
            for m in 0..M {
                let offsets = _mm256_loadu_ps(x[m].offsets.as_ptr().add(at * 8));
                sums.iter_mut().for_each(|sums| sums[m] = offsets);
            }
            for j in 0..C::P {
                for r in 0..R {
                    let number = C::number(loaded[r], j);
                    for m in 0..M {
                        let factors = _mm256_loadu_ps(x[m].factors.as_ptr().add((at * C::P + j) * 8));
                        sums[r][m] = _mm256_fmadd_ps(number, factors, sums[r][m]);
                    }
                }
            }
            for r in 0..R {
                let scale =
                    lane_scales::<LANES>(rooms[r].as_ptr().cast::<f32>().add((block * 8) >> lanes_shift));
                for m in 0..M {
                    codes[r][m] = _mm256_fmadd_ps(sums[r][m], scale, codes[r][m]);
                }
            }
        }
    }
    for (r, totals) in totals.iter_mut().enumerate() {
        keep(&codes[r], &mut totals.codes);
        keep(&middles[r], &mut totals.middles);
    }
}

/// The codes of a row from byte `at`, as if zeros followed.
#[cold]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_rest<C: Codes>(row: &[u8], at: usize) -> C::Loaded {
    let mut padded = [0; 32];
    let rest = &row[at..row.len().min(at + 2 * C::HALF)];
    padded[..rest.len()].copy_from_slice(rest);
    // SAFETY: as many bytes as it reads, and this function has the CPU's features.
    unsafe { C::load(padded.as_ptr()) }
}
