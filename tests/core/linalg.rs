//! Factorisations by what they promise: their factors have their properties, and their product is the
//! matrix, computed in `f64`.

use mlxport::linalg::{self, Norm};
use mlxport::{Array, Dtype};
use num_complex::{Complex32, Complex64};

use support::{Numbers, ROUNDING, SOLVER, assert_close, epsilon, f32_array, to_f64};

/// `a b` of an `[m, k]` and a `[k, n]` matrix.
fn product(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let n = b.len() / k;
    let element = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum::<f64>();
    (0..a.len() / k).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
}

fn transposed(a: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| a.iter().copied().skip(j).step_by(columns)).collect()
}

fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|i| f64::from(u8::from(i % (n + 1) == 0))).collect()
}

#[track_caller]
fn assert_near(found: &[f64], expected: &[f64]) {
    assert_close(&Array::from_slice(found, &[found.len() as i32]).unwrap(), expected, f32_tolerance());
}

/// What the factors lost in `float32`, for a product of them in `f64`.
fn f32_tolerance() -> support::Ulps {
    support::Ulps(SOLVER.0 * epsilon(Dtype::Float32) / epsilon(Dtype::Float64))
}

/// `a^T a + I / 2`: symmetric and positive definite.
fn positive(n: usize) -> (Array, Vec<f64>) {
    let a = Numbers(n as u64).values(n * n);
    let square = product(&transposed(&a, n), &a, n);
    let values: Vec<f64> = square.iter().zip(identity(n)).map(|(s, i)| s + 0.5 * i).collect();
    (f32_array(&values, &[n as i32, n as i32]), values)
}

/// A matrix with a determinant well away from zero.
fn regular(n: usize) -> (Array, Vec<f64>) {
    let a = Numbers(n as u64 + 9).values(n * n);
    let values: Vec<f64> = a.iter().zip(identity(n)).map(|(a, i)| a + 3.0 * i).collect();
    (f32_array(&values, &[n as i32, n as i32]), values)
}

/// The square matrix `a` with zeros outside of one triangle.
fn triangle(a: &Array, upper: bool) -> Array {
    let n = a.shape()[0] as usize;
    let inside = |i: usize| if upper { i / n <= i % n } else { i / n >= i % n };
    let values = to_f64(a).into_iter().enumerate().map(|(i, v)| if inside(i) { v } else { 0.0 });
    f32_array(&values.collect::<Vec<f64>>(), a.shape())
}

fn is_upper(a: &[f64], columns: usize) -> bool {
    a.iter().enumerate().all(|(i, &v)| i / columns <= i % columns || v == 0.0)
}

#[test]
fn qr_and_svd_are_orthogonal_and_give_the_matrix() {
    for (m, n) in [(4, 4), (6, 3), (3, 6), (1, 1)] {
        let (a, values) = Numbers(m * 10 + n).array(&[m as i32, n as i32]);
        let (m, n) = (m as usize, n as usize);
        let k = m.min(n);
        let (q, r) = linalg::qr(&a).unwrap();
        assert_eq!((q.shape(), r.shape()), (&[m as i32, k as i32][..], &[k as i32, n as i32][..]));
        let (q, r) = (to_f64(&q), to_f64(&r));
        assert_near(&product(&transposed(&q, k), &q, m), &identity(k));
        assert!(is_upper(&r, n));
        assert_near(&product(&q, &r, k), &values);

        let (u, s, vt) = linalg::svd(&a).unwrap();
        assert_eq!(
            (u.dim(-1).unwrap(), s.shape(), vt.dim(0).unwrap()),
            (m as i32, &[k as i32][..], n as i32)
        );
        let (u, s, vt) = (to_f64(&u), to_f64(&s), to_f64(&vt));
        assert_near(&product(&transposed(&u, m), &u, m), &identity(m));
        assert_near(&product(&transposed(&vt, n), &vt, n), &identity(n));
        assert!(s.windows(2).all(|w| w[0] >= w[1]) && s[k - 1] >= 0.0);
        let scaled: Vec<f64> =
            (0..m * n).map(|i| if i % n < k { u[i / n * m + i % n] * s[i % n] } else { 0.0 }).collect();
        assert_near(&product(&scaled, &vt, n), &values);
        assert_near(&to_f64(&linalg::svdvals(&a).unwrap()), &s);
    }
}

#[test]
fn lu_gives_the_matrix_and_its_pivots_the_rows() {
    for (m, n) in [(4usize, 4usize), (5, 3), (3, 5)] {
        let (a, values) = Numbers(m as u64).array(&[m as i32, n as i32]);
        let k = m.min(n);
        let (rows, l, u) = linalg::lu(&a).unwrap();
        let (rows, l, u) = (rows.to_vec::<u32>().unwrap(), to_f64(&l), to_f64(&u));
        assert!(is_upper(&u, n) && is_upper(&transposed(&l, k), m));
        let permuted: Vec<f64> = rows.iter().flat_map(|&r| l[r as usize * k..][..k].to_vec()).collect();
        assert_near(&product(&permuted, &u, k), &values);

        let (packed, pivots) = linalg::lu_factor(&a).unwrap();
        let packed = to_f64(&packed);
        let lower = |i: usize| {
            if i / n == i % n {
                1.0
            } else if i / n > i % n {
                packed[i]
            } else {
                0.0
            }
        };
        let full: Vec<f64> = (0..m * n).filter(|i| i % n < k).map(lower).collect();
        assert_near(&full, &l);
        let mut exchanged = values.clone();
        for (i, p) in pivots.to_vec::<u32>().unwrap().into_iter().enumerate() {
            (0..n).for_each(|j| exchanged.swap(i * n + j, p as usize * n + j));
        }
        assert_near(&product(&l, &u, k), &exchanged);
    }
}

#[test]
fn inverses_undo() {
    for n in [1, 2, 5] {
        let (a, values) = regular(n);
        let inverse = to_f64(&linalg::inv(&a).unwrap());
        assert_near(&product(&inverse, &values, n), &identity(n));
        assert_near(&to_f64(&linalg::pinv(&a).unwrap()), &inverse);
        for upper in [false, true] {
            let triangle = triangle(&a, upper);
            let inverse = to_f64(&linalg::tri_inv(&a, upper).unwrap());
            assert_near(&product(&inverse, &to_f64(&triangle), n), &identity(n));
        }
    }
    let (tall, values) = Numbers(3).array(&[5, 2]);
    let pinv = linalg::pinv(&tall).unwrap();
    assert_eq!(pinv.shape(), [2, 5]);
    assert_near(&product(&to_f64(&pinv), &values, 5), &identity(2));
}

#[test]
fn cholesky_factors_multiply_to_the_matrix_and_invert_it() {
    let n = 5;
    let (a, values) = positive(n);
    for upper in [false, true] {
        let factor = linalg::cholesky(&a, upper).unwrap();
        let f = to_f64(&factor);
        let t = transposed(&f, n);
        assert!(is_upper(if upper { &f } else { &t }, n));
        let (left, right) = if upper { (&t, &f) } else { (&f, &t) };
        assert_near(&product(left, right, n), &values);
        let inverse = to_f64(&linalg::cholesky_inv(&factor, upper).unwrap());
        assert_near(&product(&inverse, &values, n), &identity(n));
    }
}

#[test]
fn solutions_solve() {
    let n = 4;
    let (a, values) = regular(n);
    let (b, right) = Numbers(1).array(&[n as i32, 3]);
    assert_near(&product(&values, &to_f64(&linalg::solve(&a, &b).unwrap()), n), &right);
    let (b, right) = Numbers(2).array(&[n as i32]);
    assert_near(&product(&values, &to_f64(&linalg::solve(&a, &b).unwrap()), n), &right);
    let lower = to_f64(&triangle(&a, false));
    let x = to_f64(&linalg::solve_triangular(&triangle(&a, false), &b, false).unwrap());
    assert_near(&product(&lower, &x, n), &right);
    let upper = to_f64(&triangle(&a, true));
    let x = to_f64(&linalg::solve_triangular(&triangle(&a, true), &b, true).unwrap());
    assert_near(&product(&upper, &x, n), &right);
}

#[test]
fn eigenvectors_are_scaled_by_their_values() {
    let n = 5;
    let (a, values) = positive(n);
    for upper in [false, true] {
        // Only one triangle is read.
        let read = triangle(&a, upper);
        let (w, v) = linalg::eigh(&read, upper).unwrap();
        let (w, v) = (to_f64(&w), to_f64(&v));
        assert!(w.windows(2).all(|w| w[0] <= w[1]));
        assert_near(&product(&transposed(&v, n), &v, n), &identity(n));
        let scaled: Vec<f64> = v.iter().enumerate().map(|(i, v)| v * w[i % n]).collect();
        assert_near(&product(&values, &v, n), &scaled);
        assert_near(&to_f64(&linalg::eigvalsh(&read, upper).unwrap()), &w);
    }

    let (a, values) = Numbers(8).array(&[n as i32, n as i32]);
    let complex = |x: &Array| -> Vec<Complex64> {
        let wide = |z: Complex32| Complex64::new(z.re.into(), z.im.into());
        x.to_vec::<Complex32>().unwrap().into_iter().map(wide).collect()
    };
    let (w, v) = linalg::eig(&a).unwrap();
    let (w, v) = (complex(&w), complex(&v));
    assert!(w.iter().any(|w| w.im != 0.0), "a matrix with complex eigenvalues");
    for (i, w) in w.iter().enumerate() {
        let column: Vec<Complex64> = v.iter().copied().skip(i).step_by(n).collect();
        let length: f64 = column.iter().map(Complex64::norm_sqr).sum();
        assert_near(&[length], &[1.0]);
        for row in 0..n {
            let left: Complex64 = (0..n).map(|j| values[row * n + j] * column[j]).sum();
            assert_near(&[(left - w * column[row]).norm() + 1.0], &[1.0]);
        }
    }
    let mut alone = complex(&linalg::eigvals(&a).unwrap());
    alone.retain(|z| !w.iter().any(|w| (w - z).norm() < 1e-4));
    assert!(alone.is_empty());
}

#[test]
fn determinants_are_those_of_the_elimination() {
    for n in [1, 2, 3, 5] {
        let (a, mut m) = Numbers(n as u64 + 40).array(&[n as i32, n as i32]);
        let mut expected = 1.0;
        for i in 0..n {
            let pivot = (i..n).max_by(|&a, &b| m[a * n + i].abs().total_cmp(&m[b * n + i].abs())).unwrap();
            if pivot != i {
                expected = -expected;
                (0..n).for_each(|j| m.swap(i * n + j, pivot * n + j));
            }
            expected *= m[i * n + i];
            for row in i + 1..n {
                let factor = m[row * n + i] / m[i * n + i];
                (i..n).for_each(|j| m[row * n + j] -= factor * m[i * n + j]);
            }
        }
        assert_close(&linalg::det(&a).unwrap(), &[expected], SOLVER);
        let (sign, log) = linalg::slogdet(&a).unwrap();
        assert_close(&sign, &[expected.signum()], ROUNDING);
        assert_close(&log, &[expected.abs().ln()], SOLVER);
    }
    let singular = f32_array(&[1.0; 16], &[4, 4]);
    assert_eq!(to_f64(&linalg::det(&singular).unwrap()), [0.0]);
    let (sign, log) = linalg::slogdet(&singular).unwrap();
    assert_eq!((to_f64(&sign)[0], to_f64(&log)[0]), (0.0, f64::NEG_INFINITY));
}

#[test]
fn norms_are_their_definitions() {
    let (a, v) = Numbers(5).array(&[2, 3, 4]);
    let all = |f: &dyn Fn(&[f64]) -> f64, size: usize| v.chunks(size).map(f).collect::<Vec<f64>>();
    let euclid = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert_close(&linalg::norm(&a, Norm::Euclidean, .., false).unwrap(), &[euclid(&v)], SOLVER);
    let kept = linalg::norm(&a, Norm::Euclidean, .., true).unwrap();
    assert_eq!(kept.shape(), [1, 1, 1]);
    assert_close(&linalg::norm(&a, Norm::Euclidean, -1, false).unwrap(), &all(&euclid, 4), SOLVER);
    assert_close(&linalg::norm(&a, Norm::Euclidean, [1, -1], false).unwrap(), &all(&euclid, 12), SOLVER);
    let vector = |p: f64, f: &dyn Fn(&[f64]) -> f64| {
        assert_close(&linalg::norm(&a, Norm::P(p), 2, true).unwrap(), &all(f, 4), SOLVER);
    };
    vector(0.0, &|x| x.iter().filter(|&&v| v != 0.0).count() as f64);
    vector(1.0, &|x| x.iter().map(|v| v.abs()).sum());
    vector(3.0, &|x| x.iter().map(|v| v.abs().powi(3)).sum::<f64>().cbrt());
    vector(f64::INFINITY, &|x| x.iter().fold(0.0, |m: f64, v| m.max(v.abs())));
    vector(f64::NEG_INFINITY, &|x| x.iter().fold(f64::MAX, |m: f64, v| m.min(v.abs())));
    let matrix = |norm: Norm, f: &dyn Fn(&[f64]) -> f64| {
        assert_close(&linalg::norm(&a, norm, [-2, -1], false).unwrap(), &all(f, 12), SOLVER);
    };
    let rows = |x: &[f64]| x.chunks(4).map(|r| r.iter().map(|v| v.abs()).sum()).collect::<Vec<f64>>();
    let columns = |x: &[f64]| rows_of(&transposed(x, 4), 3);
    matrix(Norm::P(f64::INFINITY), &|x| rows(x).into_iter().fold(0.0, f64::max));
    matrix(Norm::P(f64::NEG_INFINITY), &|x| rows(x).into_iter().fold(f64::MAX, f64::min));
    matrix(Norm::P(1.0), &|x| columns(x).into_iter().fold(0.0, f64::max));
    matrix(Norm::P(-1.0), &|x| columns(x).into_iter().fold(f64::MAX, f64::min));
    let singular = |x: &[f64]| to_f64(&linalg::svdvals(&f32_array(x, &[3, 4])).unwrap());
    matrix(Norm::P(2.0), &|x| singular(x)[0]);
    matrix(Norm::P(-2.0), &|x| singular(x)[2]);
    matrix(Norm::Nuclear, &|x| singular(x).iter().sum());
}

fn rows_of(x: &[f64], columns: usize) -> Vec<f64> {
    x.chunks(columns).map(|r| r.iter().map(|v| v.abs()).sum()).collect()
}

#[test]
fn cross_products_are_orthogonal_and_signed() {
    let a = f32_array(&[1.0, 2.0, 3.0, 0.0, 1.0, 0.0], &[2, 3]);
    let b = f32_array(&[-2.0, 0.5, 4.0], &[3]);
    let expected = [2.0 * 4.0 - 3.0 * 0.5, 3.0 * -2.0 - 1.0 * 4.0, 0.5 + 4.0, 4.0, 0.0, 2.0];
    assert_close(&linalg::cross(&a, &b, -1).unwrap(), &expected, ROUNDING);
    let plane = f32_array(&[1.0, 2.0], &[2]);
    assert_close(&linalg::cross(&plane, &b, -1).unwrap(), &[8.0, -4.0, 4.5], ROUNDING);
}

#[test]
fn batches_and_doubles_work() {
    let values = Numbers(77).values(2 * 3 * 9);
    let a = Array::from_slice(&values, &[2, 3, 3, 3]).unwrap();
    let mlx = linalg::inv(&a).unwrap();
    assert_eq!((mlx.shape(), mlx.dtype()), (&[2, 3, 3, 3][..], Dtype::Float64));
    for (inverse, a) in to_f64(&mlx).chunks(9).zip(values.chunks(9)) {
        let found = Array::from_slice(&product(inverse, a, 3), &[9]).unwrap();
        assert_close(&found, &identity(3), SOLVER);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    type Op = fn(&Array) -> mlxport::Result<Array>;
    let square: [Op; 11] = [
        linalg::inv,
        |a| linalg::tri_inv(a, true),
        |a| linalg::cholesky(a, true),
        |a| linalg::cholesky_inv(a, true),
        |a| linalg::solve(a, a),
        |a| linalg::solve_triangular(a, a, true),
        |a| linalg::eig(a).map(|e| e.0),
        linalg::eigvals,
        |a| linalg::eigh(a, true).map(|e| e.0),
        |a| linalg::eigvalsh(a, true),
        |a| linalg::slogdet(a).map(|s| s.0),
    ];
    let any: [Op; 5] = [
        |a| linalg::qr(a).map(|q| q.0),
        |a| linalg::svd(a).map(|s| s.1),
        linalg::svdvals,
        |a| linalg::lu(a).map(|l| l.1),
        |a| linalg::lu_factor(a).map(|l| l.0),
    ];
    let wide = f32_array(&[1.0; 6], &[2, 3]);
    let vector = f32_array(&[1.0; 3], &[3]);
    for op in square {
        assert!(op(&wide).is_err() && op(&vector).is_err());
    }
    let empty = [f32_array(&[], &[0, 0]), f32_array(&[], &[2, 0]), f32_array(&[], &[3, 0, 2])];
    for op in square[..10].iter().chain(&any) {
        assert!(op(&vector).is_err());
        assert!(op(&Array::from_slice(&[1i32; 4], &[2, 2]).unwrap()).is_err());
        for empty in &empty {
            assert!(op(empty).is_err());
        }
        // No matrices at all are fine.
        let none = op(&f32_array(&[], &[0, 2, 2])).and_then(|x| x.eval());
        assert!(none.is_ok(), "{none:?}");
    }
    assert!(linalg::det(&wide).is_err());
    assert!(linalg::cross(&wide, &f32_array(&[1.0; 4], &[4]), -1).is_err());
    for axes in [&[2][..], &[0, 0], &[0, -2], &[0, 1, 5]] {
        for norm in [Norm::Euclidean, Norm::P(1.0), Norm::Nuclear] {
            assert!(linalg::norm(&wide, norm, axes, false).is_err(), "{norm:?} {axes:?}");
        }
    }
    assert!(linalg::norm(&wide, Norm::P(3.0), .., false).is_err());
    assert!(linalg::norm(&wide, Norm::Nuclear, 0, false).is_err());
}

#[test]
fn what_lapack_finds_is_an_error_and_not_a_crash() {
    let singular = f32_array(&[1.0; 4], &[2, 2]);
    assert!(linalg::inv(&singular).unwrap().eval().is_err());
    assert_eq!(to_f64(&(&singular + 1).unwrap()), [2.0; 4], "the stream lives on");
    let nan = f32_array(&[f64::NAN; 9], &[3, 3]);
    let outcomes = [
        linalg::inv(&nan),
        linalg::lu(&nan).map(|l| l.1),
        linalg::solve(&nan, &nan),
        linalg::svdvals(&nan),
        linalg::eigvals(&nan),
        linalg::eigvalsh(&nan, true),
        linalg::cholesky(&nan, true),
        linalg::qr(&nan).map(|q| q.0),
        linalg::det(&f32_array(&[f64::NAN; 25], &[5, 5])),
    ];
    for outcome in outcomes {
        let _ = outcome.and_then(|x| x.eval());
    }
}
