//! Ling 2 linear (Bailing MoE, linear): Ling with lightning attention in most layers.

use serde::Deserialize;

use super::bailing_moe::{self, ATTENTION, BLOCK, NAMES};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Decoder, HybridBlock, LightningAttention, Mixer, Sizes};
use crate::nn::Rope;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    layer_group_size: usize,
    group_norm_size: i32,
    #[serde(flatten)]
    base: bailing_moe::Args,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let sizes = &self.base.sizes;
        self.base
            .checks("bailing_moe_linear")
            .heads(sizes.num_attention_heads, sizes.kv_heads(), None, sizes.hidden_size)
            .that(self.layer_group_size > 0, || "`layer_group_size` is 0".into())
            .done()
    }

    /// Whether a layer has full attention: the last of each group, and those after the last whole one.
    fn is_global(&self, layer: usize) -> bool {
        let group = self.layer_group_size;
        (layer + 1).is_multiple_of(group) || layer >= self.base.sizes.num_hidden_layers / group * group
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    bailing_moe::rules(&args.base)
}

/// The model.
pub type Model = Decoder<HybridBlock>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let sizes = &args.base.sizes;
    sizes.named_decoder(w, NAMES, Sizes::norm, |i, w| {
        let mlp = w.pp(BLOCK.mlp);
        let mlp = args.base.feed_forward(i, &mlp, mlp.pp("gate").contains("expert_bias"))?;
        sizes.named_block(w, BLOCK, mixer(args, i, &w.pp(BLOCK.mixer))?, mlp)
    })
}

fn mixer(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn Mixer>> {
    let (sizes, config) = (&args.base.sizes, &args.base.rope);
    let rope = |head_dim: i32| Rope::new(config.dims(head_dim, 1.0)?, config, 10_000.0);
    if !args.is_global(layer) {
        let depth = layer.saturating_sub(1) as f64 / (sizes.num_hidden_layers.max(2) - 1) as f64;
        let head_dim = sizes.hidden_size / sizes.num_attention_heads;
        let (groups, rope) = (args.group_norm_size, rope(head_dim)?);
        let dims = [sizes.hidden_size, sizes.num_attention_heads, head_dim];
        return Ok(Box::new(LightningAttention::new(w, dims, groups, rope, depth, sizes.rms_norm_eps)?));
    }
    let norm = |name: &str| match w.pp(name).contains("weight") {
        true => sizes.heads_norm(w, name, 1),
        false => Ok(None),
    };
    Ok(Box::new(Attention {
        q_norm: norm(ATTENTION.q_norm)?,
        k_norm: norm(ATTENTION.k_norm)?,
        rope: Some(rope(sizes.head_dim())?),
        ..sizes.joined_attention(w, ATTENTION)?
    }))
}
