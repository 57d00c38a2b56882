//! Llama, and what is built as it is: Mistral, IQuestCoder, XVERSE, InternLM3, TeleChat3, MiMo, Seed-OSS,
//! with neighbouring dimensions in pairs Helium and ERNIE 4.5, and SmolLM3, some layers of which have no
//! positions; Ministral 3, whose queries grow with their position, and Granite, which scales what goes
//! from part to part.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Block, Decoder, LayerType, LogitsScale, Mlp, Sizes};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    #[serde(flatten)]
    sizes: Sizes,
    layer_types: Option<Vec<LayerType>>,
    sliding_window: Option<i32>,
    /// Which layers turn queries and keys (1), and which do not (0).
    no_rope_layers: Option<Vec<u8>>,
    /// By default the last of so many layers does not.
    no_rope_layer_interval: Option<usize>,
    embedding_multiplier: Option<f32>,
    /// Of the scores; by default `head_dim^-1/2`.
    attention_multiplier: Option<f32>,
    residual_multiplier: Option<f32>,
    /// What the logits are divided by.
    logits_scaling: Option<f32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes
            .checks("llama")
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .layer_types(self.sizes.num_hidden_layers, self.layer_types.as_deref())
            .layer_types(self.sizes.num_hidden_layers, self.no_rope_layers.as_deref())
            .eps("logits_scaling", self.logits_scaling.unwrap_or(1.0))
            .done()
    }

    /// How many positions a layer sees; `None` for all. Mistral and Ministral 3 have no `layer_types`: all
    /// their layers slide, or none.
    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => matches!(self.model_type.as_str(), "mistral" | "ministral3"),
        };
        self.sliding_window.filter(|_| slides)
    }

    fn has_rope(&self, layer: usize) -> bool {
        match (&self.no_rope_layers, self.model_type.as_str()) {
            (Some(turn), _) => turn[layer] != 0,
            (None, "smollm3") => !(layer + 1).is_multiple_of(self.no_rope_layer_interval.unwrap_or(4).max(1)),
            (None, _) => true,
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes.rules().drop("model.mtp_layers.*", "predict further tokens, for speculation")
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let sizes = &args.sizes;
    let model = sizes.decoder(w, |i, w| {
        let block = sizes.block(w, attention(args, i, &w.pp("self_attn"))?, sizes.mlp(&w.pp("mlp"))?)?;
        Ok(Block { residual_scale: args.residual_multiplier, ..block })
    })?;
    let logits = LogitsScale { factor: args.logits_scaling.map(f32::recip), ..LogitsScale::default() };
    Ok(Decoder { embed_scale: args.embedding_multiplier, logits, ..model })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let (attention, mut rope) = (args.sizes.attention(w)?, args.rope.clone());
    rope.rope_traditional |= matches!(args.model_type.as_str(), "ernie4_5" | "helium");
    let turns = args.has_rope(layer);
    Ok(Attention {
        rope: turns.then(|| Rope::new(args.sizes.head_dim(), &rope, 10_000.0)).transpose()?,
        window: args.window(layer),
        keeps_all: args.layer_types.is_none(),
        growth: rope.query_growth()?,
        scale: args.attention_multiplier.unwrap_or(attention.scale),
        ..attention
    })
}
