//! Parts that several architectures share.

mod attention;
mod decoder;
mod mlp;
mod switch;

pub use attention::{Attention, LayerType, attend, attend_adjusted, merge_heads, soft_cap, split_heads};
pub use decoder::{Block, Decoder, DecoderLayer, FeedForward, LogitsScale, Mixer, Names, TextPart};
pub use mlp::Mlp;
pub use switch::{SwitchGlu, SwitchMlp, switched, top_k, weighted_sum};
