//! How a product runs: which rows of `x` meet which matrix, and by which implementation.

#[cfg(target_arch = "x86_64")]
use super::avx2::strips::Target;
use super::{Batch, Matrix, Weights, portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::array::Dtype;
#[cfg(target_arch = "x86_64")]
use crate::array::Element;
use crate::error::Result;
use crate::kernels::path::Path;
use crate::kernels::product::{Lines, Numbers, Side, Sums, picks, product};
#[cfg(target_arch = "x86_64")]
use crate::kernels::product::{to_bf16, to_f16};
use crate::kernels::{View, ViewMut, math, pool, scratch};
use crate::ops::{Quantization, QuantizationMode};

/// The name of the operation.
pub const NAME: &str = "quantized_matmul";
/// Rows of `x` that meet the codes of the weights. For more, weights are decoded once for all.
const FEW: usize = 12;
/// Rows of `x` in fixed point that meet the codes one by one. For more, codes are unpacked once for all.
#[cfg(target_arch = "x86_64")]
const FEW_FIXED: usize = 2;
/// Rows of `x` that are converted at a time.
const BLOCK: usize = 512;
/// Multiply-adds that are worth another thread.
const WORK: usize = 1 << 18;

/// Numbers of `x` that are worth another thread.
const READ: usize = 1 << 15;

/// A product.
pub struct QuantizedMatmul {
    pub how: Quantization,
    pub path: Path,
    pub transpose: bool,
    /// Whether indices follow, of matrices of `x` and `w`.
    pub picked: bool,
}

impl QuantizedMatmul {
    /// Scales, perhaps biases, and the indices if there are any.
    pub fn split<'a, T>(&self, rest: &'a [T]) -> (&'a [T], &'a [T]) {
        rest.split_at(rest.len() - if self.picked { 2.min(rest.len()) } else { 0 })
    }

    /// Of `x`, weights, scales, perhaps biases, and the indices if there are any.
    pub fn run(&self, inputs: &[View<'_>], out: &mut ViewMut<'_>) -> Result<()> {
        let (x, rest) = (&inputs[0], &inputs[2..]);
        let (parts, indices) = self.split(rest);
        let weights = Batch::new(&inputs[1], &parts[0], parts.get(1), self.how)?;
        let [rows, columns] = weights.sizes();
        if x.size() == 0 || rows == 0 || columns == 0 || out.shape().contains(&0) {
            out.bytes_mut().fill(0);
            return Ok(());
        }
        let outs = std::slice::from_mut(out);
        let &[ref batch @ .., k] = x.shape() else { return Ok(()) };
        let [left, right] = indices else {
            let all: Vec<_> = (0..x.size() / k as usize).map(|row| [row, row]).collect();
            return self.rows(&[weights.matrix(0)], x, &all, outs);
        };
        let m = batch.last().map_or(1, |&m| m as usize);
        let all = picks(NAME, left, right, [x.size() / (m * k as usize), weights.count])?;
        for same in all.chunk_by(|a, b| a.right == b.right) {
            let rows = same.iter().flat_map(|pick| (0..m).map(|i| [pick.left * m + i, pick.out * m + i]));
            self.rows(&[weights.matrix(same[0].right)], x, &rows.collect::<Vec<_>>(), outs)?;
        }
        Ok(())
    }

    /// Rows of `x`, and the rows of the results that they give with each of `weights`, which are quantized alike and of one
    /// length; the results are of one dtype.
    pub fn rows(
        &self,
        weights: &[Weights<'_>],
        x: &View<'_>,
        pairs: &[[usize; 2]],
        outs: &mut [ViewMut<'_>],
    ) -> Result<()> {
        let (Some(w), Some(out)) = (weights.first(), outs.first()) else { return Ok(()) };
        let k = if self.transpose { w.k } else { w.n };
        let (digits, out_dtype) = (digits(out.dtype()), out.dtype());
        for pairs in pairs.chunks(BLOCK) {
            let mut values = scratch::take(pairs.len() * k);
            let (numbers, origin) = Numbers::of(x)?;
            let grain = READ.div_ceil(k);
            pool::for_each_piece(&mut values, grain * k, |piece, rows| {
                for (row, pair) in rows.chunks_exact_mut(k).zip(&pairs[piece * grain..]) {
                    numbers.read(origin + pair[0] * k, row);
                }
            });
            let powers = moderate(&mut values, k);
            #[cfg(target_arch = "x86_64")]
            if let Some(digits) = digits.filter(|_| self.tiles(pairs.len())) {
                self.tiled(weights, &values, digits, &powers, outs, &|m| pairs[m][1])?;
                continue;
            }
            let in_order = pairs.windows(2).all(|pair| pair[0][1] + 1 == pair[1][1]);
            let store = |sums: &Sums, out: &mut ViewMut<'_>| {
                let finish = |m: usize, _: usize, row: &mut [f32]| {
                    if powers[m] != 1.0 {
                        row.iter_mut().for_each(|sum| *sum /= powers[m]);
                    }
                };
                let n = out.shape().last().map_or(0, |&n| n as usize);
                match in_order {
                    _ if n == 0 => Ok(()),
                    true => sums.store(out, pairs[0][1] * n, n, finish),
                    false => sums.scatter(out, n, finish, |m| pairs[m][1]),
                }
            };
            if self.transpose && pairs.len() <= FEW {
                let all = self.by_row(weights, &values, digits);
                all.iter().zip(&mut *outs).try_for_each(|(sums, out)| store(sums, out))?;
                continue;
            }
            for (&w, out) in weights.iter().zip(&mut *outs) {
                let mut result = Ok(());
                let w = Matrix { w, path: self.path };
                self.many(&w, &values, x.dtype(), out_dtype, &mut |sums| {
                    let stored = store(sums, out);
                    if result.is_ok() {
                        result = stored;
                    }
                });
                result?;
            }
        }
        Ok(())
    }

    /// Rows of `x`, which are of dtype `of`, by weights that are decoded once for all.
    fn many(&self, w: &Matrix<'_>, x: &[f32], of: Dtype, out: Dtype, store: &mut dyn FnMut(&Sums)) {
        let (k, n) = if self.transpose { (w.w.k, w.w.n) } else { (w.w.n, w.w.k) };
        // What AMX leaves of the weights is enough for a result in half precision only.
        let path = if out == Dtype::Float32 { self.path.min(Path::Avx512) } else { self.path };
        let lines = Rows { values: x, k, dtype: of };
        let x = Side { lines: &lines, count: x.len() / k, across: false };
        let w = Side { lines: w, count: n, across: !self.transpose };
        product(path, x, w, k, store);
    }

    /// Rows of `x` by codes that are unpacked once for all of them. Row `m` of a product is row `place(m)` of the result.
    #[cfg(target_arch = "x86_64")]
    fn tiled(
        &self,
        weights: &[Weights<'_>],
        x: &[f32],
        digits: u32,
        powers: &[f32],
        outs: &mut [ViewMut<'_>],
        place: &(dyn Fn(usize) -> usize + Sync),
    ) -> Result<()> {
        fn slices<'a, T: Element>(outs: &'a mut [ViewMut<'_>]) -> Result<Vec<&'a mut [T]>> {
            outs.iter_mut().map(|out| out.as_mut_slice()).collect()
        }
        fn put<T: Send>(
            path: Path,
            weights: &[Weights<'_>],
            x: &[f32],
            digits: u32,
            to: Target<'_, T>,
        ) -> Vec<usize> {
            match (path, x.len() / weights[0].k) {
                (Path::Avx2, _) => avx2::strips::product::<avx2::tiles::Tiles, T>(weights, x, digits, to),
                // Panels of three where fours would leave more of one empty.
                (_, 3 | 5 | 6 | 9) => {
                    avx2::strips::product::<avx512::lanes::Lanes<3>, T>(weights, x, digits, to)
                }
                (_, ..=FEW) => avx2::strips::product::<avx512::lanes::Lanes<4>, T>(weights, x, digits, to),
                _ => avx2::strips::product::<avx512::tiles::Tiles, T>(weights, x, digits, to),
            }
        }
        let (k, dtype) = (weights[0].k, outs[0].dtype());
        let rows = match dtype {
            Dtype::Float16 => {
                let to = Target { outs: slices(outs)?, place, powers, cast: to_f16 };
                put(self.path, weights, x, digits, to)
            }
            _ => {
                let to = Target { outs: slices(outs)?, place, powers, cast: to_bf16 };
                put(self.path, weights, x, digits, to)
            }
        };
        if rows.is_empty() {
            return Ok(());
        }
        // Those that do not fit in fixed point.
        let some: Vec<f32> = rows.iter().flat_map(|&m| &x[m * k..][..k]).copied().collect();
        for (&w, out) in weights.iter().zip(outs).filter(|(w, _)| w.n > 0) {
            let mut result = Ok(());
            let mut store = |sums: &Sums| {
                let finish = |m: usize, _: usize, row: &mut [f32]| {
                    row.iter_mut().for_each(|sum| *sum /= powers[rows[m]]);
                };
                let stored = sums.scatter(out, w.n, finish, |m| place(rows[m]));
                if result.is_ok() {
                    result = stored;
                }
            };
            if x.len() / k <= FEW {
                self.by_row(&[w], &some, None).iter().for_each(&mut store);
            } else {
                self.many(&Matrix { w, path: self.path }, &some, dtype, dtype, &mut store);
            }
            result?;
        }
        Ok(())
    }

    /// All rows of `x` by each of `weights`, which are quantized alike and of one length; the results are of one dtype.
    pub fn together(&self, weights: &[Weights<'_>], x: &View<'_>, outs: &mut [ViewMut<'_>]) -> Result<()> {
        let k = weights.first().map_or(0, |w| w.k);
        if x.size() == 0 || k == 0 {
            outs.iter_mut().for_each(|out| out.bytes_mut().fill(0));
            return Ok(());
        }
        let all: Vec<_> = (0..x.size() / k).map(|row| [row, row]).collect();
        self.rows(weights, x, &all, outs)
    }

    /// Whether so many rows in fixed point meet unpacked codes.
    #[cfg(target_arch = "x86_64")]
    fn tiles(&self, count: usize) -> bool {
        let counts = match self.path {
            Path::Avx2 | Path::Avx512 | Path::Avx512Bf16 => FEW_FIXED + 1..usize::MAX,
            Path::Amx => FEW_FIXED + 1..FEW + 1,
            _ => return false,
        };
        self.transpose && self.how.mode != QuantizationMode::Mxfp8 && counts.contains(&count)
    }

    /// The products of a few rows of `x` with the codes of each of the weights, as they are stored.
    fn by_row(&self, weights: &[Weights<'_>], x: &[f32], digits: Option<u32>) -> Vec<Sums> {
        let k = weights[0].k;
        let count = x.len() / k;
        let mut values = vec![0.0; weights.iter().map(|w| w.n * count).sum()];
        // A multiple of four rows of weights, which the fast paths take at a time.
        let grain = (WORK / (k * count)).max(1).next_multiple_of(4);
        match self.path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => {
                let (fixed, float) = (avx2::fixed::product, avx2::float::product);
                avx2::product(weights, x, &mut values, grain, digits, fixed, float);
            }
            #[cfg(target_arch = "x86_64")]
            path if path >= Path::Avx512 => {
                let float = |weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain| {
                    let product =
                        |w: &Weights<'_>, columns: &mut [f32]| avx512::float::product(w, x, columns, grain);
                    one_by_one(weights, columns, x.len(), product);
                };
                avx2::product(weights, x, &mut values, grain, digits, avx512::bytes::product, float);
            }
            _ => one_by_one(weights, &mut values, count, |w, values| portable::product(w, x, values, grain)),
        }
        let part = |w: &Weights<'_>| {
            let rest = values.split_off(w.n * count);
            let values = std::mem::replace(&mut values, rest);
            Sums { values, width: count, few: 0..w.n, many: count, turned: true }
        };
        weights.iter().map(part).collect()
    }
}

/// Each of the weights with its columns of the products of `count` rows.
fn one_by_one(
    weights: &[Weights<'_>],
    mut columns: &mut [f32],
    count: usize,
    product: impl Fn(&Weights<'_>, &mut [f32]),
) {
    for w in weights {
        product(w, columns.split_off_mut(..w.n * count).unwrap_or_default());
    }
}

/// Rows of `x` as `float32`, and of which dtype they were.
struct Rows<'a> {
    values: &'a [f32],
    k: usize,
    dtype: Dtype,
}

impl Lines for Rows<'_> {
    fn read(&self, line: usize, start: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.values[line * self.k + start..][..out.len()]);
    }

    fn parts(&self) -> usize {
        match self.dtype {
            Dtype::Bfloat16 => 1,
            Dtype::Float16 => 2,
            _ => 3,
        }
    }
}

/// Bits of a number of half precision. If a result has it, so have all operands.
fn digits(dtype: Dtype) -> Option<u32> {
    match dtype {
        Dtype::Bfloat16 => Some(8),
        Dtype::Float16 => Some(11),
        _ => None,
    }
}

/// Multiplies each row whose largest element is very large or very small by a power of two, so that
/// nothing on the way to the result overflows or underflows which the result doesn't. Returns the powers.
fn moderate(x: &mut [f32], k: usize) -> Vec<f32> {
    const FAR: f32 = (1u64 << 60) as f32;
    const POWER: f32 = 16.0 * FAR;
    let power = |row: &[f32]| match math::largest(row) {
        max if max > 0.0 && max < 1.0 / FAR => POWER,
        max if max > FAR && max.is_finite() => 1.0 / POWER,
        _ => 1.0,
    };
    let (mut powers, grain) = (vec![1.0; x.len() / k], READ.div_ceil(k));
    pool::for_each_piece(&mut powers, grain, |piece, powers| {
        let rows = x[piece * grain * k..].chunks_exact(k);
        powers.iter_mut().zip(rows).for_each(|(out, row)| *out = power(row));
    });
    for (m, power) in powers.iter().enumerate().filter(|&(_, &power)| power != 1.0) {
        x[m * k..][..k].iter_mut().for_each(|x| *x *= power);
    }
    powers
}
