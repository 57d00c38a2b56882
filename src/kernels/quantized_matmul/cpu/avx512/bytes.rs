//! One or two rows of `x` in fixed point, as in [`fixed`](super::super::avx2::fixed), by codes as bytes: each multiple is two signed
//! bytes, which an instruction multiplies with 64 codes at a time. Sums in a group are exact.

use std::arch::x86_64::*;
use std::array;

use half::{bf16, f16};

use super::super::avx2::fixed::{Bits, Float4, PART, group_sums, multiples};
use super::super::avx2::{AHEAD as NUMBERS_AHEAD, Matrix, columns_of, sums_of_four};
use super::super::{E2M1, Scales, Weights};
use super::groups::{Any, Exponents, Floats, Floats8, Groups};
use crate::ops::QuantizationMode;

/// Bytes between the codes that are read and those that are fetched, where they are read from end to end.
const AHEAD: usize = 4096;
/// Columns whose scales are read together, unless they have more groups than a vector has lanes.
const COLUMNS: usize = 1024;
/// Rows of weights that are worked through together.
const ROWS: usize = 4;

/// As [AVX2's](super::super::avx2::product), of one or two rows.
pub fn product(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
    match (weights[0].how.mode, weights[0].how.bits) {
        (QuantizationMode::Affine, 1) => Bits::<1>::product(weights, x, columns, grain),
        (QuantizationMode::Affine, 2) => Bits::<2>::product(weights, x, columns, grain),
        (QuantizationMode::Affine, 3) => Bits::<3>::product(weights, x, columns, grain),
        (QuantizationMode::Affine, 4) => Bits::<4>::product(weights, x, columns, grain),
        (QuantizationMode::Affine, 5) => Bits::<5>::product(weights, x, columns, grain),
        (QuantizationMode::Affine, 6) => Bits::<6>::product(weights, x, columns, grain),
        (QuantizationMode::Affine, _) => Bits::<8>::product(weights, x, columns, grain),
        _ => Float4::product(weights, x, columns, grain),
    }
}

/// As [`product`], with groups that are stored as `G`.
fn product_of<C: Bytes, G: Groups>(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
    // SAFETY: this path is taken only where the CPU has these instructions.
    let inputs: Vec<Input> =
        x.iter().map(|x| unsafe { Input::new::<C>(x, weights[0].how.group_size as usize) }).collect();
    columns_of(weights, x, columns, grain, |w, first, columns| {
        // SAFETY: as above.
        unsafe {
            if !rows::<C, G>(w, first, &inputs, columns) {
                rows::<C, Any>(w, first, &inputs, columns);
            }
        }
    });
}

/// Codes as bytes.
pub trait Bytes: Sync {
    /// Vectors of 64 codes that are loaded together: byte `b` of vector `v` is the code of column `VECTORS * b + v`.
    const VECTORS: usize;
    /// Bytes in which they lie.
    const BYTES: usize;
    /// A code minus this, times `UNIT`, is the number that it stands for.
    const MIDDLE: i32;
    const UNIT: f32 = 1.0;

    /// Whether bytes of codes give bytes of the same places.
    const IN_BYTES: bool = true;

    /// As [`product`].
    fn product(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize);

    /// The first [`VECTORS`](Self::VECTORS) are there.
    ///
    /// # Safety
    /// The CPU must have AVX-512 BW and VBMI.
    unsafe fn bytes(loaded: __m512i) -> [__m512i; 4];
}

impl<const BITS: usize> Bytes for Bits<BITS> {
    const VECTORS: usize = match BITS {
        4 => 2,
        2 => 4,
        _ => 1,
    };
    const BYTES: usize = 8 * BITS * Self::VECTORS;
    const MIDDLE: i32 = 1 << (BITS - 1);
    const IN_BYTES: bool = 8 % BITS == 0 && BITS > 1;

    fn product(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
        match weights[0].scales {
            Scales::Bfloat16(_) => product_of::<Self, Floats<bf16>>(weights, x, columns, grain),
            Scales::Float16(_) => product_of::<Self, Floats<f16>>(weights, x, columns, grain),
            _ => product_of::<Self, Any>(weights, x, columns, grain),
        }
    }

    #[inline(always)]
    unsafe fn bytes(loaded: __m512i) -> [__m512i; 4] {
        // SAFETY: the caller vouches for the CPU; the tables are as long as vectors.
        unsafe {
            let mask = _mm512_set1_epi8(((1u32 << BITS) - 1) as i8);
            match BITS {
                8 => [loaded; 4],
                4 => {
                    let odd = _mm512_and_si512(_mm512_srli_epi16::<4>(loaded), mask);
                    [_mm512_and_si512(loaded, mask), odd, odd, odd]
                }
                2 => [
                    _mm512_and_si512(loaded, mask),
                    _mm512_and_si512(_mm512_srli_epi16::<2>(loaded), mask),
                    _mm512_and_si512(_mm512_srli_epi16::<4>(loaded), mask),
                    _mm512_and_si512(_mm512_srli_epi16::<6>(loaded), mask),
                ],
                _ => [in_order::<BITS>(loaded); 4],
            }
        }
    }
}

/// The 64 codes of as many bits in the first bytes, as bytes.
///
/// # Safety
/// The CPU must have AVX-512 BW and VBMI.
#[inline(always)]
pub unsafe fn in_order<const BITS: usize>(loaded: __m512i) -> __m512i {
    // Eight codes have as many bytes as one has bits: each lane of 64 bits takes those of its own.
    let lanes = const {
        let (mut places, mut shifts, mut i) = ([0u8; 64], [0u8; 64], 0);
        while i < 64 {
            places[i] = (i / 8 * BITS + i % 8 % BITS) as u8;
            shifts[i] = (i % 8 * BITS) as u8;
            i += 1;
        }
        [places, shifts]
    };
    // SAFETY: the caller vouches for the CPU; the tables are as long as vectors.
    unsafe {
        let [places, shifts] = lanes.map(|table| _mm512_loadu_si512(table.as_ptr().cast()));
        let spread = _mm512_permutexvar_epi8(places, loaded);
        let mask = _mm512_set1_epi8(((1u32 << BITS) - 1) as i8);
        _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, spread), mask)
    }
}

/// e2m1: a table turns each code into twice its number plus 12.
impl Bytes for Float4 {
    const VECTORS: usize = 2;
    const BYTES: usize = 64;
    const MIDDLE: i32 = 12;
    const UNIT: f32 = 0.5;

    fn product(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
        match weights[0].scales {
            Scales::Exponent(_) => product_of::<Self, Exponents>(weights, x, columns, grain),
            _ => product_of::<Self, Floats8>(weights, x, columns, grain),
        }
    }

    #[inline(always)]
    unsafe fn bytes(loaded: __m512i) -> [__m512i; 4] {
        const TABLE: [u8; 16] = {
            let (mut bytes, mut i) = ([0; 16], 0);
            while i < 16 {
                bytes[i] = (2.0 * E2M1[i] + 12.0) as u8;
                i += 1;
            }
            bytes
        };
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let [even, odd, ..] = Bits::<4>::bytes(loaded);
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(TABLE.as_ptr().cast()));
            let odd = _mm512_shuffle_epi8(table, odd);
            [_mm512_shuffle_epi8(table, even), odd, odd, odd]
        }
    }
}

/// What multiplies a vector of codes, or sixteen offsets.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line(pub [i8; 64]);

/// Of which of sixteen groups each lane of a step is.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Lanes([i32; 16]);

/// A row of `x`, laid out for a kind of codes.
struct Input {
    /// `[steps, 2 * VECTORS + 1]`: for each vector of codes the upper bytes and the lower ones, and the middle of the codes times
    /// the sum of each lane of 32 bits, negative.
    lines: Vec<Line>,
    /// `[groups]`, and zeros up to whole chunks: what a multiple stands for.
    units: Vec<f32>,
    /// The same of the sums of groups.
    group_sums: Vec<f32>,
    /// Of the steps of columns whose scales are read together.
    lanes: Vec<Lanes>,
}

impl Input {
    /// # Safety
    /// The CPU must have the features of this path.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn new<C: Bytes>(x: &[f32], group: usize) -> Self {
        let each = 2 * C::VECTORS + 1;
        let steps = PART / (64 * C::VECTORS);
        let mut lines = vec![Line([0; 64]); x.len().div_ceil(PART) * steps * each];
        let groups = x.len() / group;
        let mut units = vec![0.0; groups + 16];
        for (part, x) in x.chunks(PART).enumerate() {
            let (unit, multiples) = multiples(x);
            let first = part * PART / group;
            units[first..(first + PART / group).min(groups)].fill(unit * C::UNIT);
            for (i, multiples) in multiples.chunks_exact(64 * C::VECTORS).enumerate() {
                // SAFETY: the caller vouches for the CPU.
                unsafe { lay_out::<C>(multiples, &mut lines[(part * steps + i) * each..][..each]) };
            }
        }
        let mut group_sums = group_sums(x, group);
        group_sums.resize(groups + 16, 0.0);
        let column = |step: usize, lane: usize| (step * 16 + lane) * 4 * C::VECTORS;
        let of = |step| Lanes(array::from_fn(|lane| (column(step, lane) / group) as i32));
        Self { lines, units, group_sums, lanes: (0..COLUMNS / (64 * C::VECTORS)).map(of).collect() }
    }
}

/// One step of one row.
///
/// # Safety
/// The CPU must have the features of this path.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn lay_out<C: Bytes>(multiples: &[i16], lines: &mut [Line]) {
    assert!(multiples.len() == 64 * C::VECTORS && lines.len() == 2 * C::VECTORS + 1);
    // SAFETY: the caller vouches for the CPU; lengths are checked, and lines are as long as vectors.
    unsafe {
        let (ones, mut sums) = (_mm512_set1_epi8(1), [_mm512_setzero_si512(); 2]);
        for (half, vectors) in halves::<C>(multiples).into_iter().enumerate() {
            for v in 0..C::VECTORS {
                lines[2 * v + half] = vectors[v];
                let bytes = _mm512_load_si512(vectors[v].0.as_ptr().cast());
                sums[half] = _mm512_dpbusd_epi32(sums[half], ones, bytes);
            }
        }
        let sums = _mm512_add_epi32(_mm512_slli_epi32::<8>(sums[0]), sums[1]);
        let offsets = _mm512_mullo_epi32(sums, _mm512_set1_epi32(-C::MIDDLE));
        _mm512_store_si512(lines[2 * C::VECTORS].0.as_mut_ptr().cast(), offsets);
    }
}

/// The upper bytes of multiples and the lower ones, signed, in the order of [`bytes`](Bytes::bytes); the first
/// [`VECTORS`](Bytes::VECTORS) of each are there.
///
/// # Safety
/// The CPU must have the features of this path.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub unsafe fn halves<C: Bytes>(multiples: &[i16]) -> [[Line; 4]; 2] {
    const ORDER: [[u8; 64]; 2] = {
        let (mut order, mut i) = ([[0; 64]; 2], 0);
        while i < 64 {
            order[0][i] = 2 * i as u8;
            order[1][i] = 2 * i as u8 + 1;
            i += 1;
        }
        order
    };
    assert!(multiples.len() == 64 * C::VECTORS);
    let mut halves = [[Line([0; 64]); 4]; 2];
    // SAFETY: the length is checked, and tables and lines are as long as vectors.
    unsafe {
        let order = ORDER.map(|order| _mm512_loadu_si512(order.as_ptr().cast()));
        let parted = |[a, b]: [__m512i; 2]| order.map(|order| _mm512_permutex2var_epi8(a, order, b));
        for (lines, upper) in halves.iter_mut().zip([true, false]) {
            let half = |i: usize| {
                let m = _mm512_loadu_si512(multiples.as_ptr().add(32 * i).cast());
                let up = _mm512_srai_epi16::<8>(_mm512_add_epi16(m, _mm512_set1_epi16(128)));
                _mm512_cvtepi16_epi8(if upper { up } else { m })
            };
            let all: [__m512i; 4] = array::from_fn(|i| match i < C::VECTORS {
                true => _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(2 * i)), half(2 * i + 1)),
                false => _mm512_setzero_si512(),
            });
            let vectors = match C::VECTORS {
                1 => all,
                2 => {
                    let [even, odd] = parted([all[0], all[1]]);
                    [even, odd, odd, odd]
                }
                _ => {
                    let [a, b] = [parted([all[0], all[1]]), parted([all[2], all[3]])];
                    let [[c0, c2], [c1, c3]] = [parted([a[0], b[0]]), parted([a[1], b[1]])];
                    [c0, c1, c2, c3]
                }
            };
            for (line, bytes) in lines.iter_mut().zip(vectors) {
                _mm512_store_si512(line.0.as_mut_ptr().cast(), bytes);
            }
        }
    }
    halves
}

/// The products of vectors of codes with their lines of a row, summed in each lane of 32 bits.
///
/// # Safety
/// The CPU must have AVX-512 VNNI; there must be `2 * VECTORS + 1` lines.
#[inline(always)]
unsafe fn in_lanes<C: Bytes>(codes: [__m512i; 4], lines: *const Line) -> __m512 {
    // SAFETY: the caller vouches for it.
    unsafe {
        let line = |at: usize| _mm512_load_si512((*lines.add(at)).0.as_ptr().cast());
        let (mut upper, mut lower) = (_mm512_setzero_si512(), line(2 * C::VECTORS));
        for (v, &codes) in codes.iter().enumerate().take(C::VECTORS) {
            upper = _mm512_dpbusd_epi32(upper, codes, line(2 * v));
            lower = _mm512_dpbusd_epi32(lower, codes, line(2 * v + 1));
        }
        _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(upper), lower))
    }
}

/// The products of the rows of weights from `first` on with each row of `x`, if groups are stored as `G`; false if they are not.
///
/// # Safety
/// The CPU must have the features of this path.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn rows<C: Bytes, G: Groups>(
    matrix: &Matrix<'_>,
    first: usize,
    x: &[Input],
    columns: &mut [f32],
) -> bool {
    let &Matrix { w, groups, row_bytes, group_shift } = matrix;
    let (rows, Some(stored)) = (first + columns.len() / x.len(), G::of(w)) else { return false };
    let each = 2 * C::VECTORS + 1;
    let together = (COLUMNS >> group_shift).min(16);
    assert!(w.codes.len() >= rows * row_bytes && G::len(stored) >= rows * groups);
    let step = 64 * C::VECTORS;
    for x in x {
        assert!(x.lines.len() * step >= w.k * each && x.lanes.len() * step >= together << group_shift);
        assert!(x.units.len() >= groups + 16 && x.group_sums.len() >= groups + 16);
    }
    let group_bytes = (w.how.bits as usize) << group_shift >> 3;
    let middle = _mm512_set1_ps(C::MIDDLE as f32 * C::UNIT);
    for (i, four) in columns.chunks_mut(ROWS * x.len()).enumerate() {
        for (m, input) in x.iter().enumerate() {
            let (units, group_sums) = (input.units.as_ptr(), input.group_sums.as_ptr());
            let mut sums = [_mm256_setzero_ps(); ROWS];
            for (r, out) in sums.iter_mut().enumerate().take(four.len() / x.len()) {
                let row = first + ROWS * i + r;
                // SAFETY: lengths were checked; masked loads keep to what is there. Nothing is read where a prefetch points.
                unsafe {
                    let (mut code, mut line) = (w.codes.as_ptr().add(row * row_bytes), input.lines.as_ptr());
                    let mut sum = _mm512_setzero_ps();
                    let mut group = 0;
                    while group < groups {
                        let here = together.min(groups - group);
                        let [scale, biases] =
                            G::read(stored, row * groups + group, u16::MAX >> (16 - here), NUMBERS_AHEAD);
                        if w.biases.is_some() {
                            let centred = _mm512_fmadd_ps(middle, scale, biases);
                            sum = _mm512_fmadd_ps(centred, _mm512_loadu_ps(group_sums.add(group)), sum);
                        }
                        let scale = _mm512_mul_ps(scale, _mm512_loadu_ps(units.add(group)));
                        let step =
                            |sum: &mut __m512, codes: __m512i, line: *const Line, lanes: *const Lanes| {
                                let lanes = _mm512_load_si512((*lanes).0.as_ptr().cast());
                                let scale = _mm512_permutexvar_ps(lanes, scale);
                                *sum = _mm512_fmadd_ps(in_lanes::<C>(C::bytes(codes), line), scale, *sum);
                            };
                        let (mut left, mut lanes) = (here * group_bytes, input.lanes.as_ptr());
                        // Four at a time without a branch, then two, then one, which may have fewer codes.
                        let whole =
                            |sum: &mut __m512, code: *const u8, line: *const Line, lanes: *const Lanes| {
                                _mm_prefetch::<_MM_HINT_T0>(code.wrapping_add(AHEAD).cast());
                                let codes = match C::BYTES {
                                    64 => _mm512_loadu_si512(code.cast()),
                                    _ => _mm512_maskz_loadu_epi8(u64::MAX >> (64 - C::BYTES), code.cast()),
                                };
                                step(sum, codes, line, lanes);
                            };
                        while left >= 4 * C::BYTES {
                            for i in 0..4 {
                                whole(&mut sum, code.add(i * C::BYTES), line.add(i * each), lanes.add(i));
                            }
                            (code, line, lanes) = (code.add(4 * C::BYTES), line.add(4 * each), lanes.add(4));
                            left -= 4 * C::BYTES;
                        }
                        if left >= 2 * C::BYTES {
                            for i in 0..2 {
                                whole(&mut sum, code.add(i * C::BYTES), line.add(i * each), lanes.add(i));
                            }
                            (code, line, lanes) = (code.add(2 * C::BYTES), line.add(2 * each), lanes.add(2));
                            left -= 2 * C::BYTES;
                        }
                        while left > 0 {
                            let bytes = left.min(C::BYTES);
                            let codes = _mm512_maskz_loadu_epi8(u64::MAX >> (64 - bytes), code.cast());
                            step(&mut sum, codes, line, lanes);
                            (code, line, lanes) = (code.add(bytes), line.add(each), lanes.add(1));
                            left -= bytes;
                        }
                        group += here;
                    }
                    *out = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
                }
            }
            let places = four[m..].iter_mut().step_by(x.len());
            places.zip(sums_of_four(sums)).for_each(|(out, sum)| *out = sum);
        }
    }
    true
}
