//! Kernels that run as one operation give what they give one by one, and outputs may take the place of inputs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mlxport::kernels::{Chain, CustomKernel, Node, Spec, View, ViewMut, apply};
use mlxport::{Array, Error, Result, ops, transforms};

use support::Numbers;

/// `x` plus `factor` times `y`.
#[derive(Clone, Copy)]
struct Sum {
    factor: f32,
}

impl CustomKernel for Sum {
    fn name(&self) -> &str {
        "sum"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        match inputs {
            [x, y] if x == y => Ok(vec![x.clone()]),
            _ => Err(Error::argument("sum", format!("{inputs:?}"))),
        }
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        if self.factor.is_nan() {
            panic!("no factor");
        }
        let (x, y) = (inputs[0].as_slice::<f32>()?, &inputs[1]);
        let (memory, origin) = y.strided::<f32>()?;
        for (i, out) in outputs[0].as_mut_slice::<f32>()?.iter_mut().enumerate() {
            let mut rest = i as i64;
            let place =
                y.shape().iter().zip(y.strides()).rev().fold(origin as i64, |at, (&size, &stride)| {
                    let index = rest % i64::from(size);
                    rest /= i64::from(size);
                    at + index * stride
                });
            // An output is zero at first.
            *out += x[i] + self.factor * memory[place as usize];
        }
        Ok(())
    }

    fn takes_strided(&self, index: usize) -> bool {
        index == 1
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        Ok(vec![(&inputs[0] + (&inputs[1] * self.factor)?)?])
    }
}

/// The first input with the numbers of the second at its beginning, in its place; and where in memory that was.
#[derive(Default)]
struct Put(Arc<AtomicUsize>);

impl CustomKernel for Put {
    fn name(&self) -> &str {
        "put"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        assert!(inputs[0].as_slice::<f32>()?.is_empty());
        let new = inputs[1].as_slice::<f32>()?;
        let out = outputs[0].as_mut_slice::<f32>()?;
        self.0.store(out.as_ptr().addr(), Ordering::Relaxed);
        out[..new.len()].copy_from_slice(new);
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let end = inputs[1].shape().to_vec();
        Ok(vec![ops::slice_update(&inputs[0], &inputs[1], &vec![0; end.len()], &end, &vec![1; end.len()])?])
    }
}

fn values(array: &Array) -> Vec<f32> {
    array.to_vec().unwrap()
}

/// `[4, 6]` and `[2, 3, 8]` to two outputs, of which one comes from within the chain.
fn chained(x: &Array, y: &Array) -> Result<[Array; 2]> {
    let mut chain = Chain::new();
    let (x, y) = (chain.input(x), chain.input(y));
    let y = chain.slice(y, 2, [1, 5])?;
    let x = chain.reshape(x, &[2, 3, 4])?;
    let [a] = chain.push(Sum { factor: 2.0 }, [x, y])?[..] else { unreachable!() };
    let [b] = chain.push(Sum { factor: -0.5 }, [a, a])?[..] else { unreachable!() };
    let flat = chain.reshape(b, &[24])?;
    let part = chain.slice(flat, 0, [3, 21])?;
    let halves = [chain.slice(part, 0, [0, 9])?, chain.slice(part, 0, [9, 18])?];
    assert_eq!(chain.spec(halves[1]).shape[..], [9]);
    let first = chain.slice(flat, 0, [0, 9])?;
    let c = chain.push(Sum { factor: 3.0 }, [first, halves[1]])?[0];
    Ok(chain.apply(&[c, a])?.try_into().unwrap())
}

fn one_by_one(x: &Array, y: &Array) -> Result<[Array; 2]> {
    let sum = |factor, x: &Array, y: &Array| Ok::<_, Error>(apply(Sum { factor }, [x, y])?.swap_remove(0));
    let y = ops::slice(y, &[0, 0, 1], &[2, 3, 5], &[1, 1, 1])?;
    let a = sum(2.0, &ops::reshape(x, &[2, 3, 4])?, &y)?;
    let flat = ops::reshape(&sum(-0.5, &a, &a)?, &[24])?;
    let part = |start, stop| ops::slice(&flat, &[start], &[stop], &[1]);
    Ok([sum(3.0, &part(0, 9)?, &part(12, 21)?)?, a])
}

#[test]
fn a_chain_gives_what_its_kernels_give() {
    let ((x, _), (y, _)) = (Numbers(1).array(&[4, 6]), Numbers(2).array(&[2, 3, 8]));
    let (found, expected) = (chained(&x, &y).unwrap(), one_by_one(&x, &y).unwrap());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!((found.shape(), values(found)), (expected.shape(), values(expected)));
    }
    let loss = |f: fn(&Array, &Array) -> Result<[Array; 2]>| {
        let loss = move |args: &[Array]| {
            let [c, a] = f(&args[0], &args[1])?;
            ops::sum(&ops::square(&c)?, .., false)? + ops::sum(&ops::square(&a)?, .., false)?
        };
        transforms::value_and_grad(loss, [&x, &y]).unwrap().1
    };
    for (found, expected) in loss(chained).iter().zip(&loss(one_by_one)) {
        assert_eq!(values(found), values(expected));
    }
}

/// Any kernels of what came before, in whole and in part, of which some are outputs.
#[test]
fn what_stays_in_a_chain_is_kept_as_long_as_it_is_needed() {
    for seed in 0..60 {
        let mut numbers = Numbers(seed).array(&[200]).1.into_iter().map(|x| (x.abs() * 1e4) as usize);
        let mut any = |below: usize| numbers.next().unwrap() % below;
        let sizes = [24, 12];
        let arrays = sizes.map(|size| Numbers(seed + 100).array(&[size]).0);
        let mut chain = Chain::new();
        // Of each size the nodes so far, and their numbers.
        let mut known = arrays.each_ref().map(|array| vec![(chain.input(array), array.clone())]);
        let mut made = Vec::new();
        for factor in 1..=30 {
            let kernel = Sum { factor: 1.0 / factor as f32 };
            let size = any(2);
            let (x, x_array) = known[size][any(known[size].len())].clone();
            // A half takes a part of a whole.
            let (mut y, mut y_array) = known[0][any(known[0].len())].clone();
            if size == 1 {
                let start = any(13) as i32;
                y = chain.slice(y, 0, [start, start + 12]).unwrap();
                y_array = ops::slice(&y_array, &[start], &[start + 12], &[1]).unwrap();
            }
            let node = chain.push(kernel, [x, y]).unwrap()[0];
            let array = apply(kernel, [&x_array, &y_array]).unwrap().swap_remove(0);
            known[size].push((node, array.clone()));
            made.push((node, array));
        }
        let outputs: Vec<_> = made.iter().filter(|_| any(4) == 0).chain(made.last()).collect();
        let outputs: Vec<_> =
            outputs.iter().enumerate().filter(|(i, a)| outputs[..*i].iter().all(|b| b.0 != a.0)).collect();
        let nodes: Vec<Node> = outputs.iter().map(|(_, (node, _))| *node).collect();
        let found = chain.apply(&nodes).unwrap();
        for (found, (_, (_, expected))) in found.iter().zip(outputs) {
            assert_eq!(values(found), values(expected), "{seed}");
        }
    }
}

#[test]
fn what_takes_the_place_of_an_input_leaves_the_input_of_others_alone() {
    let place = Arc::new(AtomicUsize::new(0));
    let put = |x: &Array, new: &[f32], in_chain: bool| {
        let new = Array::from_slice(new, &[new.len() as i32]).unwrap();
        if !in_chain {
            return apply(Put(place.clone()), [x, &new]).unwrap().swap_remove(0);
        }
        let mut chain = Chain::new();
        let (x, new) = (chain.input(x), chain.input(&new));
        let twice = chain.push(Sum { factor: 1.0 }, [new, new]).unwrap()[0];
        let put = chain.push(Put(place.clone()), [x, twice]).unwrap()[0];
        chain.apply(&[twice, put]).unwrap().swap_remove(1)
    };
    for in_chain in [false, true] {
        let factor = if in_chain { 2.0 } else { 1.0 };
        let mut x = ops::ones(&[1000], mlxport::Dtype::Float32).unwrap();
        x.eval().unwrap();
        let held = x.clone();
        x = put(&x, &[5.0, 6.0], in_chain);
        x.eval().unwrap();
        assert_eq!(values(&held.index(0..3).unwrap()), [1.0; 3]);
        assert_eq!(values(&x.index(0..3).unwrap()), [5.0 * factor, 6.0 * factor, 1.0]);
        // Nobody else has it: its memory becomes that of the next.
        drop(held);
        let places = (0..10).map(|i| {
            x = put(&x, &[i as f32], in_chain);
            x.eval().unwrap();
            place.load(Ordering::Relaxed)
        });
        let places: BTreeSet<usize> = places.collect();
        assert_eq!(places.len(), 1, "in a chain: {in_chain}");
        assert_eq!(values(&x.index(0..3).unwrap()), [9.0 * factor, 6.0 * factor, 1.0]);
        // Nor is it taken from a gradient.
        let loss = |x: &Array| ops::sum(&ops::square(&put(x, &[2.0], in_chain))?, .., false);
        let grad = transforms::grad(loss, &x).unwrap();
        assert_eq!(values(&grad.index(0..3).unwrap()), [0.0, 12.0 * factor, 2.0]);
    }
}

/// Though nothing waits for what was before.
#[test]
fn memory_is_taken_over_in_a_row_of_kernels_that_is_handed_out_at_once() {
    for count in [1, 3] {
        let places: Vec<_> = (0..count).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        let mut arrays: Vec<Array> =
            (0..count).map(|_| ops::zeros(&[100_000], mlxport::Dtype::Float32).unwrap()).collect();
        transforms::eval(&arrays).unwrap();
        let mut seen = BTreeSet::new();
        for i in 0..40 {
            for (array, place) in arrays.iter_mut().zip(&places) {
                let new = Array::from_slice(&[i as f32], &[1]).unwrap();
                *array = apply(Put(place.clone()), [&*array, &new]).unwrap().swap_remove(0);
            }
            transforms::async_eval(&arrays).unwrap();
            if i > 2 {
                seen.extend(places.iter().map(|place| place.load(Ordering::Relaxed)));
            }
        }
        for array in &arrays {
            assert_eq!(values(&array.index(0..2).unwrap()), [39.0, 0.0]);
        }
        assert_eq!(seen.len(), count);
    }
}

fn drawn(seed: u64, shape: &[i32]) -> (Array, Vec<f32>) {
    let (array, _) = Numbers(seed).array(shape);
    let numbers = values(&array);
    (array, numbers)
}

/// `x + 2 y`, with `y` as a constant.
fn with_constant(x: &Array, y: &Array) -> Result<Array> {
    let mut chain = Chain::new();
    let inputs = [chain.input(x), chain.constant(y)];
    let out = chain.push(Sum { factor: 2.0 }, inputs)?;
    Ok(chain.apply(&out)?.swap_remove(0))
}

#[test]
fn constants_are_the_arrays_they_were_made_of() {
    let (x, xs) = drawn(5, &[3, 4]);
    let (mut y, mut ys) = drawn(6, &[3, 4]);
    let sum = |ys: &[f32]| -> Vec<f32> { xs.iter().zip(ys).map(|(x, y)| x + 2.0 * y).collect() };
    for seed in [6, 7, 8] {
        (y, ys) = drawn(seed, &[3, 4]);
        for _ in 0..3 {
            assert_eq!(values(&with_constant(&x, &y).unwrap()), sum(&ys));
        }
        assert_eq!((y.shape(), y.dtype(), values(&y)), (&[3, 4][..], x.dtype(), ys.clone()));
    }
    // Not computed, and not row-major.
    let lazy = (&y + &y).unwrap();
    let doubled: Vec<f32> = ys.iter().map(|y| 2.0 * y).collect();
    assert_eq!(values(&with_constant(&x, &lazy).unwrap()), sum(&doubled));
    let (turned, zs) = drawn(9, &[4, 3]);
    let turned = ops::swapaxes(&turned, 0, 1).unwrap();
    turned.eval().unwrap();
    let across: Vec<f32> = (0..12).map(|i| zs[i % 4 * 3 + i / 4]).collect();
    assert_eq!(values(&with_constant(&x, &turned).unwrap()), sum(&across));
    let mut chain = Chain::new();
    let inputs = [chain.constant(&turned), chain.constant(&y)];
    let out = chain.push(Sum { factor: 2.0 }, inputs).unwrap();
    let expected: Vec<f32> = across.iter().zip(&ys).map(|(x, y)| x + 2.0 * y).collect();
    assert_eq!(values(&chain.apply(&out).unwrap()[0]), expected);
    // Gone before it is needed.
    let late = with_constant(&x, &y.clone()).unwrap();
    let twice = with_constant(&late, &y).unwrap();
    drop((late, y));
    let expected: Vec<f32> = sum(&ys).iter().zip(&ys).map(|(x, y)| x + 2.0 * y).collect();
    assert_eq!(values(&twice), expected);
}

#[test]
fn transformations_see_constants() {
    let ((x, _), (y, ys)) = (drawn(1, &[2, 3]), drawn(2, &[2, 3]));
    with_constant(&x, &y).unwrap().eval().unwrap();
    let loss = |evaluated: bool| {
        move |args: &[Array]| {
            if evaluated {
                transforms::eval(args)?;
            }
            ops::sum(&(with_constant(&args[0], &args[1])? * &args[1])?, .., false)
        }
    };
    let plain = |args: &[Array]| ops::sum(&((&args[0] + (&args[1] * 2.0)?)? * &args[1])?, .., false);
    let expected = transforms::value_and_grad(plain, [&x, &y]).unwrap().1;
    let expected: Vec<_> = expected.iter().map(values).collect();
    for evaluated in [false, true] {
        let found = transforms::value_and_grad(loss(evaluated), [&x, &y]).unwrap().1;
        assert_eq!(found.iter().map(values).collect::<Vec<_>>(), expected);
    }
    let beside = |args: &[Array]| ops::sum(&ops::square(&with_constant(&args[0], &y)?)?, .., false);
    let gradient = values(&transforms::value_and_grad(beside, [&x]).unwrap().1[0]);
    let sum = values(&with_constant(&x, &y).unwrap());
    assert_eq!(gradient, sum.iter().map(|sum| 2.0 * sum).collect::<Vec<_>>());
    let row = Array::from_slice(&ys[..3], &[3]).unwrap();
    row.eval().unwrap();
    with_constant(&row, &row).unwrap().eval().unwrap();
    let rows = |args: &[Array]| Ok([with_constant(&args[0], &args[1])?]);
    let mapped = values(&transforms::vmap_with(rows, [&x, &row], &[Some(0), None], &[0]).unwrap()[0]);
    let expected: Vec<f32> =
        values(&x).iter().zip(ys[..3].iter().cycle()).map(|(x, y)| x + 2.0 * y).collect();
    assert_eq!(mapped, expected);
}

#[test]
fn what_was_a_constant_can_be_taken_over_later() {
    let (x, _) = drawn(3, &[64, 64]);
    let (y, _) = drawn(4, &[64, 64]);
    let y = (&y + 1.0).unwrap();
    y.eval().unwrap();
    with_constant(&x, &y).unwrap().eval().unwrap();
    let (new, _) = drawn(5, &[4]);
    let places: Vec<Arc<AtomicUsize>> = vec![Arc::default(), Arc::default()];
    let mut held = y;
    for place in &places {
        let mut chain = Chain::new();
        let inputs = [chain.input(&held), chain.input(&new)];
        drop(held);
        let out = chain.push(Put(place.clone()), inputs).unwrap();
        held = chain.apply(&out).unwrap().swap_remove(0);
        held.eval().unwrap();
        with_constant(&x, &held).unwrap().eval().unwrap();
    }
    let [first, second] = [0, 1].map(|i| places[i].load(Ordering::Relaxed));
    assert_eq!(first, second);
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
    let refused = |f: fn(&mut Chain, Node) -> Result<Node>| {
        let mut chain = Chain::new();
        let x = chain.input(&x);
        let error = f(&mut chain, x).and_then(|node| chain.apply(&[node])).unwrap_err();
        error.to_string()
    };
    let column = |chain: &mut Chain, x| chain.slice(x, 1, [0, 1]);
    assert!(refused(|chain, x| chain.reshape(x, &[3])).contains("[3]"));
    assert!(refused(|chain, x| chain.slice(x, 1, [1, 3])).contains("[1, 3]"));
    assert!(refused(|chain, x| chain.slice(x, 2, [0, 1])).contains("axis 2"));
    assert!(refused(|chain, x| chain.slice(x, 0, [1, 1])).contains("[1, 1]"));
    let of_column = |chain: &mut Chain, x| {
        let column = chain.slice(x, 1, [0, 1])?;
        chain.reshape(column, &[2])
    };
    assert!(refused(of_column).contains("[2]"));
    // The kernel takes its first input whole.
    let mut chain = Chain::new();
    let node = chain.input(&x);
    let part = column(&mut chain, node).unwrap();
    assert!(chain.push(Sum { factor: 1.0 }, [part, part]).unwrap_err().to_string().contains("sum"));
    assert!(refused(|_, x| Ok(x)).contains("no kernel"));
    // In the place of what the chain makes, and what is no output.
    let made = |chain: &mut Chain, x| {
        let sum = chain.push(Sum { factor: 1.0 }, [x, x])?[0];
        Ok(chain.push(Put::default(), [sum, x])?[0])
    };
    assert!(refused(made).contains("put"));
    let inside = |chain: &mut Chain, x| {
        let put = chain.push(Put::default(), [x, x])?[0];
        Ok(chain.push(Sum { factor: 1.0 }, [put, put])?[0])
    };
    assert!(refused(inside).contains("put"));
    // In the place of what another kernel takes too.
    let shared = |chain: &mut Chain, x| {
        let put = chain.push(Put::default(), [x, x])?[0];
        Ok(put)
    };
    assert!(refused(shared).contains("put"));
    let mut chain = Chain::new();
    let node = chain.input(&x);
    let node = chain.push(Sum { factor: 1.0 }, [node, node]).unwrap()[0];
    assert!(chain.apply(&[node, node]).unwrap_err().to_string().contains("twice"));
    assert!(refused(|chain, x| chain.reshape(x, &[-1, -4])).contains("[-1, -4]"));
    // A panic within comes out of the evaluation.
    let mut chain = Chain::new();
    let node = chain.input(&x);
    let node = chain.push(Sum { factor: f32::NAN }, [node, node]).unwrap()[0];
    let error = chain.apply(&[node]).unwrap()[0].eval().unwrap_err().to_string();
    assert!(error.contains("chain") && error.contains("no factor"), "{error}");
}
