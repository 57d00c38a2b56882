//! The library's kernels.

pub mod matmul;
#[path = "../../src/kernels/path.rs"]
pub mod path;
pub mod pool;
#[path = "../../src/kernels/product/mod.rs"]
pub mod product;
pub mod quantized_matmul;
#[path = "../../src/kernels/view.rs"]
pub mod view;

pub use view::{Spec, View, ViewMut};
