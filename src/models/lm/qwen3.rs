//! Qwen3: Llama with norms of the queries and keys of each head. Qwen2 has biases instead.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Block, Decoder, LayerType, Mlp, Sizes};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    #[serde(flatten)]
    sizes: Sizes,
    layer_types: Option<Vec<LayerType>>,
    sliding_window: Option<i32>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "max_window_layers")]
    max_window_layers: usize,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn max_window_layers() -> usize {
    28
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes
            .checks("qwen3")
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .layer_types(self.sizes.num_hidden_layers, self.layer_types.as_deref())
            .done()
    }

    fn is_qwen2(&self) -> bool {
        self.model_type.starts_with("qwen2")
    }

    /// How many positions a layer sees; `None` for all.
    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => layer >= self.max_window_layers,
        };
        self.sliding_window.filter(|_| self.use_sliding_window && slides)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes.rules()
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let sizes = &args.sizes;
    sizes.decoder(w, |i, w| sizes.block(w, attention(args, i, &w.pp("self_attn"))?, sizes.mlp(&w.pp("mlp"))?))
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let norm = |name| if args.is_qwen2() { Ok(None) } else { args.sizes.heads_norm(w, name, 1) };
    Ok(Attention {
        q_norm: norm("q_norm")?,
        k_norm: norm("k_norm")?,
        rope: Some(Rope::new(args.sizes.head_dim(), &args.rope, 10_000.0)?),
        window: args.window(layer),
        keeps_all: true,
        ..args.sizes.attention(w)?
    })
}
