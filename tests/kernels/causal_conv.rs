//! The causal convolution against sums in `f64`.

use mlxport::cache::LayerCache;
use mlxport::models::blocks::CausalConv;
use mlxport::{Array, Dtype, Result, ops};
use proptest::prelude::*;

use crate::matmul::{LIES, Lies};
use crate::{FLOATS, assert_gradients, assert_maps, assert_repeats, check, drawn, fast_paths};
use support::{Numbers, to_f64};

#[derive(Debug, Clone, Copy)]
struct Case {
    /// Batch, length, channels and kernel.
    sizes: [usize; 4],
    has_bias: bool,
    with_state: bool,
    silu: bool,
}

impl Case {
    /// `x`, the weight, perhaps a bias and a state; and their numbers.
    fn draw(&self, dtypes: [Dtype; 2], lies: Lies, magnitude: f64, seed: u64) -> (Vec<Array>, Vec<Vec<f64>>) {
        let mut numbers = Numbers(seed);
        let [batch, length, channels, kernel] = self.sizes.map(|size| size as i32);
        let mut draw =
            |shape: &[i32], dtype, scale: f64| drawn(&mut numbers, shape, dtype, lies, |x| x * scale);
        let mut inputs = vec![
            draw(&[batch, length, channels], dtypes[0], magnitude),
            draw(&[channels, kernel, 1], dtypes[1], 1.0),
        ];
        if self.has_bias {
            inputs.push(draw(&[channels], dtypes[1], magnitude));
        }
        if self.with_state {
            inputs.push(draw(&[batch, kernel - 1, channels], dtypes[0], magnitude));
        }
        inputs.into_iter().unzip()
    }

    /// Outputs and the last inputs.
    fn run(&self, inputs: &[Array]) -> Result<(Array, Array)> {
        let bias = self.has_bias.then(|| inputs[2].clone());
        let conv = CausalConv { weight: inputs[1].clone(), bias };
        let mut cache = LayerCache::states(1);
        if self.with_state {
            cache.set_state(0, inputs[inputs.len() - 1].clone())?;
        }
        let out = if self.silu {
            conv.forward_silu(&inputs[0], &mut cache, 0)?
        } else {
            conv.forward(&inputs[0], &mut cache, 0)?
        };
        Ok((out, cache.state(0).unwrap().clone()))
    }

    fn exact(&self, inputs: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
        let [batch, length, channels, kernel] = self.sizes;
        let (mut out, mut last) = (Vec::new(), Vec::new());
        for b in 0..batch {
            let before = (kernel - 1) * channels;
            let mut all = match self.with_state {
                true => inputs[inputs.len() - 1][b * before..][..before].to_vec(),
                false => vec![0.0; before],
            };
            all.extend(&inputs[0][b * length * channels..][..length * channels]);
            for (t, c) in (0..length).flat_map(|t| (0..channels).map(move |c| (t, c))) {
                let tap = |i: usize| inputs[1][c * kernel + i] * all[(t + i) * channels + c];
                let sum = (0..kernel).map(tap).sum::<f64>() + if self.has_bias { inputs[2][c] } else { 0.0 };
                out.push(if self.silu { sum / (1.0 + (-sum).exp()) } else { sum });
            }
            last.extend(&all[length * channels..]);
        }
        (out, last)
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let size = |all: &[usize]| prop::sample::select(all.to_vec());
    let sizes = (
        size(&[1, 1, 2, 3, 0]),
        size(&[1, 2, 3, 31, 70, 0]),
        size(&[1, 3, 8, 127, 128, 130, 300]),
        size(&[1, 2, 3, 4, 7]),
    );
    (sizes, any::<[bool; 3]>()).prop_map(
        |((batch, length, channels, kernel), [has_bias, with_state, silu])| Case {
            sizes: [batch, length, channels, kernel],
            has_bias,
            with_state,
            silu,
        },
    )
}

proptest! {
    #![proptest_config(crate::config(96))]

    #[test]
    fn convolutions_are_as_exact_as_the_reference(
        case in cases(),
        dtypes in (prop::sample::select(&FLOATS[..]), prop::sample::select(&FLOATS[..])),
        lies in prop::sample::select(&LIES[..]),
        magnitude in prop::sample::select(vec![1.0, 1.0, 50.0, 1e-30, 1e15]),
        seed: u64,
    ) {
        let dtypes = [dtypes.0, dtypes.1];
        let half = dtypes.contains(&Dtype::Float16);
        let magnitude = if half && !(1e-3..1e3).contains(&magnitude) { 1.0 } else { magnitude };
        let (inputs, values) = case.draw(dtypes, lies, magnitude, seed);
        let (out, last) = case.exact(&values);
        check(&out, magnitude, || Ok(case.run(&inputs)?.0), || Ok(case.run(&inputs)?.0))?;
        for path in fast_paths() {
            let (out, state) = mlxport::kernels::force(path, || case.run(&inputs)).unwrap().unwrap();
            out.eval().unwrap();
            prop_assert_eq!(state.dtype(), dtypes[0]);
            prop_assert_eq!(to_f64(&state), last.clone());
        }
    }
}

#[test]
fn gradients_are_differences() {
    for (length, silu) in [(1, false), (1, true), (3, false), (3, true)] {
        let case = Case { sizes: [2, length, 3, 3], has_bias: true, with_state: true, silu };
        let (inputs, values) = case.draw([Dtype::Float32; 2], Lies::RowMajor, 1.0, 5);
        assert_gradients(&inputs, &values, |args| case.run(args), |values| case.exact(values));
    }
}

#[test]
fn results_repeat_and_do_not_depend_on_the_threads() {
    let case = Case { sizes: [2, 90, 200, 4], has_bias: true, with_state: true, silu: true };
    let (inputs, _) = case.draw([Dtype::Bfloat16; 2], Lies::Strided, 1.0, 3);
    assert_repeats(|| case.run(&inputs).map(|(out, state)| vec![out, state]));
}

#[test]
fn taps_may_lie_apart() {
    let case = Case { sizes: [1, 5, 9, 3], has_bias: false, with_state: false, silu: false };
    let (mut inputs, values) = case.draw([Dtype::Float32; 2], Lies::RowMajor, 1.0, 5);
    let more = ops::full(&[9, 2, 1], 7.0, Dtype::Float32).unwrap();
    let wide = ops::concatenate([&inputs[1], &more], 1).unwrap();
    inputs[1] = ops::slice(&wide, &[0; 3], &[9, 3, 1], &[1; 3]).unwrap();
    let f = || Ok(case.run(&inputs)?.0);
    check(&case.exact(&values).0, 1.0, f, f).unwrap();
}

#[test]
fn it_maps_over_an_axis() {
    for (length, silu) in [(1, false), (3, true)] {
        let case = Case { sizes: [2, length, 3, 3], has_bias: true, with_state: true, silu };
        let (inputs, _) = case.draw([Dtype::Float32; 2], Lies::RowMajor, 1.0, 5);
        let twice = |x: &Array| ops::stack([x, &(x * 0.5).unwrap()], 1).unwrap();
        let mut inputs: Vec<Array> = inputs.iter().map(twice).collect();
        inputs[1] = inputs[1].index((.., 0)).unwrap();
        assert_maps(&inputs.iter().collect::<Vec<_>>(), &[Some(1), None, Some(1), Some(1)], |args| {
            case.run(args).map(|(out, state)| vec![out, state])
        });
    }
}

#[test]
fn infinities_and_nans_go_where_they_belong() {
    let case = Case { sizes: [1, 6, 9, 2], has_bias: false, with_state: false, silu: true };
    for (special, at_rest) in [(f32::INFINITY, f64::INFINITY), (f32::NAN, f64::NAN)] {
        let mut x = vec![0.0f32; 54];
        x[2 * 9 + 8] = special;
        let inputs =
            [Array::from_slice(&x, &[1, 6, 9]).unwrap(), ops::ones(&[9, 2, 1], Dtype::Float32).unwrap()];
        for path in fast_paths() {
            let out = to_f64(&mlxport::kernels::force(path, || case.run(&inputs)).unwrap().unwrap().0);
            for (i, y) in out.iter().enumerate() {
                let met = i == 2 * 9 + 8 || i == 3 * 9 + 8;
                let expected = if met { at_rest } else { 0.0 };
                assert!(*y == expected || y.is_nan() && expected.is_nan(), "{path} {special} {i}: {y}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = |shape: &[i32]| ops::zeros(shape, Dtype::Float32).unwrap();
    let run = |of: &[i32], weight: &[i32]| {
        CausalConv { weight: x(weight), bias: None }
            .forward(&x(of), &mut LayerCache::states(1), 0)
            .and_then(|out| out.eval())
    };
    assert!(run(&[1, 4, 6], &[6, 3, 1]).is_ok());
    assert!(run(&[1, 4, 6], &[5, 3, 1]).is_err());
    assert!(run(&[4, 6], &[6, 3, 1]).is_err());
    assert!(run(&[1, 4, 6], &[6, 3]).is_err());
}
