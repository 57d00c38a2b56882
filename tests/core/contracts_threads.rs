//! Many threads at once, threads that end, and values that outlive what they stand on.

use std::cell::RefCell;
use std::time::Duration;

use mlxport::transforms::{async_eval, compile, custom_vjp, grad, vmap};
use mlxport::{Array, Device, HostTensor, Stream, ops, with_device, with_stream};

use support::alone;

/// A little of everything, checked.
fn work(seed: i32) {
    let x = Array::from_slice(&[seed as f32, 1.0, -2.0, 0.5], &[4]).unwrap();
    let total = |x: &Array| ops::sum(&ops::square(x)?, 0, false);
    let f = compile(move |x| &x[0] * &x[0] + &x[0]);
    for _ in 0..20 {
        let s = seed as f32;
        assert_eq!(total(&x).unwrap().item::<f32>().unwrap(), s * s + 5.25);
        assert_eq!(grad(total, &x).unwrap().to_vec::<f32>().unwrap(), [2.0 * s, 2.0, -4.0, 1.0]);
        let rows = vmap(|x| &x[0] + 1, [&x]).unwrap();
        async_eval(&rows).unwrap();
        assert_eq!(rows[0].to_vec::<f32>().unwrap(), [s + 1.0, 2.0, -1.0, 1.5]);
        assert_eq!(f.call([&x]).unwrap()[0].to_vec::<f32>().unwrap(), [s * s + s, 2.0, 2.0, 0.75]);
        let m = ops::matmul(&x.to_host().and_then(|h| Array::from_host(&h)).unwrap(), &x).unwrap();
        assert_eq!(m.item::<f32>().unwrap(), s * s + 5.25);
    }
}

#[test]
fn many_threads_compute_at_once() {
    std::thread::scope(|scope| {
        for seed in 0..16 {
            scope.spawn(move || work(seed));
        }
    });
}

#[test]
fn values_cross_threads_as_host_tensors() {
    let (send, receive) = std::sync::mpsc::channel::<HostTensor>();
    let worker = std::thread::spawn(move || {
        let sums = receive.iter().map(|t| ops::sum(&Array::from_host(&t).unwrap(), 0, false).unwrap());
        sums.map(|s| s.item::<f32>().unwrap()).collect::<Vec<_>>()
    });
    for n in 1..5 {
        send.send(Array::from_slice(&vec![1.0f32; n], &[n as i32]).unwrap().to_host().unwrap()).unwrap();
    }
    drop(send);
    assert_eq!(worker.join().unwrap(), [1.0, 2.0, 3.0, 4.0]);
}

/// The first use of MLX by several threads at once, in a process for each try.
#[test]
fn threads_that_begin_together_do_not_wait_for_each_other() {
    const NAME: &str = "contracts_threads::threads_that_begin_together_do_not_wait_for_each_other";
    if std::env::var_os("MLXPORT_TEST_ALONE").is_none() {
        return (0..20).for_each(|_| assert!(!alone(NAME, &[])));
    }
    let (done, is_done) = std::sync::mpsc::channel();
    let together = std::sync::Arc::new(std::sync::Barrier::new(4));
    for thread in 0..4 {
        let (done, together) = (done.clone(), together.clone());
        std::thread::spawn(move || {
            together.wait();
            if thread % 2 == 0 {
                mlxport::device::default_device();
            }
            done.send(ops::add(Array::from(1.0f32), 1.0).unwrap().item::<f32>().unwrap()).unwrap();
        });
    }
    for _ in 0..4 {
        assert_eq!(is_done.recv_timeout(Duration::from_secs(30)), Ok(2.0));
    }
}

fn os_threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn short_lived_threads_do_not_pile_up() {
    if !alone("contracts_threads::short_lived_threads_do_not_pile_up", &[]) {
        return;
    }
    let bodies: [fn(); 4] = [
        || drop((&Array::from(1.0f32) + 1).unwrap().item::<f32>()),
        // Without any operation, where MLX would take a stream of its own accord.
        || drop(Array::from(1.0f32).to_vec::<f32>()),
        || drop(grad(|x| Ok(x.clone()), &Array::from(1.0f32)).unwrap()),
        || {
            let stream = Stream::new(Device::cpu()).unwrap();
            with_stream(&stream, || {
                with_device(Device::cpu(), || (&Array::from(1.0f32) + 1).unwrap().eval())
            })
            .unwrap()
            .unwrap();
        },
    ];
    let run = |n: usize| {
        for _ in 0..n {
            for body in bodies {
                std::thread::spawn(body).join().unwrap();
            }
        }
    };
    run(2);
    let before = os_threads();
    run(500);
    assert_eq!(os_threads(), before);
}

thread_local! {
    static EARLY: RefCell<Option<Held>> = const { RefCell::new(None) };
    static LATE: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Arrays and functions that a thread leaves behind; when dropped, it tries to compute.
struct Held {
    arrays: Vec<Array>,
    _functions: Vec<Box<dyn std::any::Any>>,
}

impl Held {
    fn new() -> Self {
        let x = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
        let lazy = (&x + 1).unwrap();
        let computed = ops::exp(&x).unwrap();
        computed.eval().unwrap();
        let running = ops::exp(&computed).unwrap();
        async_eval([&running]).unwrap();
        let captured = x.clone();
        let compiled = compile(move |x| &x[0] * &captured);
        compiled.call([&x]).unwrap();
        let custom = custom_vjp(|x| ops::exp(&x[0]), |x, _, _| Ok([x[0].clone()])).unwrap();
        let arrays = [custom.call([&x]).unwrap(), vec![x, lazy, computed, running]].concat();
        Self { arrays, _functions: vec![Box::new(compiled), Box::new(custom)] }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Either it still works or it says that it cannot.
        let x = &self.arrays[1];
        let tried = (x + x).and_then(|y| y.to_vec::<f32>());
        assert!(tried.is_err() || tried.is_ok_and(|y| y.iter().all(|v| v.is_finite())));
        let _ = (self.arrays[3].shape(), self.arrays[3].to_vec::<f32>(), self.arrays[2].eval());
        let _ = (async_eval(&self.arrays), grad(|x| Ok(x.clone()), x), format!("{x}"));
        let _ = Stream::new(Device::cpu()).map(|s| with_stream(&s, || (x + x).and_then(|y| y.eval())));
        let _ = with_device(Device::cpu(), || compile(|x| ops::exp(&x[0])).call([x]));
    }
}

/// The thread's own destructors run in the order in which the values were first used, last first.
#[test]
fn what_a_thread_leaves_behind_is_dropped_quietly() {
    if !alone("contracts_threads::what_a_thread_leaves_behind_is_dropped_quietly", &[]) {
        return;
    }
    for round in 0..20 {
        std::thread::spawn(move || {
            if round % 2 == 0 {
                EARLY.with(|_| ());
            }
            let held = Held::new();
            LATE.with(|slot| *slot.borrow_mut() = Some(Held::new()));
            EARLY.with(|slot| *slot.borrow_mut() = Some(held));
        })
        .join()
        .unwrap();
        work(round);
    }
}

/// A thread whose first use of MLX comes when it ends.
#[test]
fn a_thread_may_begin_at_its_end() {
    struct Begins;
    impl Drop for Begins {
        fn drop(&mut self) {
            let y = (&Array::from(1.0f32) + 1).and_then(|y| y.item::<f32>());
            assert!(y.is_err() || y.is_ok_and(|y| y == 2.0));
        }
    }
    thread_local!(static SLOT: RefCell<Option<Begins>> = const { RefCell::new(None) });
    for _ in 0..4 {
        std::thread::spawn(|| SLOT.with(|slot| *slot.borrow_mut() = Some(Begins))).join().unwrap();
    }
}

#[test]
fn arrays_are_dropped_while_a_panic_unwinds() {
    let unwound = std::panic::catch_unwind(|| {
        let _held = Held::new();
        let _inner = grad(
            |x| {
                let _held = (x + x)?;
                let _guard = Stream::new(Device::cpu())?;
                Ok(x.clone())
            },
            &Array::from(1.0f32),
        );
        panic!("on purpose");
    });
    assert!(unwound.is_err());
    work(1);
}
