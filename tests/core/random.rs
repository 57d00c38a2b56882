//! Distributions against their moments, keys against the streams they promise.

use mlxport::{Array, Dtype, random};

use support::{ROUNDING, assert_close, f32_array, to_f64};

const N: i32 = 20_000;

fn key() -> Array {
    random::key(11).unwrap()
}

/// Asserts mean and variance within five standard errors; `kurtosis` is that of the distribution.
#[track_caller]
fn assert_moments(x: &Array, mean: f64, variance: f64, kurtosis: f64) {
    let values = to_f64(x);
    let n = values.len() as f64;
    let m = values.iter().sum::<f64>() / n;
    let v = values.iter().map(|x| (x - m).powi(2)).sum::<f64>() / n;
    let (m_error, v_error) = ((variance / n).sqrt(), variance * ((kurtosis - 1.0) / n).sqrt());
    assert!((m - mean).abs() < 5.0 * m_error, "mean {m}, expected {mean} +- {m_error}");
    assert!((v - variance).abs() < 5.0 * v_error, "variance {v}, expected {variance} +- {v_error}");
}

/// Asserts the frequency of each value of `0..p.len()` within five standard errors.
#[track_caller]
fn assert_frequencies(x: &[f64], p: &[f64]) {
    let n = x.len() as f64;
    for (value, p) in p.iter().enumerate() {
        let share = x.iter().filter(|&&x| x == value as f64).count() as f64 / n;
        assert!(
            (share - p).abs() <= 5.0 * (p * (1.0 - p) / n).sqrt(),
            "share of {value} is {share}, not {p}"
        );
    }
}

fn assert_within(x: &Array, low: f64, high: f64) {
    let values = to_f64(x);
    assert!(values.iter().all(|v| (low..=high).contains(v)), "outside of {low}..={high}");
}

#[test]
fn continuous_distributions_have_their_moments_and_ranges() {
    let (k, f32) = (key(), Dtype::Float32);
    let u = random::uniform(-1.0, 3.0, &[N], f32, Some(&k)).unwrap();
    assert_moments(&u, 1.0, 16.0 / 12.0, 1.8);
    assert_within(&u, -1.0, 3.0);
    let half = random::uniform(0.0, 1.0, &[N], Dtype::Bfloat16, Some(&k)).unwrap();
    assert_eq!(half.dtype(), Dtype::Bfloat16);
    assert_within(&half, 0.0, 1.0 - 2f64.powi(-8));
    assert_moments(&random::normal(2.0, 0.5, &[N], f32, Some(&k)).unwrap(), 2.0, 0.25, 3.0);
    assert_moments(&random::laplace(1.0, 2.0, &[N], f32, Some(&k)).unwrap(), 1.0, 8.0, 6.0);
    let euler = 0.577_215_664_901_532_9;
    let variance = std::f64::consts::PI.powi(2) / 6.0;
    assert_moments(&random::gumbel(&[N], f32, Some(&k)).unwrap(), euler, variance, 5.4);
    // A standard normal cut to [-1, 1]: variance 1 - 2 phi(1) / (2 Phi(1) - 1).
    let t = random::truncated_normal(-1.0, 1.0, &[N], f32, Some(&k)).unwrap();
    assert_moments(&t, 0.0, 0.291_125, 1.94);
    assert_within(&t, -1.0, 1.0);
}

#[test]
fn parameters_broadcast() {
    let loc = f32_array(&[-100.0, 100.0], &[2, 1]);
    let x = random::normal(&loc, 1.0, &[2, N], Dtype::Float32, Some(&key())).unwrap();
    assert_eq!(x.shape(), [2, N]);
    let values = to_f64(&x);
    assert!(values[..N as usize].iter().all(|v| *v < 0.0) && values[N as usize..].iter().all(|v| *v > 0.0));
    let high = f32_array(&[1.0, 5.0], &[2]);
    let x = random::uniform(0.0, &high, &[N, 2], Dtype::Float32, Some(&key())).unwrap();
    let second: Vec<f64> = to_f64(&x).into_iter().skip(1).step_by(2).collect();
    assert_moments(&f32_array(&second, &[N]), 2.5, 25.0 / 12.0, 1.8);
}

#[test]
fn complex_normals_share_the_variance_between_their_parts() {
    let z = random::normal(0.0, 1.0, &[N], Dtype::Complex64, Some(&key())).unwrap();
    let z = z.to_vec::<num_complex::Complex32>().unwrap();
    let parts: Vec<f64> = z.iter().flat_map(|z| [f64::from(z.re), f64::from(z.im)]).collect();
    assert_moments(&f32_array(&parts, &[2 * N]), 0.0, 0.5, 3.0);
    let product: f64 = z.iter().map(|z| f64::from(z.re * z.im)).sum::<f64>() / f64::from(N);
    assert!(product.abs() < 5.0 * 0.5 / f64::from(N).sqrt());
}

#[test]
fn multivariate_normals_have_their_covariance() {
    let mean = f32_array(&[1.0, -2.0], &[2]);
    let cov = f32_array(&[2.0, 0.6, 0.6, 0.5], &[2, 2]);
    let x = random::multivariate_normal(&mean, &cov, &[N], Some(&key())).unwrap();
    assert_eq!(x.shape(), [N, 2]);
    let values = to_f64(&x);
    let column = |i: usize| values.iter().copied().skip(i).step_by(2).collect::<Vec<f64>>();
    let (a, b) = (column(0), column(1));
    assert_moments(&f32_array(&a, &[N]), 1.0, 2.0, 3.0);
    assert_moments(&f32_array(&b, &[N]), -2.0, 0.5, 3.0);
    let covariance = a.iter().zip(&b).map(|(a, b)| (a - 1.0) * (b + 2.0)).sum::<f64>() / f64::from(N);
    assert!((covariance - 0.6).abs() < 5.0 * (2.0f64 * 0.5 + 0.36).sqrt() / f64::from(N).sqrt());
}

#[test]
fn discrete_distributions_have_their_frequencies() {
    let k = key();
    let ints = random::randint(-3, 5, &[N], Dtype::Int16, Some(&k)).unwrap();
    assert_eq!(ints.dtype(), Dtype::Int16);
    let shifted: Vec<f64> = to_f64(&ints).iter().map(|v| v + 3.0).collect();
    assert_within(&ints, -3.0, 4.0);
    assert_frequencies(&shifted, &[0.125; 8]);
    let yes = random::bernoulli(0.3, &[N], Some(&k)).unwrap();
    assert_eq!(yes.dtype(), Dtype::Bool);
    assert_frequencies(&to_f64(&yes), &[0.7, 0.3]);
    assert_frequencies(&to_f64(&random::bernoulli(0.0, &[N], Some(&k)).unwrap()), &[1.0, 0.0]);
    assert_frequencies(&to_f64(&random::bernoulli(1.0, &[N], Some(&k)).unwrap()), &[0.0, 1.0]);
}

#[test]
fn categorical_draws_follow_the_logits() {
    let k = key();
    let p = [[0.1, 0.2, 0.7], [0.5, 0.0, 0.5]];
    let logits: Vec<f64> = p.iter().flatten().map(|p: &f64| p.ln() + 3.0).collect();
    let logits = f32_array(&logits, &[2, 3]);
    let check = |draws: &Array, transposed: bool| {
        let values = to_f64(draws);
        for (row, p) in p.iter().enumerate() {
            let of_row = |i: usize| if transposed { i % 2 } else { i / N as usize };
            let mine = values.iter().enumerate().filter(|&(i, _)| of_row(i) == row);
            assert_frequencies(&mine.map(|(_, v)| *v).collect::<Vec<f64>>(), p);
        }
    };
    let many = random::categorical_num_samples(&logits, -1, N, Some(&k)).unwrap();
    assert_eq!((many.shape(), many.dtype()), (&[2, N][..], Dtype::Uint32));
    check(&many, false);
    let shaped = random::categorical_shape(&logits, 1, &[N, 2], Some(&k)).unwrap();
    assert_eq!(shaped.shape(), [N, 2]);
    check(&shaped, true);
    let one = random::categorical(&logits, -1, Some(&k)).unwrap();
    assert_eq!(one.shape(), [2]);
    // One distribution takes another path in MLX.
    let single = f32_array(&p[0].map(f64::ln), &[3]);
    let many = random::categorical_num_samples(&single, -1, N, Some(&k)).unwrap();
    assert_frequencies(&to_f64(&many), &p[0]);
}

#[test]
fn permutations_hold_every_element_once() {
    let k = key();
    let order = random::permutation_arange(50, Some(&k)).unwrap().to_vec::<u32>().unwrap();
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert!(sorted.iter().copied().eq(0..50) && order != sorted);
    let x = f32_array(&(0..100).map(f64::from).collect::<Vec<_>>(), &[2, 50]);
    let rows = to_f64(&random::permutation(&x, 1, Some(&k)).unwrap());
    let expected: Vec<f64> = order.iter().map(|&i| f64::from(i)).collect();
    assert_eq!(rows[..50], expected);
    assert!(rows[50..].iter().zip(&expected).all(|(found, e)| *found == e + 50.0));
}

#[test]
fn a_key_gives_the_same_numbers_again_and_its_children_others() {
    let k = key();
    let draw = |k: &Array| random::bits(&[8], 4, Some(k)).unwrap().to_vec::<u32>().unwrap();
    assert_eq!(draw(&k), draw(&k));
    let (a, b) = random::split(&k).unwrap();
    let many = random::split_num(&k, 2).unwrap().to_vec::<u32>().unwrap();
    assert_eq!([a.to_vec::<u32>().unwrap(), b.to_vec::<u32>().unwrap()].concat(), many);
    assert!(draw(&a) != draw(&b) && draw(&a) != draw(&k));
    for (width, dtype) in [(1, Dtype::Uint8), (2, Dtype::Uint16), (4, Dtype::Uint32)] {
        assert_eq!(random::bits(&[3], width, Some(&k)).unwrap().dtype(), dtype);
    }
}

/// Recorded with MLX's Python: `mx.random.seed(7)`, then `uniform`, `normal`, `randint`; and from keys.
#[test]
fn numbers_are_those_of_the_reference() {
    random::seed(7).unwrap();
    let f32 = Dtype::Float32;
    let uniform = random::uniform(0.0, 1.0, &[3], f32, None).unwrap();
    assert_close(&uniform, &[0.07774583250284195, 0.17445430159568787, 0.8326463103294373], ROUNDING);
    let normal = random::normal(0.0, 1.0, &[3], f32, None).unwrap();
    assert_close(&normal, &[0.21397587656974792, -0.1590525358915329, 0.5431252121925354], ROUNDING);
    let ints = random::randint(0, 100, &[4], Dtype::Int32, None).unwrap();
    assert_eq!(ints.to_vec::<i32>().unwrap(), [44, 44, 24, 7]);
    assert_eq!(random::key(7 << 32 | 9).unwrap().to_vec::<u32>().unwrap(), [7, 9]);
    let keys = random::split_num(&random::key(3).unwrap(), 3).unwrap().to_vec::<u32>().unwrap();
    assert_eq!(keys, [877192987, 1614509672, 1950127089, 3448417067, 2823528474, 3529024829]);
    let logits = f32_array(&[0.1, 0.5, 2.0, -1.0], &[4]);
    let draws = random::categorical_num_samples(&logits, -1, 6, Some(&random::key(1).unwrap())).unwrap();
    assert_eq!(draws.to_vec::<u32>().unwrap(), [2, 1, 2, 2, 2, 2]);
}

#[test]
fn each_thread_has_a_sequence_of_its_own() {
    let draw = || random::bits(&[4], 4, None).unwrap().to_vec::<u32>().unwrap();
    let on_thread = |f: fn() -> Vec<u32>| std::thread::spawn(f).join().unwrap();
    random::seed(5).unwrap();
    let first = draw();
    let other = on_thread(|| {
        random::seed(5).unwrap();
        random::bits(&[4], 4, None).unwrap().to_vec().unwrap()
    });
    assert_eq!(first, other);
    assert_ne!(first, draw());
    let unseeded = || random::bits(&[4], 4, None).unwrap().to_vec().unwrap();
    assert_ne!(on_thread(unseeded), on_thread(unseeded));
}

#[test]
fn what_does_not_fit_is_refused() {
    let k = key();
    let f32 = Dtype::Float32;
    let impossible = [i32::MAX, i32::MAX, i32::MAX];
    for shape in [&[-1][..], &impossible, &[1 << 30, 1 << 30, 1 << 2]] {
        assert!(random::bits(shape, 4, Some(&k)).is_err(), "{shape:?}");
        assert!(random::normal(0.0, 1.0, shape, f32, Some(&k)).is_err(), "{shape:?}");
        assert!(random::categorical_shape(&f32_array(&[0.0; 2], &[2]), 0, shape, Some(&k)).is_err());
    }
    assert!(random::bits(&[1], 3, Some(&k)).is_err());
    for key in [f32_array(&[0.0; 2], &[2]), Array::from_slice(&[1u32; 3], &[3]).unwrap(), Array::from(1u32)] {
        assert!(random::uniform(0.0, 1.0, &[2], f32, Some(&key)).is_err(), "{key:?}");
        assert!(random::split(&key).is_err(), "{key:?}");
    }
    for dtype in [Dtype::Int32, Dtype::Complex64, Dtype::Bool, Dtype::Float64] {
        assert!(random::uniform(0.0, 1.0, &[2], dtype, Some(&k)).is_err(), "{dtype}");
        assert!(random::gumbel(&[2], dtype, Some(&k)).is_err(), "{dtype}");
    }
    assert!(random::randint(0, 2, &[2], f32, Some(&k)).is_err());
    let low = f32_array(&[0.0; 3], &[3]);
    assert!(random::uniform(&low, 1.0, &[2], f32, Some(&k)).is_err());
    assert!(random::bernoulli(&low, &[2], Some(&k)).is_err());
    let logits = f32_array(&[0.0; 6], &[2, 3]);
    for axis in [2, -3] {
        assert!(random::categorical(&logits, axis, Some(&k)).is_err());
        assert!(random::categorical_shape(&logits, axis, &[2], Some(&k)).is_err());
        assert!(random::categorical_num_samples(&logits, axis, 2, Some(&k)).is_err());
        assert!(random::permutation(&logits, axis, Some(&k)).is_err());
    }
    assert!(random::categorical(&f32_array(&[], &[2, 0]), -1, Some(&k)).is_err());
    assert!(
        random::categorical_shape(&f32_array(&[], &[0]), -1, &[3], Some(&k)).and_then(|x| x.eval()).is_err()
    );
    assert!(random::categorical_num_samples(&logits, -1, -1, Some(&k)).is_err());
    assert!(random::permutation_arange(-1, Some(&k)).is_err());
    assert!(random::multivariate_normal(&low, &logits, &[2], Some(&k)).is_err());
}
