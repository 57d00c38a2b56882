//! Operations against references that are not MLX: naive arrays in f64 or exact integers, the
//! definitions of the quantized formats, and outputs of NumPy.

mod elementwise;
mod reduction;
mod sorting;
mod support;
