//! Watching a forward pass: every stage that a person compares when a port is wrong reports here.
//!
//! ```no_run
//! # fn main() -> mlxport::Result<()> {
//! # let model = mlxport::models::load("Qwen3-0.6B".as_ref())?;
//! # let tokens = mlxport::Array::from(0i32);
//! let (logits, stages) = mlxport::models::probe::record(|| model.forward(&tokens, &mut model.make_cache()));
//! for (name, array) in stages {
//!     println!("{name}: {array:?}"); // embeddings, layers.0.self_attn, layers.0.mlp, layers.0, ...
//! }
//! # Ok(())
//! # }
//! ```

use std::cell::{Cell, RefCell};
use std::fmt::Display;

use crate::array::Array;
use crate::error::Result;

#[derive(Default)]
struct Record {
    scope: Vec<String>,
    stages: Vec<(String, Array)>,
}

thread_local! {
    static LISTENING: Cell<bool> = const { Cell::new(false) };
    static RECORD: RefCell<Record> = RefCell::default();
}

/// Runs `f`, and returns with its result every stage that it reported, in order. Nothing is computed
/// by it. A recording inside another takes its stages away from that one.
pub fn record<R>(f: impl FnOnce() -> R) -> (R, Vec<(String, Array)>) {
    /// Puts the outer recording back, also when `f` panics.
    struct Outer(bool, Option<Record>);
    impl Drop for Outer {
        fn drop(&mut self) {
            LISTENING.set(self.0);
            RECORD.set(self.1.take().unwrap_or_default());
        }
    }
    let _outer = Outer(LISTENING.replace(true), Some(RECORD.take()));
    let result = f();
    let stages = RECORD.with_borrow_mut(|record| std::mem::take(&mut record.stages));
    (result, stages)
}

/// Whether anybody listens.
pub(super) fn is_recording() -> bool {
    LISTENING.get()
}

/// Reports `x` as `name`, below the [`stage`]s that run. Costs nothing when nobody listens: write
/// `format_args!` for a name with a number in it.
pub fn probe(name: impl Display, x: &Array) {
    if LISTENING.get() {
        RECORD.with_borrow_mut(|record| {
            let mut path = record.scope.join(".");
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&name.to_string());
            record.stages.push((path, x.clone()));
        });
    }
}

/// Runs `f` as the stage `name`: what it reports is below that name, and its result is reported as it.
/// Without a name, `f` runs as if it were not a stage.
pub fn stage(name: impl Display, f: impl FnOnce() -> Result<Array>) -> Result<Array> {
    if !LISTENING.get() {
        return f();
    }
    let name = name.to_string();
    if name.is_empty() {
        return f();
    }
    RECORD.with_borrow_mut(|record| record.scope.push(name.clone()));
    let result = f();
    RECORD.with_borrow_mut(|record| record.scope.pop());
    if let Ok(x) = &result {
        probe(name, x);
    }
    result
}
