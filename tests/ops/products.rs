//! Matrix products and convolutions against sums in f64.

use mlxport::ops::{self, Conv};
use mlxport::{Array, Dtype};
use num_complex::Complex32;
use proptest::prelude::*;
use support::element::{FLOATS, reals};
use support::nd::{broadcast_shapes, indices};
use support::strategy::{self, MODERATE};
use support::{Expected, Input, Nd, Tolerance, assert_matches, check, computes};

/// The sum of `term` over all indices of `over`, for each index of `shape`, and the sum of magnitudes.
fn sums(shape: &[usize], over: &[usize], term: impl Fn(&[usize], &[usize]) -> f64, dtype: Dtype) -> Expected {
    let over = indices(over);
    let sum = |f: fn(f64) -> f64| Nd::from_fn(shape, |at| over.iter().map(|k| f(term(at, k))).sum::<f64>());
    Expected::sums(&sum(|v| v), &sum(f64::abs), dtype)
}

fn pair(a: Vec<usize>, b: Vec<usize>) -> impl Strategy<Value = (Input, Input)> {
    strategy::dtype(FLOATS)
        .prop_flat_map(move |d| (strategy::input(d, &a, MODERATE), strategy::input(d, &b, MODERATE)))
}

fn matmul(a: &Nd<f64>, b: &Nd<f64>, dtype: Dtype) -> Expected {
    let (an, bn) = (a.shape.len(), b.shape.len());
    let batch = broadcast_shapes(&a.shape[..an - 2], &b.shape[..bn - 2]).unwrap();
    let (rows, depth, columns) = (a.shape[an - 2], a.shape[an - 1], b.shape[bn - 1]);
    let full = |x: &Nd<f64>| x.broadcast_to(&[&batch[..], &x.shape[x.shape.len() - 2..]].concat());
    let (a, b, n) = (full(a), full(b), batch.len());
    let term = |at: &[usize], k: &[usize]| {
        a.at(&[&at[..=n], k].concat()) * b.at(&[&at[..n], k, &at[n + 1..]].concat())
    };
    sums(&[&batch[..], &[rows, columns]].concat(), &[depth], term, dtype)
}

#[test]
fn matmul_broadcasts_its_batches() {
    let sizes = (strategy::broadcastable(2), 0..6usize, 0..9usize, 0..6usize);
    let cases =
        sizes.prop_flat_map(|((a, b), m, k, n)| pair([a, vec![m, k]].concat(), [b, vec![k, n]].concat()));
    check(128, cases, |device, (a, b)| {
        let dtype = a.tensor.dtype();
        if computes(device, dtype) {
            let expected = matmul(&reals(&a.tensor), &reals(&b.tensor), dtype);
            assert_matches(&ops::matmul(&a.array(), &b.array()).unwrap(), &expected, Tolerance::Balanced);
        }
    });
}

#[test]
fn larger_matrices_and_vectors() {
    let cases =
        (1..4usize, 33..70usize, 1..40usize).prop_flat_map(|(m, k, n)| pair(vec![m * 7, k], vec![k, n]));
    check(16, cases, |device, (a, b)| {
        let dtype = a.tensor.dtype();
        if !computes(device, dtype) {
            return;
        }
        let (x, y) = (reals(&a.tensor), reals(&b.tensor));
        assert_matches(
            &ops::matmul(&a.array(), &b.array()).unwrap(),
            &matmul(&x, &y, dtype),
            Tolerance::Balanced,
        );
        let row = ops::take(&a.array(), &Array::from(0i32), 0).unwrap();
        let first = Nd::new(&[x.shape[1]], x.data[..x.shape[1]].to_vec());
        let expected = sums(&[y.shape[1]], &[y.shape[0]], |j, k| first.at(k) * y.at(&[k[0], j[0]]), dtype);
        assert_matches(&ops::matmul(&row, &b.array()).unwrap(), &expected, Tolerance::Balanced);
    });
}

#[test]
fn shapes_that_do_not_fit_and_integers_have_no_product() {
    let zeros = |shape: &[i32], dtype| ops::zeros(shape, dtype).unwrap();
    assert!(ops::matmul(&zeros(&[2, 3], Dtype::Float32), &zeros(&[2, 3], Dtype::Float32)).is_err());
    assert!(ops::matmul(&zeros(&[2, 3], Dtype::Int32), &zeros(&[3, 2], Dtype::Int32)).is_err());
    assert!(ops::matmul(&zeros(&[], Dtype::Float32), &zeros(&[1], Dtype::Float32)).is_err());
}

#[test]
fn sums_of_products_in_other_words() {
    let cases = (1..5usize, 1..6usize, 1..5usize).prop_flat_map(|(m, k, n)| pair(vec![m, k], vec![n, k]));
    check(48, cases, |device, (a, b)| {
        let dtype = a.tensor.dtype();
        if !computes(device, dtype) {
            return;
        }
        let (x, y, tolerance) = (reals(&a.tensor), reals(&b.tensor), Tolerance::Balanced);
        let (a, b) = (a.array(), b.array());
        let (m, k, n) = (x.shape[0], x.shape[1], y.shape[0]);
        let product = |at: &[usize], k: &[usize]| x.at(&[at[0], k[0]]) * y.at(&[at[1], k[0]]);
        let expected = sums(&[m, n], &[k], product, dtype);
        assert_matches(&ops::einsum("ik,jk->ij", [&a, &b]).unwrap(), &expected, tolerance);
        assert_matches(&ops::inner(&a, &b).unwrap(), &expected, tolerance);
        assert_matches(&ops::tensordot(&a, &b, (&[1], &[1])).unwrap(), &expected, tolerance);
        let transposed = ops::transpose(&b, ..).unwrap();
        assert_matches(&ops::tensordot(&a, &transposed, 1).unwrap(), &expected, tolerance);
        let total = sums(&[], &[m, k], |_, i| *x.at(i), dtype);
        assert_matches(&ops::einsum("ik->", [&a]).unwrap(), &total, tolerance);
        let all = sums(&[m, k, n, k], &[], |at, _| x.at(&at[..2]) * y.at(&at[2..]), dtype);
        let outer = ops::reshape(&ops::outer(&a, &b).unwrap(), &[m, k, n, k].map(|n| n as i32)).unwrap();
        assert_matches(&outer, &all, tolerance);
        let kron = sums(
            &[m * n, k * k],
            &[],
            |at, _| x.at(&[at[0] / n, at[1] / k]) * y.at(&[at[0] % n, at[1] % k]),
            dtype,
        );
        assert_matches(&ops::kron(&a, &b).unwrap(), &kron, tolerance);
        let c = ops::full(&[n as i32], 0.5, dtype).unwrap();
        let fused =
            sums(&[m, n], &[k + 1], |at, i| if i[0] == k { 0.25 } else { 2.0 * product(at, i) }, dtype);
        assert_matches(&ops::addmm(&c, &a, &transposed, 2.0, 0.5).unwrap(), &fused, Tolerance::Permissive);
    });
}

#[test]
fn gathered_products_pick_their_matrices() {
    // The CPU has this operation for float32 alone.
    let dtype = Dtype::Float32;
    let of = |shape: &[usize]| strategy::input(dtype, shape, MODERATE);
    let picks = any::<[prop::sample::Index; 4]>();
    check(48, (of(&[3, 2, 5]), of(&[4, 5, 3]), picks), |_, (a, b, picks)| {
        let (x, y) = (reals(&a.tensor), reals(&b.tensor));
        let index = |size| picks.iter().map(|p| p.index(size)).collect::<Vec<_>>();
        let (left, right) = (index(3), index(4));
        let array = |of: &[usize]| {
            Array::from_slice(&of.iter().map(|&i| i as u32).collect::<Vec<_>>(), &[4]).unwrap()
        };
        let term = |at: &[usize], k: &[usize]| {
            x.at(&[left[at[0]], at[1], k[0]]) * y.at(&[right[at[0]], k[0], at[2]])
        };
        let found = ops::gather_mm(&a.array(), &b.array(), Some(&array(&left)), Some(&array(&right)), false);
        assert_matches(&found.unwrap(), &sums(&[4, 2, 3], &[5], term, dtype), Tolerance::Balanced);
    });
}

/// Where a tap of the kernel reads, if inside.
fn tap(out: usize, tap: usize, stride: i32, padding: i32, dilation: i32, size: usize) -> Option<usize> {
    let at = out as i32 * stride + tap as i32 * dilation - padding;
    usize::try_from(at).ok().filter(|&at| at < size)
}

fn taps(size: usize, kernel: usize, how: (i32, i32, i32)) -> usize {
    ((size as i32 + 2 * how.1 - how.2 * (kernel as i32 - 1) - 1) / how.0 + 1) as usize
}

#[test]
fn convolutions() {
    let how = || (1..4i32, 0..3i32, 1..3i32);
    let cases = (how(), how(), 1..4usize, 1..4usize, 1..3usize, 1..3usize);
    let cases = cases.prop_flat_map(|(h, w, kh, kw, groups, per)| {
        let input = vec![2, kh * 3 + 2, kw * 3 + 2, groups * per];
        (Just((h, w, groups)), pair(input, vec![groups * 2, kh, kw, per]))
    });
    check(48, cases, |device, ((h, w, groups), (x, k))| {
        let dtype = x.tensor.dtype();
        if !computes(device, dtype) || dtype == Dtype::Float64 {
            return;
        }
        let (values, kernel) = (reals(&x.tensor), reals(&k.tensor));
        let (s, ks) = (&values.shape, &kernel.shape);
        let shape = [s[0], taps(s[1], ks[1], *h), taps(s[2], ks[2], *w), ks[0]];
        let per_group = ks[0] / groups;
        let term = |at: &[usize], i: &[usize]| {
            let (y, x) = (tap(at[1], i[0], h.0, h.1, h.2, s[1]), tap(at[2], i[1], w.0, w.1, w.2, s[2]));
            let (Some(y), Some(x)) = (y, x) else { return 0.0 };
            let channel = at[3] / per_group * ks[3] + i[2];
            values.at(&[at[0], y, x, channel]) * kernel.at(&[at[3], i[0], i[1], i[2]])
        };
        let how =
            Conv { stride: [h.0, w.0], padding: [h.1, w.1], dilation: [h.2, w.2], groups: *groups as i32 };
        let found = ops::conv2d(&x.array(), &k.array(), how).unwrap();
        assert_matches(&found, &sums(&shape, &ks[1..], term, dtype), Tolerance::Permissive);
    });
}

#[test]
fn a_transposed_convolution_is_the_adjoint() {
    // <conv(x), y> = <x, conv_transpose(y)>, for whole strides.
    let cases = (1..4i32, 0..2i32, 2..4usize, 2..5usize).prop_flat_map(|(stride, padding, taps, out)| {
        let length = (out - 1) * stride as usize + taps - 2 * padding as usize;
        let of = |shape: &[usize]| strategy::input(Dtype::Float32, shape, MODERATE);
        (Just((stride, padding)), of(&[1, length, 2]), of(&[1, out, 3]), of(&[3, taps, 2]))
    });
    check(48, cases, |_, ((stride, padding), x, y, k)| {
        let how = Conv { stride: [*stride], padding: [*padding], ..Conv::default() };
        let forward = ops::conv1d(&x.array(), &k.array(), how).unwrap();
        let swapped = ops::swapaxes(&k.array(), 0, 2).unwrap();
        let back = ops::conv_transpose1d(&y.array(), &swapped, how, [0]).unwrap();
        assert_eq!(back.shape(), x.array().shape());
        let dot = |a: &Nd<f64>, b: &Nd<f64>| {
            a.zip(b, |a, b| a * b).data.iter().fold((0.0, 0.0), |(s, m), v: &f64| (s + v, m + v.abs()))
        };
        let of = |a: &Array| reals(&a.to_host().unwrap());
        let ((left, magnitude), (right, _)) =
            (dot(&of(&forward), &reals(&y.tensor)), dot(&reals(&x.tensor), &of(&back)));
        assert!(
            (left - right).abs() <= Tolerance::Permissive.relative(Dtype::Float32) * (magnitude + 1.0),
            "{left} {right}"
        );
    });
}

#[test]
fn products_along_an_axis() {
    let cases =
        (1..5usize, 0..6usize, 1..5usize).prop_flat_map(|(m, k, n)| pair(vec![m, k, n], vec![1, k, 1]));
    check(48, cases, |device, (a, b)| {
        let dtype = a.tensor.dtype();
        if computes(device, dtype) {
            let (x, y) = (reals(&a.tensor), reals(&b.tensor));
            let term = |at: &[usize], k: &[usize]| x.at(&[at[0], k[0], at[1]]) * y.at(&[0, k[0], 0]);
            let expected = sums(&[x.shape[0], x.shape[2]], &x.shape[1..2], term, dtype);
            assert_matches(&ops::vecdot(&a.array(), &b.array(), 1).unwrap(), &expected, Tolerance::Balanced);
        }
    });
    let conjugated = [Complex32::new(1.0, 2.0), Complex32::new(0.0, -1.0)];
    let a = Array::from_slice(&conjugated, &[2]).unwrap();
    let b = Array::from_slice(&[Complex32::new(3.0, 0.0), Complex32::new(0.0, 5.0)], &[2]).unwrap();
    // (1 - 2i) 3 + i 5i.
    assert_eq!(ops::vecdot(&a, &b, 0).unwrap().item::<Complex32>().unwrap(), Complex32::new(-2.0, -6.0));
}

#[test]
fn products_with_masked_blocks() {
    let of = |shape: &[usize]| strategy::input(Dtype::Float32, shape, MODERATE);
    let cases = (1..100usize, 1..80usize, 1..70usize).prop_flat_map(move |(m, k, n)| {
        let tiles = |rows: usize, columns: usize| {
            let count = rows.div_ceil(32) * columns.div_ceil(32);
            prop::collection::vec(prop::sample::select(vec![0.0f32, 0.5, 2.0]), count)
        };
        (of(&[m, k]), of(&[k, n]), tiles(m, n), tiles(m, k), tiles(k, n))
    });
    check(24, cases, |_, (a, b, out, left, right)| {
        let (x, y) = (reals(&a.tensor), reals(&b.tensor));
        let (m, k, n) = (x.shape[0], x.shape[1], y.shape[1]);
        let tile = |tiles: &[f32], columns: usize, i: usize, j: usize| {
            f64::from(tiles[i / 32 * columns.div_ceil(32) + j / 32])
        };
        let term = |at: &[usize], l: &[usize]| {
            let (i, j, l) = (at[0], at[1], l[0]);
            let factors = tile(out, n, i, j) * tile(left, k, i, l) * tile(right, n, l, j);
            factors * x.at(&[i, l]) * y.at(&[l, j])
        };
        let mask = |tiles: &[f32], rows: usize, columns: usize| {
            let shape = [rows.div_ceil(32), columns.div_ceil(32)].map(|size| size as i32);
            Array::from_slice(tiles, &shape).unwrap()
        };
        let (out, left, right) = (mask(out, m, n), mask(left, m, k), mask(right, k, n));
        let found =
            ops::block_masked_mm(&a.array(), &b.array(), 32, Some(&out), Some(&left), Some(&right)).unwrap();
        assert_matches(&found, &sums(&[m, n], &[k], term, Dtype::Float32), Tolerance::Balanced);
    });
}

#[test]
fn walsh_hadamard_transforms() {
    // Entry (i, j) of the matrix is -1 to the number of bits that both have.
    let cases = (0..7u32, 1..4usize)
        .prop_flat_map(|(bits, rows)| strategy::input(Dtype::Float32, &[rows, 1 << bits], MODERATE));
    check(32, cases, |_, a| {
        let x = reals(&a.tensor);
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        for scale in [None, Some(0.5f32)] {
            let factor = scale.map_or(1.0 / (x.shape[1] as f64).sqrt(), f64::from);
            let term = |at: &[usize], k: &[usize]| factor * sign(at[1], k[0]) * x.at(&[at[0], k[0]]);
            let expected = sums(&x.shape, &x.shape[1..], term, Dtype::Float32);
            assert_matches(
                &ops::hadamard_transform(&a.array(), scale).unwrap(),
                &expected,
                Tolerance::Balanced,
            );
        }
    });
}
