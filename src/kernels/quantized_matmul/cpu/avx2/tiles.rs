//! Strips of rows of `x` in tiles: tiles of rows and columns stay in registers.
//!
//! Codes lie in pairs of `k`, as an instruction multiplies and adds them, and so does `x`. A pair is two codes that
//! are sixteen bits apart in the stream: a shift and a mask unpack both.

use std::arch::x86_64::*;
use std::ops::Range;

use super::fixed::{Codes, PART, copy_rest, multiples, rest_of};
use super::strips::{Kind, Strips};
use super::{Eight, Scales, Weights, lane_sums};
use crate::kernels::product::SLIVER;
use crate::kernels::product::cpu::avx2::transposed;

/// How much of `k` is unpacked at a time: a multiple of what a part, a group and a block of codes have.
pub const DEPTH: usize = 512;
/// Numbers of `x` that stay in a core's cache while all of `k` meets a sliver.
const NEAR: usize = 1 << 17;
/// Groups of [`DEPTH`], at most, and as many as are read beyond them.
const GROUPS: usize = DEPTH / 16 + 8;

/// Strips in tiles: how many rows of `x` meet how many slivers at a time, and how.
pub trait Tile {
    /// Rows in a panel.
    const ROWS: usize;
    const SLIVERS: usize;

    /// Adds the products of a panel and some slivers to `out`, rows of which are `width` apart: over chunk `chunk` of `k`, of groups
    /// of size `groups[0]`, of which there are `groups[1]`.
    ///
    /// # Safety
    /// The CPU must have the instructions.
    unsafe fn tile(
        panel: &Panel,
        chunk: usize,
        groups: [usize; 2],
        slivers: &[Sliver],
        affine: bool,
        out: &mut [f32],
        width: usize,
    );
}

/// Some rows of `x` in fixed point.
pub struct Panel {
    /// To which rows of the result their sums are added.
    pub rows: Vec<usize>,
    /// `[chunks, ROWS, DEPTH]`.
    pub multiples: Vec<i16>,
    /// `[chunks, groups in a chunk, ROWS]`.
    pub groups: Vec<Group>,
    /// `[chunks, parts in a chunk, ROWS]`: what a multiple stands for.
    pub units: Vec<f32>,
}

/// What belongs to a group of a row.
#[derive(Clone, Copy, Default)]
pub struct Group {
    /// The middle of the codes times the sum of the multiples, negative.
    pub offset: i32,
    /// The sum of the numbers, in units of their part.
    pub sum: f32,
}

impl<T: Tile> Strips for T {
    const ROWS: usize = T::ROWS;
    const WIDTH: usize = T::SLIVERS * SLIVER;
    const MOST: usize = 128;
    type Panel = Panel;

    unsafe fn panel<C: Kind>(rows: &[usize], rest: bool, x: &[f32], k: usize, group: usize) -> Panel {
        // SAFETY: the caller vouches for the CPU.
        unsafe { Panel::new::<T, C>(rows, rest, x, k, group) }
    }

    unsafe fn strip<C: Kind>(
        w: &Weights<'_>,
        panels: &[Panel],
        columns: Range<usize>,
        width: usize,
        sums: &mut [f32],
    ) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { strip_of::<T, C>(w, panels, columns, width, sums) }
    }
}

impl Panel {
    /// # Safety
    /// The CPU must have AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn new<T: Tile, C: Codes>(rows: &[usize], rest: bool, x: &[f32], k: usize, group: usize) -> Self {
        let (chunks, each) = (k.div_ceil(DEPTH), DEPTH / group);
        let mut all = vec![0; chunks * T::ROWS * DEPTH];
        let mut of_groups = vec![Group::default(); chunks * T::ROWS * each];
        let mut units = vec![0.0; chunks * T::ROWS * (DEPTH / PART)];
        for (r, &m) in rows.iter().enumerate() {
            let x = &x[m * k..][..k];
            let left = if rest { rest_of(x) } else { Vec::new() };
            let numbers = if rest { &left[..] } else { x };
            for (i, part) in numbers.chunks(PART).enumerate() {
                let (chunk, at) = (i * PART / DEPTH, i * PART % DEPTH);
                let (unit, multiples) = multiples(part);
                units[i * T::ROWS + r] = unit * C::UNIT;
                let first = chunk * each + at / group;
                for (j, multiples) in multiples[..part.len()].chunks(group).enumerate() {
                    // Units are powers of two.
                    let sum =
                        if rest { 0.0 } else { lane_sums(&part[j * group..][..group]) / (unit * C::UNIT) };
                    of_groups[(first + j) * T::ROWS + r] =
                        Group { offset: -C::MIDDLE * whole_sum(multiples), sum };
                }
                let out = &mut all[(chunk * T::ROWS + r) * DEPTH + at..][..PART];
                pair_up::<C>(&multiples, out);
            }
        }
        Self { rows: rows.to_vec(), multiples: all, groups: of_groups, units }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn whole_sum(multiples: &[i16]) -> i32 {
    let mut lanes = [0i32; 8];
    for sixteen in multiples.as_chunks::<16>().0 {
        // SAFETY: sixteen and eight numbers.
        unsafe {
            let pairs = _mm256_madd_epi16(_mm256_loadu_si256(sixteen.as_ptr().cast()), _mm256_set1_epi16(1));
            let all = _mm256_add_epi32(_mm256_loadu_si256(lanes.as_ptr().cast()), pairs);
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), all);
        }
    }
    lanes.iter().sum()
}

/// In the order of unpacked codes: each number of the first half of what a lane has with one of the second.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pair_up<C: Codes>(multiples: &[i16; PART], out: &mut [i16]) {
    const TWOS: [i8; 16] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
    const FOURS: [i8; 16] = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];
    if C::PER > 8 {
        for (out, x) in out.chunks_exact_mut(2 * C::PER).zip(multiples.chunks_exact(2 * C::PER)) {
            for j in 0..C::PER {
                out[2 * j] = x[j];
                out[2 * j + 1] = x[C::PER + j];
            }
        }
        return;
    }
    let order = if C::PER == 2 { TWOS } else { FOURS };
    for (out, x) in out.as_chunks_mut::<16>().0.iter_mut().zip(multiples.as_chunks::<16>().0) {
        // SAFETY: sixteen numbers each.
        unsafe {
            let order = _mm256_broadcastsi128_si256(_mm_loadu_si128(order.as_ptr().cast()));
            let mut x = _mm256_loadu_si256(x.as_ptr().cast());
            if C::PER == 8 {
                x = _mm256_permute4x64_epi64::<0b11_01_10_00>(x);
            }
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_shuffle_epi8(x, order));
        }
    }
}

/// A part of [`SLIVER`] columns of the weights.
#[derive(Clone)]
#[repr(align(64))]
pub struct Sliver {
    /// `[DEPTH / 2, SLIVER, 2]`, two of `k` together.
    pub codes: [i16; DEPTH * SLIVER],
    /// `[GROUPS, SLIVER]`.
    pub scales: [[f32; SLIVER]; GROUPS],
    /// What is not `x` times a code less the middle: what the middle stands for.
    pub middles: [[f32; SLIVER]; GROUPS],
}

/// Adds the products of `columns` to `sums`, `[rows, width]`.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C, and the instructions of the tiles.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn strip_of<T: Tile, C: Codes>(
    w: &Weights<'_>,
    panels: &[Panel],
    columns: Range<usize>,
    width: usize,
    sums: &mut [f32],
) {
    let group = w.how.group_size as usize;
    let empty = Sliver {
        codes: [0; DEPTH * SLIVER],
        scales: [[0.0; SLIVER]; GROUPS],
        middles: [[0.0; SLIVER]; GROUPS],
    };
    let mut slivers = vec![empty; T::SLIVERS];
    let near = panels.len() * T::ROWS * w.k <= NEAR;
    let chunks = w.k.div_ceil(DEPTH);
    let (all, some) = (columns.len().div_ceil(SLIVER), columns.len().div_ceil(T::SLIVERS * SLIVER));
    let place = |step: usize| if near { [step % chunks, step / chunks] } else { [step / some, step % some] };
    for step in 0..chunks * some {
        let [chunk, s] = place(step);
        let start = chunk * DEPTH;
        let groups = DEPTH.min(w.k - start) / group;
        // After the last step, the next strip is likely to follow.
        let next = if step + 1 < chunks * some { place(step + 1) } else { [0, s + 1] };
        let ahead =
            [next[0] as isize - chunk as isize, (next[1] as isize - s as isize) * T::SLIVERS as isize];
        let here = &mut slivers[..T::SLIVERS.min(all - s * T::SLIVERS)];
        for (i, sliver) in here.iter_mut().enumerate() {
            let first = columns.start + (s * T::SLIVERS + i) * SLIVER;
            for half in 0..2 {
                let rows = std::array::from_fn(|r| (first + half * 8 + r).min(w.n - 1));
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    unpack::<C>(w, rows, start, groups * group, ahead, &mut sliver.codes[half * 16..]);
                    read_groups(w, rows, start / group, groups, C::MIDDLE as f32 * C::UNIT, half, sliver);
                }
            }
        }
        for panel in panels {
            let out = &mut sums[s * T::SLIVERS * SLIVER..];
            // SAFETY: as above.
            unsafe { T::tile(panel, chunk, [group, groups], here, w.biases.is_some(), out, width) };
        }
    }
}

/// Tiles of four rows and one sliver.
pub struct Tiles;

impl Tile for Tiles {
    const ROWS: usize = 4;
    const SLIVERS: usize = 1;

    unsafe fn tile(
        panel: &Panel,
        chunk: usize,
        [group, groups]: [usize; 2],
        slivers: &[Sliver],
        affine: bool,
        out: &mut [f32],
        width: usize,
    ) {
        let [sliver] = slivers else { unreachable!("tiles of one sliver") };
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            match (panel.rows.len(), affine) {
                (1, false) => tile::<1, false>(panel, chunk, group, groups, sliver, out, width),
                (2, false) => tile::<2, false>(panel, chunk, group, groups, sliver, out, width),
                (3, false) => tile::<3, false>(panel, chunk, group, groups, sliver, out, width),
                (_, false) => tile::<4, false>(panel, chunk, group, groups, sliver, out, width),
                (1, true) => tile::<1, true>(panel, chunk, group, groups, sliver, out, width),
                (2, true) => tile::<2, true>(panel, chunk, group, groups, sliver, out, width),
                (3, true) => tile::<3, true>(panel, chunk, group, groups, sliver, out, width),
                (_, true) => tile::<4, true>(panel, chunk, group, groups, sliver, out, width),
            }
        }
    }
}

/// Adds the products of a panel and a sliver to `out`, rows of which are `width` apart.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const R: usize, const AFFINE: bool>(
    panel: &Panel,
    chunk: usize,
    group: usize,
    groups: usize,
    sliver: &Sliver,
    out: &mut [f32],
    width: usize,
) {
    const ROWS: usize = <Tiles as Tile>::ROWS;
    let (pairs, each) = (group / 2, DEPTH / group);
    assert!(panel.rows.len() == R && groups <= each && group.is_multiple_of(16));
    assert!(panel.rows.iter().all(|row| row * width + SLIVER <= out.len()));
    let multiples = &panel.multiples[chunk * ROWS * DEPTH..][..ROWS * DEPTH];
    let of_groups = &panel.groups[chunk * each * ROWS..][..each * ROWS];
    let units = &panel.units[chunk * (DEPTH / PART) * ROWS..][..DEPTH / PART * ROWS];
    let (mut x, mut codes) = (multiples.as_ptr().cast::<i32>(), sliver.codes.as_ptr());
    let places: [usize; R] = std::array::from_fn(|r| panel.rows[r] * width);
    for g in 0..groups {
        let of = &of_groups[g * ROWS..][..R];
        let mut sums: [_; R] = std::array::from_fn(|r| [_mm256_set1_epi32(of[r].offset); 2]);
        for _ in 0..pairs / 2 {
            // SAFETY: `DEPTH` multiples are in each row of the panel, and as many times sixteen codes in the sliver;
            // both are read from their beginnings once, group by group.
            unsafe {
                for i in 0..2 {
                    let low = _mm256_loadu_si256(codes.add(32 * i).cast());
                    let high = _mm256_loadu_si256(codes.add(32 * i + 16).cast());
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = _mm256_set1_epi32(x.add(r * DEPTH / 2 + i).read_unaligned());
                        let products = [_mm256_madd_epi16(low, x), _mm256_madd_epi16(high, x)];
                        sums[0] = _mm256_add_epi32(sums[0], products[0]);
                        sums[1] = _mm256_add_epi32(sums[1], products[1]);
                    }
                }
                x = x.add(2);
                codes = codes.add(64);
            }
        }
        for half in [0, 1] {
            // SAFETY: eight numbers each; the places are checked above.
            unsafe {
                let scale = _mm256_loadu_ps(sliver.scales[g].as_ptr().add(half * 8));
                let middle = _mm256_loadu_ps(sliver.middles[g].as_ptr().add(half * 8));
                for r in 0..R {
                    let out = out.as_mut_ptr().add(places[r] + half * 8);
                    let mut sum = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[r][half]), scale);
                    if AFFINE {
                        sum = _mm256_fmadd_ps(_mm256_set1_ps(of[r].sum), middle, sum);
                    }
                    let unit = _mm256_set1_ps(units[g * group / PART * ROWS + r]);
                    _mm256_storeu_ps(out, _mm256_fmadd_ps(sum, unit, _mm256_loadu_ps(out)));
                }
            }
        }
    }
}

/// Codes `start..start + count` of eight rows, in pairs, to every second sixteen numbers of `out`. So many chunks and
/// slivers further on are the codes that come next.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<C: Codes>(
    w: &Weights<'_>,
    rows: [usize; 8],
    start: usize,
    count: usize,
    [chunks, slivers]: [isize; 2],
    out: &mut [i16],
) {
    let (block, block_bytes, row_bytes) = (16 * C::PER, 2 * C::HALF, w.row_bytes());
    let blocks = count.div_ceil(block);
    assert!(start.is_multiple_of(block) && (blocks * 8 * C::PER - 1) * 32 + 16 <= out.len());
    // Blocks that can be read where they are, in the last of the rows and so in each.
    let room = (w.codes.len() - rows[7] * row_bytes).saturating_sub(C::HALF + 16 - block_bytes);
    let direct = (row_bytes / block_bytes).min(room / block_bytes);
    let first = start / block;
    let ahead = chunks * (DEPTH / 8) as isize * w.how.bits as isize + slivers * (SLIVER * row_bytes) as isize;
    for i in 0..blocks {
        let at = first + i;
        // SAFETY: a direct block has all the bytes that are read, and so has what is left of a row and zeros; there
        // is room for all pairs. Nothing is read where a prefetch points.
        unsafe {
            let lanes: [__m256; 8] = std::array::from_fn(|r| {
                let codes = w.codes.as_ptr().wrapping_add(rows[r] * row_bytes + at * block_bytes);
                let lanes = if at < direct {
                    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_offset(ahead).cast());
                    C::load(codes)
                } else {
                    let mut rest = [0u8; 48];
                    copy_rest(&w.codes[rows[r] * row_bytes..][..row_bytes], at * block_bytes, &mut rest);
                    C::load(rest.as_ptr())
                };
                _mm256_castsi256_ps(lanes)
            });
            for (lane, codes) in transposed(lanes).into_iter().enumerate() {
                let codes = C::look_up(_mm256_castps_si256(codes));
                for j in 0..C::PER {
                    let pair = (i * 8 + lane) * C::PER + j;
                    _mm256_storeu_si256(out.as_mut_ptr().add(pair * 32).cast(), C::code(codes, j));
                }
            }
        }
    }
}

/// Reads what belongs to `count` groups from `start` on of eight rows of weights.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn read_groups(
    w: &Weights<'_>,
    rows: [usize; 8],
    start: usize,
    count: usize,
    middle: f32,
    half: usize,
    sliver: &mut Sliver,
) {
    let all = w.groups();
    assert!(count.next_multiple_of(8) <= GROUPS);
    for group in (0..count).step_by(8) {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let at = rows.map(|row| row * all + start + group);
            let [scales, middles] = match (&w.scales, &w.biases) {
                (Scales::Bfloat16(s), Some(Scales::Bfloat16(b))) => affine(s, b, at, middle),
                (Scales::Float16(s), Some(Scales::Float16(b))) => affine(s, b, at, middle),
                (Scales::Float32(s), Some(Scales::Float32(b))) => affine(s, b, at, middle),
                (scales, biases) => {
                    let mut read = [[[0.0; 8]; 8]; 2];
                    let some = (count - group).min(8);
                    for r in 0..8 {
                        scales.read(at[r], &mut read[0][r][..some]);
                        biases.iter().for_each(|biases| biases.read(at[r], &mut read[1][r][..some]));
                    }
                    let [s, b] = &read;
                    affine(s.as_flattened(), b.as_flattened(), std::array::from_fn(|r| r * 8), middle)
                }
            };
            for (i, (scales, middles)) in transposed(scales).into_iter().zip(transposed(middles)).enumerate()
            {
                _mm256_storeu_ps(sliver.scales[group + i].as_mut_ptr().add(half * 8), scales);
                _mm256_storeu_ps(sliver.middles[group + i].as_mut_ptr().add(half * 8), middles);
            }
        }
    }
}

/// Eight scales and what the middle of the codes stands for, from each of these places.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn affine<T: Eight>(scales: &[T], biases: &[T], at: [usize; 8], middle: f32) -> [[__m256; 8]; 2] {
    let eight = |from: &[T], at: usize| {
        // SAFETY: eight numbers.
        unsafe {
            if let Some(eight) = from.get(at..at + 8) {
                return T::eight(eight.as_ptr());
            }
            let (mut rest, left) = ([T::default(); 8], &from[at..]);
            rest[..left.len()].copy_from_slice(left);
            T::eight(rest.as_ptr())
        }
    };
    let scales = at.map(|at| eight(scales, at));
    let middle = _mm256_set1_ps(middle);
    let middles = std::array::from_fn(|r| _mm256_fmadd_ps(middle, scales[r], eight(biases, at[r])));
    [scales, middles]
}
