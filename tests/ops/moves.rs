//! Operations that move elements and compute nothing: every bit is held, in every dtype.

use mlxport::ops::{self, PadMode};
use mlxport::{Array, Dtype, Result};
use proptest::prelude::*;
use support::element::{self, INTEGERS, bits, ints, mlx_shape};
use support::strategy::{self, Values};
use support::{Expected, Input, Nd, Tolerance, assert_matches, check, computes};

fn any_input(shape: impl Strategy<Value = Vec<usize>>) -> impl Strategy<Value = Input> {
    (strategy::dtype(Dtype::ALL), shape).prop_flat_map(|(d, s)| strategy::input(d, &s, Values::Any))
}

#[track_caller]
fn is(found: Result<Array>, expected: &Nd<u64>, input: &Input) {
    assert_matches(&found.unwrap(), &Expected::bits(expected, input.tensor.dtype()), Tolerance::Exact);
}

#[test]
fn transpose_reshape_flip() {
    let cases = any_input(strategy::shape(4)).prop_flat_map(|input| {
        let ndim = input.shape().len();
        (Just(input), strategy::permutation(ndim), strategy::axes(ndim))
    });
    check(128, cases, |device, (input, axes, some)| {
        if !computes(device, input.tensor.dtype()) {
            return;
        }
        let (x, a) = (bits(&input.tensor), input.array());
        let moved = x.permute(axes);
        let transposed = ops::transpose(&a, &mlx_shape(axes)).unwrap();
        is(Ok(transposed.clone()), &moved, input);
        is(ops::reshape(&transposed, &[x.data.len() as i32]), &moved.reshape(&[x.data.len()]), input);
        let reversed = some.iter().fold(x.clone(), |x, &axis| {
            let back: Vec<_> = (0..x.shape[axis]).rev().collect();
            x.pick_along(axis, &back)
        });
        if !some.is_empty() {
            is(ops::flip(&a, &mlx_shape(some)), &reversed, input);
        }
        is(ops::contiguous(&transposed, false), &moved, input);
    });
}

#[test]
fn slices_and_updates_of_them() {
    let cases = any_input(strategy::shape(3)).prop_flat_map(|input| {
        let one = |&n: &usize| (0..=n as i32, 0..=n as i32, prop_oneof![1..4i32, -3..0i32]);
        let along: Vec<_> = input.shape().iter().map(one).collect();
        (Just(input), along)
    });
    check(128, cases, |device, (input, along)| {
        let dtype = input.tensor.dtype();
        if !computes(device, dtype) || input.shape().is_empty() {
            return;
        }
        let (x, a) = (bits(&input.tensor), input.array());
        let mut picks = vec![];
        for (&n, &(start, stop, step)) in x.shape.iter().zip(along) {
            let n = n as i32;
            let (mut at, mut pick) = (if step > 0 { start } else { start.min(n - 1) }, vec![]);
            while if step > 0 { at < stop } else { at > stop } {
                pick.push(at as usize);
                at += step;
            }
            picks.push(pick);
        }
        let part = |f: fn(&(i32, i32, i32)) -> i32| along.iter().map(f).collect::<Vec<_>>();
        let (start, stop, step) = (part(|v| v.0), part(|v| v.1), part(|v| v.2));
        let sliced = x.pick(&picks);
        is(ops::slice(&a, &start, &stop, &step), &sliced, input);
        let new = element::encode(3.0, if dtype == Dtype::Complex64 { Dtype::Float32 } else { dtype });
        let updates = Nd::from_fn(&sliced.shape, |_| new);
        let updated = Nd::from_fn(&x.shape, |at| {
            let inside = at.iter().zip(&picks).all(|(i, pick)| pick.contains(i));
            if inside { new } else { *x.at(at) }
        });
        let updates = Array::from_host(&element::from_bits(&updates, dtype)).unwrap();
        is(ops::slice_update(&a, &updates, &start, &stop, &step), &updated, input);
    });
}

#[test]
fn joining_undoes_splitting() {
    let cases = any_input(strategy::filled_shape(3)).prop_flat_map(|input| {
        let axes = 0..input.shape().len();
        (Just(input), axes, any::<[prop::sample::Index; 2]>())
    });
    check(96, cases, |device, (input, axis, cuts)| {
        if !computes(device, input.tensor.dtype()) {
            return;
        }
        let (x, a, size) = (bits(&input.tensor), input.array(), input.shape()[*axis]);
        let mut cuts = cuts.map(|c| c.index(size + 1));
        cuts.sort_unstable();
        let at = cuts.map(|c| c as i32);
        let parts = ops::split(&a, at, *axis as i32).unwrap();
        let ranges = [0..cuts[0], cuts[0]..cuts[1], cuts[1]..size];
        assert_eq!(parts.len(), 3);
        for (part, range) in parts.iter().zip(ranges) {
            is(Ok(part.clone()), &x.pick_along(*axis, &range.collect::<Vec<_>>()), input);
        }
        is(ops::concatenate(&parts, *axis as i32), &x, input);
        let single = ops::unstack(&a, *axis as i32).unwrap();
        is(ops::stack(&single, *axis as i32 - x.shape.len() as i32), &x, input);
        let order: Vec<_> = (0..size * 2).map(|i| i / 2).collect();
        is(ops::repeat(&a, 2, *axis as i32), &x.pick_along(*axis, &order), input);
        let mut reps = vec![1; x.shape.len()];
        reps[*axis] = 2;
        is(
            ops::tile(&a, &reps),
            &x.pick_along(*axis, &(0..size * 2).map(|i| i % size).collect::<Vec<_>>()),
            input,
        );
        let rolled: Vec<_> = (0..size).map(|i| (i + size - cuts[0] % size) % size).collect();
        is(ops::roll(&a, &[at[0]], *axis as i32), &x.pick_along(*axis, &rolled), input);
    });
}

#[test]
fn padding() {
    let cases = any_input(strategy::filled_shape(2)).prop_flat_map(|input| {
        let widths = vec![(0..4usize, 0..4usize); input.shape().len()];
        (Just(input), widths)
    });
    check(64, cases, |device, (input, widths)| {
        if !computes(device, input.tensor.dtype()) {
            return;
        }
        let (x, a) = (bits(&input.tensor), input.array());
        let pairs: Vec<_> = widths.iter().map(|&(l, h)| (l as i32, h as i32)).collect();
        let padded: Vec<_> = x.shape.iter().zip(widths).map(|(n, (l, h))| n + l + h).collect();
        let zeros = Nd::from_fn(&padded, |at| {
            let inside = at
                .iter()
                .zip(widths)
                .zip(&x.shape)
                .map(|((i, (l, _)), n)| i.checked_sub(*l).filter(|i| i < n));
            inside.collect::<Option<Vec<_>>>().map_or(0, |at| *x.at(&at))
        });
        is(ops::pad(&a, &pairs, PadMode::Constant, 0), &zeros, input);
        let nearest = |((&n, &(l, h)), _): ((&usize, &(usize, usize)), ())| {
            (0..n + l + h).map(|i| i.saturating_sub(l).min(n - 1)).collect::<Vec<_>>()
        };
        let edge: Vec<_> = x.shape.iter().zip(widths).zip(std::iter::repeat(())).map(nearest).collect();
        is(ops::pad(&a, &pairs, PadMode::Edge, 0), &x.pick(&edge), input);
    });
}

#[test]
fn taking_and_putting() {
    let cases =
        (any_input(strategy::filled_shape(3)), strategy::dtype(INTEGERS)).prop_flat_map(|(input, dtype)| {
            let ndim = input.shape().len();
            (Just(input), Just(dtype), 0..ndim, prop::collection::vec(any::<prop::sample::Index>(), 0..6))
        });
    check(128, cases, |device, (input, dtype, axis, picks)| {
        if !computes(device, input.tensor.dtype()) {
            return;
        }
        let (x, a) = (bits(&input.tensor), input.array());
        let size = x.shape[*axis];
        let picks: Vec<_> = picks.iter().map(|p| p.index(size)).collect();
        // Every second index counts from the end, where the dtype can say so.
        let signed = element::range(*dtype).0 < 0;
        let as_index =
            |(i, &at): (usize, &usize)| at as i128 - if signed && i % 2 == 1 { size as i128 } else { 0 };
        let numbers = Nd::new(&[picks.len()], picks.iter().enumerate().map(as_index).collect());
        let index =
            Array::from_host(&element::from_bits(&numbers.map(|&v| element::encode_int(v, *dtype)), *dtype))
                .unwrap();
        let axis_i32 = *axis as i32;
        is(ops::take(&a, &index, axis_i32), &x.pick_along(*axis, &picks), input);
        let mut shape = vec![1; x.shape.len()];
        shape[*axis] = picks.len() as i32;
        let along = ops::reshape(&index, &shape).unwrap();
        is(ops::take_along_axis(&a, &along, axis_i32), &x.pick_along(*axis, &picks), input);
        if x.shape.len() == 1 {
            let zero = Array::from_host(&element::from_bits(&Nd::scalar(0), input.tensor.dtype())).unwrap();
            let zeros = ops::broadcast_to(&zero, &[picks.len() as i32]).unwrap();
            let put = Nd::from_fn(&x.shape, |at| if picks.contains(&at[0]) { 0 } else { *x.at(at) });
            is(ops::put_along_axis(&a, &index, &zeros, 0), &put, input);
        }
    });
}

#[test]
fn scattering_adds_every_update() {
    let cases = (strategy::dtype(INTEGERS), 1..9usize, 0..12usize).prop_flat_map(|(dtype, size, count)| {
        let of = |n: usize| strategy::input(dtype, &[n], Values::Any);
        (of(size), of(count), prop::collection::vec(0..size, count))
    });
    check(64, cases, |_, (x, updates, at)| {
        let mut sums = ints(&x.tensor);
        at.iter().zip(ints(&updates.tensor).data).for_each(|(&i, v)| sums.data[i] += v);
        let index =
            Array::from_slice(&at.iter().map(|&i| i as i32).collect::<Vec<_>>(), &[at.len() as i32]).unwrap();
        let expected = Expected::ints(&sums, x.tensor.dtype());
        let found = ops::scatter_add_axis(&x.array(), &index, &updates.array(), 0).unwrap();
        assert_matches(&found, &expected, Tolerance::Exact);
        let blocks = ops::expand_dims(&updates.array(), 1).unwrap();
        let found = ops::scatter_add(&x.array(), [&index], &blocks, &[0]).unwrap();
        assert_matches(&found, &expected, Tolerance::Exact);
    });
}

#[test]
fn triangles_and_diagonals() {
    let cases = any_input((1..6usize, 1..6usize).prop_map(|(n, m)| vec![n, m]));
    check(64, (cases, -3..4i32), |device, (input, k)| {
        if !computes(device, input.tensor.dtype()) {
            return;
        }
        let (x, a) = (bits(&input.tensor), input.array());
        let keep = |f: &dyn Fn(i32, i32) -> bool| {
            Nd::from_fn(&x.shape, |at| if f(at[0] as i32, at[1] as i32) { *x.at(at) } else { 0 })
        };
        is(ops::tril(&a, *k), &keep(&|i, j| j - i <= *k), input);
        is(ops::triu(&a, *k), &keep(&|i, j| j - i >= *k), input);
        let on: Vec<_> = support::nd::indices(&x.shape)
            .into_iter()
            .filter(|at| at[1] as i32 - at[0] as i32 == *k)
            .collect();
        if !on.is_empty() {
            let diagonal = Nd::new(&[on.len()], on.iter().map(|at| *x.at(at)).collect());
            is(ops::diagonal(&a, *k, 0, 1), &diagonal, input);
        }
    });
}

#[test]
fn masked_places_take_values_in_order() {
    let array = |values: &[i32], shape: &[i32]| Array::from_slice(values, shape).unwrap();
    let a = array(&[1, 2, 3, 4, 5, 6], &[3, 2]);
    let (values, rows) = (array(&[10, 20, 30, 40], &[4]), array(&[10, 20, 30, 40], &[2, 2]));
    let scattered = |mask: &[bool], shape: &[i32], values: &Array| {
        let mask = Array::from_slice(mask, shape).unwrap();
        ops::masked_scatter(&a, &mask, values).unwrap().to_vec::<i32>()
    };
    let some = scattered(&[false, true, true, false, false, true], &[3, 2], &values);
    assert_eq!(some.unwrap(), [1, 10, 20, 4, 5, 30]);
    assert_eq!(scattered(&[true, false, true], &[3], &rows).unwrap(), [10, 20, 3, 4, 30, 40]);
    assert!(scattered(&[true; 6], &[3, 2], &values).is_err(), "too few values");
}

#[test]
fn updates_join_what_is_there() {
    type Update = fn(&Array, &Array) -> Result<Array>;
    let a = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[6]).unwrap();
    let update = Array::from_slice(&[3.0f32, 0.5], &[2]).unwrap();
    // Elements 1 and 4, which are 2 and 5.
    let updates: [(Update, [f32; 2]); 4] = [
        (|a, by| ops::slice_update_add(a, by, &[1], &[6], &[3]), [5.0, 5.5]),
        (|a, by| ops::slice_update_prod(a, by, &[1], &[6], &[3]), [6.0, 2.5]),
        (|a, by| ops::slice_update_max(a, by, &[1], &[6], &[3]), [3.0, 5.0]),
        (|a, by| ops::slice_update_min(a, by, &[1], &[6], &[3]), [2.0, 0.5]),
    ];
    for (f, [first, second]) in updates {
        assert_eq!(f(&a, &update).unwrap().to_vec::<f32>().unwrap(), [1.0, first, 3.0, 4.0, second, 6.0]);
    }
    // Elements 4, 1 and 4 again.
    let update = Array::from_slice(&[3.0f32, 0.5, 7.0], &[3, 1]).unwrap();
    let at = |f: fn(&Array, [&Array; 1], &Array, &[i32]) -> Result<Array>| {
        let index = Array::from_slice(&[4i32, 1, 4], &[3]).unwrap();
        f(&a, [&index], &update, &[0]).unwrap().to_vec::<f32>().unwrap()
    };
    assert_eq!(at(|a, i, by, axes| ops::scatter_add(a, i, by, axes)), [1.0, 2.5, 3.0, 4.0, 15.0, 6.0]);
    assert_eq!(at(|a, i, by, axes| ops::scatter_prod(a, i, by, axes)), [1.0, 1.0, 3.0, 4.0, 105.0, 6.0]);
    assert_eq!(at(|a, i, by, axes| ops::scatter_max(a, i, by, axes)), [1.0, 2.0, 3.0, 4.0, 7.0, 6.0]);
    assert_eq!(at(|a, i, by, axes| ops::scatter_min(a, i, by, axes)), [1.0, 0.5, 3.0, 4.0, 3.0, 6.0]);
}
