//! `vmap` against loops; `vjp` and `jvp` where their results are known in closed form.

use mlxport::transforms::{jvp, vjp, vmap, vmap_with};
use mlxport::{Array, Error, Result, ops};

use support::{Numbers, REDUCTION, assert_close, to_f64};

/// Slice `at` of `axis`, without that axis.
fn part(x: &Array, axis: i32, at: i32) -> Array {
    ops::take(x, &Array::from(at), axis).unwrap()
}

/// `vmap` of `f` is the stack of `f` over the slices.
#[track_caller]
fn is_a_loop(
    f: impl Fn(&[Array]) -> Result<Vec<Array>>,
    args: &[&Array],
    in_axes: &[Option<i32>],
    out_axes: &[i32],
) {
    let found = vmap_with(&f, args.iter().copied(), in_axes, out_axes).unwrap();
    let size = args.iter().zip(in_axes).find_map(|(x, axis)| Some(x.dim((*axis)?).unwrap())).unwrap();
    let mut rows: Vec<Vec<Array>> = Vec::new();
    for i in 0..size {
        let slices: Vec<Array> = (args.iter().zip(in_axes))
            .map(|(x, axis)| axis.map_or_else(|| (*x).clone(), |axis| part(x, axis, i)))
            .collect();
        rows.push(f(&slices).unwrap());
    }
    assert_eq!(found.len(), out_axes.len());
    for (i, (found, &axis)) in found.iter().zip(out_axes).enumerate() {
        let column: Vec<Array> = rows.iter().map(|row| row[i].clone()).collect();
        let expected = ops::stack(&column, axis).unwrap();
        assert_eq!(found.shape(), expected.shape());
        assert_close(found, &to_f64(&expected), REDUCTION);
    }
}

#[test]
fn vmap_is_a_loop() {
    let mut numbers = Numbers(1);
    let (x, _) = numbers.array(&[4, 3, 5]);
    let (y, _) = numbers.array(&[4, 5]);
    let (w, _) = numbers.array(&[5, 2]);
    let two = |a: &[Array]| Ok(vec![ops::matmul(&a[0], &a[1])?, ops::exp(&a[0])?]);
    is_a_loop(two, &[&x, &w], &[Some(0), None], &[0, 0]);
    is_a_loop(two, &[&x, &w], &[Some(0), None], &[2, -1]);
    is_a_loop(|a| Ok(vec![(&a[0] * &a[1])?]), &[&x, &y], &[Some(0), Some(0)], &[1]);
    is_a_loop(|a| Ok(vec![ops::sum(&a[0], 0, false)?]), &[&x], &[Some(-2)], &[0]);
    is_a_loop(|a| Ok(vec![ops::softmax(&a[0], [-1], true)?]), &[&x], &[Some(1)], &[-1]);
    // A value that does not depend on the argument is repeated.
    is_a_loop(|_| Ok(vec![Array::from(2.0f32)]), &[&y], &[Some(0)], &[0]);
}

#[test]
fn vmap_nests_and_composes_with_gradients() {
    let mut numbers = Numbers(2);
    let (x, v) = numbers.array(&[3, 4]);
    let cube = |x: &Array| x * x * x;
    let each = vmap(
        |row| {
            vmap(|x| mlxport::transforms::grad(cube, &x[0]), &[row[0].clone()])?
                .pop()
                .ok_or_else(|| unreachable!())
        },
        [&x],
    );
    let expected: Vec<f64> = v.iter().map(|x| 3.0 * x * x).collect();
    assert_close(&each.unwrap()[0], &expected, REDUCTION);
}

#[test]
fn axes_that_do_not_fit_are_refused() {
    let x = ops::zeros(&[2, 3], mlxport::Dtype::Float32).unwrap();
    let y = ops::zeros(&[3, 2], mlxport::Dtype::Float32).unwrap();
    let f = |a: &[Array]| Ok(a[0].clone());
    for in_axes in [&[Some(2)][..], &[Some(-3)], &[None], &[], &[Some(0), Some(0)]] {
        assert!(
            matches!(vmap_with(f, [&x], in_axes, &[0]), Err(Error::Argument { op: "vmap", .. })),
            "{in_axes:?}"
        );
    }
    for out_axes in [&[2][..], &[-3], &[], &[0, 0]] {
        let out = vmap_with(f, [&x], &[Some(0)], out_axes);
        assert!(matches!(out, Err(Error::Argument { op: "vmap", .. })), "{out_axes:?}");
    }
    assert!(matches!(vmap(f, [&x, &y]), Err(Error::Mlx { .. })));
    assert!(matches!(vmap(f, [&Array::from(1.0f32)]), Err(Error::Argument { .. })));
    assert!(vmap(f, []).is_err());
}

#[test]
fn vjp_and_jvp_multiply_by_the_jacobian() {
    // f(x) = A x, so the products are Aᵀ c and A t.
    let a = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]).unwrap();
    let x = Array::from_slice(&[1.0f32, -1.0, 2.0], &[3]).unwrap();
    let f = |p: &[Array]| ops::matmul(&a, &p[0]);
    let (values, products) = vjp(f, [&x], [&Array::from_slice(&[1.0f32, 10.0], &[2]).unwrap()]).unwrap();
    assert_eq!(values[0].to_vec::<f32>().unwrap(), [5.0, 11.0]);
    assert_eq!(products[0].to_vec::<f32>().unwrap(), [41.0, 52.0, 63.0]);
    let (values, products) = jvp(f, [&x], [&Array::from_slice(&[1.0f32, 0.0, -1.0], &[3]).unwrap()]).unwrap();
    assert_eq!(values[0].to_vec::<f32>().unwrap(), [5.0, 11.0]);
    assert_eq!(products[0].to_vec::<f32>().unwrap(), [-2.0, -2.0]);
    assert!(matches!(vjp(f, [&x], [&x]), Err(Error::Mlx { .. })));
    assert!(matches!(vjp(f, [&x], []), Err(Error::Mlx { .. })));
    assert!(matches!(jvp(f, [&x], [&a]), Err(Error::Mlx { .. })));
    assert!(matches!(jvp(f, [&x], []), Err(Error::Mlx { .. })));
}
