//! OpenELM (Mehta et al., "OpenELM: An Efficient Language Model Family with Open Training and Inference
//! Framework", 2024): layers that grow wider with depth.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, Mlp, MlpNames, Names, Qkv,
};
use crate::nn::activations::Activation;
use crate::nn::{Norm, Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_dim: i32,
    num_transformer_layers: usize,
    head_dim: i32,
    vocab_size: i32,
    ffn_dim_divisor: i32,
    /// Of each layer.
    num_query_heads: Vec<i32>,
    num_kv_heads: Vec<i32>,
    ffn_multipliers: Vec<f64>,
    normalize_qk_projections: Option<bool>,
    share_input_output_layers: Option<bool>,
    rms_norm_eps: Option<f32>,
    rope_freq_constant: Option<f64>,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let layers = self.num_transformer_layers;
        let mut checks = Checks::new("openelm")
            .size("model_dim", self.model_dim)
            .size("vocab_size", self.vocab_size)
            .size("ffn_dim_divisor", self.ffn_dim_divisor)
            .layer_types(layers, Some(&self.num_query_heads))
            .layer_types(layers, Some(&self.num_kv_heads))
            .layer_types(layers, Some(&self.ffn_multipliers))
            .eps("rms_norm_eps", self.eps());
        for (&heads, &kv_heads) in self.num_query_heads.iter().zip(&self.num_kv_heads) {
            checks = checks.heads(heads, kv_heads, Some(self.head_dim), self.model_dim);
        }
        for multiplier in &self.ffn_multipliers {
            checks = checks
                .that((0.0..=1024.0).contains(multiplier), || format!("`ffn_multipliers` has {multiplier}"));
        }
        checks.done()
    }

    fn eps(&self) -> f32 {
        self.rms_norm_eps.unwrap_or(1e-6)
    }

    fn tied(&self) -> bool {
        self.share_input_output_layers.unwrap_or(true)
    }

    /// The width times the layer's multiplier, to the nearest multiple of the divisor that is not smaller
    /// by more than a tenth.
    fn hidden(&self, layer: usize) -> i32 {
        let divisor = f64::from(self.ffn_dim_divisor);
        let wanted = self.ffn_multipliers[layer] * f64::from(self.model_dim);
        let near = (((wanted + divisor / 2.0) / divisor).floor() * divisor).max(divisor);
        (if near < 0.9 * wanted { near + divisor } else { near }) as i32
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new().drop("*.pos_embedding.inv_freq", "computed from the config").tied_head(args.tied())
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = Names {
        embed: "transformer.token_embeddings",
        layers: "transformer.layers",
        norm: "transformer.norm",
        head: "lm_head",
    };
    let (dims, eps, head_dim) = (args.model_dim, args.eps(), args.head_dim);
    let rope = Rope::new(head_dim, &RopeConfig::default(), args.rope_freq_constant.unwrap_or(10_000.0))?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, layers) = ([args.vocab_size, dims], args.num_transformer_layers);
    Decoder::new(w, names, sizes, Some(args.tied()), norm, layers, |i, w| {
        let at = w.pp("attn");
        let names = AttentionNames::fused("qkv_proj", "out_proj");
        let sizes = [args.num_query_heads[i], args.num_kv_heads[i], head_dim];
        let head_norm = |name| -> Result<Option<Norm>> {
            let normed = args.normalize_qk_projections.unwrap_or(true);
            normed.then(|| at.rms_norm(name, head_dim, eps).map(Norm::from)).transpose()
        };
        let attention = Attention {
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
            rope: Some(rope.clone()),
            ..Attention::fused(&at, names, Qkv::Joined, dims, sizes)?
        };
        let names = MlpNames { gate: "proj_1", up: "", down: "proj_2" };
        let mlp = Mlp::fused_named(&w.pp("ffn"), names, dims, args.hidden(i), Activation::Silu)?;
        Ok(Block {
            names: BlockNames { mixer: "attn", mlp: "ffn", norm1: "attn_norm", norm2: "ffn_norm" },
            ..Block::new(
                attention,
                mlp,
                w.rms_norm("attn_norm", dims, eps)?,
                w.rms_norm("ffn_norm", dims, eps)?,
            )
        })
    })
}
