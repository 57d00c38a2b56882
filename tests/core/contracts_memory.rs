//! Nothing leaks, and deep graphs do not overflow the stack.

use std::cell::Cell;
use std::rc::Rc;

use mlxport::transforms::{
    checkpoint, compile, custom_vjp, eval, export_function, grad, import_function, jvp, value_and_grad, vjp,
    vmap,
};
use mlxport::{Array, Dtype, Result, memory, ops};

use support::alone;

/// Bytes of MLX's live arrays, and of the process in memory.
fn in_use() -> (usize, usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (memory::active_memory().unwrap(), pages * 4096)
}

/// How much more is in use after `rounds` of `work` than after as many before.
fn growth(rounds: usize, work: impl Fn()) -> (usize, usize) {
    (0..rounds).for_each(|_| work());
    let before = in_use();
    (0..rounds).for_each(|_| work());
    let after = in_use();
    (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1))
}

/// What a leak of a few bytes for each round would exceed.
fn leaks((active, resident): (usize, usize)) -> bool {
    active > 0 || resident > 8 << 20
}

fn chain(x: &Array, links: usize) -> Result<Array> {
    (0..links).try_fold(x.clone(), |y, _| &y + x)
}

#[test]
fn a_million_operations_leak_nothing() {
    if !alone("contracts_memory::a_million_operations_leak_nothing", &[]) {
        return;
    }
    let x = Array::from_slice(&[1.0f32; 16], &[16]).unwrap();
    let evaluated = || chain(&x, 100).unwrap().eval().unwrap();
    let abandoned = || drop(chain(&x, 100).unwrap());
    assert!(!leaks(growth(2500, evaluated)), "arrays leak");
    assert!(!leaks(growth(2500, abandoned)), "graphs leak");
    // The check sees a leak: of computed arrays, and of graphs.
    let planted = growth(300, || std::mem::forget((&x + 1).and_then(|y| y.eval().map(|()| y))));
    assert!(leaks(planted), "{planted:?}");
    let planted = growth(500, || std::mem::forget(chain(&x, 100).unwrap()));
    assert!(leaks(planted), "{planted:?}");
}

#[test]
fn transforms_leak_nothing() {
    if !alone("contracts_memory::transforms_leak_nothing", &[]) {
        return;
    }
    let x = Array::from_slice(&[1.0f32; 16], &[16]).unwrap();
    let total = |x: &Array| ops::sum(&chain(x, 10)?, 0, false);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    export_function(&path, |x| chain(&x[0], 10), [&x], false).unwrap();
    let works: [(&str, &dyn Fn() -> Result<()>); 9] = [
        ("grad", &|| grad(total, &x)?.eval()),
        ("an abandoned gradient", &|| grad(total, &x).map(drop)),
        ("vjp and jvp", &|| {
            let (_, back) = vjp(|x| chain(&x[0], 10), [&x], [&x])?;
            eval(&back)?;
            eval(&jvp(|x| chain(&x[0], 10), [&x], [&x])?.1)
        }),
        ("vmap", &|| eval(&vmap(|x| chain(&x[0], 10), [&x])?)),
        ("custom_vjp", &|| {
            let held = x.clone();
            let f = custom_vjp(|x| chain(&x[0], 10), move |_, c, _| &c[0] * &held)?;
            let (_, grads) = value_and_grad(|x| ops::sum(&f.call(x)?[0], 0, false), [&x])?;
            eval(&grads)
        }),
        ("checkpoint", &|| {
            let f = checkpoint(|x| chain(&x[0], 10))?;
            grad(|x| ops::sum(&f.call([x])?[0], 0, false), &x)?.eval()
        }),
        ("compile", &|| {
            let held = x.clone();
            let f = compile(move |x| chain(&x[0], 10)? * &held);
            eval(&f.call([&x])?)?;
            // A panic and an error leave nothing behind either.
            drop(compile(|_| Err::<Array, _>(mlxport::Error::argument("mine", "no"))).call([&x]));
            Ok(())
        }),
        ("import", &|| eval(&import_function(&path)?.call([&x])?)),
        ("errors", &|| {
            drop(grad(|_| Err(mlxport::Error::argument("mine", "no")), &x));
            drop(ops::add(&x, &ops::zeros(&[3], Dtype::Float32)?));
            Ok(())
        }),
    ];
    for (name, work) in works {
        assert!(!leaks(growth(200, || work().unwrap())), "{name} leaks");
    }
}

/// What a closure captures, counted.
struct Counted(Rc<Cell<i32>>);

impl Counted {
    fn new(count: &Rc<Cell<i32>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
    fn touch(&self) {}
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[test]
fn closures_are_dropped_once_each() {
    let count = Rc::new(Cell::new(0));
    let x = Array::from(1.0f32);
    for outcome in [true, false] {
        let body = |held: Counted| {
            move |x: &[Array]| {
                held.touch();
                if outcome { ops::exp(&x[0]) } else { panic!("in a closure") }
            }
        };
        let _ = value_and_grad(body(Counted::new(&count)), [&x]);
        let _ = vmap(body(Counted::new(&count)), [&x]);
        let _ = vjp(body(Counted::new(&count)), [&x], [&x]);
        let _ = jvp(body(Counted::new(&count)), [&x], [&x]);
        assert_eq!(count.get(), 0);
        let compiled = compile(body(Counted::new(&count)));
        let _ = compiled.call([&x]);
        let _ = compiled.call([&x]);
        assert_eq!(count.get(), 1);
        drop(compiled);
        assert_eq!(count.get(), 0);
        let recomputed = checkpoint(body(Counted::new(&count))).unwrap();
        let _ = grad(|x| Ok(recomputed.call([x])?.swap_remove(0)), &x);
        drop(recomputed);
        assert_eq!(count.get(), 0);
        let held = Counted::new(&count);
        let f = custom_vjp(body(Counted::new(&count)), move |x, _, _| {
            held.touch();
            Ok([x[0].clone()])
        });
        let f = f.unwrap();
        let value = f.call([&x]);
        drop(f);
        // The graph keeps what its gradient needs, until it is computed.
        assert_eq!(count.get(), if outcome { 2 } else { 0 });
        if let Ok(value) = value {
            eval(&value).unwrap();
        }
        assert_eq!(count.get(), 0);
    }
}

const DEEP: usize = 100_000;

#[test]
fn deep_graphs_are_computed_and_dropped() {
    let x = Array::from(1i32);
    assert_eq!(chain(&x, DEEP).unwrap().item::<i32>().unwrap(), DEEP as i32 + 1);
    drop(chain(&x, DEEP).unwrap());
    // Nodes with several outputs.
    let halves = |y: &Array| ops::concatenate(&ops::split(y, 2, 0)?, 0);
    let wide = Array::from_slice(&[1i32, 2], &[2]).unwrap();
    let folded: Result<Array> = (0..DEEP / 4).try_fold(wide.clone(), |y, _| halves(&y));
    drop(folded.as_ref().unwrap().clone());
    assert_eq!(folded.unwrap().to_vec::<i32>().unwrap(), [1, 2]);
}

#[test]
fn deep_graphs_are_transformed() {
    let x = Array::from(1.0f32);
    let deep = |x: &[Array]| (0..DEEP).try_fold(x[0].clone(), |y, _| ops::negative(&y));
    let (value, grads) = value_and_grad(deep, [&x]).unwrap();
    assert_eq!((value.item::<f32>().unwrap(), grads[0].item::<f32>().unwrap()), (1.0, 1.0));
    assert_eq!(jvp(deep, [&x], [&x]).unwrap().1[0].item::<f32>().unwrap(), 1.0);
    let rows = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    assert_eq!(vmap(deep, [&rows]).unwrap()[0].to_vec::<f32>().unwrap(), [1.0, 2.0]);
    let dir = tempfile::tempdir().unwrap();
    export_function(dir.path().join("f"), deep, [&x], false).unwrap();
    let f = checkpoint(deep).unwrap();
    assert_eq!(grad(|x| Ok(f.call([x])?.swap_remove(0)), &x).unwrap().item::<f32>().unwrap(), 1.0);
}

#[test]
fn a_peak_is_never_below_what_is_active() {
    let kept = ops::ones(&[1 << 16], Dtype::Float32).unwrap();
    kept.eval().unwrap();
    memory::reset_peak_memory().unwrap();
    assert!(memory::peak_memory().unwrap() >= 4 << 16);
    drop(kept);
}
