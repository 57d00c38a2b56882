//! Derivatives against central differences in `float64`, and mapping against loops, for many operations.

use mlxport::transforms::{jvp, vjp, vmap};
use mlxport::{Array, Device, Result, fast, linalg, ops, with_device};

use support::{COARSE_DIFFERENCE, FINITE_DIFFERENCE, Numbers, SOLVER, Ulps, difference, to_f64};

/// Where an operation is smooth: values of its arguments are drawn from here.
#[derive(Clone, Copy)]
struct From(f64, f64);

const REAL: From = From(-2.0, 2.0);
const POSITIVE: From = From(0.5, 3.0);
const INSIDE: From = From(-0.9, 0.9);

type Case = (&'static str, From, &'static [&'static [i32]], fn(&[Array]) -> Result<Array>);

const ONE: &[&[i32]] = &[&[2, 3]];
const TWO: &[&[i32]] = &[&[2, 3], &[3]];
const SQUARE: &[&[i32]] = &[&[2, 3, 3]];

/// Symmetric and positive definite.
fn definite(x: &Array) -> Result<Array> {
    ops::matmul(x, &ops::swapaxes(x, -1, -2)?)? + &ops::eye(3, 3, 0, mlxport::Dtype::Float64)?
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("add", REAL, TWO, |x| &x[0] + &x[1]),
    ("subtract", REAL, TWO, |x| &x[0] - &x[1]),
    ("multiply", REAL, TWO, |x| &x[0] * &x[1]),
    ("divide", POSITIVE, TWO, |x| &x[0] / &x[1]),
    ("power", POSITIVE, TWO, |x| ops::power(&x[0], &x[1])),
    ("maximum", REAL, TWO, |x| ops::maximum(&x[0], &x[1])),
    ("minimum", REAL, TWO, |x| ops::minimum(&x[0], &x[1])),
    ("logaddexp", REAL, TWO, |x| ops::logaddexp(&x[0], &x[1])),
    ("arctan2", POSITIVE, TWO, |x| ops::arctan2(&x[0], &x[1])),
    ("negative", REAL, ONE, |x| ops::negative(&x[0])),
    ("abs", POSITIVE, ONE, |x| ops::abs(&x[0])),
    ("square", REAL, ONE, |x| ops::square(&x[0])),
    ("sqrt", POSITIVE, ONE, |x| ops::sqrt(&x[0])),
    ("rsqrt", POSITIVE, ONE, |x| ops::rsqrt(&x[0])),
    ("reciprocal", POSITIVE, ONE, |x| ops::reciprocal(&x[0])),
    ("exp", REAL, ONE, |x| ops::exp(&x[0])),
    ("expm1", REAL, ONE, |x| ops::expm1(&x[0])),
    ("log", POSITIVE, ONE, |x| ops::log(&x[0])),
    ("log2", POSITIVE, ONE, |x| ops::log2(&x[0])),
    ("log10", POSITIVE, ONE, |x| ops::log10(&x[0])),
    ("log1p", POSITIVE, ONE, |x| ops::log1p(&x[0])),
    ("sigmoid", REAL, ONE, |x| ops::sigmoid(&x[0])),
    ("sin", REAL, ONE, |x| ops::sin(&x[0])),
    ("cos", REAL, ONE, |x| ops::cos(&x[0])),
    ("tan", INSIDE, ONE, |x| ops::tan(&x[0])),
    ("arcsin", INSIDE, ONE, |x| ops::arcsin(&x[0])),
    ("arccos", INSIDE, ONE, |x| ops::arccos(&x[0])),
    ("arctan", REAL, ONE, |x| ops::arctan(&x[0])),
    ("sinh", REAL, ONE, |x| ops::sinh(&x[0])),
    ("cosh", REAL, ONE, |x| ops::cosh(&x[0])),
    ("tanh", REAL, ONE, |x| ops::tanh(&x[0])),
    ("arcsinh", REAL, ONE, |x| ops::arcsinh(&x[0])),
    ("arccosh", From(1.5, 3.0), ONE, |x| ops::arccosh(&x[0])),
    ("arctanh", INSIDE, ONE, |x| ops::arctanh(&x[0])),
    ("sum", REAL, ONE, |x| ops::sum(&x[0], -1, false)),
    ("mean", REAL, ONE, |x| ops::mean(&x[0], 0, true)),
    ("prod", POSITIVE, ONE, |x| ops::prod(&x[0], -1, false)),
    ("max", REAL, ONE, |x| ops::max(&x[0], -1, false)),
    ("min", REAL, ONE, |x| ops::min(&x[0], -1, false)),
    ("var", REAL, ONE, |x| ops::var(&x[0], -1, false, 1)),
    ("std", REAL, ONE, |x| ops::std(&x[0], -1, false, 0)),
    ("logsumexp", REAL, ONE, |x| ops::logsumexp(&x[0], -1, false)),
    ("softmax", REAL, ONE, |x| ops::softmax(&x[0], -1, true)),
    ("cumsum", REAL, ONE, |x| ops::cumsum(&x[0], 1, false, true)),
    ("matmul", REAL, &[&[2, 3], &[3, 2]], |x| ops::matmul(&x[0], &x[1])),
    ("transpose", REAL, ONE, |x| ops::transpose(&x[0], [1, 0])),
    ("reshape", REAL, ONE, |x| ops::reshape(&x[0], &[3, 2])),
    ("broadcast_to", REAL, &[&[3]], |x| ops::broadcast_to(&x[0], &[2, 3])),
    ("concatenate", REAL, TWO, |x| ops::concatenate(&[x[0].clone(), ops::reshape(&x[1], &[1, 3])?], 0)),
    ("split", REAL, ONE, |x| ops::split(&x[0], 3, 1).map(|mut parts| parts.swap_remove(1))),
    ("take", REAL, ONE, |x| ops::take(&x[0], &Array::from_slice(&[1i32, 1, 0], &[3])?, 1)),
    ("slice", REAL, ONE, |x| ops::slice(&x[0], &[0, 0], &[2, 3], &[1, 2])),
    ("slice_update", REAL, &[&[2, 3], &[2, 1]], |x| ops::slice_update(&x[0], &x[1], &[0, 1], &[2, 2], &[1, 1])),
    ("where", REAL, TWO, |x| ops::where_(&Array::from_slice(&[true, false, true], &[3])?, &x[0], &x[1])),
    ("sort", REAL, ONE, |x| ops::sort(&x[0], 1)),
    ("repeat", REAL, ONE, |x| ops::repeat(&x[0], 2, 1)),
    ("einsum", REAL, &[&[2, 3], &[3, 2]], |x| ops::einsum("ij,jk->ik", x)),
    ("inv", REAL, SQUARE, |x| linalg::inv(&definite(&x[0])?)),
    ("cholesky", REAL, SQUARE, |x| linalg::cholesky(&definite(&x[0])?, false)),
    ("rms_norm", REAL, TWO, |x| fast::rms_norm(&x[0], Some(&x[1]), 1e-5)),
    ("layer_norm", REAL, &[&[2, 3], &[3], &[3]], |x| fast::layer_norm(&x[0], Some(&x[1]), Some(&x[2]), 1e-5)),
];

/// Those that MLX cannot differentiate, and says so.
const NO_DERIVATIVE: &[&str] = &["inv", "cholesky"];

/// Those that MLX's CPU backend computes in single precision, or by way of some that it does.
const SINGLE: &[&str] =
    &["logaddexp", "exp", "sigmoid", "sin", "cos", "logsumexp", "softmax", "rms_norm", "layer_norm"];

/// Notes the operations that are wrong, so that one failure does not hide another.
fn agrees(name: &str, found: &Array, expected: &[f64], tolerance: Ulps, wrong: &mut Vec<String>) {
    if let Some(why) = difference(&to_f64(found), expected, f64::EPSILON, tolerance) {
        wrong.push(format!("{name}: {why}"));
    }
}

struct Drawn(Vec<Vec<f64>>);

impl Drawn {
    fn arrays(&self, shapes: &[&[i32]]) -> Vec<Array> {
        self.0.iter().zip(shapes).map(|(v, shape)| Array::from_slice(v, shape).unwrap()).collect()
    }

    /// With every value moved by `step` along `direction`.
    fn moved(&self, direction: &[Vec<f64>], step: f64) -> Self {
        let moved = |(v, d): (&Vec<f64>, &Vec<f64>)| v.iter().zip(d).map(|(v, d)| v + step * d).collect();
        Self(self.0.iter().zip(direction).map(moved).collect())
    }
}

fn draw(numbers: &mut Numbers, range: From, shapes: &[&[i32]]) -> Vec<Vec<f64>> {
    let scale = |v: f64| range.0 + (range.1 - range.0) * (v + 1.0) / 2.0;
    let len = |shape: &[i32]| shape.iter().map(|&d| d as usize).product();
    // Full precision, so that no two values tie.
    let value = |numbers: &mut Numbers| scale((numbers.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0);
    shapes.iter().map(|s| (0..len(s)).map(|_| value(numbers)).collect()).collect()
}

fn on_cpu(body: impl FnOnce()) {
    with_device(Device::cpu(), body).unwrap();
}

#[test]
fn derivatives_are_limits_of_differences() {
    on_cpu(|| {
        let mut wrong = Vec::new();
        for (name, range, shapes, f) in CASES {
            let mut numbers = Numbers(7);
            let at = Drawn(draw(&mut numbers, *range, shapes));
            let args = at.arrays(shapes);
            let value = f(&args).unwrap_or_else(|e| panic!("{name}: {e}"));
            let cotangents = draw(&mut numbers, REAL, &[value.shape()]);
            let weights = Array::from_slice(&cotangents[0], value.shape()).unwrap();

            if NO_DERIVATIVE.contains(name) {
                assert!(vjp(f, &args, [&weights]).is_err() && jvp(f, &args, &args).is_err(), "{name}");
                continue;
            }
            let single = SINGLE.contains(name);
            let (step, tolerance) =
                if single { (1e-2, COARSE_DIFFERENCE) } else { (1e-5, FINITE_DIFFERENCE) };
            // Backwards: by each element of each argument.
            let (_, found) = vjp(f, &args, [&weights]).unwrap();
            let total = |at: &Drawn| -> f64 {
                let y = to_f64(&f(&at.arrays(shapes)).unwrap());
                y.iter().zip(&cotangents[0]).map(|(y, c)| y * c).sum()
            };
            for (i, found) in found.iter().enumerate() {
                let expected: Vec<f64> = (0..at.0[i].len())
                    .map(|j| {
                        let mut direction: Vec<Vec<f64>> = at.0.iter().map(|v| vec![0.0; v.len()]).collect();
                        direction[i][j] = 1.0;
                        let (up, down) = (at.moved(&direction, step), at.moved(&direction, -step));
                        (total(&up) - total(&down)) / (2.0 * step)
                    })
                    .collect();
                agrees(name, found, &expected, tolerance, &mut wrong);
            }

            // Forwards: along a direction.
            let direction = draw(&mut numbers, REAL, shapes);
            let tangents = Drawn(direction.clone()).arrays(shapes);
            let moved = |step: f64| to_f64(&f(&at.moved(&direction, step).arrays(shapes)).unwrap());
            let (up, down) = (moved(step), moved(-step));
            let expected: Vec<f64> = up.iter().zip(&down).map(|(u, d)| (u - d) / (2.0 * step)).collect();
            match jvp(f, &args, &tangents) {
                Ok((_, found)) => agrees(name, &found[0], &expected, tolerance, &mut wrong),
                Err(e) => wrong.push(format!("{name}: {e}")),
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

#[test]
fn mapped_operations_are_loops() {
    on_cpu(|| {
        let mut wrong = Vec::new();
        for (name, range, shapes, f) in CASES {
            let mut numbers = Numbers(9);
            let rows: Vec<Vec<Array>> =
                (0..3).map(|_| Drawn(draw(&mut numbers, *range, shapes)).arrays(shapes)).collect();
            let column = |i: usize| -> Vec<Array> { rows.iter().map(|row| row[i].clone()).collect() };
            let stacked: Vec<Array> = (0..shapes.len()).map(|i| ops::stack(&column(i), 0).unwrap()).collect();
            let expected: Vec<Array> = rows.iter().map(|row| f(row).unwrap()).collect();
            match vmap(f, &stacked) {
                Ok(found) => {
                    let expected = to_f64(&ops::stack(&expected, 0).unwrap());
                    agrees(name, &found[0], &expected, SOLVER, &mut wrong);
                }
                Err(e) => wrong.push(format!("{name}: {e}")),
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}
