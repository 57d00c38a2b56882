//! Parts that several architectures share.

mod attention;
mod causal_conv;
mod chained;
mod compressed_attention;
mod decoder;
mod delta_attention;
mod gated_attention;
mod gated_delta_net;
mod hybrid;
mod hyper_connection;
mod latent_attention;
mod lightning_attention;
mod linear_attention;
mod mamba;
mod mamba2;
mod mlp;
mod moe;
mod per_layer;
mod per_layer_embeddings;
mod query_gated_attention;
mod router;
pub mod sandwich;
mod shared_attention;
mod sizes;
mod switch;

pub use crate::kernels::recurrence::wkv;
pub use crate::kernels::selective_scan::{diagonal_scan, selective_scan};
pub use attention::{Attention, AttentionNames, LayerType, Qkv, attend, merge_heads, soft_cap, split_heads};
pub use causal_conv::{CausalConv, unpadded};
pub use chained::Recorded;
pub use compressed_attention::{CompressedAttention, CompressedConfig, SharedGroups};
pub use decoder::{
    Block, BlockNames, Decoder, DecoderLayer, FeedForward, LogitsScale, Mixer, Names, Order, TextConfig,
    TextPart, text_rules, tied_by_default,
};
pub use delta_attention::{DeltaAttention, DeltaSizes, Inputs};
pub use gated_attention::GatedAttention;
pub use gated_delta_net::{GatedDeltaNet, GatedDeltaSizes};
pub use hybrid::{HybridBlock, MixerBlock, MixerType, Positionwise};
pub use hyper_connection::{Connection, HyperConfig, HyperConnection, collapse};
pub use latent_attention::{Heads, LatentAttention, LatentConfig, Queries};
pub use lightning_attention::LightningAttention;
pub use linear_attention::{Sequence, gated_delta, gated_norm, linear_attention, log_decay, unit_length};
pub use mamba::{Mamba, MambaSizes, TimeStepRank};
pub use mamba2::{GroupedRmsNorm, Mamba2, Mamba2Sizes, StateHeads};
pub use mlp::{Mlp, MlpNames, MlpType, PlainMlp};
pub use moe::{Moe, MoeNames};
pub use per_layer::PerLayer;
pub use per_layer_embeddings::PerLayerEmbeddings;
pub use query_gated_attention::QueryGatedAttention;
pub use router::{ExpertCount, Groups, Routing, Scoring};
pub use sandwich::{Sandwich, add_finite};
pub use shared_attention::{Seen, SharedAttention, sources};
pub use sizes::Sizes;
pub use switch::{SwitchGlu, SwitchMlp, switched, top_k, weighted_sum};
