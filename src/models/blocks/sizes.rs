//! The sizes that most configs name as Llama's does, and what is built from them alone.

use serde::Deserialize;

use super::{
    Attention, AttentionNames, Block, BlockNames, Decoder, DecoderLayer, FeedForward, Mixer, Mlp, Names, Qkv,
};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::nn::Norm;
use crate::nn::activations::Activation;

/// The sizes of a decoder whose config and checkpoint have Llama's names; flattened into a model's `Args`.
#[derive(Debug, Clone, Deserialize)]
pub struct Sizes {
    /// Features of the model.
    pub hidden_size: i32,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Features between the projections of a feed-forward layer.
    pub intermediate_size: i32,
    /// Heads of the queries.
    pub num_attention_heads: i32,
    /// Heads of keys and values; by default as many.
    pub num_key_value_heads: Option<i32>,
    /// Features of a head; by default all features are divided among the heads.
    pub head_dim: Option<i32>,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Between the projections of a feed-forward layer.
    #[serde(default)]
    pub hidden_act: Activation,
    /// Token ids.
    pub vocab_size: i32,
    /// By default the head is tied if the checkpoint has none.
    pub tie_word_embeddings: Option<bool>,
}

impl Sizes {
    /// What must hold of them; the config of `op` may have more to check.
    pub fn checks(&self, op: &'static str) -> Checks {
        Checks::new(op)
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Features of a head.
    pub fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or_else(|| self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0))
    }

    /// Heads, those of keys and values, and features of a head.
    pub fn heads(&self) -> [i32; 3] {
        [self.num_attention_heads, self.kv_heads(), self.head_dim()]
    }

    /// The rules for what a checkpoint of any such model may have too many.
    pub fn rules(&self) -> Rules {
        Rules::new()
            .drop("*.rotary_emb.inv_freq", "computed from the config")
            .tied_head(self.tie_word_embeddings)
    }

    /// With a tied head unless the config says otherwise.
    pub fn tied(&self) -> Self {
        Self { tie_word_embeddings: self.tie_word_embeddings.or(Some(true)), ..self.clone() }
    }

    /// The projections of attention. Norms, positions and a window are the caller's to add.
    pub fn attention(&self, w: &Weights) -> Result<Attention> {
        Attention::named(w, AttentionNames::LLAMA, self.hidden_size, self.heads())
    }

    /// As [`attention`](Self::attention), with one projection to queries, keys and values.
    pub fn joined_attention(&self, w: &Weights, names: AttentionNames) -> Result<Attention> {
        Attention::fused(w, names, Qkv::Joined, self.hidden_size, self.heads())
    }

    /// A gated feed-forward layer.
    pub fn mlp(&self, w: &Weights) -> Result<Mlp> {
        Mlp::new(w, self.hidden_size, self.intermediate_size, self.hidden_act)
    }

    /// A norm of all features.
    pub fn norm(&self, w: &Weights, name: &str) -> Result<Norm> {
        Ok(w.rms_norm(name, self.hidden_size, self.rms_norm_eps)?.into())
    }

    /// A norm of so many heads together, as the queries and keys of some models have.
    pub fn heads_norm(&self, w: &Weights, name: &str, heads: i32) -> Result<Option<Norm>> {
        Ok(Some(w.rms_norm(name, heads * self.head_dim(), self.rms_norm_eps)?.into()))
    }

    /// A norm of all features whose factor is `1 + weight`.
    pub fn shifted_norm(&self, w: &Weights, name: &str) -> Result<Norm> {
        w.shifted_norm(name, self.hidden_size, self.rms_norm_eps)
    }

    /// A layer with Llama's norms.
    pub fn block<A: Mixer, F: FeedForward>(&self, w: &Weights, mixer: A, mlp: F) -> Result<Block<A, F>> {
        self.named_block(w, BlockNames::LLAMA, mixer, mlp)
    }

    /// As [`block`](Self::block), for a checkpoint with other names.
    pub fn named_block<A: Mixer, F: FeedForward>(
        &self,
        w: &Weights,
        names: BlockNames,
        mixer: A,
        mlp: F,
    ) -> Result<Block<A, F>> {
        let (norm1, norm2) = (self.norm(w, names.norm1)?, self.norm(w, names.norm2)?);
        Ok(Block { names, ..Block::new(mixer, mlp, norm1, norm2) })
    }

    /// The model, its layers by `layer`, which gets its number and its weights.
    pub fn decoder<L: DecoderLayer>(
        &self,
        w: &Weights,
        layer: impl Fn(usize, &Weights) -> Result<L>,
    ) -> Result<Decoder<L>> {
        self.named_decoder(w, Names::LLAMA, Self::norm, layer)
    }

    /// As [`decoder`](Self::decoder), for a checkpoint with other names, the last norm read by `norm`.
    pub fn named_decoder<L: DecoderLayer>(
        &self,
        w: &Weights,
        names: Names,
        norm: impl Fn(&Self, &Weights, &str) -> Result<Norm>,
        layer: impl Fn(usize, &Weights) -> Result<L>,
    ) -> Result<Decoder<L>> {
        let sizes = [self.vocab_size, self.hidden_size];
        let norm = |name: &str| norm(self, w, name);
        Decoder::new(w, names, sizes, self.tie_word_embeddings, norm, self.num_hidden_layers, layer)
    }
}
