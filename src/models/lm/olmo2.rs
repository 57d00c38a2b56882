//! OLMo 2 and 3: norms after the branches and of all queries and keys of a layer at once; in OLMo 3 windows
//! in most layers.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Decoder, LayerType, Mlp, Sandwich, Sizes, sandwich};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    #[serde(flatten)]
    sizes: Sizes,
    layer_types: Option<Vec<LayerType>>,
    sliding_window: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes
            .checks("olmo2")
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .layer_types(self.sizes.num_hidden_layers, self.layer_types.as_deref())
            .done()
    }

    /// How many positions a layer sees; `None` for all.
    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => !(layer + 1).is_multiple_of(4),
        };
        self.sliding_window.filter(|_| slides && self.model_type == "olmo3")
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes.rules()
}

/// The model.
pub type Model = Decoder<Sandwich<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let sizes = &args.sizes;
    sizes.decoder(w, |i, w| {
        let (attention, mlp) = (attention(args, i, &w.pp("self_attn"))?, sizes.mlp(&w.pp("mlp"))?);
        Sandwich::new(attention, mlp, sandwich::AFTER, |name| sizes.norm(w, name))
    })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let (sizes, window) = (&args.sizes, args.window(layer));
    let theta = args.rope.theta(if args.model_type == "olmo3" { 500_000.0 } else { 10_000.0 });
    let rope = if window.is_some() { args.rope.sliding(theta) } else { args.rope.full() };
    Ok(Attention {
        q_norm: sizes.heads_norm(w, "q_norm", sizes.num_attention_heads)?,
        k_norm: sizes.heads_norm(w, "k_norm", sizes.kv_heads())?,
        norms_all_heads: true,
        rope: Some(Rope::new(sizes.head_dim(), &rope, theta)?),
        window,
        ..sizes.attention(w)?
    })
}
