//! MiniCPM3: MiniCPM with latent attention, whose cache has keys and values.

use serde::Deserialize;

use super::deepseek_v3::{self, Layer};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Decoder, LatentAttention, LogitsScale, MoeNames, Scoring};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    dim_model_base: Option<i32>,
    scale_depth: Option<f32>,
    scale_emb: f32,
    v_head_dim: Option<i32>,
    #[serde(default)]
    rope_traditional: bool,
    #[serde(flatten)]
    base: deepseek_v3::Args,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let Self { dim_model_base, base, .. } = self;
        let heads = base.latent.num_attention_heads;
        Checks::new("minicpm3")
            .size("num_attention_heads", heads)
            .size("dim_model_base", dim_model_base.unwrap_or(1))
            .that(base.num_hidden_layers > 0, || "there are no layers".into())
            .done()?;
        self.base().check()
    }

    /// The config as one of DeepSeek's.
    fn base(&self) -> deepseek_v3::Args {
        let mut base = self.base.clone();
        base.latent.v_head_dim =
            self.v_head_dim.unwrap_or(base.hidden_size / base.latent.num_attention_heads.max(1));
        base.rope_interleave = self.rope_traditional;
        base
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    deepseek_v3::common_rules(&args.base)
}

/// The model.
pub type Model = Decoder<Layer<LatentAttention>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let base = args.base();
    let routing = base.experts.routing(Scoring::Sigmoid);
    let mut model = base.decoder(w, MoeNames::DEEPSEEK, routing, |_, w| base.attention(w, 1e-6, 1e6))?;
    for layer in &mut model.layers {
        layer.residual_scale = args.scale_depth.map(|scale| scale / (base.num_hidden_layers as f32).sqrt());
    }
    model.embed_scale = Some(args.scale_emb);
    let factor = args.dim_model_base.map(|dims| dims as f32 / base.hidden_size as f32);
    model.logits = LogitsScale { factor, cap: None };
    Ok(model)
}
