//! What the integration tests share: named tolerances, a comparator with messages one can act on, a
//! naive array to compute references with, and proptest strategies for shapes, values and layouts.
//!
//! The comparator and the naive array are tested themselves, in `tests/ops/support.rs`.

pub mod codes;
pub mod compare;
pub mod element;
pub mod layout;
pub mod nd;
pub mod numbers;
pub mod strategy;
pub mod tolerance;

pub use compare::{Expected, Mismatch, assert_close, assert_matches, compare, difference};
pub use layout::{Input, Layout};
pub use nd::Nd;
pub use numbers::{Numbers, f32_array, to_f64};
pub use tolerance::{
    COARSE_DIFFERENCE, EXACT, FINITE_DIFFERENCE, REDUCTION, ROUNDING, SOLVER, Tolerance, Ulps, epsilon,
};

use std::cell::Cell;
use std::panic;
use std::sync::Once;

use mlxport::{Device, Dtype, with_device};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Runs `body` once on every device this machine has.
pub fn for_each_device(mut body: impl FnMut(Device)) {
    for device in Device::all() {
        with_device(device, || body(device)).unwrap();
    }
}

/// Whether `device` computes with `dtype`: GPUs have no `float64`.
pub fn computes(device: Device, dtype: Dtype) -> bool {
    dtype != Dtype::Float64 || device == Device::cpu()
}

/// Runs `body` on every device, for `cases` values of `strategy`; fails with the smallest value that
/// does. The seed is fixed, so that a run can be repeated: `PROPTEST_CASES` and `PROPTEST_RNG_SEED` in
/// the environment widen the search.
#[track_caller]
pub fn check<S: Strategy>(cases: u32, strategy: S, body: impl Fn(Device, &S::Value)) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0x6d6c_7870_6f72_7400);
    }
    let on_every_device = |value| {
        for_each_device(|device| body(device, &value));
        Ok(())
    };
    hush_shrinking();
    SHRINKING.set(true);
    let result = TestRunner::new(config).run(&strategy, on_every_device);
    SHRINKING.set(false);
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

thread_local! {
    static SHRINKING: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the panics of a search quiet: the smallest of them is reported at its end.
fn hush_shrinking() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !SHRINKING.get() {
                hook(info);
            }
        }));
    });
}

/// Runs a test in a process of its own, with nothing beside it: true in that process, where the test goes
/// on; elsewhere false, after starting it with `env` and seeing it pass.
pub fn alone(test: &str, env: &[(&str, &str)]) -> bool {
    const MARK: &str = "MLXPORT_TEST_ALONE";
    if std::env::var(MARK).as_deref() == Ok(test) {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(MARK, test);
    let output = command.envs(env.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{}: {text}", output.status);
    false
}
