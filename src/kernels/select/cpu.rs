//! Choosing from one row.

use crate::kernels::lanes::LANES;
use crate::kernels::math::{self, Lanes, Loop};
use crate::kernels::path::Path;

/// Numbers whose sum, or whose largest, is known.
const BLOCK: usize = 1024;

/// The largest but for NaN; minus infinity if there is none.
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in values.chunks(16) {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    lanes.iter().fold(f32::NEG_INFINITY, |max, &v| max.max(v))
}

/// The largest; NaN if there is one.
fn maximum(row: &[f32]) -> f32 {
    let nan = row.iter().fold(false, |nan, x| nan | x.is_nan());
    if nan { f32::NAN } else { largest(row) }
}

/// Where the first of the largest is. A NaN is passed over, unless it comes first: then it is the answer.
pub fn argmax(row: &[f32]) -> usize {
    let (mut best, mut block) = (f32::NEG_INFINITY, None);
    for (i, part) in row.chunks(BLOCK).enumerate() {
        let max = largest(part);
        if max > best {
            (best, block) = (max, Some(i * BLOCK));
        }
    }
    let Some(start) = block.filter(|_| !row[0].is_nan()) else { return 0 };
    start + row[start..].iter().position(|&x| x == best).unwrap_or(0)
}

/// A number that is larger for larger `x`, for NaN the least, and among equals larger for the earlier one.
fn key(x: f32, index: usize) -> u64 {
    let bits = (x + 0.0).to_bits();
    let rank = match bits >> 31 {
        _ if x.is_nan() => 0,
        0 => bits | 1 << 31,
        _ => !bits,
    };
    u64::from(rank) << 32 | u64::from(!(index as u32))
}

/// Where a [`key`] is from.
fn index(key: u64) -> usize {
    !(key as u32) as usize
}

/// Where the `count` largest are, the largest first; of equals the earlier one, and NaN last.
pub fn top(row: &[f32], count: usize) -> Vec<usize> {
    let count = count.min(row.len());
    if count == 0 {
        return Vec::new();
    }
    let by_size = |a: &u64, b: &u64| b.cmp(a);
    let limit = (4 * count).max(BLOCK);
    let mut kept: Vec<u64> = Vec::with_capacity((limit + BLOCK).min(row.len()));
    // Of the last one that is still among them, once there are as many.
    let (mut least, mut floor) = (0, f32::NEG_INFINITY);
    for (i, part) in row.chunks(64).enumerate() {
        if largest(part) < floor {
            continue;
        }
        let keys = part.iter().enumerate().map(|(j, &x)| key(x, i * 64 + j));
        kept.extend(keys.filter(|&key| key > least));
        if kept.len() >= limit {
            least = *kept.select_nth_unstable_by(count - 1, by_size).1;
            kept.truncate(count);
            floor = Some(row[index(least)]).filter(|x| !x.is_nan()).unwrap_or(f32::NEG_INFINITY);
        }
    }
    if kept.len() > count {
        kept.select_nth_unstable_by(count - 1, by_size);
        kept.truncate(count);
    }
    kept.sort_unstable_by(by_size);
    kept.into_iter().map(index).collect()
}

/// The least that is kept of log probabilities when the likeliest that make up `p` of all are, or `None`
/// where all are.
pub fn top_p(path: Path, row: &[f32], p: f32) -> Option<f32> {
    let enough = exp_sums(path, row, 0.0).iter().map(|&sum| f64::from(sum)).sum::<f64>() * f64::from(p);
    if enough.is_nan() || enough <= 0.0 {
        return None;
    }
    let mut count = 64;
    loop {
        let mut above = 0.0;
        let mut before = None;
        for at in top(row, count) {
            if above >= enough {
                return before;
            }
            above += f64::from(row[at]).exp();
            before = Some(row[at]);
        }
        if count >= row.len() {
            return None;
        }
        count *= 8;
    }
}

/// `ln(sum(e^x))`.
pub fn logsumexp(path: Path, row: &[f32]) -> f32 {
    let max = maximum(row);
    if !max.is_finite() {
        return max;
    }
    let sum: f64 = exp_sums(path, row, max).iter().map(|&sum| f64::from(sum)).sum();
    (f64::from(max) + sum.ln()) as f32
}

/// Where the sum of probabilities passes `u` of all, from log probabilities but for a constant. If the
/// largest are infinite, they alone have probabilities, equal ones.
pub fn draw(path: Path, row: &[f32], u: f32) -> usize {
    let max = maximum(row);
    if max.is_nan() {
        return row.len() - 1;
    }
    let weights = |part: &[f32], out: &mut [f32]| {
        if max.is_infinite() {
            out.iter_mut().zip(part).for_each(|(out, x)| *out = f32::from(u8::from(*x == max)));
        } else {
            math::run(path, Exp { values: part, shift: max, out });
        }
    };
    let mut room = [0.0; BLOCK];
    let mut sum_of = |part: &[f32]| {
        let room = &mut room[..part.len()];
        weights(part, room);
        room.iter().map(|&w| f64::from(w)).sum::<f64>()
    };
    let sums: Vec<f64> = row.chunks(BLOCK).map(&mut sum_of).collect();
    let mut left = f64::from(u) * sums.iter().sum::<f64>();
    // Rounding may leave no block that passes it.
    let mut last = 0;
    for (block, sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        last = block;
        if *sum > left {
            break;
        }
        left -= sum;
    }
    let part = &row[last * BLOCK..row.len().min((last + 1) * BLOCK)];
    let mut room = [0.0; BLOCK];
    weights(part, &mut room[..part.len()]);
    let mut found = 0;
    for (i, &weight) in room[..part.len()].iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        found = i;
        if f64::from(weight) > left {
            break;
        }
        left -= f64::from(weight);
    }
    last * BLOCK + found
}

/// The sums of `exp(x - shift)` by block.
fn exp_sums(path: Path, row: &[f32], shift: f32) -> Vec<f32> {
    let sum_of = |values: &[f32]| {
        let mut sum = 0.0;
        math::run(path, ExpSum { values, shift, sum: &mut sum });
        sum
    };
    row.chunks(BLOCK).map(sum_of).collect()
}

struct ExpSum<'a> {
    values: &'a [f32],
    shift: f32,
    sum: &'a mut f32,
}

impl Loop for ExpSum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (whole, rest) = self.values.as_chunks::<LANES>();
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let shift = L::splat(-self.shift);
        let mut sums = L::load(&last).add(shift).exp();
        for lane in whole {
            sums = sums.add(L::load(lane).add(shift).exp());
        }
        *self.sum = sums.sum();
    }
}

struct Exp<'a> {
    values: &'a [f32],
    shift: f32,
    out: &'a mut [f32],
}

impl Loop for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let shift = L::splat(-self.shift);
        for (values, out) in self.values.chunks(LANES).zip(self.out.chunks_mut(LANES)) {
            let mut lane = [0.0; LANES];
            lane[..values.len()].copy_from_slice(values);
            L::load(&lane).add(shift).exp().store(&mut lane);
            out.copy_from_slice(&lane[..out.len()]);
        }
    }
}
