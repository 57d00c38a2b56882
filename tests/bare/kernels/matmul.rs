//! Products of dense matrices.

#[path = "../../../src/kernels/matmul/cpu.rs"]
mod cpu;

use crate::array::Dtype;
use crate::support::{Array, FLOATS, Oracle, Random, assert_close, paths, rounded};

/// Random numbers of `dtype` up to two to the `power`.
fn numbers(count: usize, dtype: Dtype, power: i32, random: &mut Random) -> Vec<f32> {
    let factor = 2f64.powi(power);
    (0..count).map(|_| rounded((f64::from(random.unit()) * factor) as f32, dtype)).collect()
}

/// Column `column` of `[k, n]`.
fn column(b: &[f32], n: usize, column: usize) -> impl Iterator<Item = f64> + '_ {
    b[column..].iter().step_by(n).map(|&b| f64::from(b))
}

#[test]
fn products() {
    use Dtype::*;
    let (paths, random, mut count) = (paths(), &mut Random(11), 0);
    let sizes = [
        [1, 1, 1],
        [1, 40, 33],
        [3, 17, 5],
        [5, 16, 31],
        [8, 33, 16],
        [9, 130, 64],
        [17, 33, 33],
        [33, 17, 64],
        [40, 100, 40],
        [13, 64, 513],
        [35, 20, 300],
        [100, 7, 20],
        [9, 9, 2],
        [64, 48, 32],
        [130, 9, 257],
    ];
    let dtypes = [
        [Bfloat16; 2],
        [Float16; 2],
        [Bfloat16, Float32],
        [Float32, Float16],
        [Float16, Bfloat16],
        [Float32; 2],
    ];
    for (i, [m, n, k]) in sizes.into_iter().enumerate() {
        for (j, dtypes) in dtypes.into_iter().enumerate() {
            let out = if dtypes[0] == dtypes[1] { dtypes[0] } else { Float32 };
            let (a, b) = (numbers(m * k, dtypes[0], 0, random), numbers(k * n, dtypes[1], 0, random));
            let c = numbers(n, dtypes[0], 0, random);
            let terms = |at: usize| a[at / n * k..][..k].iter().copied().zip(column(&b, n, at % n));
            let plain = Oracle::new(m * n, out, terms);
            let added =
                Oracle::new(m * n, out, |at| terms(at).map(|(a, b)| (0.5 * a, b)).chain([(c[at % n], -2.0)]));
            let lies = [(i + j) % 4, (i + j / 2) % 4];
            let a_array = Array::lying(&a, [m, k], dtypes[0], lies[0]);
            let b_array = Array::lying(&b, [k, n], dtypes[1], lies[1]);
            let c_array = Array::of_floats(&c, &[n], dtypes[0]);
            let inputs = [&a_array, &b_array, &c_array].map(Array::view);
            for &path in &paths {
                for (add, oracle) in [(None, &plain), (Some([0.5, -2.0]), &added)] {
                    let mut y = Array::zeros(&[m, n], out);
                    cpu::products(path, add, &inputs, &mut y.view_mut()).unwrap();
                    let of = || format!("{path} {m} {n} {k} {dtypes:?} lying {lies:?} add {add:?}");
                    assert_close(&y.values(), &oracle.exact, oracle.allowed(out, 2.0), &of);
                    count += 1;
                }
            }
        }
    }
    println!("{paths:?}: {count} products");
}

#[test]
fn products_of_picked_matrices() {
    let (paths, random) = (paths(), &mut Random(12));
    for (i, [m, n, k]) in
        [[1, 16, 40], [2, 33, 64], [5, 17, 33], [12, 40, 100], [20, 9, 31]].into_iter().enumerate()
    {
        for (j, dtype) in FLOATS.into_iter().enumerate() {
            let (a, b) = (numbers(2 * m * k, dtype, 0, random), numbers(3 * k * n, dtype, 0, random));
            let picks: Vec<[u32; 2]> =
                (0..5).map(|_| [random.below(2) as u32, random.below(3) as u32]).collect();
            let [left, right] = [0, 1].map(|side| {
                let bytes: Vec<u8> = picks.iter().flat_map(|pick| pick[side].to_le_bytes()).collect();
                Array::of_bytes(&bytes, &[5], Dtype::Uint32)
            });
            let terms = |at: usize| {
                let [l, r] = picks[at / (m * n)].map(|index| index as usize);
                let row = l * m + at / n % m;
                a[row * k..][..k].iter().copied().zip(column(&b[r * k * n..], n, at % n))
            };
            let oracle = Oracle::new(5 * m * n, dtype, terms);
            let (a, b) = (Array::of_floats(&a, &[2, m, k], dtype), Array::of_floats(&b, &[3, k, n], dtype));
            let inputs = [&a, &b, &left, &right].map(Array::view);
            for &path in &paths {
                let mut y = Array::zeros(&[5, m, n], dtype);
                cpu::picked(path, &inputs, &mut y.view_mut()).unwrap();
                let of = || format!("{path} {m} {n} {k} {dtype:?} {i} {j}");
                assert_close(&y.values(), &oracle.exact, oracle.allowed(dtype, 1.0), &of);
            }
        }
    }
    println!("{paths:?}: picked matrices");
}

#[test]
fn long_large_and_tiny_products() {
    let (paths, random) = (paths(), &mut Random(13));
    let half = [(Dtype::Float16, [0, 0])];
    let others = [[0, 0], [-62, -62], [-125, 20], [10, -130], [-40, -5], [-133, 100], [60, 50]]
        .map(|p| (Dtype::Bfloat16, p));
    for (dtype, powers) in half.into_iter().chain(others) {
        let [m, n, k] = [20, 36, 600];
        let (a, b) = (numbers(m * k, dtype, powers[0], random), numbers(k * n, dtype, powers[1], random));
        let terms = |at: usize| a[at / n * k..][..k].iter().copied().zip(column(&b, n, at % n));
        let oracle = Oracle::new(m * n, dtype, terms);
        let allowed = oracle.allowed(dtype, 2f64.powi(powers[0] + powers[1]));
        let [a, b] = [(&a, [m, k]), (&b, [k, n])].map(|(v, shape)| Array::of_floats(v, &shape, dtype));
        for &path in &paths {
            let mut y = Array::zeros(&[m, n], dtype);
            cpu::products(path, None, &[a.view(), b.view()], &mut y.view_mut()).unwrap();
            assert_close(&y.values(), &oracle.exact, allowed, &|| format!("{path} {dtype:?} {powers:?}"));
        }
    }
    println!("{paths:?}: long, large and tiny products");
}

#[test]
fn infinities_and_nans_go_where_they_belong() {
    let paths = paths();
    for [m, n] in [[1, 40], [20, 40], [40, 3]] {
        for dtype in [Dtype::Bfloat16, Dtype::Float16] {
            for special in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let mut a = vec![1.0; m * 20];
                a[7] = special;
                let a = Array::of_floats(&a, &[m, 20], dtype);
                let b = Array::of_floats(&vec![2.0; 20 * n], &[20, n], dtype);
                for &path in &paths {
                    let mut y = Array::zeros(&[m, n], dtype);
                    cpu::products(path, None, &[a.view(), b.view()], &mut y.view_mut()).unwrap();
                    let values = y.values();
                    let (first, rest) = values.split_at(n);
                    assert!(first.iter().all(|y| *y == special || special.is_nan() && y.is_nan()), "{path}");
                    assert!(rest.iter().all(|y| *y == 40.0), "{path}");
                }
            }
        }
    }
    println!("{paths:?}: infinities and NaNs");
}
