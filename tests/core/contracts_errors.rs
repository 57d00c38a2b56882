//! Errors and panics: they come out where they belong, once, and nothing else is hurt.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;
use std::panic::panic_any;

use mlxport::transforms::{
    CustomFunction, async_eval, checkpoint, compile, custom_vjp, eval, export_function, grad,
    import_function, jvp, value_and_grad, vjp, vmap,
};
use mlxport::{Array, Device, Error, Result, Stream, linalg, ops, with_stream};

static_assertions::assert_not_impl_any!(Array: Send, Sync);
static_assertions::assert_not_impl_any!(Stream: Send, Sync);
static_assertions::assert_not_impl_any!(mlxport::transforms::Function: Send, Sync);
static_assertions::assert_not_impl_any!(mlxport::transforms::Compiled: Send, Sync);
static_assertions::assert_not_impl_any!(mlxport::transforms::ImportedFunction: Send, Sync);
static_assertions::assert_impl_all!(mlxport::HostTensor: Send, Sync);
static_assertions::assert_impl_all!(Error: Send, Sync);

type Body = fn(&[Array]) -> Result<Array>;
type Runner = fn(Body) -> Result<Vec<Array>>;

/// Every way in which MLX calls a function of ours.
fn runners() -> Vec<(&'static str, Runner)> {
    fn x() -> Array {
        Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap()
    }
    fn total(f: &mlxport::transforms::Function) -> impl Fn(&Array) -> Result<Array> + '_ {
        |x| ops::sum(&f.call([x])?[0], 0, false)
    }
    vec![
        ("grad", |f| grad(|x| f(std::slice::from_ref(x)), &x()).map(Into::into)),
        ("value_and_grad", |f| value_and_grad(f, [&x()]).map(|(_, g)| g)),
        ("vjp", |f| vjp(f, [&x()], [&x()]).map(|(_, g)| g)),
        ("jvp", |f| jvp(f, [&x()], [&x()]).map(|(_, t)| t)),
        ("vmap", |f| vmap(f, [&x()])),
        ("compile", |f| compile(f).call([&x()])),
        ("checkpoint", |f| checkpoint(f)?.call([&x()])),
        ("custom function", |f| CustomFunction::new(f).build()?.call([&x()])),
        ("custom vjp", |f| {
            let f = custom_vjp(|x| ops::exp(&x[0]), move |x, _, _| f(x))?;
            grad(total(&f), &x()).map(Into::into)
        }),
        ("custom jvp", |f| {
            let f = CustomFunction::new(|x| ops::exp(&x[0])).jvp(move |x, _, _| f(x)).build()?;
            jvp(|x| f.call(x), [&x()], [&x()]).map(|(_, t)| t)
        }),
        ("custom vmap", |f| {
            let mapped = move |x: &[Array], _: &[Option<i32>]| Ok((vec![f(x)?], vec![0]));
            let f = CustomFunction::new(|x| ops::exp(&x[0])).vmap(mapped).build()?;
            vmap(|x| f.call(x), [&x()])
        }),
        ("nested", |f| {
            let inner = move |x: &Array| {
                grad(|x| vmap(f, [x])?[0].eval().and_then(|()| f(std::slice::from_ref(x))), x)
            };
            let outer = compile(move |x| inner(&x[0]));
            grad(|x| ops::sum(&outer.call([x])?[0], 0, false), &x()).map(Into::into)
        }),
        ("export", |f| {
            let dir = tempfile::tempdir().unwrap();
            export_function(dir.path().join("f"), f, [&x()], false).map(|()| Vec::new())
        }),
    ]
}

#[test]
fn an_error_in_a_closure_comes_out_unchanged() {
    for (name, run) in runners() {
        let failed = run(|_| Err(Error::MissingWeight { path: "a.b".into(), file: "c".into() }));
        assert!(
            matches!(&failed, Err(Error::MissingWeight { path, .. }) if path == "a.b"),
            "{name}: {failed:?}"
        );
    }
}

/// Panics again when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped");
        }
    }
}

#[test]
fn a_panic_in_a_closure_becomes_an_error() {
    let (plain, formatted, odd): (Body, Body, Body) =
        (|_| panic!("plain"), |x| panic!("shape {:?} %s%n", x[0].shape().len()), |_| panic_any(Bomb));
    let mut failures = Vec::new();
    for (name, run) in runners() {
        for (body, text) in [(plain, "plain"), (formatted, "%s%n"), (odd, "no message")] {
            let failed = run(body);
            if !matches!(&failed, Err(Error::Panic { message }) if message.contains(text)) {
                failures.push(format!("{name}: {failed:?}"));
            }
        }
    }
    // A captured value that panics when MLX drops the closure.
    let bomb = Bomb;
    let f = checkpoint(move |x| {
        let _ = &bomb;
        ops::exp(&x[0])
    });
    drop(f.unwrap());
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn an_error_that_was_handled_does_not_come_back() {
    let x = Array::from(2.0f32);
    let wide = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    // The closure goes on after its inner transform has failed.
    let handled = |x: &Array| {
        let inner = grad(|_| Err(Error::argument("mine", "inner")), x);
        assert!(matches!(inner, Err(Error::Argument { op: "mine", .. })));
        ops::square(x)
    };
    assert_eq!(grad(handled, &x).unwrap().item::<f32>().unwrap(), 4.0);
    let three = Array::from_slice(&[1.0f32; 3], &[3]).unwrap();
    assert!(matches!(&wide + &three, Err(Error::Mlx { op: "add", .. })));
    let failed = grad(
        |x| {
            let _ = handled(x);
            ops::add(&wide, &three)
        },
        &x,
    );
    assert!(matches!(failed, Err(Error::Mlx { op: "add", .. })));
}

/// While a failing call unwinds, what its closure captured is dropped, and may call MLX itself.
#[test]
fn an_error_survives_what_captured_values_do_when_dropped() {
    struct Computes;
    impl Drop for Computes {
        fn drop(&mut self) {
            let x = Array::from(1.0f32);
            assert!((&x + &Array::from_slice(&[0i32; 0], &[0]).unwrap()).is_ok());
            let wide = Array::from_slice(&[1.0f32; 2], &[2]).unwrap();
            let three = Array::from_slice(&[1.0f32; 3], &[3]).unwrap();
            assert!((&wide + &three).is_err());
        }
    }
    // Only the graph holds the function when its gradient fails.
    let failed = grad(
        |x| {
            let held = Computes;
            let fail = move |_: &[Array], _: &[Array], _: &[Array]| {
                let _ = &held;
                Err::<Array, _>(Error::argument("mine", "inner"))
            };
            Ok(custom_vjp(|x| ops::exp(&x[0]), fail)?.call([x])?.swap_remove(0))
        },
        &Array::from(1.0f32),
    );
    assert!(matches!(failed, Err(Error::Argument { op: "mine", .. })), "{failed:?}");
}

#[test]
fn a_message_is_not_a_format() {
    let hostile = "/no/such/%s%n%s%n%p folder/f.mlxfn";
    let Err(Error::Mlx { message, .. }) = import_function(hostile) else { panic!("no error") };
    assert!(message.contains(hostile), "{message}");
    assert!(matches!(import_function("nul\0byte"), Err(Error::Argument { .. })));
}

/// An array whose computation fails on the stream's own thread: the inverse of a singular matrix.
fn singular() -> Array {
    ops::flatten(&linalg::inv(&ops::zeros(&[2, 2], mlxport::Dtype::Float32).unwrap()).unwrap(), 0, -1)
        .unwrap()
}

/// Another: the file that it is read from has become
/// shorter since it was opened.
fn truncated() -> Array {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.mlxfn");
    let big = ops::ones(&[1024], mlxport::Dtype::Float32).unwrap();
    big.eval().unwrap();
    export_function(&path, |_| Ok(big.clone()), [&Array::from(0.0f32)], false).unwrap();
    let f = import_function(&path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_at(&[0], 0).unwrap();
    file.set_len(64).unwrap();
    f.call([&Array::from(0.0f32)]).unwrap().swap_remove(0)
}

#[track_caller]
fn fails(result: Result<impl std::fmt::Debug>) {
    let Err(Error::Mlx { op: "eval", message }) = &result else { panic!("{result:?}") };
    assert!(message.contains("read") || message.contains("Inverse"), "{message}");
}

/// Sums that are right only if the stream computes.
fn works() {
    let x = Array::from_slice(&[1.0f32, 2.0, 3.0], &[3]).unwrap();
    let mut y = ops::sum(&x, 0, false).unwrap();
    for _ in 0..20 {
        y = (&y + 1).unwrap();
    }
    assert_eq!(y.item::<f32>().unwrap(), 26.0);
}

fn errors_of_streams_come_back(failing: fn() -> Array) {
    // From eval, and from every later attempt at the array and at what depends on it.
    let bad = failing();
    let made_before = ops::exp(&bad).unwrap();
    fails(bad.eval());
    works();
    fails(bad.eval());
    fails(bad.to_vec::<f32>());
    fails(bad.to_host());
    assert!(format!("{bad}").starts_with("<eval: "));
    fails(ops::sum(&bad, 0, false).unwrap().to_vec::<f32>());
    fails(made_before.eval());
    works();

    // An inner array that was computed along the way.
    let bad = failing();
    let inner = ops::exp(&bad).unwrap();
    let outer = ops::sum(&inner, 0, false).unwrap();
    fails(outer.eval());
    fails(inner.to_vec::<f32>());
    fails(bad.to_vec::<f32>());
    fails((&outer + 1).unwrap().eval());
    works();

    // After async_eval, in whatever order the results are asked for.
    let bad = failing();
    let inner = ops::exp(&bad).unwrap();
    let outer = (&inner + 1).unwrap();
    async_eval([&outer]).unwrap();
    fails(outer.to_vec::<f32>());
    fails(inner.to_vec::<f32>());
    works();
    let bad = failing();
    async_eval([&bad]).unwrap();
    let later = ops::exp(&bad).unwrap();
    async_eval([&later]).ok();
    fails(later.to_vec::<f32>());
    fails(bad.to_vec::<f32>());
    works();
    let bad = failing();
    async_eval([&bad]).unwrap();
    let later = ops::exp(&bad).unwrap();
    async_eval([&later]).ok();
    fails(bad.to_vec::<f32>());
    fails(later.to_vec::<f32>());
    works();

    // Across streams.
    let stream = Stream::new(Device::cpu()).unwrap();
    let bad = failing();
    let other = with_stream(&stream, || ops::exp(&bad)).unwrap();
    let back = ops::sum(&other, 0, false).unwrap();
    fails(back.eval());
    fails(other.to_vec::<f32>());
    fails(bad.to_vec::<f32>());
    with_stream(&stream, works);
    works();

    // What was computed before, and what does not depend on it, is as it was.
    let good = (&Array::from(1.0f32) + 1).unwrap();
    good.eval().unwrap();
    let bad = failing();
    let unrelated = (&Array::from(2.0f32) * 2).unwrap();
    fails(eval([&(&bad + &good).unwrap()]));
    assert_eq!(good.item::<f32>().unwrap(), 2.0);
    assert_eq!(unrelated.item::<f32>().unwrap(), 4.0);

    // Waiting for the stream reports it too.
    let bad = failing();
    async_eval([&bad]).unwrap();
    assert!(matches!(mlxport::device::synchronize(), Err(Error::Mlx { op: "synchronize", .. })));
    mlxport::device::synchronize().unwrap();
    fails(bad.eval());

    // Inside a transform.
    let bad = failing();
    let x = Array::from(1.0f32);
    let inner = RefCell::new(None);
    let failed = grad(
        |x| {
            let y = (ops::sum(&bad, 0, false)? * x)?;
            *inner.borrow_mut() = Some(y.clone());
            y.eval()?;
            Ok(y)
        },
        &x,
    );
    fails(failed);
    fails(inner.take().unwrap().item::<f32>());
    works();
}

#[test]
fn an_error_on_a_stream_comes_back_and_stays_with_its_arrays() {
    for failing in [singular, truncated] {
        errors_of_streams_come_back(failing);
        for _ in 0..3 {
            std::thread::spawn(move || errors_of_streams_come_back(failing)).join().unwrap();
        }
    }
}

#[test]
fn an_error_nobody_asked_for_ends_with_its_thread() {
    for _ in 0..8 {
        std::thread::spawn(|| async_eval([&singular()]).unwrap()).join().unwrap();
        std::thread::spawn(works).join().unwrap();
    }
}
