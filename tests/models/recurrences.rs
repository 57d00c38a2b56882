//! Recurrences in chunks and in steps, held to the same recurrences in `f64`, one position at a time.

use mlxport::kernels::{self, Path};
use mlxport::models::blocks::{Sequence, gated_delta, linear_attention, selective_scan, wkv};
use mlxport::{Array, ops, random};

/// The largest error, over the largest output.
const ERROR: f64 = 2e-5;

const BATCH: usize = 2;
const KEY_HEADS: usize = 2;
const HEADS: usize = 4;
const KEY_DIM: usize = 6;
const VALUE_DIM: usize = 5;

fn normal(shape: &[usize], scale: f64, seed: u64) -> Array {
    let shape: Vec<i32> = shape.iter().map(|&dim| dim as i32).collect();
    let key = random::key(seed).unwrap();
    random::normal(0.0, scale, &shape, mlxport::Dtype::Float32, Some(&key)).unwrap()
}

fn doubles(x: &Array) -> Vec<f64> {
    x.to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// Queries, keys, values, decays, betas and a state.
struct Case([Array; 6]);

impl Case {
    fn new(length: usize, each_dim: bool, decay: f64) -> Self {
        let of_keys = [BATCH, length, KEY_HEADS, KEY_DIM];
        let of_heads = [BATCH, length, HEADS];
        let decays = if each_dim { vec![BATCH, length, HEADS, KEY_DIM] } else { of_heads.to_vec() };
        Self([
            normal(&of_keys, 0.4, 1),
            normal(&of_keys, 0.4, 2),
            normal(&[BATCH, length, HEADS, VALUE_DIM], 1.0, 3),
            ops::negative(&ops::abs(&normal(&decays, decay, 4)).unwrap()).unwrap(),
            ops::sigmoid(&normal(&of_heads, 1.0, 5)).unwrap(),
            normal(&[BATCH, HEADS, VALUE_DIM, KEY_DIM], 1.0, 6),
        ])
    }

    /// Outputs and the last state.
    fn run(&self, corrects: bool, start: i32, stop: i32, state: Option<&Array>) -> (Array, Array) {
        let part = |x: &Array| x.index((.., start..stop)).unwrap();
        let [q, k, v, g, beta, _] = &self.0;
        let (q, k, v, g) = (part(q), part(k), part(v), part(g));
        let sequence = Sequence { queries: &q, keys: &k, values: &v, log_decay: &g, state };
        if corrects {
            gated_delta(&sequence, &part(beta)).unwrap()
        } else {
            linear_attention(&sequence).unwrap()
        }
    }

    fn expected(&self, corrects: bool, from_state: bool) -> (Vec<f64>, Vec<f64>) {
        let [q, k, v, g, beta, state] = self.0.each_ref().map(doubles);
        let length = self.0[0].shape()[1] as usize;
        let decays = if self.0[3].ndim() == 4 { KEY_DIM } else { 1 };
        let mut state = if from_state { state } else { vec![0.0; state.len()] };
        let mut out = vec![0.0; BATCH * length * HEADS * VALUE_DIM];
        for b in 0..BATCH {
            for t in 0..length {
                for h in 0..HEADS {
                    let at = (b * length + t) * HEADS + h;
                    let key_at = ((b * length + t) * KEY_HEADS + h / (HEADS / KEY_HEADS)) * KEY_DIM;
                    let (q, k) = (&q[key_at..key_at + KEY_DIM], &k[key_at..key_at + KEY_DIM]);
                    for i in 0..VALUE_DIM {
                        let row = &mut state[((b * HEADS + h) * VALUE_DIM + i) * KEY_DIM..][..KEY_DIM];
                        for (j, s) in row.iter_mut().enumerate() {
                            *s *= g[at * decays + j % decays].exp();
                        }
                        let found: f64 = row.iter().zip(k).map(|(s, k)| s * k).sum();
                        let value = v[at * VALUE_DIM + i];
                        let added = if corrects { beta[at] * (value - found) } else { value };
                        row.iter_mut().zip(k).for_each(|(s, k)| *s += added * k);
                        out[at * VALUE_DIM + i] = row.iter().zip(q).map(|(s, q)| s * q).sum();
                    }
                }
            }
        }
        (out, state)
    }
}

fn assert_close(found: &Array, expected: &[f64], what: &str) {
    let largest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    let error = doubles(found).iter().zip(expected).fold(0.0f64, |max, (a, b)| max.max((a - b).abs()));
    assert!(error <= ERROR * largest, "{what}: error {error:.2e}, largest {largest:.2e}");
}

/// Runs `test` on each path of this machine.
fn on_every_path(test: impl Fn()) {
    Path::ALL.into_iter().filter(|path| path.is_available()).for_each(|path| {
        kernels::force(path, &test).unwrap();
    });
}

#[test]
fn chunks_and_steps_are_the_recurrence() {
    on_every_path(|| {
        for corrects in [false, true] {
            for (length, each_dim, decay) in [
                (1, false, 1.0),
                (2, false, 1.0),
                (64, false, 0.1),
                (65, false, 0.01),
                (150, false, 30.0),
                (17, true, 0.3),
                (300, true, 0.01),
                (40, true, 30.0),
            ] {
                let case = Case::new(length, each_dim, decay);
                for from_state in [false, true] {
                    let state = from_state.then_some(&case.0[5]);
                    let (expected, last) = case.expected(corrects, from_state);
                    let what =
                        format!("{length} positions, {each_dim}, decay {decay}, {corrects}, {from_state}");
                    let (out, state) = case.run(corrects, 0, length as i32, state);
                    assert_close(&out, &expected, &what);
                    assert_close(&state, &last, &what);
                }
            }
        }
    });
}

#[test]
fn a_sequence_goes_on_where_it_stopped() {
    on_every_path(|| {
        let case = Case::new(90, false, 0.1);
        for corrects in [false, true] {
            let (expected, last) = case.expected(corrects, false);
            let (mut outputs, mut state) = (Vec::new(), None);
            for (start, stop) in [(0, 70), (70, 71), (71, 72), (72, 90)] {
                let (out, next) = case.run(corrects, start, stop, state.as_ref());
                outputs.push(out);
                state = Some(next);
            }
            assert_close(&ops::concatenate(&outputs, 1).unwrap(), &expected, "outputs");
            assert_close(&state.unwrap(), &last, "state");
        }
    });
}

/// The same key again and again makes the system of a chunk as hard as it gets.
#[test]
fn equal_keys_stay_exact() {
    on_every_path(|| {
        let mut case = Case::new(128, false, 0.0);
        let one = normal(&[1, 1, 1, KEY_DIM], 1.0, 7);
        let unit =
            (&one / ops::sqrt(&ops::sum(&ops::square(&one).unwrap(), .., false).unwrap()).unwrap()).unwrap();
        case.0[1] = ops::broadcast_to(&unit, case.0[1].shape()).unwrap();
        case.0[4] = ops::ones_like(&case.0[4]).unwrap();
        let (expected, last) = case.expected(true, false);
        let (out, state) = case.run(true, 0, 128, None);
        assert_close(&out, &expected, "outputs");
        assert_close(&state, &last, "state");
    });
}

#[test]
fn the_selective_scan_is_the_recurrence() {
    on_every_path(|| {
        const DIMS: usize = 3;
        for (length, speed) in [(1, 1.0), (2, 1.0), (16, 0.1), (17, 10.0), (300, 0.02)] {
            let x = normal(&[BATCH, length, HEADS], 1.0, 1);
            let dt = ops::abs(&normal(&[BATCH, length, HEADS], speed, 2)).unwrap();
            let a = ops::negative(&ops::abs(&normal(&[HEADS, DIMS], 1.0, 3)).unwrap()).unwrap();
            let [b, c] = [4, 5].map(|seed| normal(&[BATCH, length, DIMS], 1.0, seed));
            let start = normal(&[BATCH, HEADS, DIMS], 1.0, 6);
            let (out, last) = selective_scan(&x, &dt, &a, [&b, &c], Some(&start)).unwrap();
            let [x, dt, a, b, c, mut state] = [&x, &dt, &a, &b, &c, &start].map(doubles);
            let mut expected = Vec::new();
            for batch in 0..BATCH {
                for t in batch * length..(batch + 1) * length {
                    for channel in 0..HEADS {
                        let row = &mut state[(batch * HEADS + channel) * DIMS..][..DIMS];
                        let (x, dt) = (x[t * HEADS + channel], dt[t * HEADS + channel]);
                        for (i, s) in row.iter_mut().enumerate() {
                            *s = *s * (dt * a[channel * DIMS + i]).exp() + dt * x * b[t * DIMS + i];
                        }
                        expected.push(row.iter().zip(&c[t * DIMS..]).map(|(s, c)| s * c).sum());
                    }
                }
            }
            assert_close(&out, &expected, &format!("{length} positions"));
            assert_close(&last, &state, &format!("the state after {length} positions"));
        }
    });
}

#[test]
fn wkv_is_the_recurrence() {
    on_every_path(|| {
        const DIMS: usize = 4;
        for (length, speed) in [(1, 0.3), (2, 0.3), (16, 0.01), (17, 0.6), (300, 0.1)] {
            let shape = [BATCH, length, KEY_HEADS, DIMS];
            let [q, k, v, a, b] = [1, 2, 3, 4, 5].map(|seed| normal(&shape, 0.3, seed));
            let decay =
                ops::negative(&ops::minimum(ops::abs(&normal(&shape, speed, 6)).unwrap(), 0.606).unwrap())
                    .unwrap();
            let start = normal(&[BATCH, KEY_HEADS, DIMS, DIMS], 1.0, 7);
            let (out, last) = wkv([&q, &decay, &k, &v, &a, &b], Some(&start)).unwrap();
            let [q, decay, k, v, a, b, mut state] = [&q, &decay, &k, &v, &a, &b, &start].map(doubles);
            let mut expected = Vec::new();
            for batch in 0..BATCH {
                for t in 0..length {
                    for head in 0..KEY_HEADS {
                        let at = ((batch * length + t) * KEY_HEADS + head) * DIMS;
                        for i in 0..DIMS {
                            let row = &mut state[((batch * KEY_HEADS + head) * DIMS + i) * DIMS..][..DIMS];
                            let found: f64 = row.iter().zip(&a[at..]).map(|(s, a)| s * a).sum();
                            for (j, s) in row.iter_mut().enumerate() {
                                *s = *s * decay[at + j].exp() + found * b[at + j] + v[at + i] * k[at + j];
                            }
                            expected.push(row.iter().zip(&q[at..]).map(|(s, q)| s * q).sum());
                        }
                    }
                }
            }
            assert_close(&out, &expected, &format!("{length} positions"));
            assert_close(&last, &state, &format!("the state after {length} positions"));
        }
    });
}
