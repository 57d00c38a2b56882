//! Gradients: which arguments, which values, errors.

use mlxport::transforms::{grad, value_and_grad, value_and_grad_with};
use mlxport::{Array, Error};

fn scalar(v: f32) -> Array {
    Array::from(v)
}

#[test]
fn gradients_nest() {
    let cube = |x: &Array| x * x * x;
    let x = scalar(2.0);
    assert_eq!(grad(cube, &x).unwrap().item::<f32>().unwrap(), 12.0);
    assert_eq!(grad(|x| grad(cube, x), &x).unwrap().item::<f32>().unwrap(), 12.0);
    assert_eq!(grad(|x| grad(|x| grad(cube, x), x), &x).unwrap().item::<f32>().unwrap(), 6.0);
}

#[test]
fn a_closure_captures_arrays() {
    let scale = scalar(3.0);
    let p = [scalar(5.0), scalar(7.0)];
    let (value, grads) = value_and_grad(|p| &p[0] * &p[1] * &scale - &p[1], &p).unwrap();
    assert_eq!(value.item::<f32>().unwrap(), 98.0);
    assert_eq!(grads[0].item::<f32>().unwrap(), 21.0);
    assert_eq!(grads[1].item::<f32>().unwrap(), 14.0);
}

#[test]
fn argnums_choose_and_order_the_gradients() {
    let args = [scalar(2.0), scalar(3.0), scalar(5.0)];
    let f = |a: &[Array]| Ok([(&a[0] * &a[1] * &a[2])?, (&a[0] + 1)?]);
    for (argnums, expected) in [(&[2, 0][..], &[6.0, 15.0][..]), (&[-1], &[6.0]), (&[-2, 2], &[10.0, 6.0])] {
        let (values, grads) = value_and_grad_with(f, &args, argnums).unwrap();
        assert_eq!(values.iter().map(|v| v.item().unwrap()).collect::<Vec<f32>>(), [30.0, 3.0]);
        assert_eq!(grads.iter().map(|g| g.item().unwrap()).collect::<Vec<f32>>(), expected);
    }
    for argnums in [&[][..], &[3], &[-4], &[0, 0], &[0, -3]] {
        let failed = value_and_grad_with(f, &args, argnums);
        assert!(matches!(failed, Err(Error::Mlx { .. })), "{argnums:?}");
    }
}

#[test]
fn a_function_without_a_scalar_value_has_no_gradient() {
    let x = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    assert!(matches!(grad(|x| x * 2.0, &x), Err(Error::Mlx { .. })));
    let none = value_and_grad_with(|_| Ok(Vec::new()), [&x], &[0]);
    assert!(matches!(none, Err(Error::Argument { op: "grad", .. })));
}
