//! Tiles of six rows of `x` and 32 columns, of what [`avx2::tiles`](super::super::avx2::tiles) lays out.

use std::arch::asm;
use std::arch::x86_64::*;
use std::array;

use super::super::avx2::fixed::PART;
use super::super::avx2::tiles::{DEPTH, Panel, Sliver, Tile};
use crate::kernels::product::SLIVER;

/// Tiles of six rows and two slivers.
pub struct Tiles;

impl Tile for Tiles {
    const ROWS: usize = 6;
    const SLIVERS: usize = 2;

    unsafe fn tile(
        panel: &Panel,
        chunk: usize,
        groups: [usize; 2],
        slivers: &[Sliver],
        affine: bool,
        out: &mut [f32],
        width: usize,
    ) {
        let tile = match (panel.rows.len(), slivers.len()) {
            (1, 1) => tile::<1, 1>,
            (2, 1) => tile::<2, 1>,
            (3, 1) => tile::<3, 1>,
            (4, 1) => tile::<4, 1>,
            (5, 1) => tile::<5, 1>,
            (_, 1) => tile::<6, 1>,
            (1, _) => tile::<1, 2>,
            (2, _) => tile::<2, 2>,
            (3, _) => tile::<3, 2>,
            (4, _) => tile::<4, 2>,
            (5, _) => tile::<5, 2>,
            (_, _) => tile::<6, 2>,
        };
        // SAFETY: the caller vouches for the CPU.
        unsafe { tile(panel, chunk, groups, slivers, affine, out, width) }
    }
}

/// As [`Tile::tile`], of so many rows and slivers.
///
/// # Safety
/// As there.
// By iterators, sums were stored at each step.
#[allow(clippy::needless_range_loop)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn tile<const R: usize, const S: usize>(
    panel: &Panel,
    chunk: usize,
    [group, groups]: [usize; 2],
    slivers: &[Sliver],
    affine: bool,
    out: &mut [f32],
    width: usize,
) {
    let (pairs, each) = (group / 2, DEPTH / group);
    let slivers: &[Sliver; S] = slivers.try_into().expect("as many slivers");
    assert!(panel.rows.len() == R && groups <= each && group.is_multiple_of(16));
    assert!(panel.rows.iter().all(|row| row * width + S * SLIVER <= out.len()));
    let multiples = &panel.multiples[chunk * Tiles::ROWS * DEPTH..][..Tiles::ROWS * DEPTH];
    let of_groups = &panel.groups[chunk * each * Tiles::ROWS..][..each * Tiles::ROWS];
    let units = &panel.units[chunk * (DEPTH / PART) * Tiles::ROWS..][..DEPTH / PART * Tiles::ROWS];
    let mut x = multiples.as_ptr().cast::<i32>();
    let mut codes = slivers.each_ref().map(|sliver| sliver.codes.as_ptr());
    let mut of = of_groups.as_ptr();
    // SAFETY: sixteen numbers each; the places are checked above. `DEPTH` multiples are in each row of the panel, and as many
    // times sixteen codes in each sliver; both are read from their beginnings once, group by group.
    unsafe {
        for (part, first) in (0..groups).step_by(PART / group).enumerate() {
            let mut sums = [[_mm512_setzero_ps(); S]; R];
            for g in first..groups.min(first + PART / group) {
                let mut whole: [[__m512i; S]; R] =
                    array::from_fn(|r| [_mm512_set1_epi32((*of.add(r)).offset); S]);
                for _ in 0..pairs {
                    let pairs: [__m512i; S] = array::from_fn(|s| _mm512_load_si512(codes[s].cast()));
                    for r in 0..R {
                        let x = _mm512_set1_epi32(x.add(r * DEPTH / 2).read_unaligned());
                        for s in 0..S {
                            whole[r][s] = multiply_add(whole[r][s], pairs[s], x);
                        }
                    }
                    x = x.add(1);
                    for s in 0..S {
                        codes[s] = codes[s].add(2 * SLIVER);
                    }
                }
                for s in 0..S {
                    let scale = _mm512_load_ps(slivers[s].scales[g].as_ptr());
                    for r in 0..R {
                        sums[r][s] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r][s]), scale, sums[r][s]);
                    }
                }
                if affine {
                    let middles: [__m512; S] =
                        array::from_fn(|s| _mm512_load_ps(slivers[s].middles[g].as_ptr()));
                    for r in 0..R {
                        let sum = _mm512_set1_ps((*of.add(r)).sum);
                        for s in 0..S {
                            sums[r][s] = _mm512_fmadd_ps(sum, middles[s], sums[r][s]);
                        }
                    }
                }
                of = of.add(Tiles::ROWS);
            }
            for r in 0..R {
                let unit = _mm512_set1_ps(units[part * Tiles::ROWS + r]);
                let out = out.as_mut_ptr().add(panel.rows[r] * width);
                for s in 0..S {
                    let out = out.add(s * SLIVER);
                    _mm512_storeu_ps(out, _mm512_fmadd_ps(sums[r][s], unit, _mm512_loadu_ps(out)));
                }
            }
        }
    }
}

/// Adds both products of each pair of 16 bits. As an instruction, since LLVM makes two of the intrinsic.
///
/// # Safety
/// The CPU must have AVX-512 VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn multiply_add(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller vouches for the CPU; nothing but the registers is touched.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {a}, {b}",
            sum = inout(zmm_reg) sum,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
