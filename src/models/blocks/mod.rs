//! Parts that several architectures share.

mod attention;
mod mlp;

pub use attention::{LayerType, merge_heads, split_heads};
pub use mlp::Mlp;
