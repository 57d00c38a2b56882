//! Fast implementations for CPUs, and the door for a user's own.
//!
//! A kernel has a reference in operations of MLX, which also gives its gradient, and implementations for
//! the CPU, picked at run time by what the machine can do. The operations of [`crate::ops`] use them by
//! themselves; [`force`] pins one, [`active`] says which runs.

mod custom;
mod matmul;
mod path;
mod pool;
mod product;
mod quantized_matmul;
mod view;

pub use custom::{CustomKernel, apply};
pub(crate) use matmul::{addmm, gather_mm, matmul};
pub use path::{Path, active, force};
pub use pool::{set_threads, threads};
pub(crate) use quantized_matmul::{gather_qmm, quantized_matmul};
pub use view::{Spec, View, ViewMut};
