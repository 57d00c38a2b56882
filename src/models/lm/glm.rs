//! GLM-4: Llama with a joined gate, half of each head turning, and in GLM-4-0414 norms on both sides of the
//! branches.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Decoder, Mlp, Sandwich, Sizes};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(default = "yes")]
    rope_traditional: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes.checks("glm").done()
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
    let names = match args.model_type.as_str() {
        "glm4" => {
            ["input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"]
        }
        _ => ["input_layernorm", "", "post_attention_layernorm", ""],
    };
    sizes.decoder(w, |_, w| {
        let mlp = Mlp::fused(&w.pp("mlp"), sizes.hidden_size, sizes.intermediate_size, sizes.hidden_act)?;
        Sandwich::new(attention(args, &w.pp("self_attn"))?, mlp, names, |name| sizes.norm(w, name))
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let rope = RopeConfig { rope_traditional: args.rope_traditional, ..args.rope.clone() };
    let turning = rope.dims(args.sizes.head_dim(), 0.5)?;
    Ok(Attention { rope: Some(Rope::new(turning, &rope, 10_000.0)?), ..args.sizes.attention(w)? })
}
