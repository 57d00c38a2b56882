//! Operations, grouped as MLX's documentation groups them.

mod arithmetic;

pub use arithmetic::*;
