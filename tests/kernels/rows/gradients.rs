//! Gradients by finite differences.

use super::*;

#[test]
fn gradients_are_those_of_finite_differences() {
    type Kernel = fn(&Array, &Array) -> mlxport::Result<Array>;
    type Exact = fn(&[f64], &[f64]) -> Vec<f64>;
    fn softmax(x: &[f64]) -> Vec<f64> {
        let sum: f64 = x.iter().map(|x| x.exp()).sum();
        x.iter().map(|x| x.exp() / sum).collect()
    }
    fn layer_normed(x: &[f64], w: &[f64]) -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        normed(&x.iter().map(|x| x - mean).collect::<Vec<_>>(), w).iter().zip(w).map(|(y, w)| y + w).collect()
    }
    /// A row at position 3, whose frequencies are 1, 0.1, 0.01 and 0.001.
    fn turned(x: &[f64]) -> Vec<f64> {
        let mut y = x.to_vec();
        for i in 0..4 {
            let (sin, cos) = (3.0 * 0.1f64.powi(i as i32)).sin_cos();
            (y[i], y[i + 4]) = (x[i] * cos - x[i + 4] * sin, x[i] * sin + x[i + 4] * cos);
        }
        y
    }
    let kernels: [(&str, Kernel, Exact); 10] = [
        ("rms_norm", |x, w| fast::rms_norm(x, Some(w), 1e-5), normed),
        ("layer_norm", |x, w| fast::layer_norm(x, Some(w), Some(w), 1e-5), layer_normed),
        (
            "softmax",
            |x, w| ops::softmax(x, -1, true)? * w,
            |x, w| softmax(x).iter().zip(w).map(|(y, w)| y * w).collect(),
        ),
        (
            "rope",
            |x, w| fast::rope(&(x * w)?, 8, false, 10_000.0, 1.0, 3),
            |x, w| turned(&x.iter().zip(w).map(|(x, w)| x * w).collect::<Vec<_>>()),
        ),
        (
            "rms_norm_rope",
            |x, w| fast::rms_norm_rope(x, w, 1e-5, 8, false, 10_000.0, 1.0, 3),
            |x, w| turned(&normed(x, w)),
        ),
        (
            "swiglu",
            |x, w| swiglu(x, &ops::broadcast_to(w, x.shape())?),
            |x, w| x.iter().zip(w).map(|(x, w)| x * sigmoid(*x) * w).collect(),
        ),
        (
            "gelu by a sigmoid",
            |x, w| Activation::GeluSigmoid.gated(x, &ops::broadcast_to(w, x.shape())?),
            |x, w| x.iter().zip(w).map(|(x, w)| x * sigmoid(1.702 * x) * w).collect(),
        ),
        (
            "rope of pairs",
            |x, w| fast::rope(&(x * w)?, 8, true, 10_000.0, 1.0, 3),
            |x, w| {
                let apart = |x: &[f64]| (0..8).map(|i| x[i % 4 * 2 + i / 4]).collect::<Vec<_>>();
                let y = turned(&apart(&x.iter().zip(w).map(|(x, w)| x * w).collect::<Vec<_>>()));
                (0..8).map(|i| y[i % 2 * 4 + i / 2]).collect()
            },
        ),
        (
            "geglu",
            |x, w| Activation::GeluTanh.gated(x, &ops::broadcast_to(w, x.shape())?),
            |x, w| x.iter().zip(w).map(|(x, w)| gelu_tanh(*x) * w).collect(),
        ),
        (
            "add_rms_norm",
            |x, w| {
                let [sum, y] = fast::add_rms_norm(x, &ops::broadcast_to(w, x.shape())?, w, 1e-5)?;
                sum + y
            },
            |x, w| {
                let sum: Vec<f64> = x.iter().zip(w).map(|(x, w)| x + w).collect();
                normed(&sum, w).iter().zip(&sum).map(|(y, sum)| y + sum).collect()
            },
        ),
    ];
    let mut numbers = Numbers(6);
    let (x, values) = random(&mut numbers, &[1, 1, 8], Dtype::Float32, 1.0);
    let (w, weights) = random(&mut numbers, &[8], Dtype::Float32, 1.0);
    for (name, f, exact) in kernels {
        let sum = |x: &[f64], w: &[f64]| exact(x, w).iter().map(|y| y * y).sum::<f64>();
        let expected = differences(&[values.clone(), weights.clone()], |args| sum(&args[0], &args[1]));
        let loss = |args: &[Array]| ops::sum(&ops::square(&f(&args[0], &args[1])?)?, .., false);
        for path in fast_paths() {
            let grads =
                kernels::force(path, || transforms::value_and_grad(loss, [&x, &w])).unwrap().unwrap().1;
            for (found, expected) in grads.iter().zip(&expected) {
                let found = to_f64(found);
                let wrong = difference(&found, expected, f64::from(f32::EPSILON), REDUCTION);
                assert!(wrong.is_none(), "{name} on {path}: {wrong:?}");
            }
        }
    }
}

/// Of two rows, at positions 3 and 4 where they turn.
#[test]
fn every_input_has_its_gradient() {
    type Kernel = fn(&[Array]) -> mlxport::Result<Vec<Array>>;
    type Exact = fn(&[&[f64]], usize) -> Vec<f64>;
    const ONES: [f64; 8] = [1.0; 8];
    fn centred(x: &[f64]) -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        x.iter().map(|x| x - mean).collect()
    }
    fn sum(x: &[f64], y: &[f64]) -> Vec<f64> {
        x.iter().zip(y).map(|(x, y)| x + y).collect()
    }
    /// The first six of a row, by periods.
    fn turned(x: &[f64], periods: &[f64], row: usize) -> Vec<f64> {
        let mut y = x.to_vec();
        for (i, period) in periods.iter().enumerate() {
            let (sin, cos) = ((3 + row) as f64 / period).sin_cos();
            (y[i], y[i + 3]) = (x[i] * cos - x[i + 3] * sin, x[i] * sin + x[i + 3] * cos);
        }
        y
    }
    // Shapes of what comes after `x`, the kernel, and what a row becomes: `x` and what is shaped like it come as
    // rows.
    let kernels: [(&str, &[&[i32]], Kernel, Exact); 8] = [
        ("rms_norm", &[], |a| Ok(vec![fast::rms_norm(&a[0], None, 1e-5)?]), |a, _| normed(a[0], &ONES)),
        (
            "layer_norm",
            &[],
            |a| Ok(vec![fast::layer_norm(&a[0], None, None, 1e-5)?]),
            |a, _| normed(&centred(a[0]), &ONES),
        ),
        (
            "layer_norm by a weight",
            &[&[8]],
            |a| Ok(vec![fast::layer_norm(&a[0], Some(&a[1]), None, 1e-5)?]),
            |a, _| normed(&centred(a[0]), a[1]),
        ),
        (
            "layer_norm with a bias",
            &[&[8]],
            |a| Ok(vec![fast::layer_norm(&a[0], None, Some(&a[1]), 1e-5)?]),
            |a, _| sum(&normed(&centred(a[0]), &ONES), a[1]),
        ),
        (
            "layer_norm by a weight with a bias",
            &[&[8], &[8]],
            |a| Ok(vec![fast::layer_norm(&a[0], Some(&a[1]), Some(&a[2]), 1e-5)?]),
            |a, _| sum(&normed(&centred(a[0]), a[1]), a[2]),
        ),
        (
            "add_rms_norm",
            &[&[1, 2, 8], &[8]],
            |a| Ok(fast::add_rms_norm(&a[0], &a[1], &a[2], 1e-5)?.to_vec()),
            |a, _| {
                let sum = sum(a[0], a[1]);
                [normed(&sum, a[2]), sum].concat()
            },
        ),
        (
            "rope by periods",
            &[&[3]],
            |a| Ok(vec![fast::rope(&a[0], 6, false, &a[1], 1.0, 3)?]),
            |a, row| turned(a[0], a[1], row),
        ),
        (
            "rms_norm_rope by periods",
            &[&[8], &[3]],
            |a| Ok(vec![fast::rms_norm_rope(&a[0], &a[1], 1e-5, 6, false, &a[2], 1.0, 3)?]),
            |a, row| turned(&normed(a[0], a[1]), a[2], row),
        ),
    ];
    for (name, shapes, f, exact) in kernels {
        let mut numbers = Numbers(7);
        let mut draw = |shape: &[i32]| {
            let (x, _) = random(&mut numbers, shape, Dtype::Float32, 1.0);
            // No period is near zero.
            let x = if shape == [3] { (ops::square(&x).unwrap() + 1.0).unwrap() } else { x };
            let values = to_f64(&x);
            (x, values)
        };
        let (args, values): (Vec<_>, Vec<_>) =
            std::iter::once(&[1, 2, 8][..]).chain(shapes.iter().copied()).map(&mut draw).unzip();
        let expected = differences(&values, |values| {
            let row = |i: usize| {
                let of = |x: &'_ Vec<f64>| if x.len() == 16 { i * 8..i * 8 + 8 } else { 0..x.len() };
                exact(&values.iter().map(|x| &x[of(x)]).collect::<Vec<_>>(), i)
            };
            [row(0), row(1)].concat().iter().map(|y| y.powi(3)).sum::<f64>()
        });
        let loss = |args: &[Array]| {
            let cubes = |y: &Array| ops::sum(&(ops::square(y)? * y)?, .., false);
            f(args)?.iter().map(cubes).reduce(|sum, next| sum? + next?).unwrap()
        };
        for path in fast_paths() {
            let grads = kernels::force(path, || transforms::value_and_grad(loss, &args)).unwrap().unwrap().1;
            for (i, (found, expected)) in grads.iter().zip(&expected).enumerate() {
                let wrong = difference(&to_f64(found), expected, f64::from(f32::EPSILON), SOLVER);
                assert!(wrong.is_none(), "{name} on {path}, input {i}: {wrong:?}");
            }
        }
    }
}
