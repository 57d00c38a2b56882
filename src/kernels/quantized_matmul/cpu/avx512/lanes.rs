//! Several rows of `x` in fixed point, as in [`bytes`](super::bytes), by sixteen rows of weights in the lanes of vectors: four codes of
//! each row lie in its lane and meet four numbers of `x` that all lanes share, so that the sum of a group is whole in its lane.

use std::arch::x86_64::*;
use std::array;
use std::ops::Range;

use super::super::Weights;
use super::super::avx2::fixed::{PART, multiples, rest_of};
use super::super::avx2::lane_sums;
use super::super::avx2::strips::{Kind, Strips};
use super::bytes::{Bytes, Line, halves};
use super::groups::{Any, Groups};

/// Rows of weights that are worked through together.
const LANES: usize = 16;
/// Vectors with the codes of a part of [`LANES`] rows.
const FOURS: usize = PART / 4;

/// Strips of rows of weights in lanes, which meet `M` rows of `x` at a time.
pub struct Lanes<const M: usize>;

impl<const M: usize> Strips for Lanes<M> {
    const ROWS: usize = M;
    const WIDTH: usize = 2 * LANES;
    const MOST: usize = 512;
    type Panel = Panel<M>;

    unsafe fn panel<C: Kind>(rows: &[usize], rest: bool, x: &[f32], k: usize, group: usize) -> Panel<M> {
        // SAFETY: the caller vouches for the CPU.
        unsafe { Panel::new::<C>(rows, rest, x, k, group) }
    }

    unsafe fn strip<C: Kind>(
        w: &Weights<'_>,
        panels: &[Panel<M>],
        columns: Range<usize>,
        width: usize,
        sums: &mut [f32],
    ) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { strip::<C, M>(w, panels, columns, width, sums) }
    }
}

/// Rows of `x`, laid out for a kind of codes.
pub struct Panel<const M: usize> {
    /// To which rows of the result their sums are added.
    rows: Vec<usize>,
    /// `[parts, FOURS, M]`: the upper bytes of four multiples, and the lower ones.
    fours: Vec<[i32; 2]>,
    /// `[groups, M]`: the middle of the codes times the sum of a group's multiples, negative.
    offsets: Vec<i32>,
    /// `[groups, M]`: the sums of groups.
    sums: Vec<f32>,
    /// `[parts, M]`: what a multiple stands for.
    units: Vec<f32>,
}

impl<const M: usize> Panel<M> {
    /// Of `M` rows or fewer, and zeros.
    ///
    /// # Safety
    /// The CPU must have the features of this path.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn new<C: Bytes>(rows: &[usize], rest: bool, x: &[f32], k: usize, group: usize) -> Self {
        let (parts, groups) = (k.div_ceil(PART), k / group);
        let mut fours = vec![[0; 2]; parts * FOURS * M];
        let (mut offsets, mut sums) = (vec![0; groups * M], vec![0.0; groups * M]);
        let mut units = vec![0.0; parts * M];
        for (m, &row) in rows.iter().enumerate() {
            let whole = &x[row * k..][..k];
            let left = if rest { rest_of(whole) } else { Vec::new() };
            let x = if rest { &left[..] } else { whole };
            for (part, x) in x.chunks(PART).enumerate() {
                let (unit, multiples) = multiples(x);
                units[part * M + m] = unit * C::UNIT;
                let fours = &mut fours[part * FOURS * M..][..FOURS * M];
                for (step, multiples) in multiples.chunks_exact(64 * C::VECTORS).enumerate() {
                    // SAFETY: the caller vouches for the CPU; there are as many multiples as it takes.
                    let [upper, lower] = unsafe { halves::<C>(multiples) };
                    for v in 0..C::VECTORS {
                        let both = upper[v].0.as_chunks::<4>().0.iter().zip(lower[v].0.as_chunks::<4>().0);
                        for (lane, (&upper, &lower)) in both.enumerate() {
                            let word = |bytes: [i8; 4]| i32::from_ne_bytes(bytes.map(|byte| byte as u8));
                            fours[((step * LANES + lane) * C::VECTORS + v) * M + m] =
                                [word(upper), word(lower)];
                        }
                    }
                }
                for (i, group) in multiples[..x.len()].chunks_exact(group).enumerate() {
                    let sum: i32 = group.iter().map(|&multiple| i32::from(multiple)).sum();
                    offsets[(part * PART / group.len() + i) * M + m] = -C::MIDDLE * sum;
                }
            }
            if !rest {
                let of_groups = x.chunks_exact(group).map(|group| lane_sums(group));
                sums[m..].iter_mut().step_by(M).zip(of_groups).for_each(|(out, sum)| *out = sum);
            }
        }
        Self { rows: rows.to_vec(), fours, offsets, sums, units }
    }

    /// A part, which begins with a group.
    fn part(&self, part: usize, group: usize) -> Part<'_, M> {
        Part {
            fours: &self.fours[part * FOURS * M..][..FOURS * M],
            offsets: self.offsets[group * M..].as_chunks().0,
            units: self.units[part * M..].first_chunk().expect("a unit for each row"),
        }
    }
}

/// What a [`Panel`] has of a part.
struct Part<'a, const M: usize> {
    fours: &'a [[i32; 2]],
    offsets: &'a [[i32; M]],
    units: &'a [f32; M],
}

/// As [`Strips::strip`].
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn strip<C: Bytes, const M: usize>(
    w: &Weights<'_>,
    panels: &[Panel<M>],
    columns: Range<usize>,
    width: usize,
    sums: &mut [f32],
) {
    let (groups, row_bytes, group_shift) = (w.groups(), w.row_bytes(), w.how.group_size.trailing_zeros());
    assert!(columns.end <= w.n && Any::len(*w) >= w.n * groups);
    let parts = w.k.div_ceil(PART);
    assert!(panels.iter().all(|x| x.fours.len() == parts * FOURS * M && x.units.len() == parts * M));
    assert!(panels.iter().all(|x| x.offsets.len() == groups * M && x.sums.len() == groups * M));
    let middle = _mm512_set1_ps(C::MIDDLE as f32 * C::UNIT);
    let per_part = PART >> group_shift;
    let mut codes = [[Line([0; 64]); FOURS]; 2];
    let mut totals = vec![[[_mm512_setzero_ps(); M]; 2]; panels.len()];
    for first in columns.clone().step_by(2 * LANES) {
        totals.fill([[_mm512_setzero_ps(); M]; 2]);
        let rows: [[usize; LANES]; 2] =
            array::from_fn(|half| array::from_fn(|lane| (first + half * LANES + lane).min(columns.end - 1)));
        let starts = rows.map(|rows| rows.map(|row| &w.codes[row * row_bytes..][..row_bytes]));
        for start in (0..groups).step_by(LANES) {
            let here = LANES.min(groups - start);
            // SAFETY: the caller vouches for the CPU; lengths were checked, and masked loads keep to what is there.
            unsafe {
                let mut all_scales = [[_mm512_setzero_si512(); LANES]; 2];
                for (half, rows) in rows.iter().enumerate() {
                    let [mut scales, mut centred] = [[_mm512_setzero_si512(); LANES]; 2];
                    for (lane, row) in rows.iter().enumerate() {
                        let [scale, bias] =
                            Any::read(*w, row * groups + start, u16::MAX >> (16 - here), 2 * LANES * groups);
                        scales[lane] = _mm512_castps_si512(scale);
                        centred[lane] = _mm512_castps_si512(_mm512_fmadd_ps(middle, scale, bias));
                    }
                    all_scales[half] = turned(scales);
                    if w.biases.is_some() {
                        let centred = turned(centred);
                        for (panel, totals) in panels.iter().zip(&mut totals) {
                            let mut all = totals[half];
                            for (sums, centred) in panel.sums[start * M..].chunks_exact(M).zip(centred) {
                                for m in 0..M {
                                    let sum = _mm512_set1_ps(sums[m]);
                                    all[m] = _mm512_fmadd_ps(_mm512_castsi512_ps(centred), sum, all[m]);
                                }
                            }
                            totals[half] = all;
                        }
                    }
                }
                for at in (start..start + here).step_by(per_part) {
                    let of_part = per_part.min(start + here - at);
                    let bytes = |groups: usize| (groups << group_shift) / 8 * w.how.bits as usize;
                    for (codes, rows) in codes.iter_mut().zip(&starts) {
                        turn::<C>(rows, bytes(at)..bytes(at + of_part), codes);
                    }
                    let part = at / per_part;
                    let next =
                        if at + of_part < groups { bytes(at + of_part) } else { 2 * LANES * row_bytes };
                    let mut fetch = Fetch {
                        far: starts[0][0].as_ptr().wrapping_add(2 * LANES * (row_bytes + bytes(at))),
                        near: starts[0][0].as_ptr().wrapping_add(next),
                        stride: row_bytes,
                        row: 0,
                        lines: 1 + usize::from(panels.len() == 1),
                    };
                    let scales = all_scales.each_ref().map(|scales| &scales[at - start..][..of_part]);
                    for (panel, totals) in panels.iter().zip(&mut totals) {
                        add_part::<C, M>(
                            &codes,
                            scales,
                            FOURS / per_part,
                            panel.part(part, at),
                            totals,
                            &mut fetch,
                        );
                    }
                }
            }
        }
        for (panel, totals) in panels.iter().zip(&totals) {
            for (m, row) in panel.rows.iter().enumerate() {
                let at = row * width + first - columns.start;
                let out = &mut sums[at..][..(columns.end - first).min(2 * LANES)];
                for (half, out) in out.chunks_mut(LANES).enumerate() {
                    let mut lanes = [0.0; LANES];
                    // SAFETY: sixteen numbers.
                    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), totals[half][m]) };
                    out.iter_mut().zip(lanes).for_each(|(out, sum)| *out += sum);
                }
            }
        }
    }
}

/// The codes in a range of the bytes of sixteen rows: 32 bits of each in a vector.
///
/// # Safety
/// The CPU must have the features of this path.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn turn<C: Bytes>(rows: &[&[u8]; LANES], bytes: Range<usize>, codes: &mut [Line; FOURS]) {
    assert!(rows.iter().all(|row| row.len() == rows[0].len()) && bytes.end <= rows[0].len());
    for (at, codes) in bytes.clone().step_by(C::BYTES).zip(codes.as_chunks_mut::<LANES>().0) {
        let mask = u64::MAX >> (64 - C::BYTES.min(bytes.end - at));
        // SAFETY: the caller vouches for the CPU, the range was checked. Nothing is read where a prefetch points.
        unsafe {
            let mut loaded = [_mm512_setzero_si512(); LANES];
            for (loaded, row) in loaded.iter_mut().zip(rows) {
                let from = row.as_ptr().add(at);
                *loaded = _mm512_maskz_loadu_epi8(mask, from.cast());
                if !C::IN_BYTES {
                    *loaded = C::bytes(*loaded)[0];
                }
            }
            for (line, turned) in codes.iter_mut().zip(turned(loaded)) {
                _mm512_store_si512(line.0.as_mut_ptr().cast(), turned);
            }
        }
    }
}

/// What is fetched during the products of a part.
struct Fetch {
    /// As much of the rows after these as the part has, from end to end: into the core's own cache.
    far: *const u8,
    /// The next part of these rows, which are `stride` bytes apart: into the nearest cache.
    near: *const u8,
    stride: usize,
    /// The row of `near`.
    row: usize,
    /// How many lines at a time: two panels make as many steps as a part of the rows has lines.
    lines: usize,
}

impl Fetch {
    #[inline(always)]
    fn more(&mut self) {
        for _ in 0..self.lines {
            // SAFETY: nothing is read where a prefetch points.
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(self.far.cast());
                _mm_prefetch::<_MM_HINT_T0>(self.near.cast());
            }
            self.far = self.far.wrapping_add(64);
            self.near = self.near.wrapping_add(self.stride);
            self.row += 1;
            if self.row == 2 * LANES {
                self.row = 0;
                self.near = self.near.wrapping_sub(2 * LANES * self.stride).wrapping_add(64);
            }
        }
    }
}

/// Adds the products of the groups of a part, as many as there are `scales`, of `of` fours of columns each.
///
/// # Safety
/// The CPU must have the features of this path.
// Several arrays go by one index.
#[allow(clippy::needless_range_loop)]
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn add_part<C: Bytes, const M: usize>(
    codes: &[[Line; FOURS]; 2],
    scales: [&[__m512i]; 2],
    of: usize,
    part: Part<'_, M>,
    totals: &mut [[__m512; M]; 2],
    fetch: &mut Fetch,
) {
    let Part { fours, offsets, units } = part;
    assert!(scales[0].len() * of <= FOURS && fours.len() == FOURS * M);
    assert!(scales[0].len() == scales[1].len() && offsets.len() >= scales[0].len());
    let mut sums = [[_mm512_setzero_ps(); M]; 2];
    let ([mut a, mut b], mut x) = ([codes[0].as_ptr(), codes[1].as_ptr()], fours.as_ptr());
    for ((scale_a, scale_b), offsets) in scales[0].iter().zip(scales[1]).zip(offsets) {
        let mut upper = [[_mm512_setzero_si512(); M]; 2];
        let mut lower = upper;
        for m in 0..M {
            lower[0][m] = _mm512_set1_epi32(offsets[m]);
            lower[1][m] = lower[0][m];
        }
        for _ in 0..of / C::VECTORS {
            // SAFETY: lengths were checked.
            unsafe {
                fetch.more();
                let load = |line: *const Line| {
                    let loaded = _mm512_load_si512((*line).0.as_ptr().cast());
                    if C::IN_BYTES { C::bytes(loaded) } else { [loaded; 4] }
                };
                let (in_a, in_b) = (load(a), load(b));
                for v in 0..C::VECTORS {
                    for m in 0..M {
                        let [high, low] = *x.add(v * M + m);
                        let [high, low] = [_mm512_set1_epi32(high), _mm512_set1_epi32(low)];
                        upper[0][m] = _mm512_dpbusd_epi32(upper[0][m], in_a[v], high);
                        upper[1][m] = _mm512_dpbusd_epi32(upper[1][m], in_b[v], high);
                        lower[0][m] = _mm512_dpbusd_epi32(lower[0][m], in_a[v], low);
                        lower[1][m] = _mm512_dpbusd_epi32(lower[1][m], in_b[v], low);
                    }
                }
                (a, b, x) = (a.add(1), b.add(1), x.add(C::VECTORS * M));
            }
        }
        for (half, scale) in [scale_a, scale_b].into_iter().enumerate() {
            for m in 0..M {
                let all = _mm512_add_epi32(_mm512_slli_epi32::<8>(upper[half][m]), lower[half][m]);
                let scale = _mm512_castsi512_ps(*scale);
                sums[half][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), scale, sums[half][m]);
            }
        }
    }
    for half in 0..2 {
        for m in 0..M {
            totals[half][m] = _mm512_fmadd_ps(sums[half][m], _mm512_set1_ps(units[m]), totals[half][m]);
        }
    }
}

/// Rows as columns: lane `j` of vector `i` is lane `i` of vector `j`.
#[inline]
#[target_feature(enable = "avx512f")]
fn turned(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let [mut pairs, mut quads, mut halves, mut all] = [rows; 4];
    for i in 0..LANES / 2 {
        let [a, b] = [rows[2 * i], rows[2 * i + 1]];
        (pairs[2 * i], pairs[2 * i + 1]) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    // Vector `4 * i + j` has lane `j` of each quarter of four rows, then of eight, then of all.
    for i in 0..LANES / 2 {
        let at = i / 2 * 4 + i % 2;
        let [a, b] = [pairs[at], pairs[at + 2]];
        let at = i / 2 * 4 + i % 2 * 2;
        (quads[at], quads[at + 1]) = (_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    for i in 0..LANES / 2 {
        let at = i / 4 * 8 + i % 4;
        let [a, b] = [quads[at], quads[at + 4]];
        (halves[at], halves[at + 4]) =
            (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<ODD>(a, b));
    }
    for i in 0..LANES / 2 {
        let [a, b] = [halves[i], halves[i + 8]];
        (all[i], all[i + 8]) = (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<ODD>(a, b));
    }
    all
}
