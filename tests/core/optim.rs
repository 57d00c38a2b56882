//! Optimizers, schedules and clipping against PyTorch (float64) and MLX's Python (float32), frozen by
//! `tests/oracle/optim.py`.

use mlxport::optim::{Adam, Optimizer, Schedule, Sgd, clip_grad_norm};
use mlxport::{Array, Error, transforms};
use serde_json::Value;

use support::{REDUCTION, assert_close, difference, epsilon, f32_array};

fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/optim.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

/// One flat list as the arrays of the fixture's shapes.
fn arrays(fixture: &Value, flat: &Value) -> Vec<Array> {
    let flat = numbers(flat);
    let shapes: Vec<Vec<i32>> = serde_json::from_value(fixture["shapes"].clone()).unwrap();
    let mut at = 0;
    let mut take = |shape: &Vec<i32>| {
        let from = at;
        at += shape.iter().product::<i32>() as usize;
        f32_array(&flat[from..at], shape)
    };
    shapes.iter().map(&mut take).collect()
}

#[track_caller]
fn assert_each_close(found: &[Array], fixture: &Value, expected: &Value) {
    let expected = arrays(fixture, expected);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_close(found, &support::to_f64(expected), REDUCTION);
    }
}

/// Runs `optimizer` over the fixture's gradients and compares every step.
#[track_caller]
fn follows(name: &str, mut optimizer: impl Optimizer) {
    let fixture = fixture();
    let mut parameters = arrays(&fixture, &fixture["start"]);
    let expected = fixture["optimizers"][name].as_array().unwrap();
    for (gradient, expected) in fixture["gradients"].as_array().unwrap().iter().zip(expected) {
        parameters = optimizer.apply(&arrays(&fixture, gradient), &parameters).unwrap();
        transforms::eval(parameters.iter().chain(optimizer.state())).unwrap();
        assert_each_close(&parameters, &fixture, expected);
    }
    assert_eq!(optimizer.steps(), expected.len() as u64);
}

fn set<O>(mut optimizer: O, change: impl FnOnce(&mut O)) -> O {
    change(&mut optimizer);
    optimizer
}

const RATE: f64 = 0.05;

#[test]
fn sgd_follows_pytorch_and_mlx() {
    follows("sgd", Sgd::new(RATE));
    follows("sgd_momentum", set(Sgd::new(RATE), |o| (o.momentum, o.weight_decay) = (0.9, 0.1)));
    follows("sgd_nesterov", set(Sgd::new(RATE), |o| (o.momentum, o.nesterov) = (0.9, true)));
    follows("sgd_dampened", set(Sgd::new(RATE), |o| (o.momentum, o.dampening) = (0.9, 0.5)));
}

#[test]
fn adam_and_adamw_follow_pytorch_and_mlx() {
    follows("adam", Adam::new(RATE));
    follows("adam_corrected", set(Adam::new(RATE), |o| (o.betas, o.bias_correction) = ([0.8, 0.95], true)));
    follows("adamw", Adam::adamw(RATE, 0.1));
    follows("adamw_corrected", set(Adam::adamw(RATE, 0.1), |o| o.bias_correction = true));
    follows("adamw_scheduled", Adam::adamw(Schedule::cosine_decay(RATE, 4, 0.0), 0.1));
}

#[test]
fn schedules_follow_mlx() {
    let warm = || Schedule::linear(0.0, 0.1, 10);
    let cosine = || Schedule::cosine_decay(0.1, 20, 0.01);
    for (name, schedule) in [
        ("linear", warm()),
        ("cosine", cosine()),
        ("exponential", Schedule::exponential_decay(0.1, 0.9)),
        ("step", Schedule::step_decay(0.1, 0.5, 7)),
        ("warmup_cosine", warm().then(10, cosine())),
    ] {
        let expected = numbers(&fixture()["schedules"][name]);
        let found: Vec<f64> = (0..expected.len() as u64).map(|step| schedule.at(step)).collect();
        let epsilon = epsilon(mlxport::Dtype::Float32);
        assert_eq!(difference(&found, &expected, epsilon, REDUCTION), None, "{name}");
    }
}

#[test]
fn schedules_of_no_steps_are_at_their_end() {
    assert_eq!(Schedule::linear(1.0, 2.0, 0).at(0), 2.0);
    assert_eq!(Schedule::cosine_decay(1.0, 0, 0.5).at(0), 0.5);
    assert_eq!(Schedule::step_decay(1.0, 0.5, 0).at(1), 0.5);
}

#[test]
fn clipping_bounds_the_global_norm() {
    let fixture = fixture();
    let gradients = arrays(&fixture, &fixture["gradients"][0]);
    for limit in ["0.5", "100.0"] {
        let expected = &fixture["clipping"][limit];
        let (clipped, norm) = clip_grad_norm(&gradients, limit.parse().unwrap()).unwrap();
        assert_close(&norm, &[expected["norm"].as_f64().unwrap()], REDUCTION);
        assert_each_close(&clipped, &fixture, &expected["clipped"]);
    }
    let (zero, norm) = clip_grad_norm(&[f32_array(&[0.0, 0.0], &[2])], 1.0).unwrap();
    assert_eq!((zero[0].to_vec::<f32>().unwrap(), norm.item::<f32>().unwrap()), (vec![0.0; 2], 0.0));
}

#[test]
fn parameters_that_do_not_fit_are_refused_and_change_no_state() {
    let (two, three) = (f32_array(&[1.0; 2], &[2]), f32_array(&[1.0; 3], &[3]));
    let mut optimizer = Adam::new(RATE);
    assert!(matches!(optimizer.apply(&[], std::slice::from_ref(&two)), Err(Error::Argument { .. })));
    let mixed = optimizer.apply(std::slice::from_ref(&two), std::slice::from_ref(&three));
    assert!(matches!(mixed, Err(Error::Shape { .. })));
    assert_eq!((optimizer.steps(), optimizer.state().len()), (0, 0));
    optimizer.apply(std::slice::from_ref(&two), std::slice::from_ref(&two)).unwrap();
    let more = [two.clone(), two.clone()];
    assert!(matches!(optimizer.apply(&more, &more), Err(Error::Argument { .. })));
    // The same count, but not the shape that the state is for, though it would broadcast.
    let one = [f32_array(&[1.0], &[1])];
    assert!(matches!(optimizer.apply(&one, &one), Err(Error::Shape { .. })));
    assert_eq!(optimizer.steps(), 1);
}
