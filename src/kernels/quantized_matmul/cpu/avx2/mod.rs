//! x86 with AVX2, FMA and F16C.
//!
//! A row of weights meets a row of `x` in one of two [`Form`]s. Either way, with `c` the middle of the codes,
//! `x * scale * (code - c)` is summed per group, and `x * (bias + scale * c)` through the sums of `x` per group:
//! to subtract the middle keeps the two parts small, so that little is lost where they cancel. Where an outlier of `x`
//! would lose too much even so, the row meets the numbers that the codes stand for.
//!
//! Sums that come out infinite or NaN are computed again by the portable implementation: an infinity in
//! `x`, or an overflow, may meet other partial sums here than on the direct way.

mod bytes;
mod decode;
pub mod fixed;
pub mod float;
pub mod strips;
pub mod tiles;

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

pub use decode::decode;
use half::{bf16, f16};

use super::portable::{Row, dot};
use super::{E2M1, Scales, Weights};
use crate::kernels::{math, pool};
use crate::ops::QuantizationMode;

/// Columns that are worked through at a time, so that what they meet of `x` stays in the nearest cache: of one
/// or two rows of `x`, and of more.
const COLUMNS: [usize; 2] = [4096, 1024];
/// Groups whose scales are decoded at a time, at most.
pub const CHUNK: usize = COLUMNS[0] / 16;
/// Scales between those that are read and those that are fetched.
pub const AHEAD: usize = 512;
/// Room for the scales of a chunk, and as many as a vector has.
type Room = [MaybeUninit<f32>; CHUNK + 8];

/// `columns[n, m] = x[m, k] @ w[n, k]` of all rows of all `weights`, which are quantized alike and of one length, `grain`
/// rows at a time. Rows of `x` whose numbers have `digits` bits at most are taken in fixed point, by `fixed`, where that says
/// the same of them, and the numbers that codes stand for where an outlier needs it; `float` multiplies the others.
pub fn product(
    weights: &[Weights<'_>],
    x: &[f32],
    columns: &mut [f32],
    grain: usize,
    digits: Option<u32>,
    fixed: impl Fn(&[Weights<'_>], &[&[f32]], &mut [f32], usize),
    float: impl Fn(&[Weights<'_>], &[&[f32]], &mut [f32], usize),
) {
    let x: Vec<&[f32]> = x.chunks_exact(weights[0].k).collect();
    let mode = weights[0].how.mode;
    let way = |x: &&[f32]| match digits {
        // Codes without a middle.
        _ if mode == QuantizationMode::Mxfp8 => Way::Float,
        Some(digits) if fixed::suits(x, digits) => Way::Fixed,
        _ if overshadows(x, mode, digits) => Way::Decoded,
        _ => Way::Float,
    };
    let ways: Vec<Way> = x.iter().map(way).collect();
    let by = |way, x: &[&[f32]], columns: &mut [f32]| match way {
        Way::Fixed => fixed(weights, x, columns, grain),
        Way::Float => float(weights, x, columns, grain),
        Way::Decoded => decode::product(weights, x, columns, grain),
    };
    if let Some(&first) = ways.first()
        && ways.iter().all(|&way| way == first)
    {
        return by(first, &x, columns);
    }
    for way in [Way::Fixed, Way::Float, Way::Decoded] {
        let rows: Vec<usize> = (0..x.len()).filter(|&m| ways[m] == way).collect();
        if rows.is_empty() {
            continue;
        }
        let some: Vec<&[f32]> = rows.iter().map(|&m| x[m]).collect();
        let mut sums = vec![0.0; columns.len() / x.len() * rows.len()];
        by(way, &some, &mut sums);
        for (out, sums) in columns.chunks_exact_mut(x.len()).zip(sums.chunks_exact(rows.len())) {
            rows.iter().zip(sums).for_each(|(&m, sum)| out[m] = *sum);
        }
    }
}

/// How a row of `x` meets the codes.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Fixed,
    Float,
    /// As the numbers that they stand for.
    Decoded,
}

/// Whether an outlier of a row, times a code and times the middle of the codes, would lose more in `float32` than a result
/// with numbers of `digits` bits may: the two cancel where its weight is zero.
fn overshadows(x: &[f32], mode: QuantizationMode, digits: Option<u32>) -> bool {
    let largest = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let (mut sum, mut count) = (0.0f32, 0.0);
    for x in x.iter().map(|x| x.abs()).filter(|&x| x > 0.0 && x < largest / 4.0) {
        (sum, count) = (sum + x, count + 1.0);
    }
    // Floats are mostly far from the middle of their codes.
    let most = if mode == QuantizationMode::Affine { 16u32 } else { 4 };
    let limit = (most << digits.map_or(0, |digits| 21 - digits)) as f32;
    count > 0.0 && largest > sum / count * limit
}

/// How codes and `x` are multiplied.
trait Form: Sync {
    /// A row of `x`, laid out for it.
    type Input: Sync;

    fn input(x: &[f32], w: &Weights<'_>) -> Self::Input;

    /// Adds the products of rows `n..n + R` of the weights with `M` rows of `x`, over `count` groups from group
    /// `start` on, to `totals`; those from group 0 on are the first there. Rows beyond the last are computed as the
    /// last.
    ///
    /// # Safety
    /// The CPU must have AVX2, FMA and F16C.
    unsafe fn strip<const R: usize, const M: usize>(
        w: &Matrix<'_>,
        n: usize,
        x: [&Self::Input; M],
        groups: [usize; 2],
        totals: &mut [Totals; R],
    );
}

/// The weights, and what follows from their shape.
pub struct Matrix<'a> {
    pub w: &'a Weights<'a>,
    pub groups: usize,
    pub row_bytes: usize,
    /// The logarithm of a group's size.
    pub group_shift: u32,
}

impl<'a> Matrix<'a> {
    fn new(w: &'a Weights<'a>) -> Self {
        Self {
            w,
            groups: w.groups(),
            row_bytes: w.row_bytes(),
            group_shift: w.how.group_size.trailing_zeros(),
        }
    }
}

/// As [`product`], in one form.
fn blocks<F: Form>(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
    let x_rows = x.len();
    let inputs: Vec<F::Input> = x.iter().map(|x| F::input(x, &weights[0])).collect();
    // Rows of weights that pass over a part of `x` before the next part.
    let block = if x_rows > 2 { 32 } else { 4 };
    columns_of(weights, x, columns, grain, |w, first, columns| {
        let chunk = COLUMNS[usize::from(x_rows > 2)] >> w.group_shift;
        // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C.
        unsafe { rows::<F>(w, &inputs, first, chunk, block, columns) };
    });
}

/// Bytes of codes that are fetched before a piece is worked on.
const FIRST: usize = 4096;

/// Pieces of the rows of the weights by `rows(w, first, columns)`, and the portable way what it gives that is not finite.
/// The first pieces are large, since codes arrive late where a thread begins with one; the last are small, so that all
/// threads end together. `grain` rows are worth another thread.
pub fn columns_of(
    weights: &[Weights<'_>],
    x: &[&[f32]],
    columns: &mut [f32],
    grain: usize,
    rows: impl Fn(&Matrix<'_>, usize, &mut [f32]) + Sync,
) {
    let (mut pieces, mut rest) = (Vec::new(), columns);
    let (shares, least) = (2 * pool::threads(), grain.div_ceil(8));
    for w in weights {
        let mut first = 0;
        while first < w.n {
            let left = rest.len() / x.len();
            let size = if left > grain { left.div_ceil(shares).max(least).next_multiple_of(4) } else { left };
            let size = size.min(w.n - first);
            let own = rest.split_off_mut(..size * x.len()).unwrap_or_default();
            pieces.push((Matrix::new(w), first, own));
            first += size;
        }
    }
    // The first codes of a piece: those that follow are fetched during the work on it.
    let fetch = |(matrix, first, _): &(Matrix<'_>, usize, &mut [f32])| {
        let Weights { codes, n, .. } = matrix.w;
        let own = &codes[first * (codes.len() / n)..];
        math::fetch(&own[..own.len().min(FIRST)]);
    };
    pool::for_each_ahead(&mut pieces, fetch, |(matrix, first, columns)| {
        rows(matrix, *first, columns);
        // Bits of magnitudes are in order as integers, and those that are not finite are the last.
        let largest = columns.iter().fold(0, |max, sum| max.max((sum.to_bits() & 0x7fff_ffff) as i32));
        if largest < f32::INFINITY.to_bits() as i32 {
            return;
        }
        let mut row = None;
        for (n, sums) in columns.chunks_exact_mut(x.len()).enumerate() {
            for (sum, x) in sums.iter_mut().zip(x).filter(|(sum, _)| !sum.is_finite()) {
                *sum = dot(x, row.get_or_insert_with(|| Row::new(matrix.w)).decode(*first + n));
            }
        }
    });
}

/// The products of the rows of weights from `first` on, `chunk` groups at a time of `block` rows.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<F: Form>(
    w: &Matrix<'_>,
    x: &[F::Input],
    first: usize,
    chunk: usize,
    block: usize,
    columns: &mut [f32],
) {
    let (count, quads) = (x.len(), x.len().div_ceil(4));
    let rows = columns.len() / count;
    let mut totals = vec![[Totals::NONE; 4]; block / 4 * quads];
    for start in (0..rows).step_by(block) {
        let end = rows.min(start + block);
        for group in (0..w.groups).step_by(chunk) {
            let groups = [group, chunk.min(w.groups - group)];
            let mut totals = totals.iter_mut();
            for n in (first + start..first + end).step_by(4) {
                let mut x = x.iter();
                for totals in totals.by_ref().take(quads) {
                    // SAFETY: the caller vouches for the CPU.
                    unsafe {
                        match x.as_slice() {
                            [a] => singles::<F, 1>(w, n, [a], groups, totals),
                            [a, b] => F::strip(w, n, [a, b], groups, totals),
                            [a, b, c] => halves::<F, 3>(w, n, [a, b, c], groups, totals),
                            [a, b, c, d, ..] => halves::<F, 4>(w, n, [a, b, c, d], groups, totals),
                            [] => {}
                        }
                    }
                    x.nth(3);
                }
            }
        }
        for (i, n) in (start..end).step_by(4).enumerate() {
            for m in 0..count {
                let sums = Totals::sums(&totals[i * quads + m / 4], m % 4);
                for (r, sum) in sums.into_iter().enumerate().take(end - n) {
                    columns[(n + r) * count + m] = sum;
                }
            }
        }
    }
}

/// As [`Form::strip`] of four rows, two at a time.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves<F: Form, const M: usize>(
    w: &Matrix<'_>,
    n: usize,
    x: [&F::Input; M],
    groups: [usize; 2],
    [a, b, c, d]: &mut [Totals; 4],
) {
    let mut half = [*a, *b];
    // SAFETY: the caller vouches for the CPU.
    unsafe { F::strip(w, n, x, groups, &mut half) };
    [*a, *b] = half;
    half = [*c, *d];
    // SAFETY: as above.
    unsafe { F::strip(w, n + 2, x, groups, &mut half) };
    [*c, *d] = half;
}

/// As [`Form::strip`] of four rows, one at a time.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn singles<F: Form, const M: usize>(
    w: &Matrix<'_>,
    n: usize,
    x: [&F::Input; M],
    groups: [usize; 2],
    totals: &mut [Totals; 4],
) {
    for (r, totals) in totals.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the CPU.
        unsafe { F::strip(w, n + r, x, groups, std::array::from_mut(totals)) };
    }
}

/// Partial sums of a row of weights and four of `x`. Each of both parts is added up in one order, however many
/// groups there are in a chunk.
#[derive(Clone, Copy)]
struct Totals {
    /// Of codes less their middle.
    codes: [[f32; 8]; 4],
    /// Of what the middle stands for.
    middles: [[f32; 8]; 4],
}

impl Totals {
    const NONE: Self = Self { codes: [[0.0; 8]; 4], middles: [[0.0; 8]; 4] };

    /// Those of row `m` of `x` and each row of weights.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn sums(of: &[Self; 4], m: usize) -> [f32; 4] {
        let mut rows = [_mm256_setzero_ps(); 4];
        for (row, Self { codes, middles }) in rows.iter_mut().zip(of) {
            // SAFETY: eight numbers each.
            unsafe {
                *row =
                    _mm256_add_ps(_mm256_loadu_ps(codes[m].as_ptr()), _mm256_loadu_ps(middles[m].as_ptr()));
            }
        }
        sums_of_four(rows)
    }
}

/// The sum of each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn sums_of_four([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let four = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let sums = _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps::<1>(four));
    let mut out = [0.0; 4];
    // SAFETY: four numbers.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
    out
}

/// What a strip goes on from: zeros at group 0, or what is in `part` of its totals.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn resume<const R: usize, const M: usize>(
    totals: &[Totals; R],
    part: impl Fn(&Totals) -> &[[f32; 8]; 4],
    start: usize,
) -> [[__m256; M]; R] {
    if start == 0 {
        return [[_mm256_setzero_ps(); M]; R];
    }
    // SAFETY: eight numbers each.
    std::array::from_fn(|r| std::array::from_fn(|m| unsafe { _mm256_loadu_ps(part(&totals[r])[m].as_ptr()) }))
}

/// What a strip leaves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn keep<const M: usize>(sums: &[__m256; M], to: &mut [[f32; 8]; 4]) {
    for m in 0..M {
        // SAFETY: eight numbers each.
        unsafe { _mm256_storeu_ps(to[m].as_mut_ptr(), sums[m]) };
    }
}

/// The sum of a group, of which each lane adds up every eighth number.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn lane_sums(group: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    for eight in group.chunks_exact(8) {
        lanes.iter_mut().zip(eight).for_each(|(lane, x)| *lane += x);
    }
    total(&lanes)
}

/// The sum of the lanes.
fn total(lanes: &[f32; 8]) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
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

/// Reads the scales of `count` groups from `start` on of rows of weights, zeros after them, and adds to `totals`
/// what is not `x` times a code less `middle`: the biases, through the sums of `x` of these groups.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C. There must be sums of `x` for all groups and seven after them.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn read_groups<const R: usize, const M: usize>(
    w: &Matrix<'_>,
    rows: [usize; R],
    [start, count]: [usize; 2],
    middle: f32,
    sums: [*const f32; M],
    rooms: &mut [Room; R],
    totals: &mut [[__m256; M]; R],
) {
    use Scales::*;
    assert!(count <= CHUNK);
    // SAFETY: the caller vouches for all of it.
    unsafe {
        match (&w.w.scales, &w.w.biases) {
            (Bfloat16(s), Some(Bfloat16(b))) => {
                for r in 0..R {
                    let first = rows[r] * w.groups + start;
                    let (s, b) = (&s[first..][..count], &b[first..][..count]);
                    affine(s, b, middle, sums, &mut rooms[r], &mut totals[r]);
                }
            }
            (Float16(s), Some(Float16(b))) => {
                for r in 0..R {
                    let first = rows[r] * w.groups + start;
                    let (s, b) = (&s[first..][..count], &b[first..][..count]);
                    affine(s, b, middle, sums, &mut rooms[r], &mut totals[r]);
                }
            }
            (Exponent(s), None) => {
                for r in 0..R {
                    plain(&s[rows[r] * w.groups + start..][..count], &mut rooms[r], |at| {
                        let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
                        let bits =
                            _mm256_max_epi32(_mm256_slli_epi32::<23>(codes), _mm256_set1_epi32(1 << 22));
                        _mm256_castsi256_ps(bits)
                    });
                }
            }
            (Float8(s), None) => {
                for r in 0..R {
                    plain(&s[rows[r] * w.groups + start..][..count], &mut rooms[r], |at| {
                        let codes = _mm256_slli_epi32::<20>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())));
                        let bits = _mm256_and_si256(codes, _mm256_set1_epi32(0x87f0_0000u32 as i32));
                        let unbias = _mm256_set1_ps(f32::from_bits((127 + 120) << 23));
                        _mm256_mul_ps(_mm256_castsi256_ps(bits), unbias)
                    });
                }
            }
            (scales, biases) => {
                for r in 0..R {
                    let first = rows[r] * w.groups + start;
                    let mut read = [[0.0; CHUNK]; 2];
                    scales.read(first, &mut read[0][..count]);
                    biases.iter().for_each(|biases| biases.read(first, &mut read[1][..count]));
                    let middle = if biases.is_some() { middle } else { 0.0 };
                    let [s, b] = &read;
                    affine(&s[..count], &b[..count], middle, sums, &mut rooms[r], &mut totals[r]);
                }
            }
        }
    }
}

/// As [`read_groups`], of scales without biases.
///
/// # Safety
/// The CPU must have AVX2; there must be room for the scales and eight more.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn plain(scales: &[u8], room: &mut Room, eight: impl Fn(*const u8) -> __m256) {
    let room = room.as_mut_ptr().cast::<f32>();
    let (count, whole) = (scales.len(), scales.len() - scales.len() % 8);
    // SAFETY: eight codes each, and the caller vouches for the room.
    unsafe {
        for at in (0..whole).step_by(8) {
            _mm256_storeu_ps(room.add(at), eight(scales[at..].as_ptr()));
        }
        if whole < count {
            let mut rest = [0; 8];
            rest[..count - whole].copy_from_slice(&scales[whole..]);
            _mm256_storeu_ps(room.add(whole), eight(rest.as_ptr()));
        }
        _mm256_storeu_ps(room.add(count), _mm256_setzero_ps());
    }
}

/// As [`read_groups`], of scales and biases of one dtype.
///
/// # Safety
/// As there; there must be room for the scales and eight more.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn affine<T: Eight, const M: usize>(
    scales: &[T],
    biases: &[T],
    middle: f32,
    sums: [*const f32; M],
    room: &mut Room,
    totals: &mut [__m256; M],
) {
    let count = scales.len();
    // Nothing is read where these point.
    for ahead in [scales, biases] {
        _mm_prefetch::<_MM_HINT_T0>(ahead.as_ptr().wrapping_add(AHEAD).cast());
    }
    let (room, middle) = (room.as_mut_ptr().cast::<f32>(), _mm256_set1_ps(middle));
    let mut add = |at: usize, scales: *const T, biases: *const T| {
        // SAFETY: eight numbers each; as many sums, and room for the scales, are there.
        unsafe {
            let scales = T::eight(scales);
            _mm256_storeu_ps(room.add(at), scales);
            let centred = _mm256_fmadd_ps(middle, scales, T::eight(biases));
            for m in 0..M {
                totals[m] = _mm256_fmadd_ps(centred, _mm256_loadu_ps(sums[m].add(at)), totals[m]);
            }
        }
    };
    let (whole, biases) = (count - count % 8, &biases[..count]);
    for at in (0..whole).step_by(8) {
        add(at, scales[at..].as_ptr(), biases[at..].as_ptr());
    }
    if whole < count {
        let mut rest = [[T::default(); 8]; 2];
        rest[0][..count - whole].copy_from_slice(&scales[whole..]);
        rest[1][..count - whole].copy_from_slice(&biases[whole..]);
        add(whole, rest[0].as_ptr(), rest[1].as_ptr());
    }
    // SAFETY: there is room for eight after the last.
    unsafe { _mm256_storeu_ps(room.add(count), _mm256_setzero_ps()) };
}

/// Numbers as stored, read eight at a time.
trait Eight: Copy + Default {
    /// # Safety
    /// The CPU must have AVX2 and F16C; there must be eight numbers.
    unsafe fn eight(from: *const Self) -> __m256;
}

impl Eight for f32 {
    #[inline(always)]
    unsafe fn eight(from: *const f32) -> __m256 {
        // SAFETY: the caller vouches for it.
        unsafe { _mm256_loadu_ps(from) }
    }
}

impl Eight for f16 {
    #[inline(always)]
    unsafe fn eight(from: *const f16) -> __m256 {
        // SAFETY: the caller vouches for it.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
}

impl Eight for bf16 {
    #[inline(always)]
    unsafe fn eight(from: *const bf16) -> __m256 {
        // SAFETY: the caller vouches for it.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
}

/// The scale of each of eight lanes, from the scale of the first on; `LANES` lanes share one, eight or more
/// one for all.
///
/// # Safety
/// The CPU must have AVX2; four numbers must lie from `first` on, and eight where a lane has its own.
#[inline(always)]
unsafe fn lane_scales<const LANES: usize>(first: *const f32) -> __m256 {
    // SAFETY: the caller vouches for both.
    unsafe {
        if LANES >= 8 {
            return _mm256_set1_ps(*first);
        }
        if LANES == 1 {
            return _mm256_loadu_ps(first);
        }
        let which = match LANES {
            4 => _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1),
            _ => _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3),
        };
        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(first)), which)
    }
}
