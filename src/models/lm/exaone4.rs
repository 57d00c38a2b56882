//! EXAONE 4: norms after the branches and of the queries and keys of each head; where most layers have a
//! window, the others have no positions.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Decoder, LayerType, Mlp, Sandwich, Sizes, sandwich};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    layer_types: Option<Vec<LayerType>>,
    sliding_window: Option<i32>,
    /// Which layers have a window, where there are no `layer_types`.
    sliding_window_pattern: Option<Pattern>,
    #[serde(flatten)]
    rope: RopeConfig,
}

/// Which layers have a window.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Pattern {
    /// All but every so many.
    Every(usize),
    /// Those at an `L`: the letters repeat.
    Letters(String),
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes
            .checks("exaone4")
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .layer_types(self.sizes.num_hidden_layers, self.layer_types.as_deref())
            .done()
    }

    /// Whether a layer has a window; `None` if no layer has.
    fn slides(&self, layer: usize) -> Option<bool> {
        self.sliding_window?;
        match (&self.layer_types, &self.sliding_window_pattern) {
            (Some(types), _) => Some(types[layer] == LayerType::SlidingAttention),
            (None, Some(Pattern::Every(count))) => Some((layer + 1).checked_rem(*count)? != 0),
            (None, Some(Pattern::Letters(letters))) => {
                Some(letters.as_bytes()[layer.checked_rem(letters.len())?] == b'L')
            }
            (None, None) => None,
        }
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
    let slides = args.slides(layer);
    let rope = (slides != Some(false)).then(|| Rope::new(args.sizes.head_dim(), &args.rope, 10_000.0));
    Ok(Attention {
        q_norm: args.sizes.heads_norm(w, "q_norm", 1)?,
        k_norm: args.sizes.heads_norm(w, "k_norm", 1)?,
        rope: rope.transpose()?,
        window: args.sliding_window.filter(|_| slides == Some(true)),
        ..args.sizes.attention(w)?
    })
}
