//! Operations against references that are not MLX: naive arrays in f64 or exact integers, and the
//! definitions of the quantized formats.

mod creation;
mod dtypes;
mod elementwise;
mod moves;
mod products;
mod quantized;
mod reduction;
mod sorting;
mod support;
