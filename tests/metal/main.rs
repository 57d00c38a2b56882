//! The runner of Metal shaders (`metal/host`), and the shaders that it runs.

#[path = "../support/mod.rs"]
mod support;

mod runner;
mod shaders;
