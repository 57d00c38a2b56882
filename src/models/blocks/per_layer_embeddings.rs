//! Embeddings that every layer gets for itself (Gemma 3n).

use crate::array::Array;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{Embedding, Linear, RmsNorm};
use crate::{ops, parameters};

/// Of each token a small vector for each layer: from a table, and from the token's embedding.
#[derive(Debug)]
pub struct PerLayerEmbeddings {
    embed_tokens_per_layer: Embedding,
    per_layer_model_projection: Linear,
    per_layer_projection_norm: RmsNorm,
    vocab_size: i32,
    layers: i32,
    sizes: [i32; 2],
}

parameters!(PerLayerEmbeddings {
    embed_tokens_per_layer,
    per_layer_model_projection,
    per_layer_projection_norm
});

impl PerLayerEmbeddings {
    /// For `vocab_size` tokens and so many layers, from `dims` features to `size` for each layer. The
    /// product of the last with `layers` is a size.
    pub fn new(w: &Weights, vocab_size: i32, layers: i32, [dims, size]: [i32; 2], eps: f32) -> Result<Self> {
        Ok(Self {
            embed_tokens_per_layer: w.embedding("embed_tokens_per_layer", vocab_size, layers * size)?,
            per_layer_model_projection: w.linear("per_layer_model_projection", dims, layers * size)?,
            per_layer_projection_norm: w.rms_norm("per_layer_projection_norm", size, eps)?,
            vocab_size,
            layers,
            sizes: [dims, size],
        })
    }

    /// Embeddings `[batch, length, dims]` of `tokens`, `[batch, length]`, to `[batch, length, size]` for each
    /// layer. Tokens outside the table count as the first.
    pub fn forward(&self, embeddings: &Array, tokens: &Array) -> Result<Vec<Array>> {
        let [dims, size] = self.sizes.map(|size| f64::from(size).sqrt());
        let apart = |x: Array| ops::unflatten(&x, -1, &[self.layers, self.sizes[1]]);
        let inside = ops::less(tokens, self.vocab_size)?;
        let tokens = ops::where_(&inside, tokens, 0)?;
        let of_tokens = apart((self.embed_tokens_per_layer.forward(&tokens)? * size)?)?;
        let projected = apart((self.per_layer_model_projection.forward(embeddings)? * (1.0 / dims))?)?;
        let projected = self.per_layer_projection_norm.forward(&projected)?;
        let all = ((projected + of_tokens)? * std::f64::consts::FRAC_1_SQRT_2)?;
        let parts = ops::split(&all, self.layers, -2)?;
        parts.iter().map(|part| ops::squeeze(part, -2)).collect()
    }
}
