//! Arrays, devices, streams: the contracts of the safe core.

#[path = "../support/mod.rs"]
mod support;

mod arrays;
mod fast;
mod tolerances;
mod transforms_grad;
