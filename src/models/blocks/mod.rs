//! Parts that several architectures share.

mod attention;
mod decoder;
mod gated_attention;
mod latent_attention;
mod mlp;
mod moe;
mod router;
pub mod sandwich;
mod switch;

pub use attention::{
    Attention, AttentionNames, LayerType, Qkv, attend, attend_adjusted, merge_heads, soft_cap, split_heads,
};
pub use decoder::{
    Block, BlockNames, Decoder, DecoderLayer, FeedForward, LogitsScale, Mixer, Names, Order, TextPart,
    text_rules,
};
pub use gated_attention::GatedAttention;
pub use latent_attention::{Heads, LatentAttention, LatentConfig, Queries};
pub use mlp::{Mlp, MlpNames, PlainMlp};
pub use moe::{Moe, MoeNames};
pub use router::{ExpertCount, Groups, Routing, Scoring};
pub use sandwich::{Sandwich, add_finite};
pub use switch::{SwitchGlu, SwitchMlp, switched, top_k, weighted_sum};
