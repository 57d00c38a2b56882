//! Layers.
//!
//! A layer reads its weights by path, from [`Weights`](crate::checkpoint::Weights); whether they are
//! dense or quantized is the checkpoint's business. What a layer computes with is listed once, by
//! [`parameters!`](crate::parameters).

pub mod activations;
mod linear;
pub mod losses;
mod module;
mod norm;
mod rope;
mod rotation;
mod switch;
mod weight;

pub use linear::{Embedding, Linear};
pub use module::{Module, join};
pub use norm::{LayerNorm, Norm, RmsNorm};
pub use rope::{QueryGrowth, Rope, RopeConfig, RopeScaling};
pub use rotation::Rotation;
pub use switch::{MultiLinear, SwitchLinear};
pub use weight::Weight;
