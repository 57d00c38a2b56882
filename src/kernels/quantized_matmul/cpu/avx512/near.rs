//! A few rows of `float32` with rows of a matrix whose affine codes fill lanes of 32 bits, as quantized keys and values do: their
//! products, and sums of the rows of the matrix. A shift brings one code of every lane to the bottom. Codes are centred, as in
//! [`float`](super::float).

use std::arch::x86_64::*;
use std::array;
use std::ops::Range;

use half::bf16;

use super::super::Weights;
use super::super::avx2::sums_of_four;
use super::groups::{Any, Floats, Groups};
use crate::ops::QuantizationMode;

/// Numbers between scales that are read and those that are fetched.
const AHEAD: usize = 256;

/// One number for each lane.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; 16]);

/// Whether these are its cases.
pub fn suits(w: &Weights<'_>) -> bool {
    w.how.mode == QuantizationMode::Affine && matches!(w.how.bits, 2 | 4 | 8)
}

/// The products of `x`, `[m, k]`, with `rows` of the matrix, into the first numbers of the rows of `out`, which are `stride` long.
pub fn dot(w: &Weights<'_>, rows: Range<usize>, x: &[f32], out: &mut [f32], stride: usize) {
    assert!(x.len() / w.k * stride <= out.len() && rows.len() <= stride);
    match Floats::<bf16>::of(w) {
        Some(stored) => dot_in::<Floats<bf16>>(w, stored, rows, x, out, stride),
        None => dot_in::<Any>(w, *w, rows, x, out, stride),
    }
}

/// As [`dot`], where groups are stored as `G`.
fn dot_in<'a, G: Groups>(
    w: &Weights<'a>,
    stored: G::Stored<'a>,
    rows: Range<usize>,
    x: &[f32],
    out: &mut [f32],
    stride: usize,
) {
    check::<G>(w, stored, &rows);
    match w.how.bits {
        2 => dot_of::<G, 2, 16>(w, stored, rows, x, out, stride),
        4 => dot_of::<G, 4, 8>(w, stored, rows, x, out, stride),
        _ => dot_of::<G, 8, 4>(w, stored, rows, x, out, stride),
    }
}

/// As [`dot`], of lanes of `PER` codes.
fn dot_of<'a, G: Groups, const BITS: usize, const PER: usize>(
    w: &Weights<'a>,
    stored: G::Stored<'a>,
    rows: Range<usize>,
    x: &[f32],
    out: &mut [f32],
    stride: usize,
) {
    let group = w.how.group_size as usize;
    let inputs: Vec<Input> = x.chunks_exact(w.k).map(|x| Input::new::<PER>(x, group)).collect();
    let mut first = 0;
    while first < inputs.len() {
        let (rows, out) = (rows.clone(), &mut out[first * stride..]);
        // SAFETY: this path is taken only where the CPU has the instructions; the rows are there.
        first += unsafe {
            match &inputs[first..] {
                [a, b, c, d, ..] => {
                    products::<G, BITS, PER, 2, 4>(w, stored, rows, [a, b, c, d], out, stride)
                }
                [a, b, ..] => products::<G, BITS, PER, 4, 2>(w, stored, rows, [a, b], out, stride),
                some => products::<G, BITS, PER, 4, 1>(w, stored, rows, [&some[0]], out, stride),
            }
        };
    }
}

/// Adds `rows` of the matrix to each row of `sums`, `[m, k]`, times the first numbers of a row of `factors`, which are `stride` long.
pub fn add(w: &Weights<'_>, rows: Range<usize>, factors: &[f32], stride: usize, sums: &mut [f32]) {
    assert!(factors.chunks(stride).all(|factors| rows.len() <= factors.len()));
    let mut to: Vec<To> = sums.chunks_exact_mut(w.k).zip(factors.chunks(stride)).collect();
    match Floats::<bf16>::of(w) {
        Some(stored) => add_in::<Floats<bf16>>(w, stored, rows, &mut to),
        None => add_in::<Any>(w, *w, rows, &mut to),
    }
}

/// A row of sums, and its factors.
type To<'a> = (&'a mut [f32], &'a [f32]);

/// As [`add`], where groups are stored as `G`.
fn add_in<'a, G: Groups>(w: &Weights<'a>, stored: G::Stored<'a>, rows: Range<usize>, to: &mut [To<'_>]) {
    check::<G>(w, stored, &rows);
    for to in to.chunks_mut(2) {
        let rows = rows.clone();
        // SAFETY: this path is taken only where the CPU has the instructions; the rows are there.
        unsafe {
            match (w.how.bits, to) {
                (4, [a, b]) => add_of::<G, 4, 8, 2>(w, stored, rows, [a, b]),
                (8, [a, b]) => add_of::<G, 8, 4, 2>(w, stored, rows, [a, b]),
                (2, to) => to.iter_mut().for_each(|a| add_of::<G, 2, 16, 1>(w, stored, rows.clone(), [a])),
                (4, to) => to.iter_mut().for_each(|a| add_of::<G, 4, 8, 1>(w, stored, rows.clone(), [a])),
                (_, to) => to.iter_mut().for_each(|a| add_of::<G, 8, 4, 1>(w, stored, rows.clone(), [a])),
            }
        }
    }
}

fn check<'a, G: Groups>(w: &Weights<'a>, stored: G::Stored<'a>, rows: &Range<usize>) {
    assert!(suits(w) && w.codes.len() >= rows.end * w.row_bytes() && G::len(stored) >= rows.end * w.groups());
}

/// A row of `x`, laid out for lanes of several codes.
struct Input {
    /// `[chunks, codes of a lane]`, zeros after the last column.
    lines: Vec<Line>,
    /// `[chunks]`: the sums of what each has of its groups.
    sums: Vec<Line>,
}

impl Input {
    fn new<const PER: usize>(x: &[f32], group: usize) -> Self {
        let chunks = x.len().div_ceil(16 * PER);
        let (mut lines, mut sums) = (vec![Line([0.0; 16]); chunks * PER], vec![Line([0.0; 16]); chunks]);
        for ((x, lines), sums) in x.chunks(16 * PER).zip(lines.chunks_exact_mut(PER)).zip(&mut sums) {
            for (lane, x) in x.as_chunks::<PER>().0.iter().enumerate() {
                (0..PER).for_each(|j| lines[j].0[lane] = x[j]);
            }
            let of_lanes: [f32; 16] = array::from_fn(|lane| lines.iter().map(|line| line.0[lane]).sum());
            of_lanes.iter().enumerate().for_each(|(lane, sum)| sums.0[lane * PER / group] += sum);
        }
        Self { lines, sums }
    }
}

/// Reads a chunk of rows, whose groups are stored as `G`.
struct Reader<'a, G: Groups, const BITS: usize> {
    /// The codes of row 0, and how many bytes are from row to row.
    codes: (*const u8, usize),
    /// The same of groups.
    groups: (G::Stored<'a>, usize, usize),
    /// Which lanes and groups the chunk has.
    masks: [__mmask16; 2],
    /// Of which of its groups each lane is.
    group: __m512i,
}

impl<'a, G: Groups, const BITS: usize> Reader<'a, G, BITS> {
    /// # Safety
    /// The CPU must have the features of this path, and the chunk must be there.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn new(w: &Weights<'a>, stored: G::Stored<'a>, chunk: usize) -> Self {
        let (per, size) = (const { 32 / BITS }, w.how.group_size as usize);
        let first = 16 * per * chunk;
        let lanes = ((w.k - first) / per).min(16);
        let masks = [lanes, (lanes * per).div_ceil(size)].map(|count| u16::MAX >> (16 - count));
        let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        // Powers of two.
        let shift = (size / per).trailing_zeros();
        Self {
            // SAFETY: the caller vouches for the chunk.
            codes: (unsafe { w.codes.as_ptr().add(64 * chunk) }, w.row_bytes()),
            groups: (stored, first / size, w.groups()),
            masks,
            group: _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(shift as i32)),
        }
    }

    /// The lanes of a row, the scale of each, and what the middle of the codes stands for in each group.
    ///
    /// # Safety
    /// The CPU must have the features of this path, and the row must be there.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn read(&self, row: usize) -> (__m512i, __m512, __m512) {
        let &Self { codes: (codes, row_bytes), groups: (stored, first, groups), masks, group } = self;
        // SAFETY: the caller vouches for the row; masks keep to it.
        unsafe {
            let lanes = _mm512_maskz_loadu_epi32(masks[0], codes.add(row * row_bytes).cast());
            let [scale, bias] = G::read(stored, first + row * groups, masks[1], AHEAD);
            let middle = _mm512_set1_ps((1 << (BITS - 1)) as f32);
            let centred = _mm512_fmadd_ps(middle, scale, bias);
            // Codes of eight bits become signed.
            let lanes = if BITS == 8 { _mm512_xor_si512(lanes, _mm512_set1_epi8(-128)) } else { lanes };
            (lanes, _mm512_permutexvar_ps(group, scale), centred)
        }
    }
}

/// Code `j` of each lane, less the middle.
#[inline]
#[target_feature(enable = "avx512f")]
fn code<const BITS: usize>(lanes: __m512i, j: usize) -> __m512 {
    let count = |bits: usize| _mm_cvtsi32_si128(bits as i32);
    if BITS == 8 {
        let up = _mm512_sll_epi32(lanes, count(24 - 8 * j));
        return _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(up));
    }
    let table: [f32; 16] = array::from_fn(|i| (i % (1 << BITS)) as f32 - (1 << (BITS - 1)) as f32);
    // SAFETY: sixteen numbers. A place in a table of sixteen is the lowest four bits.
    let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
    _mm512_permutexvar_ps(_mm512_srl_epi32(lanes, count(BITS * j)), table)
}

/// The products of `rows` with `M` rows of `x`, `R` at a time, into as many rows of `out`. Returns `M`.
///
/// # Safety
/// The CPU must have the features of this path, and the rows must be there.
// Several arrays go by one index.
#[allow(clippy::needless_range_loop)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn products<'a, G: Groups, const BITS: usize, const PER: usize, const R: usize, const M: usize>(
    w: &Weights<'a>,
    stored: G::Stored<'a>,
    rows: Range<usize>,
    x: [&Input; M],
    out: &mut [f32],
    stride: usize,
) -> usize {
    let zero = _mm512_setzero_ps();
    // SAFETY: the caller vouches for all of it; lines are as long as vectors.
    unsafe {
        for first in rows.clone().step_by(R) {
            let mut totals = [zero; 8];
            for chunk in 0..x[0].sums.len() {
                let reader = Reader::<G, BITS>::new(w, stored, chunk);
                let ([mut scales, mut centred], mut lanes) = ([[zero; R]; 2], [_mm512_setzero_si512(); R]);
                for r in 0..R {
                    (lanes[r], scales[r], centred[r]) = reader.read((first + r).min(rows.end - 1));
                }
                let mut sums = [[zero; M]; R];
                for j in 0..PER {
                    let mut of_x = [zero; M];
                    for m in 0..M {
                        of_x[m] = _mm512_load_ps(x[m].lines.as_ptr().add(chunk * PER + j).cast());
                    }
                    for r in 0..R {
                        let codes = code::<BITS>(lanes[r], j);
                        for m in 0..M {
                            sums[r][m] = _mm512_fmadd_ps(codes, of_x[m], sums[r][m]);
                        }
                    }
                }
                for m in 0..M {
                    let of_groups = _mm512_load_ps(x[m].sums[chunk].0.as_ptr());
                    for r in 0..R {
                        let total = _mm512_fmadd_ps(sums[r][m], scales[r], totals[r * M + m]);
                        totals[r * M + m] = _mm512_fmadd_ps(centred[r], of_groups, total);
                    }
                }
            }
            let mut halves = [_mm256_setzero_ps(); 8];
            for i in 0..R * M {
                let [low, high] = [_mm512_castps512_ps256(totals[i]), _mm512_extractf32x8_ps::<1>(totals[i])];
                halves[i] = _mm256_add_ps(low, high);
            }
            let [a, b, c, d, e, f, g, h] = halves;
            let sums = [sums_of_four([a, b, c, d]), sums_of_four([e, f, g, h])];
            for r in 0..R.min(rows.end - first) {
                for m in 0..M {
                    out[m * stride + first - rows.start + r] = sums.as_flattened()[r * M + m];
                }
            }
        }
    }
    M
}

/// As [`super::near::add`], to `M` rows of sums with their factors.
///
/// # Safety
/// The CPU must have the features of this path, and the rows must be there.
// Several arrays go by one index.
#[allow(clippy::needless_range_loop)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn add_of<'a, G: Groups, const BITS: usize, const PER: usize, const M: usize>(
    w: &Weights<'a>,
    stored: G::Stored<'a>,
    rows: Range<usize>,
    to: [&mut To<'_>; M],
) {
    let group = w.how.group_size as usize;
    for chunk in 0..w.k.div_ceil(16 * PER) {
        let mut codes = [[_mm512_setzero_ps(); PER]; M];
        let mut middles = [_mm512_setzero_ps(); M];
        // SAFETY: the caller vouches for all of it.
        unsafe {
            let reader = Reader::<G, BITS>::new(w, stored, chunk);
            for (i, row) in rows.clone().enumerate() {
                let (lanes, scale, centred) = reader.read(row);
                let mut scales = [_mm512_setzero_ps(); M];
                for m in 0..M {
                    let factor = _mm512_set1_ps(to[m].1[i]);
                    scales[m] = _mm512_mul_ps(factor, scale);
                    middles[m] = _mm512_fmadd_ps(factor, centred, middles[m]);
                }
                for j in 0..PER {
                    let code = code::<BITS>(lanes, j);
                    for m in 0..M {
                        codes[m][j] = _mm512_fmadd_ps(code, scales[m], codes[m][j]);
                    }
                }
            }
        }
        let mut found = [([Line([0.0; 16]); PER], Line([0.0; 16])); M];
        for m in 0..M {
            // SAFETY: lines are as long as vectors.
            unsafe {
                for j in 0..PER {
                    _mm512_store_ps(found[m].0[j].0.as_mut_ptr(), codes[m][j]);
                }
                _mm512_store_ps(found[m].1.0.as_mut_ptr(), middles[m]);
            }
        }
        for (m, (codes, middles)) in found.iter().enumerate() {
            let sums = to[m].0.chunks_mut(16 * PER).nth(chunk).expect("as many as columns");
            for (lane, sums) in sums.chunks_exact_mut(PER).enumerate() {
                let middle = middles.0[lane * PER / group];
                sums.iter_mut().zip(codes).for_each(|(sum, codes)| *sum += codes.0[lane] + middle);
            }
        }
    }
}
