//! x86 with AVX-512 BF16, which multiplies two numbers of each lane at a time.
//!
//! Both operands are pairs of neighbours along `k` in 32 bits, the first below. Products are exact and sums are `float32`, but
//! denormal numbers count as zeros, of operands and of sums.

use std::arch::x86_64::*;

use super::SLIVER;

/// Pairs of a row that lie together, at most.
pub(crate) const DEPTH: usize = 128;
/// Rows are there in multiples of this.
pub(crate) const ROWS: usize = 4;
/// Rows whose sums are in registers.
const TALL: usize = 3 * ROWS;
/// Rows that stay in the nearest cache.
const NEAR: usize = 4 * TALL;

/// Adds the product of rows, `[count, DEPTH]`, and slivers, `[n / SLIVER, length, SLIVER]`, to `sums`, whose `count` rows are
/// `stride` apart. Of both the first `depth` pairs are taken.
pub(crate) fn multiply(
    rows: &[f32],
    slivers: &[f32],
    [length, depth]: [usize; 2],
    sums: &mut [f32],
    stride: usize,
) {
    let (count, n) = (sums.len().div_ceil(stride), slivers.len() / length);
    assert!(depth <= length && depth <= DEPTH && slivers.len() == n.next_multiple_of(SLIVER) * length);
    assert!(
        rows.len() >= count.next_multiple_of(ROWS) * DEPTH
            && n <= stride
            && sums.len() >= (count - 1) * stride + n
    );
    for near in (0..count).step_by(NEAR) {
        for (s, pair) in slivers.chunks(2 * length * SLIVER).enumerate() {
            let mut row = near;
            while row < count.min(near + NEAR) {
                let (rows, out) = (&rows[row * DEPTH..], &mut sums[row * stride + 2 * s * SLIVER..]);
                let (tall, wide) = (count.next_multiple_of(ROWS) - row >= TALL, pair.len() > length * SLIVER);
                let tile = match (tall, wide) {
                    (true, true) => tile::<TALL, 2>,
                    (true, false) => tile::<TALL, 1>,
                    (false, true) => tile::<ROWS, 2>,
                    (false, false) => tile::<ROWS, 1>,
                };
                // SAFETY: this path is taken only where the CPU has the instructions; rows, slivers and sums are as long as
                // was checked.
                unsafe { tile([length, depth], rows, pair, out, stride, count - row) };
                row += if tall { TALL } else { ROWS };
            }
        }
    }
}

/// Adds the products of `R` rows with `S` slivers to `out`, of which the first `count` rows are there.
///
/// # Safety
/// The CPU must have AVX-512 BF16; there must be `R` rows of [`DEPTH`] and `S` slivers of `length`, both at least `depth`, and in
/// `out` for each of `count` rows, if there are so many, `S` times [`SLIVER`] numbers, `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const R: usize, const S: usize>(
    [length, depth]: [usize; 2],
    rows: &[f32],
    slivers: &[f32],
    out: &mut [f32],
    stride: usize,
    count: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); S]; R];
    // SAFETY: within what the caller vouches for. A pair is four bytes, whatever they are.
    unsafe {
        for i in 0..depth {
            let b: [__m512bh; S] = std::array::from_fn(|s| {
                std::mem::transmute(_mm512_loadu_ps(slivers.as_ptr().add((s * length + i) * SLIVER)))
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_epi32(rows.as_ptr().add(r * DEPTH + i).cast::<i32>().read());
                for s in 0..S {
                    sums[s] = _mm512_dpbf16_ps(sums[s], std::mem::transmute::<__m512i, __m512bh>(a), b[s]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate().take(count) {
            for (s, sum) in sums.iter().enumerate() {
                let out = out.as_mut_ptr().add(r * stride + s * SLIVER);
                _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), *sum));
            }
        }
    }
}

/// Puts the upper halves of two numbers into each of `out`, and says whether there are any whose products or sums may be lost:
/// nonzero ones below 2^-62, or finite ones of at least 2^62.
///
/// # Panics
/// Unless there are as many of both as `out` takes.
pub(crate) fn join(first: &[f32], second: &[f32], out: &mut [f32]) -> bool {
    assert!(first.len() == out.len() && second.len() == out.len());
    // SAFETY: this path is taken only where the CPU has the instructions.
    unsafe { join_within(first, second, out) }
}

/// The same of neighbours: `x` has twice as many.
pub(crate) fn join_pairs(x: &[f32], out: &mut [f32]) -> bool {
    assert!(x.len() == 2 * out.len());
    // SAFETY: this path is taken only where the CPU has the instructions.
    unsafe { join_pairs_within(x, out) }
}

/// # Safety
/// The CPU must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn join_within(first: &[f32], second: &[f32], out: &mut [f32]) -> bool {
    let pairs = first.iter().zip(second).zip(out);
    pairs.fold(0, |far, ((first, second), out)| far | joined(*first, *second, out)) != 0
}

/// # Safety
/// The CPU must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn join_pairs_within(x: &[f32], out: &mut [f32]) -> bool {
    let pairs = x.chunks_exact(2).zip(out);
    pairs.fold(0, |far, (pair, out)| far | joined(pair[0], pair[1], out)) != 0
}

#[inline(always)]
fn joined(first: f32, second: f32, out: &mut f32) -> u32 {
    let far = |x: f32| {
        let magnitude = x.to_bits() & 0x7fff_ffff;
        let small = magnitude.wrapping_sub(1) < ((127 - 62) << 23) - 1;
        let large = magnitude.wrapping_sub((127 + 62) << 23) < (128 - 62) << 23;
        u32::from(small | large)
    };
    *out = f32::from_bits(first.to_bits() >> 16 | second.to_bits() & 0xffff_0000);
    far(first) | far(second)
}
