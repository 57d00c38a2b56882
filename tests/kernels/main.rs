//! Kernels of ours in MLX's graph, and what they compute.

#[path = "../support/mod.rs"]
mod support;

mod custom;
mod quantized_matmul;
