//! Fast implementations for CPUs, shaders for Apple's GPUs, and the door for a user's own.
//!
//! A kernel has a reference in operations of MLX, which also gives its gradient, and implementations for
//! the CPU, picked at run time by what the machine can do. The operations of [`crate::ops`] use them by
//! themselves; [`force`] pins one, [`active`] says which runs.

mod add;
mod append;
mod attention;
mod causal_conv;
mod chain;
mod custom;
mod gated;
mod lanes;
mod math;
mod matmul;
pub mod metal;
mod path;
mod pool;
mod product;
mod quantized_matmul;
pub(crate) mod recurrence;
mod rope;
mod rows;
mod scratch;
mod select;
pub(crate) mod selective_scan;
mod ternary;
mod top_k_sample;
mod view;

pub(crate) use append::joined;
pub(crate) use attention::{Scores, attention, quantized_attention};
pub(crate) use causal_conv::causal_conv;
pub use chain::{Chain, Node, Nodes};
pub use custom::{CustomKernel, apply};
pub(crate) use gated::{Unit, gated};
pub(crate) use matmul::{addmm, gather_mm, matmul};
pub use path::{Path, force};
pub use pool::{set_threads, threads};
pub(crate) use quantized_matmul::{gather_qmm, quantized_matmul, quantized_matmuls, quantized_rows};
pub(crate) use rope::{Turn, rms_norm_rope, rope};
pub(crate) use rows::{add_rms_norm, layer_norm, rms_norm, softmax};
pub(crate) use select::{argmax, categorical, keep_top_k, keep_top_p, logsumexp, top};
pub use ternary::ternary_matmul;
pub use top_k_sample::top_k_sample;
pub use view::{Shape, Spec, View, ViewMut};
pub(crate) use view::{Strides, row_major};

/// The path that kernels of this thread take now: the forced one, or the fastest of this machine. A kernel that has
/// no implementation for it takes the next slower one that it has.
pub fn active() -> Path {
    path::current()
}
