//! A user's kernel takes part in everything that an operation of MLX takes part in.

use std::sync::atomic::{AtomicUsize, Ordering};

use mlxport::kernels::{CustomKernel, Spec, View, ViewMut, apply};
use mlxport::{Array, Dtype, Error, Result, Stream, ops, transforms, with_stream};

use support::{EXACT, Numbers, ROUNDING, assert_close};

/// Sum of `a` and twice `b`, and their product: two inputs, two outputs.
struct Mixed {
    takes_strided: bool,
}

static RUNS: AtomicUsize = AtomicUsize::new(0);

impl CustomKernel for Mixed {
    fn name(&self) -> &str {
        "mixed"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        match inputs {
            [a, b] if a == b && a.dtype == Dtype::Float32 => Ok(vec![a.clone(), a.clone()]),
            _ => Err(Error::argument("mixed", format!("{inputs:?}"))),
        }
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        RUNS.fetch_add(1, Ordering::Relaxed);
        let [a, b] = [&inputs[0], &inputs[1]].map(|view| values(view, self.takes_strided));
        let (a, b) = (a?, b?);
        let [sum, product] = outputs else { unreachable!() };
        for (i, y) in sum.as_mut_slice::<f32>()?.iter_mut().enumerate() {
            assert_eq!(*y, 0.0);
            *y = a[i] + 2.0 * b[i];
        }
        for (i, y) in product.as_mut_slice::<f32>()?.iter_mut().enumerate() {
            *y = a[i] * b[i];
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let (a, b) = (&inputs[0], &inputs[1]);
        Ok(vec![(a + b * 2.0)?, (a * b)?])
    }

    fn takes_strided(&self, _: usize) -> bool {
        self.takes_strided
    }
}

/// The elements in row-major order.
fn values(view: &View<'_>, strided: bool) -> Result<Vec<f32>> {
    if !strided {
        return Ok(view.as_slice::<f32>()?.to_vec());
    }
    let (memory, origin) = view.strided::<f32>()?;
    let at = |mut i: i64| {
        let mut at = origin as i64;
        for (&size, &stride) in view.shape().iter().zip(view.strides()).rev() {
            at += i % i64::from(size) * stride;
            i /= i64::from(size);
        }
        memory[at as usize]
    };
    Ok((0..view.size() as i64).map(at).collect())
}

fn mixed(a: &Array, b: &Array, takes_strided: bool) -> Result<[Array; 2]> {
    Ok(apply(Mixed { takes_strided }, [a, b])?.try_into().unwrap())
}

#[test]
fn it_is_lazy_and_runs_once() {
    let a = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    let before = RUNS.load(Ordering::Relaxed);
    let [sum, product] = mixed(&a, &a, false).unwrap();
    let later = (&sum + &product).unwrap();
    assert_eq!((sum.shape(), product.dtype()), (&[2][..], Dtype::Float32));
    later.eval().unwrap();
    assert_close(&later, &[4.0, 10.0], EXACT);
    assert_close(&sum, &[3.0, 6.0], EXACT);
    // Other tests may run it meanwhile.
    assert!(RUNS.load(Ordering::Relaxed) > before);
}

#[test]
fn inputs_may_lie_in_memory_in_any_order() {
    let (a, _) = Numbers(1).array(&[6, 4]);
    let (b, _) = Numbers(2).array(&[4, 3]);
    let turned = ops::transpose(&ops::slice(&a, &[0, 0], &[6, 4], &[2, 1]).unwrap(), ..).unwrap();
    let reversed = ops::slice(&b, &[3, 2], &[-5, -4], &[-1, -1]).unwrap();
    let row = ops::slice(&b, &[1, 0], &[2, 3], &[1, 1]).unwrap();
    let repeated = ops::broadcast_to(&row, &[4, 3]).unwrap();
    for x in [&turned, &reversed, &repeated] {
        for y in [&turned, &reversed, &repeated] {
            for takes_strided in [false, true] {
                let [sum, product] = mixed(x, y, takes_strided).unwrap();
                let expected = Mixed { takes_strided }.reference(&[x.clone(), y.clone()]).unwrap();
                assert_eq!(sum.to_vec::<f32>().unwrap(), expected[0].to_vec::<f32>().unwrap());
                assert_eq!(product.to_vec::<f32>().unwrap(), expected[1].to_vec::<f32>().unwrap());
            }
        }
    }
}

#[test]
fn scalars_and_empty_arrays_are_arrays() {
    for shape in [&[0][..], &[3, 0, 2], &[], &[1, 1]] {
        let (a, values) = Numbers(3).array(shape);
        for takes_strided in [false, true] {
            let [sum, _] = mixed(&a, &a, takes_strided).unwrap();
            assert_eq!(sum.shape(), shape);
            assert_close(&sum, &values.iter().map(|v| 3.0 * v).collect::<Vec<_>>(), ROUNDING);
        }
    }
}

#[test]
fn its_inputs_are_checked_when_it_is_applied() {
    let a = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    let refused = mixed(&a, &Array::from(1.0f32), false);
    assert!(matches!(refused, Err(Error::Argument { op: "mixed", .. })), "{refused:?}");
}

#[test]
fn gradients_go_through_the_reference() {
    let (a, a_values) = Numbers(4).array(&[5]);
    let (b, b_values) = Numbers(5).array(&[5]);
    // sum((a + 2 b) * a b): by a 2 a b + 2 b^2, by b a^2 + 4 a b.
    let loss = |args: &[Array]| {
        let [sum, product] = mixed(&args[0], &args[1], false)?;
        ops::sum(&(sum * product)?, .., false)
    };
    let (_, grads) = transforms::value_and_grad(loss, [&a, &b]).unwrap();
    let pairs = || a_values.iter().zip(&b_values);
    assert_close(&grads[0], &pairs().map(|(a, b)| 2.0 * a * b + 2.0 * b * b).collect::<Vec<_>>(), ROUNDING);
    assert_close(&grads[1], &pairs().map(|(a, b)| a * a + 4.0 * a * b).collect::<Vec<_>>(), ROUNDING);
    // One argument alone, and the second derivative.
    let by_b = transforms::grad(
        |b| {
            let inner = transforms::grad(|b| loss(&[a.clone(), b.clone()]), b)?;
            ops::sum(&inner, .., false)
        },
        &b,
    );
    assert_close(&by_b.unwrap(), &a_values.iter().map(|a| 4.0 * a).collect::<Vec<_>>(), ROUNDING);
}

#[test]
fn it_maps_over_an_axis_as_a_loop_does() {
    let (a, _) = Numbers(6).array(&[4, 3]);
    let (b, _) = Numbers(7).array(&[3]);
    let f = |args: &[Array]| mixed(&args[0], &args[1], false);
    let mapped = transforms::vmap_with(f, [&a, &b], &[Some(0), None], &[0, 0]).unwrap();
    for i in 0..4 {
        let row = |y: &Array| ops::reshape(&ops::slice(y, &[i, 0], &[i + 1, 3], &[1, 1])?, &[3]);
        let alone = mixed(&row(&a).unwrap(), &b, false).unwrap();
        for (mapped, alone) in mapped.iter().zip(&alone) {
            assert_eq!(row(mapped).unwrap().to_vec::<f32>().unwrap(), alone.to_vec::<f32>().unwrap());
        }
    }
}

#[test]
fn it_is_part_of_compiled_and_exported_functions() {
    let f = |args: &[Array]| {
        let [sum, product] = mixed(&(&args[0] * 0.5)?, &args[0], false)?;
        ops::exp(&(sum - product)?)
    };
    let file = tempfile::Builder::new().suffix(".mlxfn").tempfile().unwrap();
    let (example, _) = Numbers(8).array(&[2]);
    transforms::export_function(file.path(), f, [&example], true).unwrap();
    let imported = transforms::import_function(file.path()).unwrap();
    for function in [transforms::compile(f), transforms::compile_shapeless(f)] {
        for size in [2, 5] {
            let (x, values) = Numbers(9).array(&[size]);
            let expected: Vec<f64> = values.iter().map(|v| (2.5 * v - 0.5 * v * v).exp()).collect();
            assert_close(&function.call([&x]).unwrap()[0], &expected, ROUNDING);
            assert_close(&imported.call([&x]).unwrap()[0], &expected, ROUNDING);
        }
    }
}

#[test]
fn transformations_follow_one_input_beside_one_that_is_computed() {
    let (a, a_values) = Numbers(10).array(&[3]);
    let (rows, row_values) = Numbers(11).array(&[2, 3]);
    let (b, b_values) = Numbers(12).array(&[3]);
    transforms::eval([&a, &rows, &b]).unwrap();
    // a^2 b + 2 a b^2: by b a^2 + 4 a b.
    let f = |b: &Array| {
        let [sum, product] = mixed(&a, b, false)?;
        sum * product
    };
    let value = |a: &f64, b: &f64| a * a * b + 2.0 * a * b * b;
    let slope = |a: &f64, b: &f64| a * a + 4.0 * a * b;
    let by_b: Vec<f64> = a_values.iter().zip(&b_values).map(|(a, b)| slope(a, b)).collect();
    let ones = ops::ones_like(&b).unwrap();
    let (_, gradients) = transforms::vjp(|args: &[Array]| f(&args[0]), [&b], [&ones]).unwrap();
    assert_close(&gradients[0], &by_b, ROUNDING);
    let (_, tangents) = transforms::jvp(|args: &[Array]| f(&args[0]), [&b], [&ones]).unwrap();
    assert_close(&tangents[0], &by_b, ROUNDING);
    let mapped = transforms::vmap(|args: &[Array]| f(&args[0]), [&rows]).unwrap();
    let pairs = a_values.iter().cycle().zip(&row_values);
    assert_close(&mapped[0], &pairs.map(|(a, b)| value(a, b)).collect::<Vec<_>>(), ROUNDING);
    let own = a.clone();
    let compiled = transforms::compile(move |args: &[Array]| {
        let [sum, product] = mixed(&own, &args[0], false)?;
        sum * product
    });
    let expected: Vec<f64> = a_values.iter().zip(&b_values).map(|(a, b)| value(a, b)).collect();
    for _ in 0..2 {
        assert_close(&compiled.call([&b]).unwrap()[0], &expected, ROUNDING);
    }
}

type Failure = fn() -> Result<()>;

/// Does on the stream's thread what it is told to.
struct Misbehaves(Failure);

impl CustomKernel for Misbehaves {
    fn name(&self) -> &str {
        "misbehaves"
    }
    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        Ok(inputs.to_vec())
    }
    fn cpu(&self, _: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        outputs[0].as_mut_slice::<f32>()?.fill(7.0);
        (self.0)()
    }
    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        Ok(inputs.to_vec())
    }
}

#[test]
fn a_failure_comes_back_from_eval_and_the_stream_lives_on() {
    let failures: [(Failure, &str); 3] = [
        (|| panic!("out of luck"), "kernel `misbehaves`: panicked: out of luck"),
        (|| Err(Error::argument("luck", "none left")), "kernel `misbehaves`: luck: none left"),
        (|| Array::from(1.0f32).eval(), "a kernel must not use arrays"),
    ];
    let x = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    for own_stream in [false, true] {
        for (failure, expected) in failures {
            let test = || {
                let failed = apply(Misbehaves(failure), [&x]).unwrap().swap_remove(0);
                let dependent = (&failed + 1.0).unwrap();
                let message = dependent.eval().unwrap_err().to_string();
                assert!(message.contains(expected), "{message}");
                // What it had written by then is gone, or it fails again.
                match failed.to_vec::<f32>() {
                    Ok(values) => assert_eq!(values, [0.0, 0.0]),
                    Err(error) => assert_eq!(error.to_string(), message),
                }
                let [sum, _] = mixed(&x, &x, false).unwrap();
                assert_close(&sum, &[3.0, 6.0], EXACT);
            };
            if own_stream { with_stream(&Stream::new(mlxport::Device::cpu()).unwrap(), test) } else { test() }
        }
    }
}

#[test]
fn wrong_views_are_refused() {
    struct WrongDtype;
    impl CustomKernel for WrongDtype {
        fn name(&self) -> &str {
            "wrong_dtype"
        }
        fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
            Ok(inputs.to_vec())
        }
        fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
            assert!(matches!(outputs[0].as_mut_slice::<u32>(), Err(Error::Dtype { .. })));
            assert!(inputs[0].as_slice::<f32>().is_err(), "transposed");
            inputs[0].as_slice::<i32>().map(|_| ())
        }
        fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
            Ok(inputs.to_vec())
        }
        fn takes_strided(&self, _: usize) -> bool {
            true
        }
    }
    let x = ops::transpose(&Array::from_slice(&[1.0f32; 6], &[2, 3]).unwrap(), ..).unwrap();
    let message = apply(WrongDtype, [&x]).unwrap()[0].eval().unwrap_err().to_string();
    assert!(message.contains("as_slice"), "{message}");
}

#[test]
fn threads_use_it_at_the_same_time() {
    std::thread::scope(|scope| {
        for t in 0..4 {
            scope.spawn(move || {
                for i in 0..50 {
                    let (a, values) = Numbers(t * 100 + i).array(&[33]);
                    let [sum, _] = mixed(&a, &a, i % 2 == 0).unwrap();
                    assert_close(&sum, &values.iter().map(|v| 3.0 * v).collect::<Vec<_>>(), ROUNDING);
                }
            });
        }
    });
}
