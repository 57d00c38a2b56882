//! x86 with AVX2, FMA and F16C.
//!
//! Codes are never shifted into place. Eight 32-bit lanes hold `P` codes each; a mask leaves one code per
//! lane, the conversion to `float32` is exact, and what the code's place multiplies it by is divided out of
//! `x` beforehand, which is laid out to match. With `c` the middle of the codes, `x * scale * (code - c)` is
//! summed per group, and `x * (bias + scale * c)` through the sums of `x` per group: to subtract the middle
//! keeps the two parts small, so that little is lost where they cancel.
//!
//! Sums that come out infinite or NaN are computed again by the portable implementation: an infinity in
//! `x`, or an overflow, may meet other partial sums here than on the direct way.

use std::arch::x86_64::*;

use super::portable::{Row, dot};
use super::{E2M1, Weights};
use crate::kernels::pool;
use crate::ops::QuantizationMode;

/// Groups whose scales are decoded at a time.
const CHUNK: usize = 64;

/// `columns[n, m] = x[m, k] @ w[n, k]`, `grain` rows of weights at a time.
pub fn product(w: &Weights<'_>, x: &[f32], columns: &mut [f32], grain: usize) {
    match (w.how.mode, w.how.bits) {
        (QuantizationMode::Affine, 2) => lanes::<Bits2>(w, x, columns, grain),
        (QuantizationMode::Affine, 3) => lanes::<Bits3>(w, x, columns, grain),
        (QuantizationMode::Affine, 4) => lanes::<Bits4>(w, x, columns, grain),
        (QuantizationMode::Affine, 5) => lanes::<Bits5>(w, x, columns, grain),
        (QuantizationMode::Affine, 6) => lanes::<Bits6>(w, x, columns, grain),
        (QuantizationMode::Affine, _) => lanes::<Bits8>(w, x, columns, grain),
        (QuantizationMode::Mxfp8, _) => lanes::<Float8>(w, x, columns, grain),
        (QuantizationMode::Mxfp4 | QuantizationMode::Nvfp4, _) => lanes::<Float4>(w, x, columns, grain),
    }
}

/// As [`product`], by how many lanes share a scale.
fn lanes<C: Codes>(w: &Weights<'_>, x: &[f32], columns: &mut [f32], grain: usize) {
    match w.how.group_size as usize / C::P {
        2 => blocks::<C, 2>(w, x, columns, grain),
        4 => blocks::<C, 4>(w, x, columns, grain),
        _ => blocks::<C, 8>(w, x, columns, grain),
    }
}

fn blocks<C: Codes, const LANES: usize>(w: &Weights<'_>, x: &[f32], columns: &mut [f32], grain: usize) {
    let x_rows = x.len() / w.k;
    let inputs: Vec<Input> = x.chunks_exact(w.k).map(|x| Input::new::<C>(x, w)).collect();
    pool::for_each_piece(columns, grain * x_rows, |piece, columns| {
        let rows = columns.len() / x_rows;
        let first = piece * grain;
        // Weights that were read once serve every row of `x`: from memory for the first, then from cache.
        for start in (0..rows).step_by(4) {
            for (i, inputs) in inputs.chunks(4).enumerate() {
                let mut put = |n: usize, sums: &[f32]| {
                    if start + n < rows {
                        columns[(start + n) * x_rows + i * 4..][..sums.len()].copy_from_slice(sums);
                    }
                };
                let n = first + start;
                // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C.
                unsafe {
                    match inputs {
                        [a] => strip::<C, LANES, 4, 1>(w, n, [a], &mut put),
                        [a, b] => strip::<C, LANES, 4, 2>(w, n, [a, b], &mut put),
                        [a, b, c] => {
                            strip::<C, LANES, 2, 3>(w, n, [a, b, c], &mut put);
                            strip::<C, LANES, 2, 3>(w, n + 2, [a, b, c], &mut |n, sums| put(n + 2, sums));
                        }
                        [a, b, c, d, ..] => {
                            strip::<C, LANES, 2, 4>(w, n, [a, b, c, d], &mut put);
                            strip::<C, LANES, 2, 4>(w, n + 2, [a, b, c, d], &mut |n, sums| put(n + 2, sums));
                        }
                        [] => {}
                    }
                }
            }
        }
        let mut row = None;
        for (n, sums) in columns.chunks_exact_mut(x_rows).enumerate() {
            for (sum, x) in sums.iter_mut().zip(x.chunks_exact(w.k)).filter(|(sum, _)| !sum.is_finite()) {
                *sum = dot(x, row.get_or_insert_with(|| Row::new(w)).decode(first + n));
            }
        }
    });
}

/// A row of `x`, laid out for a kind of codes.
struct Input {
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
        group_sums.resize(w.groups().next_multiple_of(CHUNK), 0.0);
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

/// Rows `n..n + R` of the weights times `M` rows of `x`; `put(r, sums)` takes the sums of a row. Rows beyond
/// the last are computed as the last.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn strip<C: Codes, const LANES: usize, const R: usize, const M: usize>(
    w: &Weights<'_>,
    n: usize,
    x: [&Input; M],
    put: &mut impl FnMut(usize, &[f32]),
) {
    let (groups, row_bytes) = (w.groups(), w.row_bytes());
    let rows: [usize; R] = std::array::from_fn(|r| (n + r).min(w.n - 1));
    let block_bytes = 2 * C::HALF;
    let per_group = w.how.group_size as usize / C::P;
    let group_shift = per_group.trailing_zeros();
    let blocks = w.k.div_ceil(8 * C::P);
    assert!(x.iter().all(|x| x.factors.len() == blocks * 8 * C::P && x.offsets.len() == blocks * 8));
    // Blocks that can be read where they are, in the last of the rows and so in each.
    let room = (w.codes.len() - rows[R - 1] * row_bytes).saturating_sub(C::HALF + 16 - block_bytes);
    let direct = (row_bytes / block_bytes).min(room / block_bytes);
    let mut totals = [[_mm256_setzero_ps(); M]; R];
    // Four more than a chunk: a block reads up to four scales.
    let mut scales = [[0.0f32; CHUNK + 4]; R];
    for start in (0..groups).step_by(CHUNK) {
        let count = CHUNK.min(groups - start);
        for r in 0..R {
            w.scales.read(rows[r] * groups + start, &mut scales[r][..count]);
            scales[r][count..].fill(0.0);
            let Some(biases) = &w.biases else { continue };
            let mut centred = [0.0f32; CHUNK];
            biases.read(rows[r] * groups + start, &mut centred[..count]);
            for (bias, scale) in centred[..count].iter_mut().zip(&scales[r]) {
                *bias += C::MIDDLE * scale;
            }
            for (at, biases) in centred[..count.next_multiple_of(8)].chunks_exact(8).enumerate() {
                // SAFETY: eight numbers each: the sums go up to a whole chunk.
                unsafe {
                    let biases = _mm256_loadu_ps(biases.as_ptr());
                    for m in 0..M {
                        let sums = _mm256_loadu_ps(x[m].group_sums[start + at * 8..][..8].as_ptr());
                        totals[r][m] = _mm256_fmadd_ps(biases, sums, totals[r][m]);
                    }
                }
            }
        }
        let first_block = start * per_group / 8;
        for block in 0..(count * per_group).div_ceil(8) {
            let at = first_block + block;
            // SAFETY: a direct block has all the bytes that are read; `blocks` are in each row of `x`, eight
            // numbers for each of its places; four scales lie behind each place in a chunk.
            unsafe {
                let codes: [C::Loaded; R] = std::array::from_fn(|r| {
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
                        let number = C::number(codes[r], j);
                        for m in 0..M {
                            let factors = _mm256_loadu_ps(x[m].factors.as_ptr().add((at * C::P + j) * 8));
                            sums[r][m] = _mm256_fmadd_ps(number, factors, sums[r][m]);
                        }
                    }
                }
                for r in 0..R {
                    let scale = lane_scales::<LANES>(scales[r].as_ptr().add((block * 8) >> group_shift));
                    for m in 0..M {
                        totals[r][m] = _mm256_fmadd_ps(sums[r][m], scale, totals[r][m]);
                    }
                }
            }
        }
    }
    for (r, totals) in totals.iter().enumerate() {
        put(r, &totals.map(|total| sum(total)));
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

/// The scale of each of eight lanes, from the scale of the first on; `LANES` lanes share one, eight or more
/// one for all.
///
/// # Safety
/// The CPU must have AVX2; four numbers must lie from `first` on.
#[inline(always)]
unsafe fn lane_scales<const LANES: usize>(first: *const f32) -> __m256 {
    // SAFETY: the caller vouches for both.
    unsafe {
        if LANES >= 8 {
            return _mm256_set1_ps(*first);
        }
        let which = match LANES {
            4 => _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1),
            _ => _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3),
        };
        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(first)), which)
    }
}

/// The sum of the lanes.
#[target_feature(enable = "avx2,fma,f16c")]
fn sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}
