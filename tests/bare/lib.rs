//! The products of `src/kernels` as they run on the CPU, without MLX, and held to sums in `f64`:
//! `scripts/test-emulated` runs them on CPUs that the machine at hand is not. The modules are the library's own;
//! what they need of the rest of it is here in small.

#![cfg(test)]
#![allow(dead_code, unused_imports)]

mod array;
#[path = "../support/codes.rs"]
mod codes;
mod error;
mod kernels;
mod ops;
mod support;
