//! Linear attention, the gated delta rule and RWKV-7's recurrence against the same in `f64`, one position at a
//! time.

use mlxport::models::blocks::{Sequence, gated_delta, linear_attention, wkv};
use mlxport::{Array, Dtype, Result, ops};
use proptest::prelude::*;

use crate::matmul::{LIES, Lies};
use crate::{FLOATS, assert_gradients, assert_maps, assert_repeats, check, drawn, fast_paths};
use support::{Numbers, to_f64};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    Linear,
    Delta,
    Wkv,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    rule: Rule,
    batch: usize,
    length: usize,
    key_heads: usize,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    /// Whether each dimension of a key decays on its own.
    each_dim: bool,
    with_state: bool,
}

impl Case {
    fn shape(&self, sizes: &[usize]) -> Vec<i32> {
        [self.batch, self.length].iter().chain(sizes).map(|&size| size as i32).collect()
    }

    /// Queries, keys, values, decays, what the rule takes besides, and perhaps a state; and their numbers.
    fn draw(&self, dtype: Dtype, lies: Lies, magnitude: f64, seed: u64) -> (Vec<Array>, Vec<Vec<f64>>) {
        let mut numbers = Numbers(seed);
        let &Self { rule, batch, key_heads, heads, key_dim, value_dim, .. } = self;
        let keys = self.shape(&[key_heads, key_dim]);
        let of_heads = self.shape(&[heads]);
        let decays = if self.each_dim { self.shape(&[heads, key_dim]) } else { of_heads.clone() };
        let unit = (key_dim as f64).powf(-0.5);
        let mut draw =
            |shape: &[i32], dtype, f: &dyn Fn(f64) -> f64| drawn(&mut numbers, shape, dtype, lies, f);
        let mut inputs = vec![
            draw(&keys, dtype, &|x| x),
            draw(&keys, dtype, &|x| x * unit),
            draw(&self.shape(&[heads, value_dim]), dtype, &|x| x * magnitude),
            // From hardly any decay to all of it.
            draw(&decays, Dtype::Float32, &|x| -(3.0 * x).exp() * (x + 1.0)),
        ];
        match rule {
            Rule::Linear => {}
            Rule::Delta => inputs.push(draw(&of_heads, dtype, &|x| 0.5 + 0.5 * x)),
            Rule::Wkv => {
                inputs.extend([draw(&keys, dtype, &|x| x * unit), draw(&keys, dtype, &|x| -x * unit)])
            }
        }
        if self.with_state {
            let shape = [batch, heads, value_dim, key_dim].map(|size| size as i32);
            inputs.push(draw(&shape, Dtype::Float32, &|x| x * magnitude));
        }
        inputs.into_iter().unzip()
    }

    fn run(&self, inputs: &[Array]) -> Result<(Array, Array)> {
        let (all, state) = inputs.split_at(inputs.len() - usize::from(self.with_state));
        let state = state.first();
        let sequence =
            Sequence { queries: &all[0], keys: &all[1], values: &all[2], log_decay: &all[3], state };
        match self.rule {
            Rule::Linear => linear_attention(&sequence),
            Rule::Delta => gated_delta(&sequence, &all[4]),
            Rule::Wkv => wkv([&all[0], &all[3], &all[1], &all[2], &all[4], &all[5]], state),
        }
    }

    /// Outputs and the last state.
    fn exact(&self, inputs: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
        let &Self { rule, batch, length, key_heads, heads, key_dim, value_dim, .. } = self;
        let (all, state) = inputs.split_at(inputs.len() - usize::from(self.with_state));
        let mut states = state.first().cloned().unwrap_or(vec![0.0; batch * heads * value_dim * key_dim]);
        let mut out = Vec::new();
        for at in 0..batch * length * heads {
            let (b, head) = (at / (length * heads), at % heads);
            let position = at / heads;
            let key_at = (position * key_heads + head / (heads / key_heads)) * key_dim;
            let vector = |input: usize| &all[input][key_at..][..key_dim];
            let (q, k) = (vector(0), vector(1));
            let decay = |j: usize| all[3][if self.each_dim { at * key_dim + j } else { at }].exp();
            for i in 0..value_dim {
                let value = all[2][at * value_dim + i];
                let row = &mut states[((b * heads + head) * value_dim + i) * key_dim..][..key_dim];
                let dot = |row: &[f64], x: &[f64]| row.iter().zip(x).map(|(s, x)| s * x).sum::<f64>();
                let moved = if rule == Rule::Wkv { dot(row, vector(4)) } else { 0.0 };
                row.iter_mut().enumerate().for_each(|(j, s)| *s *= decay(j));
                let added = if rule == Rule::Delta { all[4][at] * (value - dot(row, k)) } else { value };
                for (j, s) in row.iter_mut().enumerate() {
                    *s += added * k[j] + if rule == Rule::Wkv { moved * vector(5)[j] } else { 0.0 };
                }
                out.push(dot(row, q));
            }
        }
        (out, states)
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let size = |all: &[usize]| prop::sample::select(all.to_vec());
    (
        prop::sample::select(vec![Rule::Linear, Rule::Delta, Rule::Wkv]),
        size(&[1, 1, 2, 0]),
        size(&[1, 2, 3, 5, 16, 17, 33, 70, 0]),
        (1..3usize, 1..4usize),
        size(&[1, 3, 8, 9, 16, 33]),
        size(&[1, 5, 8, 11]),
        any::<[bool; 2]>(),
    )
        .prop_map(
            |(rule, batch, length, (key_heads, shared), key_dim, value_dim, [each_dim, with_state])| {
                let (shared, value_dim) = if rule == Rule::Wkv { (1, key_dim) } else { (shared, value_dim) };
                let (heads, each_dim) = (key_heads * shared, each_dim || rule == Rule::Wkv);
                Case { rule, batch, length, key_heads, heads, key_dim, value_dim, each_dim, with_state }
            },
        )
}

proptest! {
    #![proptest_config(crate::config(96))]

    #[test]
    fn recurrences_are_as_exact_as_the_reference(
        case in cases(),
        dtype in prop::sample::select(&FLOATS[..]),
        lies in prop::sample::select(&LIES[..]),
        magnitude in prop::sample::select(vec![1.0, 1.0, 1e-20, 1e15]),
        seed: u64,
    ) {
        let magnitude = if dtype == Dtype::Float16 { 1.0 } else { magnitude };
        let (inputs, values) = case.draw(dtype, lies, magnitude, seed);
        let (out, state) = case.exact(&values);
        check(&out, magnitude, || Ok(case.run(&inputs)?.0), || Ok(case.run(&inputs)?.0))?;
        check(&state, magnitude, || Ok(case.run(&inputs)?.1), || Ok(case.run(&inputs)?.1))?;
    }
}

const SMALL: Case = Case {
    rule: Rule::Delta,
    batch: 2,
    length: 3,
    key_heads: 1,
    heads: 2,
    key_dim: 3,
    value_dim: 3,
    each_dim: true,
    with_state: true,
};

#[test]
fn gradients_are_differences() {
    for rule in [Rule::Linear, Rule::Delta, Rule::Wkv] {
        for (length, each_dim) in [(3, true), (1, true), (3, false), (1, false)] {
            let case = if rule == Rule::Wkv {
                Case { rule, length, heads: 1, ..SMALL }
            } else {
                Case { rule, length, each_dim, ..SMALL }
            };
            let (inputs, values) = case.draw(Dtype::Float32, Lies::RowMajor, 1.0, 5);
            assert_gradients(&inputs, &values, |args| case.run(args), |values| case.exact(values));
        }
    }
}

#[test]
fn results_repeat_and_do_not_depend_on_the_threads() {
    for rule in [Rule::Linear, Rule::Delta, Rule::Wkv] {
        let case = Case { rule, length: 40, key_heads: 4, heads: 4, key_dim: 20, value_dim: 20, ..SMALL };
        let (inputs, _) = case.draw(Dtype::Bfloat16, Lies::Strided, 1.0, 3);
        assert_repeats(|| case.run(&inputs).map(|(out, state)| vec![out, state]));
    }
}

#[test]
fn they_map_over_an_axis() {
    for rule in [Rule::Linear, Rule::Delta, Rule::Wkv] {
        for length in [1, 3] {
            let heads = if rule == Rule::Wkv { 1 } else { 2 };
            let case = Case { rule, length, heads, ..SMALL };
            let (inputs, _) = case.draw(Dtype::Float32, Lies::RowMajor, 1.0, 5);
            let twice = |x: &Array| ops::stack([x, &(x * 0.5).unwrap()], 1).unwrap();
            let inputs: Vec<Array> = inputs.iter().map(twice).collect();
            let run = |args: &[Array]| case.run(args).map(|(out, state)| vec![out, state]);
            assert_maps(&inputs.iter().collect::<Vec<_>>(), &vec![Some(1); inputs.len()], run);
        }
    }
}

#[test]
fn what_has_decayed_is_gone_and_infinities_stay_in_their_head() {
    let case = Case { rule: Rule::Linear, batch: 1, each_dim: false, ..SMALL };
    let (mut inputs, _) = case.draw(Dtype::Float32, Lies::RowMajor, 1.0, 2);
    for (decay, kept) in [(f32::NEG_INFINITY, 0.0), (-200.0, 0.0), (-0.0, 1.0), (-1e-30, 1.0)] {
        inputs[3] = ops::full(&[1, 3, 2], decay, Dtype::Float32).unwrap();
        inputs[1] = ops::zeros_like(&inputs[1]).unwrap();
        let start: Vec<f64> = to_f64(&inputs[4]).iter().map(|x| x * kept).collect();
        for path in fast_paths() {
            let state = mlxport::kernels::force(path, || case.run(&inputs)).unwrap().unwrap().1;
            assert_eq!(to_f64(&state), start, "{path} {decay}");
        }
    }
    for special in [f32::INFINITY, f32::NAN] {
        let (mut inputs, _) = case.draw(Dtype::Float32, Lies::RowMajor, 1.0, 2);
        let mut values = inputs[2].to_vec::<f32>().unwrap();
        values[0] = special;
        inputs[2] = Array::from_slice(&values, inputs[2].shape()).unwrap();
        for path in fast_paths() {
            let state = mlxport::kernels::force(path, || case.run(&inputs)).unwrap().unwrap().1;
            let finite: Vec<bool> = to_f64(&state).iter().map(|x| x.is_finite()).collect();
            // The first row of the first head, of three.
            assert!(!finite[0] && finite[3..].iter().all(|&x| x), "{path} {special}: {finite:?}");
        }
    }
}

#[test]
fn nothing_is_a_sequence_too() {
    for (key_dim, value_dim) in [(0, 3), (3, 0), (0, 0)] {
        let case = Case { rule: Rule::Linear, key_dim, value_dim, ..SMALL };
        let (inputs, _) = case.draw(Dtype::Float32, Lies::RowMajor, 1.0, 2);
        for path in fast_paths() {
            let (out, state) = mlxport::kernels::force(path, || case.run(&inputs)).unwrap().unwrap();
            assert_eq!(to_f64(&out), vec![0.0; 12 * value_dim]);
            assert_eq!(state.shape(), [2, 2, value_dim as i32, key_dim as i32]);
            state.eval().unwrap();
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = |shape: &[i32]| ops::zeros(shape, Dtype::Float32).unwrap();
    let run = |q: &[i32], k: &[i32], v: &[i32], g: &[i32]| {
        let (queries, keys, values, log_decay) = (&x(q), &x(k), &x(v), &x(g));
        linear_attention(&Sequence { queries, keys, values, log_decay, state: None })
            .and_then(|(out, _)| out.eval())
    };
    assert!(run(&[1, 4, 2, 8], &[1, 4, 2, 8], &[1, 4, 2, 3], &[1, 4, 2]).is_ok());
    assert!(run(&[1, 4, 2, 8], &[1, 4, 2, 8], &[1, 5, 2, 3], &[1, 4, 2]).is_err());
    assert!(run(&[1, 4, 2, 8], &[1, 4, 2, 7], &[1, 4, 2, 3], &[1, 4, 2]).is_err());
    assert!(run(&[4, 2, 8], &[4, 2, 8], &[4, 2, 3], &[4, 2]).is_err());
}
