//! Compiled functions against the same functions run eagerly.

use std::cell::Cell;
use std::rc::Rc;

use mlxport::transforms::{CompileMode, compile, compile_shapeless, grad, set_compile_mode, value_and_grad};
use mlxport::{Array, Error, Result, Stream, ops, with_stream};

use support::{Numbers, ROUNDING, alone, assert_close, to_f64};

fn gelu(x: &Array) -> Result<Array> {
    let inner = ops::tanh(&(0.797_884_56 * &(x + (ops::power(x, 3)? * &Array::from(0.044_715f32))?)?)?)?;
    (x * 0.5)? * &(inner + &Array::from(1.0f32))?
}

#[test]
fn compiled_is_eager() {
    let mut numbers = Numbers(3);
    let compiled = compile(|x| gelu(&x[0]));
    for shape in [&[7][..], &[3, 5], &[2, 0, 3], &[]] {
        let (x, _) = numbers.array(shape);
        let found = &compiled.call([&x]).unwrap()[0];
        assert_close(found, &to_f64(&gelu(&x).unwrap()), ROUNDING);
    }
    // Exact arithmetic is exact in either way, also on strided arguments.
    let f = |x: &[Array]| (&x[0] + &x[1])? * &x[0] - &x[1];
    let (x, _) = numbers.array(&[4, 6]);
    let (y, _) = numbers.array(&[6, 4]);
    let y = ops::transpose(&y, [1, 0]).unwrap();
    let found = compile(f).call([&x, &y]).unwrap()[0].to_vec::<f32>().unwrap();
    assert_eq!(found, f(&[x, y]).unwrap().to_vec::<f32>().unwrap());
}

#[test]
fn a_function_is_traced_once_for_each_signature() {
    for shapeless in [false, true] {
        let runs = Rc::new(Cell::new(0));
        let counted = Rc::clone(&runs);
        let f = move |x: &[Array]| {
            counted.set(counted.get() + 1);
            ops::exp(&x[0])
        };
        let f = if shapeless { compile_shapeless(f) } else { compile(f) };
        for n in [2, 2, 3, 2, 3] {
            let y = f.call([&ops::zeros(&[n], mlxport::Dtype::Float32).unwrap()]).unwrap();
            assert_eq!(y[0].to_vec::<f32>().unwrap(), vec![1.0; n as usize]);
        }
        let traces = if shapeless { 1 } else { 2 };
        assert_eq!(runs.get(), traces);
        f.call([&ops::zeros(&[2], mlxport::Dtype::Float64).unwrap()]).unwrap();
        // Another stream is another graph: operations belong to the stream they were traced on.
        let stream = Stream::new(mlxport::Device::cpu()).unwrap();
        let x = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
        with_stream(&stream, || f.call([&x])).unwrap();
        assert_eq!(runs.get(), traces + 2);
    }
}

#[test]
fn captured_arrays_are_constants_and_transforms_compose() {
    let w = Array::from_slice(&[1.0f32, 2.0, 3.0], &[3]).unwrap();
    let f = Rc::new(compile(move |x| ops::sum(&(ops::square(&x[0])? * &w)?, 0, false)));
    let x = Array::from_slice(&[1.0f32, -1.0, 0.5], &[3]).unwrap();
    let one = |x: &Array| Ok(f.call([x])?.swap_remove(0));
    assert_eq!(one(&x).unwrap().item::<f32>().unwrap(), 3.75);
    assert_eq!(grad(one, &x).unwrap().to_vec::<f32>().unwrap(), [2.0, -4.0, 3.0]);
    let inner = Rc::clone(&f);
    let step = compile(move |x| {
        let (value, grads) = value_and_grad(|x| Ok(inner.call(x)?.swap_remove(0)), x)?;
        Ok([value, (&x[0] - (&grads[0] * 0.25)?)?])
    });
    for _ in 0..2 {
        let out = step.call([&x]).unwrap();
        assert_eq!(out[0].item::<f32>().unwrap(), 3.75);
        assert_eq!(out[1].to_vec::<f32>().unwrap(), [0.5, 0.0, -0.25]);
    }
}

#[test]
fn an_argument_may_be_captured_too() {
    let x = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    let captured = x.clone();
    let f = compile(move |x| &x[0] * &captured);
    let y = Array::from_slice(&[3.0f32, 4.0], &[2]).unwrap();
    for (arg, expected) in [(&x, [1.0, 4.0]), (&x, [1.0, 4.0]), (&y, [3.0, 8.0])] {
        assert_eq!(f.call([arg]).unwrap()[0].to_vec::<f32>().unwrap(), expected);
    }
}

#[test]
fn a_function_may_call_itself_while_it_is_traced() {
    let slot: Rc<std::cell::OnceCell<mlxport::transforms::Compiled>> = Rc::default();
    let itself = Rc::downgrade(&slot);
    let f = compile(move |x: &[Array]| {
        if x[0].ndim() == 0 {
            return ops::exp(&x[0]);
        }
        // Constants, not placeholders: MLX would look them up in the cache that is being filled.
        let mut sum = ops::sum(&x[0], 0, false)?;
        for i in 0..20 {
            let at_zero = Array::from_slice(&vec![0.0f32; i], &[i as i32])?;
            let arg = if i == 0 { Array::from(0.0f32) } else { ops::sum(&at_zero, 0, false)? };
            sum = (sum + &itself.upgrade().unwrap().get().unwrap().call([&arg])?[0])?;
        }
        Ok(sum)
    });
    let f = slot.get_or_init(|| f);
    let x = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    assert_eq!(f.call([&x]).unwrap()[0].item::<f32>().unwrap(), 23.0);
}

#[test]
fn errors_come_out_and_the_next_call_traces_again() {
    let fail = Rc::new(Cell::new(true));
    let failing = Rc::clone(&fail);
    let f = compile(
        move |x| {
            if failing.get() { Err(Error::argument("mine", "not yet")) } else { ops::exp(&x[0]) }
        },
    );
    let x = Array::from(0.0f32);
    assert!(matches!(f.call([&x]), Err(Error::Argument { op: "mine", .. })));
    fail.set(false);
    assert_eq!(f.call([&x]).unwrap()[0].item::<f32>().unwrap(), 1.0);
    // Nothing can be read while it is traced.
    let f = compile(|x| Array::from_slice(&x[0].to_vec::<f32>()?, &[1]));
    assert!(matches!(f.call([&x]), Err(Error::Mlx { op: "eval", .. })));
}

#[test]
fn the_mode_holds_from_the_next_call() {
    let name = "transforms_compile::the_mode_holds_from_the_next_call";
    // MLX builds into the temporary folder, where two processes could meet in a half-written library.
    let dir = tempfile::tempdir().unwrap();
    if !alone(name, &[("TMPDIR", dir.path().to_str().unwrap())]) {
        return;
    }
    let runs = Rc::new(Cell::new(0));
    let counted = Rc::clone(&runs);
    let f = compile(move |x| {
        counted.set(counted.get() + 1);
        gelu(&x[0])
    });
    let x = Array::from(0.5f32);
    let expected = to_f64(&gelu(&x).unwrap());
    let modes = [CompileMode::Enabled, CompileMode::Disabled, CompileMode::NoFuse, CompileMode::NoSimplify];
    for (mode, runs_of_two) in modes.into_iter().zip([1, 2, 1, 1]) {
        set_compile_mode(mode).unwrap();
        runs.set(0);
        for _ in 0..2 {
            assert_close(&f.call([&x]).unwrap()[0], &expected, ROUNDING);
        }
        assert_eq!(runs.get(), runs_of_two, "{mode:?}");
    }
}

#[derive(Clone, Default)]
struct Warnings(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn without_a_compiler_the_function_runs_plain_and_says_so_once() {
    let name = "transforms_compile::without_a_compiler_the_function_runs_plain_and_says_so_once";
    if !alone(name, &[("PATH", "")]) {
        return;
    }
    let warnings = Warnings::default();
    tracing::subscriber::with_default(warnings.clone(), || {
        for _ in 0..2 {
            let runs = Rc::new(Cell::new(0));
            let counted = Rc::clone(&runs);
            let f = compile(move |x| {
                counted.set(counted.get() + 1);
                gelu(&x[0])
            });
            let x = Array::from(0.5f32);
            for _ in 0..2 {
                let found = f.call([&x]).unwrap();
                assert_eq!(to_f64(&found[0]), to_f64(&gelu(&x).unwrap()));
            }
            assert_eq!(runs.get(), 2);
        }
    });
    let said = warnings.0.lock().unwrap();
    assert!(said.len() == 1 && said[0].contains("g++"), "{said:?}");
}

/// A `g++` that is there but fails, and a folder for what it would build.
#[cfg(unix)]
#[test]
fn a_compiler_that_fails_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let name = "transforms_compile::a_compiler_that_fails_is_an_error";
    let dir = tempfile::tempdir().unwrap();
    let gxx = dir.path().join("g++");
    std::fs::write(&gxx, "#!/bin/sh\n[ \"$1\" = --version ] || { echo 'out of %s%n registers'; exit 1; }\n")
        .unwrap();
    std::fs::set_permissions(&gxx, std::fs::Permissions::from_mode(0o755)).unwrap();
    let dir = dir.path().to_str().unwrap();
    if !alone(name, &[("PATH", dir), ("TMPDIR", dir)]) {
        return;
    }
    let f = compile(|x| gelu(&x[0]));
    let x = Array::from(0.5f32);
    for _ in 0..2 {
        let y = f.call([&x]).unwrap();
        let Err(Error::Mlx { op: "eval", message }) = y[0].eval() else { panic!("no error") };
        assert!(message.contains("out of %s%n registers"), "{message}");
    }
    // What needs no compiler still works.
    assert_close(&gelu(&x).unwrap(), &[0.345_714_0], support::Ulps(8.0));
}
