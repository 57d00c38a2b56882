//! Products with quantized matrices.

#[path = "../../../src/kernels/quantized_matmul/cpu/mod.rs"]
mod cpu;

use self::cpu::QuantizedMatmul;
use crate::array::Dtype;
use crate::codes::{self, minifloat};
use crate::kernels::path::Path;
use crate::ops::{Quantization, QuantizationMode};
use crate::support::{Array, FLOATS, Oracle, Random, assert_close, paths, rounded};

fn quantizations() -> Vec<Quantization> {
    use QuantizationMode::*;
    let affine = [32, 64, 128].into_iter().flat_map(|group| [2, 3, 4, 5, 6, 8].map(|b| (Affine, group, b)));
    let others = [(Mxfp4, 32, 4), (Mxfp8, 32, 8), (Nvfp4, 16, 4)];
    affine.chain(others).map(|(mode, group_size, bits)| Quantization { mode, group_size, bits }).collect()
}

/// Random matrices `[count, n, k]`.
struct Matrices {
    how: Quantization,
    n: usize,
    k: usize,
    arrays: Vec<Array>,
    /// Their numbers.
    decoded: Vec<f64>,
}

impl Matrices {
    fn new(
        how: Quantization,
        scales: Dtype,
        count: usize,
        n: usize,
        groups: usize,
        random: &mut Random,
    ) -> Self {
        let (group, bits) = (how.group_size as usize, how.bits as usize);
        let k = groups * group;
        let batch: &[usize] = if count == 1 { &[] } else { &[count] };
        let shape = |columns: usize| [batch, &[n, columns]].concat();
        let bytes: Vec<u8> = (0..count * n * k * bits / 8).map(|_| random.bits() as u8).collect();
        let mut arrays = vec![Array::of_bytes(&bytes, &shape(k * bits / 32), Dtype::Uint32)];
        let (mut scale_values, mut bias_values) = (Vec::new(), vec![0.0; count * n * groups]);
        if how.mode == QuantizationMode::Affine {
            let middle = ((1 << bits) - 1) as f32 / 2.0;
            for bias in &mut bias_values {
                let scale = rounded(random.unit() / (1 << bits) as f32, scales);
                *bias = rounded(-middle * scale + 0.1 * random.unit(), scales);
                scale_values.push(scale);
            }
            arrays.push(Array::of_floats(&scale_values, &shape(groups), scales));
            arrays.push(Array::of_floats(&bias_values, &shape(groups), scales));
        } else {
            let nv = how.mode == QuantizationMode::Nvfp4;
            let code =
                |random: &mut Random| if nv { random.bits() as u8 } else { 120 + random.below(8) as u8 };
            let codes: Vec<u8> = bias_values.iter().map(|_| code(random)).collect();
            let value = |c: u8| if nv { minifloat(c.into(), 4, 3) } else { 2f64.powi(i32::from(c) - 127) };
            scale_values = codes.iter().map(|&c| value(c) as f32).collect();
            arrays.push(Array::of_bytes(&codes, &shape(groups), Dtype::Uint8));
        }
        let number = |at: usize| {
            let code = codes::code(&bytes, bits, at);
            let value = match how.mode {
                QuantizationMode::Affine => f64::from(code),
                QuantizationMode::Mxfp8 => minifloat(code, 4, 3),
                _ => minifloat(code, 2, 1),
            };
            value * f64::from(scale_values[at / group]) + f64::from(bias_values[at / group])
        };
        let decoded = (0..count * n * k).map(number).collect();
        Self { how, n, k, arrays, decoded }
    }

    /// What meets a row of `x`, and what it gives.
    fn sizes(&self, transpose: bool) -> [usize; 2] {
        if transpose { [self.k, self.n] } else { [self.n, self.k] }
    }

    /// The numbers that give column `column` of a product with matrix `index`.
    fn column(&self, index: usize, column: usize, transpose: bool) -> impl Iterator<Item = f64> + '_ {
        let (n, k) = (self.n, self.k);
        let (start, step, count) = if transpose { (column * k, 1, k) } else { (column, k, n) };
        (0..count).map(move |i| self.decoded[index * n * k + start + i * step])
    }

    /// The one matrix without biases, and with zeros in these columns.
    fn without(mut self, zero: impl Fn(usize) -> bool) -> Self {
        let (bits, [n, k]) = (self.how.bits as usize, [self.n, self.k]);
        let mut bytes = bytemuck::cast_slice(self.arrays[0].view().as_slice::<u32>().unwrap()).to_vec();
        let biases = self.arrays.get(2).map(Array::values);
        for (at, value) in self.decoded.iter_mut().enumerate() {
            *value -= biases.as_ref().map_or(0.0, |biases| biases[at / self.how.group_size as usize].into());
            if zero(at % k) {
                *value = 0.0;
                (at * bits..(at + 1) * bits).for_each(|bit| bytes[bit / 8] &= !(1 << (bit % 8)));
            }
        }
        self.arrays[0] = Array::of_bytes(&bytes, &[n, k * bits / 32], Dtype::Uint32);
        if let [_, scales, biases] = &mut self.arrays[..] {
            *biases = Array::zeros(&[n, k / self.how.group_size as usize], scales.view().dtype());
        }
        self
    }

    fn product(&self, path: Path, transpose: bool, x: &Array, indices: Option<&[Array; 2]>, out: &mut Array) {
        let inputs: Vec<_> = [x]
            .into_iter()
            .chain(&self.arrays)
            .chain(indices.into_iter().flatten())
            .map(Array::view)
            .collect();
        let kernel = QuantizedMatmul { how: self.how, path, transpose, picked: indices.is_some() };
        kernel.run(&inputs, &mut out.view_mut()).unwrap();
    }
}

/// A product of rows `x`, of `dtype`, in which the results are too.
fn rows_of(w: &Matrices, path: Path, transpose: bool, x: &[f32], dtype: Dtype, out: Dtype) -> Vec<f32> {
    let [k, n] = w.sizes(transpose);
    let x = Array::of_floats(x, &[x.len() / k, k], dtype);
    let mut y = Array::zeros(&[x.view().size() / k, n], out);
    w.product(path, transpose, &x, None, &mut y);
    y.values()
}

/// Of any two that differ `float32`.
fn promoted(x: Dtype, scales: Dtype, how: Quantization) -> Dtype {
    if how.mode == QuantizationMode::Affine && x != scales { Dtype::Float32 } else { x }
}

#[test]
fn products_of_few_and_many_rows() {
    let (paths, random, mut count) = (paths(), &mut Random(1), 0);
    for (i, how) in quantizations().into_iter().enumerate() {
        for (d, dtype) in FLOATS.into_iter().enumerate() {
            for transpose in [true, false] {
                let which = i + d + usize::from(transpose);
                let scales = if which % 2 == 0 { dtype } else { FLOATS[which % 3] };
                let out = promoted(dtype, scales, how);
                let (n, groups) = ([13, 7, 33, 4][which % 4], [3, 1, 2, 5][i % 4]);
                let w = Matrices::new(how, scales, 1, n, groups, random);
                let [k, n] = w.sizes(transpose);
                const ROWS: usize = 17;
                let x: Vec<f32> = (0..ROWS * k).map(|_| rounded(random.unit(), dtype)).collect();
                let terms = |at: usize| x[at / n * k..].iter().copied().zip(w.column(0, at % n, transpose));
                let oracle = Oracle::new(ROWS * n, out, terms);
                let allowed = oracle.allowed(out, 1.0);
                for &path in &paths {
                    for rows in 1..=ROWS {
                        let y = rows_of(&w, path, transpose, &x[..rows * k], dtype, out);
                        let of = || format!("{path} {how:?} {dtype:?} {scales:?} {transpose} {rows} rows");
                        assert_close(&y, &oracle.exact[..rows * n], allowed, &of);
                        count += 1;
                    }
                }
            }
        }
    }
    println!("{paths:?}: {count} products of 1 to 17 rows");
}

#[test]
fn long_rows() {
    let (paths, random) = (paths(), &mut Random(2));
    for (i, how) in quantizations().into_iter().enumerate() {
        // More groups than are decoded at a time; a last block that is full, and one that is not.
        for (j, (rows, groups)) in [(1, 67), (1, 72), (2, 72), (5, 67)].into_iter().enumerate() {
            let dtype = FLOATS[(i + j) % 3];
            let w = Matrices::new(how, dtype, 1, 6, groups, random);
            let x: Vec<f32> = (0..rows * w.k).map(|_| rounded(random.unit(), dtype)).collect();
            let terms = |at: usize| x[at / 6 * w.k..].iter().copied().zip(w.column(0, at % 6, true));
            let oracle = Oracle::new(6 * rows, dtype, terms);
            for &path in &paths {
                let y = rows_of(&w, path, true, &x, dtype, dtype);
                assert_close(&y, &oracle.exact, oracle.allowed(dtype, 4.0), &|| {
                    format!("{path} {how:?} {dtype:?} {rows} rows")
                });
            }
        }
    }
    println!("{paths:?}: long rows");
}

/// As long as they are at most 2, 3 to 12, or more.
#[test]
fn rows_do_not_depend_on_those_beside_them() {
    let (paths, random) = (paths(), &mut Random(3));
    for (i, how) in quantizations().into_iter().enumerate() {
        let dtype = FLOATS[i % 3];
        let w = Matrices::new(how, dtype, 1, 6, 5, random);
        for (rows, fewer) in [(2, 1), (12, 3), (300, 13)] {
            // Some rows are tiny, some large, some have numbers that are far larger than those beside them.
            let far = 2f32.powi(if dtype == Dtype::Float16 { 12 } else { 70 });
            let power =
                |at: usize| [1.0, 1.0 / far, far, if at % 9 == 4 { 16384.0 } else { 1.0 }][at / w.k % 4];
            let x: Vec<f32> = (0..rows * w.k).map(|at| rounded(random.unit() * power(at), dtype)).collect();
            for &path in &paths {
                let all = rows_of(&w, path, true, &x, dtype, dtype);
                for first in [0, rows / 2 - fewer / 2, rows - fewer] {
                    let some = &x[first * w.k..][..fewer * w.k];
                    let alone = rows_of(&w, path, true, some, dtype, dtype);
                    let beside = &all[first * 6..][..fewer * 6];
                    assert_eq!(
                        alone, beside,
                        "{path} {how:?} {dtype:?} {fewer} of {rows} rows from {first} on"
                    );
                }
            }
        }
    }
    println!("{paths:?}: rows alone");
}

/// More rows than are converted at a time, more columns than a thread takes at a time, more than a cache holds.
#[test]
fn many_rows() {
    let (paths, random) = (paths(), &mut Random(8));
    for (i, how) in quantizations().into_iter().enumerate() {
        let dtype = FLOATS[1 + i % 2];
        let (rows, n, k) = ([150, 520][i % 2], [300, 20][i / 2 % 2], [1024, 256][i % 2]);
        let w = Matrices::new(how, dtype, 1, n, k / how.group_size as usize, random);
        let x: Vec<f32> = (0..rows * k).map(|_| rounded(random.unit(), dtype)).collect();
        let terms = |at: usize| x[at / n * k..].iter().copied().zip(w.column(0, at % n, true));
        let oracle = Oracle::new(rows * n, dtype, terms);
        for &path in &paths {
            let y = rows_of(&w, path, true, &x, dtype, dtype);
            assert_close(&y, &oracle.exact, oracle.allowed(dtype, 1.0), &|| {
                format!("{path} {how:?} {dtype:?} {rows} rows, {n} columns")
            });
        }
    }
    println!("{paths:?}: many rows");
}

/// Infinities and NaNs where `exact` has them, and nowhere else.
fn assert_same_specials(found: &[f32], exact: &[f64], case: &dyn Fn() -> String) {
    for (y, e) in found.iter().zip(exact) {
        let alike = y.is_nan() == e.is_nan() && y.is_infinite() == e.is_infinite();
        let same = alike && (!y.is_infinite() || f64::from(*y) == *e);
        assert!(same, "{}: {y}, expected {e}", case());
    }
}

/// A column whose scale is infinite is infinite, or no number where a code is zero.
#[test]
fn infinite_scales_reach_their_columns_only() {
    let (paths, random) = (paths(), &mut Random(9));
    for (i, how) in quantizations().into_iter().enumerate() {
        if how.mode != QuantizationMode::Affine {
            continue;
        }
        for rows in [1, 5, 14] {
            let dtype = FLOATS[i % 3];
            let mut w = Matrices::new(how, dtype, 1, 5, 3, random);
            let ([mut scales, biases], group) =
                ([1, 2].map(|part| w.arrays[part].values()), how.group_size as usize);
            // The second group of the third column.
            let at = 2 * 3 + 1;
            scales[at] = f32::INFINITY;
            w.arrays[1] = Array::of_floats(&scales, &[5, 3], dtype);
            for value in &mut w.decoded[at * group..][..group] {
                let is_zero = *value == f64::from(biases[at]);
                *value = if is_zero { f64::NAN } else { f64::INFINITY };
            }
            let x: Vec<f32> = (0..rows * w.k).map(|_| rounded(random.unit().abs(), dtype)).collect();
            let terms = |at: usize| x[at / 5 * w.k..].iter().copied().zip(w.column(0, at % 5, true));
            let exact = Oracle::new(rows * 5, dtype, terms).exact;
            for &path in &paths {
                let y = rows_of(&w, path, true, &x, dtype, dtype);
                assert_same_specials(&y, &exact, &|| format!("{path} {how:?} {dtype:?} {rows} rows"));
            }
        }
    }
    println!("{paths:?}: infinite scales");
}

/// Weights are zero where the large numbers are, so nothing of the result covers what those beside them lose.
#[test]
fn outliers_take_nothing_from_the_numbers_beside_them() {
    let (paths, random) = (paths(), &mut Random(4));
    let is_large = |column: usize| column % 300 == 7;
    for (i, how) in quantizations().into_iter().enumerate() {
        for (j, exponent) in [3, 8, 13, 15].into_iter().enumerate() {
            let (dtype, rows) = (FLOATS[1 + i % 2], [2, 3, 14][(i + j) % 3]);
            let w = Matrices::new(how, dtype, 1, 9, 768 / how.group_size as usize, random).without(is_large);
            // The first row has none.
            let large = |at: usize| {
                if is_large(at % w.k) && at >= w.k { 2f32.powi(exponent) } else { random.unit() }
            };
            let x: Vec<f32> = (0..rows * w.k).map(large).map(|x| rounded(x, dtype)).collect();
            let terms = |at: usize| x[at / 9 * w.k..].iter().copied().zip(w.column(0, at % 9, true));
            let oracle = Oracle::new(rows * 9, dtype, terms);
            for &path in &paths {
                let y = rows_of(&w, path, true, &x, dtype, dtype);
                assert_close(&y, &oracle.exact, oracle.allowed(dtype, 1.0), &|| {
                    format!("{path} {how:?} {dtype:?} 2^{exponent} in {rows} rows")
                });
            }
        }
    }
    println!("{paths:?}: outliers");
}

#[test]
fn large_and_tiny_values() {
    let (paths, random) = (paths(), &mut Random(5));
    for (i, how) in quantizations().into_iter().enumerate() {
        for (j, exponent) in [-140, -100, -61, 60, 120].into_iter().enumerate() {
            let (rows, dtype) = ([3, 14][(i + j) % 2], [Dtype::Float32, Dtype::Bfloat16][i % 2]);
            let w = Matrices::new(how, dtype, 1, 9, 3, random);
            let power = 2f64.powi(exponent);
            let value = |random: &mut Random| rounded((f64::from(random.unit()) * power) as f32, dtype);
            let x: Vec<f32> = (0..rows * w.k).map(|_| value(random)).collect();
            let terms = |at: usize| x[at / 9 * w.k..].iter().copied().zip(w.column(0, at % 9, true));
            let oracle = Oracle::new(rows * 9, dtype, terms);
            // Results below the normal numbers have units of their own.
            let allowed = oracle.allowed(dtype, power).max(2f64.powi(if dtype == Dtype::Float32 {
                -148
            } else {
                -132
            }));
            for &path in &paths {
                let y = rows_of(&w, path, true, &x, dtype, dtype);
                assert_close(&y, &oracle.exact, allowed, &|| {
                    format!("{path} {how:?} {dtype:?} 2^{exponent} {rows} rows")
                });
            }
        }
    }
    println!("{paths:?}: large and tiny values");
}

#[test]
fn infinities_and_nans_go_where_they_belong() {
    let (paths, random) = (paths(), &mut Random(6));
    for (i, how) in quantizations().into_iter().enumerate() {
        for special in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for rows in [3, 14] {
                let dtype = FLOATS[i % 3];
                let w = Matrices::new(how, dtype, 1, 5, 2 * 128 / how.group_size as usize, random);
                let mut x: Vec<f32> = (0..rows * w.k).map(|_| rounded(random.unit(), dtype)).collect();
                // In the last row but one.
                x[(rows - 2) * w.k + 39] = special;
                let terms = |at: usize| x[at / 5 * w.k..].iter().copied().zip(w.column(0, at % 5, true));
                let exact = Oracle::new(rows * 5, dtype, terms).exact;
                for &path in &paths {
                    let y = rows_of(&w, path, true, &x, dtype, dtype);
                    assert_same_specials(&y, &exact, &|| format!("{path} {how:?} {dtype:?} {rows} rows"));
                }
            }
        }
    }
    println!("{paths:?}: infinities and NaNs");
}

#[test]
fn products_of_picked_matrices() {
    let (paths, random) = (paths(), &mut Random(7));
    for (i, how) in quantizations().into_iter().enumerate() {
        for transpose in [true, false] {
            let (dtype, m) = (FLOATS[i % 3], [1, 2, 13][(i + usize::from(transpose)) % 3]);
            let w = Matrices::new(how, dtype, 3, [5, 16, 40][i % 3], 1 + i % 2, random);
            let [k, n] = w.sizes(transpose);
            let x: Vec<f32> = (0..2 * m * k).map(|_| rounded(random.unit(), dtype)).collect();
            let picks: Vec<[u32; 2]> =
                (0..4).map(|_| [random.below(2) as u32, random.below(3) as u32]).collect();
            let indices = [0, 1].map(|side| {
                let bytes: Vec<u8> = picks.iter().flat_map(|pick| pick[side].to_le_bytes()).collect();
                Array::of_bytes(&bytes, &[4], Dtype::Uint32)
            });
            let terms = |at: usize| {
                let [left, right] = picks[at / (m * n)].map(|index| index as usize);
                let row = left * m + at / n % m;
                x[row * k..].iter().copied().zip(w.column(right, at % n, transpose))
            };
            let oracle = Oracle::new(4 * m * n, dtype, terms);
            let x = Array::of_floats(&x, &[2, m, k], dtype);
            for &path in &paths {
                let mut y = Array::zeros(&[4, m, n], dtype);
                w.product(path, transpose, &x, Some(&indices), &mut y);
                let of = || format!("{path} {how:?} {dtype:?} {transpose}");
                assert_close(&y.values(), &oracle.exact, oracle.allowed(dtype, 1.0), &of);
            }
        }
    }
    println!("{paths:?}: picked matrices");
}
