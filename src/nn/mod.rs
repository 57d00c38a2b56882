//! Layers.
//!
//! What a layer computes with is listed once, by
//! [`parameters!`](crate::parameters).

pub mod activations;
pub mod losses;
mod module;
mod rope;

pub use module::{Module, join};
pub use rope::{Rope, RopeConfig, RopeScaling};
