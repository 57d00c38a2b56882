//! The selective scan against the same in `f64`, one position at a time.

use mlxport::models::blocks::selective_scan;
use mlxport::{Array, Dtype, Result, ops};
use proptest::prelude::*;

use crate::matmul::{LIES, Lies};
use crate::{FLOATS, assert_gradients, assert_maps, assert_repeats, check, drawn, fast_paths};
use support::{Numbers, to_f64};

/// Sizes: batch, length, channels and state.
type Sizes = [usize; 4];

/// `x`, `dt`, `a`, `b`, `c` and perhaps a state; and their numbers.
fn draw(
    [batch, length, channels, dims]: Sizes,
    with_state: bool,
    dtype: Dtype,
    lies: Lies,
    magnitude: f64,
    seed: u64,
) -> (Vec<Array>, Vec<Vec<f64>>) {
    let mut numbers = Numbers(seed);
    let mut draw = |shape: &[usize], dtype, f: &dyn Fn(f64) -> f64| {
        let shape: Vec<i32> = shape.iter().map(|&size| size as i32).collect();
        drawn(&mut numbers, &shape, dtype, lies, f)
    };
    let mut inputs = vec![
        draw(&[batch, length, channels], dtype, &|x| x * magnitude),
        draw(&[batch, length, channels], Dtype::Float32, &|x| (4.0 * x).exp() * (x + 1.0)),
        draw(&[channels, dims], Dtype::Float32, &|x| -(3.0 * x).exp()),
        draw(&[batch, length, dims], dtype, &|x| x),
        draw(&[batch, length, dims], dtype, &|x| x),
    ];
    if with_state {
        inputs.push(draw(&[batch, channels, dims], Dtype::Float32, &|x| x * magnitude));
    }
    inputs.into_iter().unzip()
}

fn run(inputs: &[Array]) -> Result<(Array, Array)> {
    selective_scan(&inputs[0], &inputs[1], &inputs[2], [&inputs[3], &inputs[4]], inputs.get(5))
}

/// Outputs and the last state.
fn exact([batch, length, channels, dims]: Sizes, inputs: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
    let mut states = inputs.get(5).cloned().unwrap_or(vec![0.0; batch * channels * dims]);
    let mut out = Vec::new();
    for at in 0..batch * length * channels {
        let (position, channel) = (at / channels, at % channels);
        let row = &mut states[(position / length * channels + channel) * dims..][..dims];
        let (x, dt) = (inputs[0][at], inputs[1][at]);
        for (i, s) in row.iter_mut().enumerate() {
            *s = *s * (dt * inputs[2][channel * dims + i]).exp() + dt * x * inputs[3][position * dims + i];
        }
        out.push(row.iter().zip(&inputs[4][position * dims..]).map(|(s, c)| s * c).sum());
    }
    (out, states)
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let size = |all: &[usize]| prop::sample::select(all.to_vec());
    (
        size(&[1, 1, 2, 0]),
        size(&[1, 2, 3, 16, 33, 70, 0]),
        size(&[1, 3, 63, 64, 65, 130]),
        size(&[1, 5, 8, 16, 17]),
    )
        .prop_map(|(batch, length, channels, dims)| [batch, length, channels, dims])
}

proptest! {
    #![proptest_config(crate::config(64))]

    #[test]
    fn scans_are_as_exact_as_the_reference(
        sizes in sizes(),
        with_state: bool,
        dtype in prop::sample::select(&FLOATS[..]),
        lies in prop::sample::select(&LIES[..]),
        magnitude in prop::sample::select(vec![1.0, 1.0, 1e-20, 1e15]),
        seed: u64,
    ) {
        let magnitude = if dtype == Dtype::Float16 { 1.0 } else { magnitude };
        let (inputs, values) = draw(sizes, with_state, dtype, lies, magnitude, seed);
        let (out, state) = exact(sizes, &values);
        // What a position adds to the state, at most.
        let scale = values[0].iter().zip(&values[1]).fold(0.0, |max, (x, dt)| f64::max(max, (x * dt).abs()));
        check(&out, scale, || Ok(run(&inputs)?.0), || Ok(run(&inputs)?.0))?;
        check(&state, scale, || Ok(run(&inputs)?.1), || Ok(run(&inputs)?.1))?;
    }
}

#[test]
fn gradients_are_differences() {
    for sizes in [[2, 3, 2, 3], [2, 1, 2, 3]] {
        let (inputs, values) = draw(sizes, true, Dtype::Float32, Lies::RowMajor, 1.0, 5);
        assert_gradients(&inputs, &values, run, |values| exact(sizes, values));
    }
}

#[test]
fn results_repeat_and_do_not_depend_on_the_threads() {
    let (inputs, _) = draw([2, 40, 150, 16], true, Dtype::Bfloat16, Lies::Strided, 1.0, 3);
    assert_repeats(|| run(&inputs).map(|(out, state)| vec![out, state]));
}

#[test]
fn it_maps_over_an_axis() {
    for length in [1, 3] {
        let (inputs, _) = draw([2, length, 3, 4], true, Dtype::Float32, Lies::RowMajor, 1.0, 5);
        let twice = |x: &Array| ops::stack([x, &(x * 0.5).unwrap()], 1).unwrap();
        let mut inputs: Vec<Array> = inputs.iter().map(twice).collect();
        // The rates are the same for all.
        inputs[2] = inputs[2].index((.., 0)).unwrap();
        let axes = [Some(1), Some(1), None, Some(1), Some(1), Some(1)];
        assert_maps(&inputs.iter().collect::<Vec<_>>(), &axes, |args| {
            run(args).map(|(out, state)| vec![out, state])
        });
    }
}

#[test]
fn what_has_decayed_is_gone_and_infinities_stay_in_their_channel() {
    let sizes = [1, 3, 2, 2];
    for (rate, kept) in [(f32::NEG_INFINITY, 0.0), (-200.0, 0.0), (-0.0, 1.0)] {
        let (mut inputs, _) = draw(sizes, true, Dtype::Float32, Lies::RowMajor, 1.0, 2);
        inputs[1] = ops::ones_like(&inputs[1]).unwrap();
        inputs[2] = ops::full(&[2, 2], rate, Dtype::Float32).unwrap();
        inputs[3] = ops::zeros_like(&inputs[3]).unwrap();
        let start: Vec<f64> = to_f64(&inputs[5]).iter().map(|x| x * kept).collect();
        for path in fast_paths() {
            let state = mlxport::kernels::force(path, || run(&inputs)).unwrap().unwrap().1;
            assert_eq!(to_f64(&state), start, "{path} {rate}");
        }
    }
    for special in [f32::INFINITY, f32::NAN] {
        let (mut inputs, _) = draw(sizes, true, Dtype::Float32, Lies::RowMajor, 1.0, 2);
        let mut values = inputs[0].to_vec::<f32>().unwrap();
        values[1] = special;
        inputs[0] = Array::from_slice(&values, inputs[0].shape()).unwrap();
        for path in fast_paths() {
            let (out, _) = mlxport::kernels::force(path, || run(&inputs)).unwrap().unwrap();
            let finite: Vec<bool> = to_f64(&out).iter().map(|x| x.is_finite()).collect();
            assert!(finite[0] && !finite[1] && finite[2] && finite[4], "{path} {special}: {finite:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = |shape: &[i32]| ops::zeros(shape, Dtype::Float32).unwrap();
    let scan = |a: &[i32], b: &[i32]| {
        let (b, x, a) = (x(b), x(&[1, 4, 6]), x(a));
        selective_scan(&x, &x, &a, [&b, &b], None).and_then(|(out, _)| out.eval())
    };
    assert!(scan(&[6, 5], &[1, 4, 5]).is_ok());
    assert!(scan(&[6, 5], &[1, 4, 4]).is_err());
    assert!(scan(&[7, 5], &[1, 4, 5]).is_err());
    assert!(scan(&[6], &[1, 4, 5]).is_err());
}
