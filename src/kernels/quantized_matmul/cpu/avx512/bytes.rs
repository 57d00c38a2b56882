//! A few rows of `x` in fixed point, as in [`fixed`](super::super::avx2::fixed), by codes as bytes: each multiple is two signed bytes, which
//! an instruction multiplies with 64 codes at a time. Sums in a group are exact.

use std::arch::x86_64::*;
use std::array;

use half::{bf16, f16};

use super::super::avx2::fixed::{Bits, Float4, PART, group_sums, multiples};
use super::super::avx2::{Matrix, columns_of, sums_of_four};
use super::super::{E2M1, Scales, Weights};
use super::groups::{Exponents, Floats, Floats8, Groups, read_groups};
use crate::ops::QuantizationMode;

/// Rows of `x` that meet codes together, at most.
const MOST: usize = 8;
/// Bytes between the codes that are read and those that are fetched, where they are read from end to end.
const AHEAD: usize = 4096;
/// Columns whose scales are read together, unless they have more groups than a vector has lanes; and columns of several rows of
/// `x` that stay in the nearest cache while rows of weights pass over them.
const COLUMNS: usize = 1024;

/// As [AVX2's](super::super::avx2::product), of at most twice [`MOST`] rows.
pub fn product(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
    match (weights[0].how.mode, weights[0].how.bits) {
        (QuantizationMode::Affine, 1) => rows_of::<Bits<1>>(weights, x, columns, grain),
        (QuantizationMode::Affine, 2) => rows_of::<Bits<2>>(weights, x, columns, grain),
        (QuantizationMode::Affine, 3) => rows_of::<Bits<3>>(weights, x, columns, grain),
        (QuantizationMode::Affine, 4) => rows_of::<Bits<4>>(weights, x, columns, grain),
        (QuantizationMode::Affine, 5) => rows_of::<Bits<5>>(weights, x, columns, grain),
        (QuantizationMode::Affine, 6) => rows_of::<Bits<6>>(weights, x, columns, grain),
        (QuantizationMode::Affine, _) => rows_of::<Bits<8>>(weights, x, columns, grain),
        _ => rows_of::<Float4>(weights, x, columns, grain),
    }
}

/// As [`product`], by how many rows meet codes together.
fn rows_of<C: Bytes>(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
    let together = if x.len() > MOST { x.len().div_ceil(2) } else { x.len() };
    match together {
        1 => C::product_of_one(weights, x, columns, grain),
        2 => product_of::<C, 2>(weights, x, columns, grain),
        3 => product_of::<C, 3>(weights, x, columns, grain),
        4 => product_of::<C, 4>(weights, x, columns, grain),
        5 => product_of::<C, 5>(weights, x, columns, grain),
        6 => product_of::<C, 6>(weights, x, columns, grain),
        7 => product_of::<C, 7>(weights, x, columns, grain),
        _ => product_of::<C, MOST>(weights, x, columns, grain),
    }
}

fn product_of<C: Bytes, const M: usize>(
    weights: &[Weights<'_>],
    x: &[&[f32]],
    columns: &mut [f32],
    grain: usize,
) {
    let group = weights[0].how.group_size as usize;
    // SAFETY: this path is taken only where the CPU has these instructions.
    let inputs: Vec<Input<M>> = x.chunks(M).map(|x| unsafe { Input::new::<C>(x, group) }).collect();
    columns_of(weights, x, columns, grain, |w, first, columns| {
        // SAFETY: as above.
        unsafe { rows::<C, M>(w, first, &inputs, x.len(), columns) };
    });
}

/// As [`product`] of one row, with groups that are stored as `G`.
fn product_of_one<C: Bytes, G: Groups>(
    weights: &[Weights<'_>],
    x: &[&[f32]],
    columns: &mut [f32],
    grain: usize,
) {
    // SAFETY: this path is taken only where the CPU has these instructions.
    let input: Input<1> = unsafe { Input::new::<C>(x, weights[0].how.group_size as usize) };
    columns_of(weights, x, columns, grain, |w, first, columns| {
        // SAFETY: as above.
        unsafe {
            if !rows_alone::<C, G>(w, first, &input, columns) {
                rows::<C, 1>(w, first, std::slice::from_ref(&input), 1, columns);
            }
        }
    });
}

/// Codes as bytes.
trait Bytes: Sync {
    /// Vectors of 64 codes that are loaded together: byte `b` of vector `v` is the code of column `VECTORS * b + v`.
    const VECTORS: usize;
    /// Bytes in which they lie.
    const BYTES: usize;
    /// A code minus this, times `UNIT`, is the number that it stands for.
    const MIDDLE: i32;
    const UNIT: f32 = 1.0;

    /// As [`product`] of one row.
    fn product_of_one(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize);

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

    fn product_of_one(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
        match weights[0].scales {
            Scales::Bfloat16(_) => product_of_one::<Self, Floats<bf16>>(weights, x, columns, grain),
            Scales::Float16(_) => product_of_one::<Self, Floats<f16>>(weights, x, columns, grain),
            _ => product_of::<Self, 1>(weights, x, columns, grain),
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
                _ => {
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
                    let [places, shifts] = lanes.map(|table| _mm512_loadu_si512(table.as_ptr().cast()));
                    let spread = _mm512_permutexvar_epi8(places, loaded);
                    [_mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, spread), mask); 4]
                }
            }
        }
    }
}

/// e2m1: a table turns each code into twice its number plus 12.
impl Bytes for Float4 {
    const VECTORS: usize = 2;
    const BYTES: usize = 64;
    const MIDDLE: i32 = 12;
    const UNIT: f32 = 0.5;

    fn product_of_one(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
        match weights[0].scales {
            Scales::Exponent(_) => product_of_one::<Self, Exponents>(weights, x, columns, grain),
            _ => product_of_one::<Self, Floats8>(weights, x, columns, grain),
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
struct Line([i8; 64]);

/// Of which of sixteen groups each lane of a step is.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Lanes([i32; 16]);

/// Rows of `x`, laid out for a kind of codes.
struct Input<const M: usize> {
    /// `[steps, M, 2 * VECTORS + 1]`: for each vector of codes the upper bytes and the lower ones, and the middle of the codes
    /// times the sum of each lane of 32 bits, negative.
    lines: Vec<Line>,
    /// `[M, groups]`, and zeros up to whole chunks: what a multiple stands for.
    units: [Vec<f32>; M],
    /// The same of the sums of groups.
    group_sums: [Vec<f32>; M],
    /// Of the steps of columns whose scales are read together.
    lanes: Vec<Lanes>,
}

impl<const M: usize> Input<M> {
    /// Of `M` rows or fewer, and zeros.
    ///
    /// # Safety
    /// The CPU must have the features of this path.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn new<C: Bytes>(x: &[&[f32]], group: usize) -> Self {
        let (k, each) = (x[0].len(), 2 * C::VECTORS + 1);
        let steps = PART / (64 * C::VECTORS);
        let mut lines = vec![Line([0; 64]); k.div_ceil(PART) * steps * M * each];
        let groups = k / group;
        let mut units: [Vec<f32>; M] = array::from_fn(|_| vec![0.0; groups + 16]);
        for (m, x) in x.iter().enumerate() {
            for (part, x) in x.chunks(PART).enumerate() {
                let (unit, multiples) = multiples(x);
                let first = part * PART / group;
                units[m][first..(first + PART / group).min(groups)].fill(unit * C::UNIT);
                for (i, multiples) in multiples.chunks_exact(64 * C::VECTORS).enumerate() {
                    let lines = &mut lines[((part * steps + i) * M + m) * each..][..each];
                    // SAFETY: the caller vouches for the CPU.
                    unsafe { lay_out::<C>(multiples, lines) };
                }
            }
        }
        let group_sums = array::from_fn(|m| {
            let mut sums = x.get(m).map_or_else(Vec::new, |x| group_sums(x, group));
            sums.resize(groups + 16, 0.0);
            sums
        });
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
    const ORDER: [[u8; 64]; 2] = {
        let (mut order, mut i) = ([[0; 64]; 2], 0);
        while i < 64 {
            order[0][i] = 2 * i as u8;
            order[1][i] = 2 * i as u8 + 1;
            i += 1;
        }
        order
    };
    assert!(multiples.len() == 64 * C::VECTORS && lines.len() == 2 * C::VECTORS + 1);
    // SAFETY: lengths are checked, and tables and lines are as long as vectors.
    unsafe {
        let order = ORDER.map(|order| _mm512_loadu_si512(order.as_ptr().cast()));
        let parted = |[a, b]: [__m512i; 2]| order.map(|order| _mm512_permutex2var_epi8(a, order, b));
        let (ones, mut sums) = (_mm512_set1_epi8(1), [_mm512_setzero_si512(); 2]);
        for upper in [true, false] {
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
            for (v, bytes) in vectors.into_iter().enumerate().take(C::VECTORS) {
                let line = &mut lines[2 * v + usize::from(!upper)];
                _mm512_store_si512(line.0.as_mut_ptr().cast(), bytes);
                let sum = &mut sums[usize::from(!upper)];
                *sum = _mm512_dpbusd_epi32(*sum, ones, bytes);
            }
        }
        let sums = _mm512_add_epi32(_mm512_slli_epi32::<8>(sums[0]), sums[1]);
        let offsets = _mm512_mullo_epi32(sums, _mm512_set1_epi32(-C::MIDDLE));
        _mm512_store_si512(lines[2 * C::VECTORS].0.as_mut_ptr().cast(), offsets);
    }
}

/// The products of the rows of weights from `first` on with `count` rows of `x`.
///
/// # Safety
/// The CPU must have the features of this path.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn rows<C: Bytes, const M: usize>(
    w: &Matrix<'_>,
    first: usize,
    x: &[Input<M>],
    count: usize,
    columns: &mut [f32],
) {
    let chunk = if count == 1 { w.groups } else { COLUMNS >> w.group_shift };
    // Rows of weights that pass over a chunk before the next one.
    let block = if w.groups <= chunk { 4 } else { 16 };
    let rows = columns.len() / count;
    let none = [[_mm512_setzero_ps(); M]; 4];
    let mut totals = vec![none; block / 4 * x.len()];
    for start in (0..rows).step_by(block) {
        let end = rows.min(start + block);
        totals.fill(none);
        for group in (0..w.groups).step_by(chunk) {
            let groups = [group, chunk.min(w.groups - group)];
            for (n, totals) in (first + start..first + end).step_by(4).zip(totals.chunks_exact_mut(x.len())) {
                for (x, totals) in x.iter().zip(totals) {
                    // SAFETY: the caller vouches for the CPU.
                    unsafe { four_rows::<C, M>(w, n, x, groups, totals) };
                }
            }
        }
        for (n, totals) in (start..end).step_by(4).zip(totals.chunks_exact(x.len())) {
            for m in 0..count {
                let sums = sums_of_four(totals[m / M].each_ref().map(|totals| {
                    let all = totals[m % M];
                    _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all))
                }));
                for (r, sum) in sums.into_iter().enumerate().take(end - n) {
                    columns[(n + r) * count + m] = sum;
                }
            }
        }
    }
}

/// Adds the products of rows `n..n + 4` of the weights over `count` groups from `start` on to `totals`; rows beyond the last
/// are computed as the last.
///
/// # Safety
/// The CPU must have the features of this path.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn four_rows<C: Bytes, const M: usize>(
    matrix: &Matrix<'_>,
    n: usize,
    x: &Input<M>,
    [start, count]: [usize; 2],
    totals: &mut [[__m512; M]; 4],
) {
    let &Matrix { w, groups, row_bytes, group_shift } = matrix;
    let (each, columns) = (2 * C::VECTORS + 1, 64 * C::VECTORS);
    let (together, first) = ((COLUMNS >> group_shift).min(16), start << group_shift);
    assert!(start + count <= groups && first.is_multiple_of(PART));
    assert!(n < w.n && w.codes.len() >= w.n * row_bytes && w.scales.len() >= w.n * groups);
    assert!(w.biases.is_none_or(|biases| biases.len() >= w.n * groups));
    assert!(x.lines.len() * columns >= w.k * M * each && x.lanes.len() * columns >= together << group_shift);
    assert!(x.units.iter().chain(&x.group_sums).all(|numbers| numbers.len() >= start + count + 16));
    // The rest of a row may follow later than the next rows.
    let ahead = if count == groups { AHEAD } else { 4 * row_bytes };
    let whole = u64::MAX >> (64 - C::BYTES);
    let middle = _mm512_set1_ps(C::MIDDLE as f32 * C::UNIT);
    for (r, totals) in totals.iter_mut().enumerate() {
        let row = (n + r).min(w.n - 1);
        // SAFETY: the caller vouches for the CPU. A row has codes, scales and biases of `count` groups from `start` on, and
        // `x` has lines, units and sums of them; masked loads keep to what is there. Nothing is read where a prefetch points.
        unsafe {
            let mut sums = *totals;
            let mut code = w.codes.as_ptr().add(row * row_bytes + first / 8 * w.how.bits as usize);
            let mut line = x.lines.as_ptr().add(first / columns * M * each);
            for group in (start..start + count).step_by(together) {
                let here = together.min(start + count - group);
                let [scales, biases] = read_groups(w, row * groups + group, u16::MAX >> (16 - here));
                let numbers = |of: &[Vec<f32>; M], m: usize| _mm512_loadu_ps(of[m].as_ptr().add(group));
                if w.biases.is_some() {
                    let centred = _mm512_fmadd_ps(middle, scales, biases);
                    for (m, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_fmadd_ps(centred, numbers(&x.group_sums, m), *sum);
                    }
                }
                let scales: [__m512; M] = array::from_fn(|m| _mm512_mul_ps(scales, numbers(&x.units, m)));
                let step = |sums: &mut [__m512; M], i: usize, mask| {
                    let code = code.add(i * C::BYTES);
                    _mm_prefetch::<_MM_HINT_T0>(code.wrapping_add(ahead).cast());
                    let codes = C::bytes(match mask {
                        u64::MAX => _mm512_loadu_si512(code.cast()),
                        mask => _mm512_maskz_loadu_epi8(mask, code.cast()),
                    });
                    let lanes = _mm512_load_si512((*x.lanes.as_ptr().add(i)).0.as_ptr().cast());
                    for (m, sum) in sums.iter_mut().enumerate() {
                        let scale = _mm512_permutexvar_ps(lanes, scales[m]);
                        *sum =
                            _mm512_fmadd_ps(in_lanes::<C>(codes, line.add((i * M + m) * each)), scale, *sum);
                    }
                };
                let bytes = (here << group_shift) / 8 * w.how.bits as usize;
                let steps = bytes / C::BYTES;
                for i in 0..steps {
                    step(&mut sums, i, whole);
                }
                if bytes > steps * C::BYTES {
                    step(&mut sums, steps, u64::MAX >> (64 - (bytes - steps * C::BYTES)));
                }
                (code, line) = (code.add(bytes), line.add((here << group_shift) / columns * M * each));
            }
            *totals = sums;
        }
    }
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

/// The products of the rows of weights from `first` on with one row of `x`, the same as [`rows`] gives, if groups are stored as
/// `G`; false if they are not.
///
/// # Safety
/// The CPU must have the features of this path.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn rows_alone<C: Bytes, G: Groups>(
    matrix: &Matrix<'_>,
    first: usize,
    x: &Input<1>,
    columns: &mut [f32],
) -> bool {
    let &Matrix { w, groups, row_bytes, group_shift } = matrix;
    let (rows, Some(stored)) = (first + columns.len(), G::of(w)) else { return false };
    let each = 2 * C::VECTORS + 1;
    let together = (COLUMNS >> group_shift).min(16);
    assert!(w.codes.len() >= rows * row_bytes && G::len(stored) >= rows * groups);
    let step = 64 * C::VECTORS;
    assert!(x.lines.len() * step >= w.k * each && x.lanes.len() * step >= together << group_shift);
    assert!(x.units[0].len() >= groups + 16 && x.group_sums[0].len() >= groups + 16);
    let (units, group_sums) = (x.units[0].as_ptr(), x.group_sums[0].as_ptr());
    let group_bytes = (w.how.bits as usize) << group_shift >> 3;
    let middle = _mm512_set1_ps(C::MIDDLE as f32 * C::UNIT);
    for (i, four) in columns.chunks_mut(4).enumerate() {
        let mut sums = [_mm256_setzero_ps(); 4];
        for (r, out) in sums.iter_mut().enumerate().take(four.len()) {
            let row = first + 4 * i + r;
            // SAFETY: lengths were checked; masked loads keep to what is there. Nothing is read where a prefetch points.
            unsafe {
                let (mut code, mut line) = (w.codes.as_ptr().add(row * row_bytes), x.lines.as_ptr());
                let mut sum = _mm512_setzero_ps();
                let mut group = 0;
                while group < groups {
                    let here = together.min(groups - group);
                    let [scale, biases] = G::read(stored, row * groups + group, u16::MAX >> (16 - here));
                    if w.biases.is_some() {
                        let centred = _mm512_fmadd_ps(middle, scale, biases);
                        sum = _mm512_fmadd_ps(centred, _mm512_loadu_ps(group_sums.add(group)), sum);
                    }
                    let scale = _mm512_mul_ps(scale, _mm512_loadu_ps(units.add(group)));
                    let step = |sum: &mut __m512, codes: __m512i, line: *const Line, lanes: *const Lanes| {
                        let lanes = _mm512_load_si512((*lanes).0.as_ptr().cast());
                        let scale = _mm512_permutexvar_ps(lanes, scale);
                        *sum = _mm512_fmadd_ps(in_lanes::<C>(C::bytes(codes), line), scale, *sum);
                    };
                    let (mut left, mut lanes) = (here * group_bytes, x.lanes.as_ptr());
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
        let sums = sums_of_four(sums);
        match <&mut [f32; 4]>::try_from(&mut *four) {
            Ok(four) => *four = sums,
            Err(_) => four.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum),
        }
    }
    true
}
