//! `matmul`, `addmm` and `gather_mm` against sums in `f64`.

use mlxport::kernels;
use mlxport::{Array, Dtype, ops, transforms};
use proptest::prelude::*;

use crate::{FLOATS, assert_maps, assert_repeats, bits, check, fast_paths, rounded};
use support::{Numbers, to_f64};

/// How an operand lies in memory.
#[derive(Debug, Clone, Copy)]
pub enum Lies {
    RowMajor,
    Transposed,
    /// Every second row and column of a larger matrix.
    Strided,
    /// Backwards.
    Flipped,
}

pub const LIES: [Lies; 4] = [Lies::RowMajor, Lies::Transposed, Lies::Strided, Lies::Flipped];

/// `array` with the same elements, as `lies` says.
pub fn laid_out(array: &Array, lies: Lies) -> Array {
    let shape = array.shape().to_vec();
    let n = shape.len() as i32;
    match lies {
        Lies::RowMajor => array.clone(),
        Lies::Transposed => {
            let turned = ops::contiguous(&ops::swapaxes(array, n - 2, n - 1).unwrap(), false).unwrap();
            ops::swapaxes(&turned, n - 2, n - 1).unwrap()
        }
        Lies::Strided => {
            let (rows, columns) = (n - 2, n - 1);
            let wide = ops::repeat(&ops::repeat(array, 2, rows).unwrap(), 2, columns).unwrap();
            let strides: Vec<i32> = (0..n).map(|axis| if axis < n - 2 { 1 } else { 2 }).collect();
            ops::slice(&wide, &vec![0; n as usize], wide.shape(), &strides).unwrap()
        }
        Lies::Flipped => {
            let flip = |a: &Array| {
                let (mut start, mut stop, mut strides) =
                    (vec![0; n as usize], a.shape().to_vec(), vec![1; n as usize]);
                let at = n as usize - 2;
                (start[at], stop[at], strides[at]) = (a.shape()[at] - 1, -a.shape()[at] - 1, -1);
                ops::slice(a, &start, &stop, &strides).unwrap()
            };
            flip(&ops::contiguous(&flip(array), false).unwrap())
        }
    }
}

/// An array of random numbers and its values, as stored.
fn random(random: &mut Numbers, shape: &[i32], dtype: Dtype, lies: Lies) -> (Array, Vec<f64>) {
    let count = shape.iter().map(|&d| d as usize).product();
    let values: Vec<f64> =
        (0..count).map(|_| (random.bits() >> 40) as f64 / f64::from(1 << 23) - 1.0).collect();
    let (array, values) = rounded(&values, shape, dtype);
    (laid_out(&array, lies), values)
}

/// `a @ b` of two batches of the same size, or of one matrix (size 1).
fn exact(a: &[f64], b: &[f64], batch: [usize; 2], [m, n, k]: [usize; 3]) -> Vec<f64> {
    let mut out = Vec::new();
    for i in 0..if batch.contains(&0) { 0 } else { batch[0].max(batch[1]) } {
        let (a, b) = (&a[i % batch[0] * m * k..], &b[i % batch[1] * k * n..]);
        for (r, c) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
            out.push((0..k).map(|j| a[r * k + j] * b[j * n + c]).sum());
        }
    }
    out
}

fn sizes() -> impl Strategy<Value = [usize; 3]> {
    let m = prop::sample::select(vec![0, 1, 2, 3, 4, 5, 7, 8, 9, 23]);
    let n = prop::sample::select(vec![0, 1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 130]);
    let k = prop::sample::select(vec![0, 1, 2, 5, 8, 16, 31, 100, 257, 300]);
    (m, n, k).prop_map(|(m, n, k)| [m, n, k])
}

/// Both operands' batch dimensions, and how many matrices that is each.
const BATCHES: [(&[i32], &[i32]); 7] =
    [(&[], &[]), (&[3], &[]), (&[], &[2]), (&[2], &[2]), (&[1], &[3]), (&[0], &[]), (&[4], &[1])];

proptest! {
    #![proptest_config(crate::config(64))]

    #[test]
    fn products_are_as_exact_as_the_reference(
        [m, n, k] in sizes(),
        turned: bool,
        dtypes in prop::sample::select(vec![
            [Dtype::Bfloat16; 2],
            [Dtype::Float16; 2],
            [Dtype::Bfloat16, Dtype::Float32],
            [Dtype::Float32, Dtype::Float16],
            [Dtype::Float16, Dtype::Bfloat16],
        ]),
        lies in (prop::sample::select(&LIES[..]), prop::sample::select(&LIES[..])),
        batch in prop::sample::select(&BATCHES[..]),
        seed: u64,
    ) {
        let [m, n] = if turned { [n, m] } else { [m, n] };
        let shape = |batch: &[i32], rows: usize, columns: usize| {
            batch.iter().copied().chain([rows as i32, columns as i32]).collect::<Vec<_>>()
        };
        let mut numbers = Numbers(seed);
        let (a, a_values) = random(&mut numbers, &shape(batch.0, m, k), dtypes[0], lies.0);
        let (b, b_values) = random(&mut numbers, &shape(batch.1, k, n), dtypes[1], lies.1);
        let count = |batch: &[i32]| batch.iter().product::<i32>() as usize;
        let product = exact(&a_values, &b_values, [count(batch.0), count(batch.1)], [m, n, k]);
        let f = || ops::matmul(&a, &b);
        check(&product, 1.0, f, f)?;

        let c_shape = [vec![n as i32], vec![m as i32, 1], vec![1], vec![m as i32, n as i32]];
        let c_shape = &c_shape[seed as usize % 4];
        let c_lies = if c_shape.len() > 1 { lies.0 } else { Lies::RowMajor };
        let (c, c_values) = random(&mut numbers, c_shape, dtypes[0], c_lies);
        let sum = |(i, p): (usize, &f64)| {
            let (row, column) = (i / n % m, i % n);
            let at = match c_shape[..] {
                [1] => 0,
                [_] => column,
                [_, 1] => row,
                _ => row * n + column,
            };
            0.5 * p - 2.0 * c_values[at]
        };
        let expected: Vec<f64> = product.iter().enumerate().map(sum).collect();
        // MLX's own refuses some sums without elements, and batches of products without any.
        prop_assume!(!expected.is_empty() && (k > 0 || batch.0.is_empty()));
        let f = || ops::addmm(&c, &a, &b, 0.5, -2.0);
        check(&expected, 4.0, f, f)?;
    }

    #[test]
    fn picked_products_are_as_exact_as_the_reference(
        [m, n, k] in sizes(),
        dtype in prop::sample::select(&FLOATS[..]),
        lies in (prop::sample::select(&LIES[..]), prop::sample::select(&LIES[..])),
        picks in prop::collection::vec((0..4u32, 0..3u32), 1..12),
        which in 0..4,
        seed: u64,
    ) {
        let (m, n, k) = (m.max(1), n.max(1), k.max(1));
        let mut numbers = Numbers(seed);
        let (a, a_values) = random(&mut numbers, &[2, 2, m as i32, k as i32], dtype, lies.0);
        let (b, b_values) = random(&mut numbers, &[3, k as i32, n as i32], dtype, lies.1);
        let count = picks.len();
        let of = |f: fn(&(u32, u32)) -> u32| {
            Array::from_slice(&picks.iter().map(f).collect::<Vec<_>>(), &[count as i32]).unwrap()
        };
        let (lhs, rhs) = (of(|p| p.0), of(|p| p.1));
        let one = Array::from_slice(&[2u32], &[1, 1]).unwrap();
        // All pairs; the matrices of `a` in order with one of `b`; one of `a` with all of `b`, in order.
        let (lhs, rhs, pairs): (_, _, Vec<(usize, usize)>) = match which {
            0 | 1 => (Some(&lhs), Some(&rhs), picks.iter().map(|p| (p.0 as usize, p.1 as usize)).collect()),
            2 => (None, Some(&one), (0..4).map(|i| (i, 2)).collect()),
            _ => (Some(&one), None, (0..3).map(|i| (2, i)).collect()),
        };
        let product = |&(l, r): &(usize, usize)| {
            exact(&a_values[l * m * k..][..m * k], &b_values[r * k * n..][..k * n], [1, 1], [m, n, k])
        };
        let expected: Vec<f64> = pairs.iter().flat_map(product).collect();
        // MLX has it in `float32` only.
        let wide = |x: &Array| ops::astype(x, Dtype::Float32);
        let reference = || ops::astype(&ops::gather_mm(&wide(&a)?, &wide(&b)?, lhs, rhs, false)?, dtype);
        check(&expected, 1.0, || ops::gather_mm(&a, &b, lhs, rhs, false), reference)?;
    }
}

#[test]
fn long_and_tiny_products_are_as_exact_as_the_reference() {
    let half = [(Dtype::Float16, [0, 0])];
    let tiny =
        [[0, 0], [-62, -62], [-125, 20], [10, -130], [-40, -5]].map(|powers| (Dtype::Bfloat16, powers));
    for (i, (dtype, powers)) in half.into_iter().chain(tiny).enumerate() {
        let [m, n, k] = [40, 70, 1100];
        let mut numbers = Numbers(i as u64);
        let mut operand = |shape: [usize; 2], power: i32| {
            let values: Vec<f64> =
                numbers.values(shape[0] * shape[1]).iter().map(|v| v * 2f64.powi(power)).collect();
            rounded(&values, &shape.map(|size| size as i32), dtype)
        };
        let ((a, a_values), (b, b_values)) = (operand([m, k], powers[0]), operand([k, n], powers[1]));
        let product = exact(&a_values, &b_values, [1, 1], [m, n, k]);
        let f = || ops::matmul(&a, &b);
        check(&product, 2f64.powi(powers[0] + powers[1]), f, f).unwrap();
    }
}

#[test]
fn infinities_and_nans_go_where_they_belong() {
    for (m, n) in [(1, 40), (20, 40), (40, 3)] {
        for special in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            let mut a = vec![1.0; m * 20];
            a[7] = special;
            let (a, _) = rounded(&a, &[m as i32, 20], Dtype::Bfloat16);
            let (b, _) = rounded(&vec![2.0; 20 * n], &[20, n as i32], Dtype::Bfloat16);
            for path in fast_paths() {
                let y = to_f64(&kernels::force(path, || ops::matmul(&a, &b)).unwrap().unwrap());
                let (first, rest) = y.split_at(n);
                assert!(first.iter().all(|y| *y == special || special.is_nan() && y.is_nan()), "{path}");
                assert!(rest.iter().all(|y| *y == 40.0), "{path}");
            }
        }
    }
}

#[test]
fn results_repeat_and_do_not_depend_on_the_threads() {
    let before = kernels::threads();
    for [m, n, k] in [[1, 200, 300], [20, 100, 270], [6, 600, 20]] {
        let mut numbers = Numbers(4);
        let (a, _) = random(&mut numbers, &[m, k], Dtype::Bfloat16, Lies::RowMajor);
        for lies in LIES {
            let (b, _) = random(&mut numbers, &[k, n], Dtype::Float32, lies);
            for path in fast_paths() {
                let mut seen = Vec::new();
                for threads in [1, 2, 3, 7] {
                    kernels::set_threads(threads).unwrap();
                    seen.push(bits(&kernels::force(path, || ops::matmul(&a, &b)).unwrap().unwrap()));
                }
                assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{path} {m} {n} {k} {lies:?}");
            }
        }
    }
    kernels::set_threads(before).unwrap();
}

#[test]
fn the_gradient_is_that_of_the_product() {
    let mut numbers = Numbers(9);
    let (a, a_values) = random(&mut numbers, &[5, 6], Dtype::Bfloat16, Lies::RowMajor);
    let (b, b_values) = random(&mut numbers, &[6, 7], Dtype::Float32, Lies::Transposed);
    let (c, _) = random(&mut numbers, &[7], Dtype::Float32, Lies::RowMajor);
    let loss = |args: &[Array]| ops::sum(&ops::addmm(&args[2], &args[0], &args[1], 3.0, 2.0)?, .., false);
    for path in fast_paths() {
        let args = [a.clone(), b.clone(), c.clone()];
        let (_, grads) = kernels::force(path, || transforms::value_and_grad(loss, &args)).unwrap().unwrap();
        let of_a: Vec<f64> =
            (0..30).map(|i| 3.0 * (0..7).map(|j| b_values[i % 6 * 7 + j]).sum::<f64>()).collect();
        let of_b: Vec<f64> =
            (0..42).map(|i| 3.0 * (0..5).map(|r| a_values[r * 6 + i / 7]).sum::<f64>()).collect();
        support::assert_close(&grads[0], &of_a, support::REDUCTION);
        support::assert_close(&grads[1], &of_b, support::REDUCTION);
        support::assert_close(&grads[2], &[10.0; 7], support::REDUCTION);
    }
}

#[test]
fn many_rows_are_as_exact_as_the_reference() {
    // More than are packed at a time and than a thread takes, and two batches of sums with something added.
    for (i, [m, n, k]) in
        [[530, 600, 20], [1030, 40, 3], [300, 200, 5], [600, 530, 4]].into_iter().enumerate()
    {
        let mut numbers = Numbers(i as u64);
        let batch = if i == 2 { 2 } else { 1 };
        let (a, a_values) = random(&mut numbers, &[batch, m, k], Dtype::Bfloat16, Lies::RowMajor);
        let (b, b_values) = random(&mut numbers, &[batch, k, n], Dtype::Bfloat16, Lies::RowMajor);
        let (c, c_values) = random(&mut numbers, &[batch, m, n], Dtype::Bfloat16, Lies::RowMajor);
        let sizes = [m, n, k].map(|size| size as usize);
        let product = exact(&a_values, &b_values, [batch as usize; 2], sizes);
        check(&product, 1.0, || ops::matmul(&a, &b), || ops::matmul(&a, &b)).unwrap();
        let sums = product.iter().enumerate().map(|(at, p)| p + c_values[at]);
        let f = || ops::addmm(&c, &a, &b, 1.0, 1.0);
        check(&sums.collect::<Vec<_>>(), 1.0, f, f).unwrap();
    }
}

#[test]
fn they_map_over_an_axis() {
    let mut numbers = Numbers(9);
    let mut draw = |shape: &[i32]| random(&mut numbers, shape, Dtype::Bfloat16, Lies::RowMajor).0;
    let (a, b, c) = (draw(&[3, 4, 5]), draw(&[5, 6, 3]), draw(&[6]));
    assert_maps(&[&a, &b, &c], &[Some(0), Some(2), None], |args| {
        let [a, b, c] = args else { unreachable!() };
        Ok(vec![ops::matmul(a, b)?, ops::addmm(c, a, b, 0.5, 2.0)?])
    });
    let shared = draw(&[5, 6]);
    assert_maps(&[&a, &shared], &[Some(0), None], |args| Ok(vec![ops::matmul(&args[0], &args[1])?]));
}

#[test]
fn picked_products_repeat_have_gradients_and_take_any_index() {
    let mut numbers = Numbers(9);
    let (a, a_values) = random(&mut numbers, &[3, 2, 5], Dtype::Float32, Lies::RowMajor);
    let (b, b_values) = random(&mut numbers, &[2, 5, 4], Dtype::Float32, Lies::RowMajor);
    let (left, right) = ([2u32, 0, 2], [1u32, 0, 0]);
    let indices = |of: &[u32]| Array::from_slice(of, &[of.len() as i32]).unwrap();
    let picked = |a: &Array, b: &Array, left: &[u32], right: &[u32]| {
        ops::gather_mm(a, b, Some(&indices(left)), Some(&indices(right)), false)
    };
    let expected = crate::differences(&[a_values, b_values], |values| {
        let product = |(&l, &r): (&u32, &u32)| {
            exact(&values[0][l as usize * 10..][..10], &values[1][r as usize * 20..][..20], [1, 1], [2, 4, 5])
        };
        left.iter().zip(&right).flat_map(product).map(|y| y * y).sum()
    });
    let loss =
        |args: &[Array]| ops::sum(&ops::square(&picked(&args[0], &args[1], &left, &right)?)?, .., false);
    for path in fast_paths() {
        let found = kernels::force(path, || transforms::value_and_grad(loss, [&a, &b])).unwrap().unwrap().1;
        for (found, expected) in found.iter().zip(&expected) {
            support::assert_close(found, expected, support::SOLVER);
        }
        // Indices are taken modulo the size of the batch.
        let on = |left: &[u32], right: &[u32]| kernels::force(path, || picked(&a, &b, left, right)).unwrap();
        assert_eq!(bits(&on(&[5, u32::MAX], &[3, 4]).unwrap()), bits(&on(&[2, 0], &[1, 0]).unwrap()));
    }
    for dtype in FLOATS {
        let (a, b) = (ops::astype(&a, dtype).unwrap(), ops::astype(&b, dtype).unwrap());
        assert_repeats(|| Ok(vec![picked(&a, &b, &left, &right)?]));
    }
}

#[test]
fn what_does_not_fit_is_refused_as_before() {
    let half = |shape: &[i32]| ops::zeros(shape, Dtype::Bfloat16).unwrap();
    assert!(ops::matmul(&half(&[2, 3]), &half(&[4, 5])).is_err());
    assert!(ops::matmul(&half(&[2, 3, 4]), &half(&[3, 4, 5])).is_err());
    assert!(ops::addmm(&half(&[7]), &half(&[2, 3]), &half(&[3, 5]), 1.0, 1.0).is_err());
    assert_eq!(ops::matmul(&half(&[3]), &half(&[3, 5])).unwrap().shape(), [5]);
    assert_eq!(ops::matmul(&half(&[2, 3]), &half(&[3])).unwrap().shape(), [2]);
}
