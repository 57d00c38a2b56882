//! What the integration tests share: named tolerances, a comparator with messages one can act on, a
//! naive array to compute references with, and proptest strategies for shapes, values and layouts.
//!
//! The comparator and the naive array are tested themselves, in `tests/ops/support.rs`.

pub mod compare;
pub mod element;
pub mod layout;
pub mod nd;
pub mod strategy;
pub mod tolerance;

pub use compare::{Expected, Mismatch, assert_matches, compare};
pub use layout::{Input, Layout};
pub use nd::Nd;
pub use tolerance::Tolerance;

use mlxport::{Device, Dtype, with_device};
use proptest::test_runner::{Config, RngSeed};

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

/// `cases` cases from a fixed seed, so that a run can be repeated. `PROPTEST_CASES` and
/// `PROPTEST_RNG_SEED` in the environment widen the search.
pub fn cases(cases: u32) -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0x6d6c_7870_6f72_74);
    }
    config
}
