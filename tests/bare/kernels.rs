//! The library's kernels.

#[path = "../../src/kernels/math/mod.rs"]
pub mod math;
pub mod matmul;
#[path = "../../src/kernels/path.rs"]
pub mod path;
pub mod pool;
#[path = "../../src/kernels/product/mod.rs"]
pub mod product;
pub mod quantized_matmul;
#[path = "../../src/kernels/scratch.rs"]
pub mod scratch;
#[path = "../../src/kernels/view.rs"]
pub mod view;

pub use view::{Spec, View, ViewMut};
