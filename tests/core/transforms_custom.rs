//! Functions with derivatives of their own; checkpoints.

use std::cell::Cell;
use std::rc::Rc;

use mlxport::transforms::{CustomFunction, checkpoint, custom_vjp, grad, jvp, value_and_grad, vmap};
use mlxport::{Array, Error, ops};

fn one(f: &mlxport::transforms::Function, x: &Array) -> mlxport::Result<Array> {
    Ok(f.call([x])?.swap_remove(0))
}

#[test]
fn a_gradient_of_ones_own_replaces_the_derived_one() {
    let factor = Array::from(10.0f32);
    let f = custom_vjp(
        |x| ops::square(&x[0]),
        move |primals, cotangents, values| {
            assert_eq!(values[0].item::<f32>().unwrap(), 9.0);
            &primals[0] * &cotangents[0] * &factor
        },
    )
    .unwrap();
    let x = Array::from(3.0f32);
    assert_eq!(one(&f, &x).unwrap().item::<f32>().unwrap(), 9.0);
    let g = grad(|x| one(&f, x)? * 2.0, &x).unwrap();
    drop(f);
    assert_eq!(g.item::<f32>().unwrap(), 60.0);
}

#[test]
fn a_custom_vjp_must_return_what_mlx_reads() {
    let x = Array::from(3.0f32);
    for bad in [vec![], vec![x.clone(), x.clone()]] {
        let f = custom_vjp(|x| ops::square(&x[0]), move |_, _, _| Ok(bad.clone())).unwrap();
        assert!(matches!(grad(|x| one(&f, x), &x), Err(Error::Argument { op: "custom_vjp", .. })));
    }
    let wide = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    let f = custom_vjp(|x| ops::square(&x[0]), move |_, _, _| Ok(wide.clone())).unwrap();
    assert!(matches!(grad(|x| one(&f, x), &x), Err(Error::Shape { op: "custom_vjp", .. })));
    let f = custom_vjp(|_| Ok(Vec::new()), |x, _, _| Ok(x.to_vec())).unwrap();
    assert!(matches!(f.call([&x]), Err(Error::Argument { op: "custom_function", .. })));
}

#[test]
fn forward_derivatives_and_mapping_can_be_given_too() {
    let f = CustomFunction::new(|x| &x[0] * &x[1])
        .jvp(|primals, tangents, argnums| {
            assert_eq!((primals.len(), tangents.len(), argnums), (2, 2, &[0, 1][..]));
            Ok([(&tangents[0] * 100.0)?])
        })
        .vmap(|inputs, axes| {
            assert_eq!(axes, [Some(0), Some(0)]);
            Ok((vec![(&inputs[0] + &inputs[1])?], vec![-1]))
        })
        .build()
        .unwrap();
    let x = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    let y = Array::from_slice(&[5.0f32, 7.0], &[2]).unwrap();
    assert_eq!(f.call([&x, &y]).unwrap()[0].to_vec::<f32>().unwrap(), [5.0, 14.0]);
    let (_, tangents) = jvp(|p| f.call(p), [&x, &y], [&x, &y]).unwrap();
    assert_eq!(tangents[0].to_vec::<f32>().unwrap(), [100.0, 200.0]);
    assert_eq!(vmap(|p| f.call(p), [&x, &y]).unwrap()[0].to_vec::<f32>().unwrap(), [6.0, 9.0]);
    // What is not given is derived.
    let (_, grads) = value_and_grad(|p| ops::sum(&f.call(p)?[0], 0, false), [&x, &y]).unwrap();
    assert_eq!(grads[0].to_vec::<f32>().unwrap(), [5.0, 7.0]);
}

#[test]
fn custom_transforms_must_return_what_mlx_reads() {
    let x = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    let f = CustomFunction::new(|x| Ok(x[0].clone())).jvp(|x, _, _| Ok([x[0].clone(), x[0].clone()]));
    let f = f.build().unwrap();
    assert!(matches!(jvp(|p| f.call(p), [&x], [&x]), Err(Error::Argument { op: "custom_jvp", .. })));
    for (values, axes) in [(2, vec![0, 0]), (1, vec![]), (1, vec![1]), (1, vec![-2])] {
        let f = CustomFunction::new(|x| Ok(x[0].clone()))
            .vmap(move |x, _| Ok((vec![x[0].clone(); values], axes.clone())))
            .build()
            .unwrap();
        assert!(matches!(vmap(|p| f.call(p), [&x]), Err(Error::Argument { .. })));
    }
}

#[test]
fn a_checkpoint_computes_again_for_the_same_gradient() {
    let runs = Rc::new(Cell::new(0));
    let counted = Rc::clone(&runs);
    let f = checkpoint(move |x| {
        counted.set(counted.get() + 1);
        ops::sin(&ops::square(&x[0])?)
    })
    .unwrap();
    let x = Array::from(1.5f32);
    let found = grad(|x| one(&f, x), &x).unwrap();
    assert_eq!(runs.get(), 2);
    let plain = grad(|x| ops::sin(&ops::square(x)?), &x).unwrap();
    assert_eq!(found.item::<f32>().unwrap(), plain.item::<f32>().unwrap());
}
