//! Losses against PyTorch in float64, frozen by `tests/oracle/optim.py`.

use mlxport::nn::losses::{cross_entropy, masked_mean};
use mlxport::{Array, Error, Result, transforms};
use serde_json::Value;

use support::{REDUCTION, assert_close, f32_array};

struct Case {
    values: Value,
    logits: Array,
    targets: Array,
}

fn case() -> Case {
    let fixture: Value = serde_json::from_str(include_str!("../fixtures/optim.json")).unwrap();
    let values = fixture["losses"].clone();
    let targets: Vec<i32> = serde_json::from_value(values["targets"].clone()).unwrap();
    Case {
        logits: f32_array(&numbers(&values["logits"]), &[2, 3, 5]),
        targets: Array::from_slice(&targets, &[2, 3]).unwrap(),
        values,
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn cross_entropy_is_pytorchs() {
    let Case { values, logits, targets } = case();
    for (smoothing, name) in [(0.0, "each"), (0.1, "smoothed")] {
        let loss = cross_entropy(&logits, &targets, smoothing).unwrap();
        assert_eq!(loss.shape(), [2, 3]);
        assert_close(&loss, &numbers(&values[name]), REDUCTION);
    }
}

#[test]
fn a_masked_mean_and_its_gradient_leave_out_what_is_ignored() {
    let Case { values, logits, targets } = case();
    let kept: Vec<bool> = numbers(&values["ignored"]).iter().map(|&i| i == 0.0).collect();
    let kept = Array::from_slice(&kept, &[2, 3]).unwrap();
    let mean = |p: &[Array]| -> Result<Array> { masked_mean(&cross_entropy(&p[0], &targets, 0.0)?, &kept) };
    let (loss, gradients) = transforms::value_and_grad(mean, [&logits]).unwrap();
    assert_close(&loss, &[values["mean"].as_f64().unwrap()], REDUCTION);
    assert_close(&gradients[0], &numbers(&values["gradient"]), REDUCTION);

    let losses = f32_array(&[1.0, f64::NAN], &[2]);
    let first = Array::from_slice(&[true, false], &[2]).unwrap();
    assert_eq!(masked_mean(&losses, &first).unwrap().item::<f32>().unwrap(), 1.0);
    let none = Array::from_slice(&[false, false], &[2]).unwrap();
    assert_eq!(masked_mean(&losses, &none).unwrap().item::<f32>().unwrap(), 0.0);
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let Case { logits, targets, .. } = case();
    assert!(matches!(cross_entropy(&logits, &targets, 1.0), Err(Error::Argument { .. })));
    assert!(cross_entropy(&logits, &f32_array(&[0.0; 6], &[2, 3]), 0.0).is_err());
    let losses = cross_entropy(&logits, &targets, 0.0).unwrap();
    assert!(matches!(masked_mean(&losses, &Array::from(true)), Err(Error::Shape { .. })));
}
