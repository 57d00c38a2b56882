//! PLaMo: parallel branches, and key heads that serve every so many-th query head.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{KeysValues, LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, Mixer, Mlp, Names, Order, attend, merge_heads,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    n_shared_head: Option<i32>,
    rms_norm_eps: f32,
    vocab_size: i32,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("plamo")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("n_shared_head", self.shared())
            .heads(self.num_attention_heads, self.kv_heads(), None, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn shared(&self) -> i32 {
        self.n_shared_head.unwrap_or(8)
    }

    fn kv_heads(&self) -> i32 {
        self.num_attention_heads.checked_div(self.shared()).unwrap_or(0).max(1)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config")
}

/// [`Attention`] whose key head `i` serves the query heads `i`, `i + kv_heads`, `i + 2 kv_heads`, ...
#[derive(Debug)]
pub struct TiledAttention {
    attention: Attention,
}

parameters!(TiledAttention { attention: "" });

impl Mixer for TiledAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let attention = &self.attention;
        let mask = masks.of(cache, None)?;
        let [queries, keys, values] = attention.project(x)?;
        let (queries, keys) = (attention.turn(&queries, cache)?, attention.turn(&keys, cache)?);
        let seen = cache.update(&keys, &values)?;
        let tile = |x: &Array| ops::tile(x, &[1, attention.heads / attention.kv_heads, 1, 1]);
        let seen = KeysValues { keys: tile(&seen.keys)?, values: tile(&seen.values)?, quantized: None };
        let out = attend(&queries, &seen, attention.scale, &mask, None)?;
        attention.o_proj.forward(&merge_heads(&out)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.attention.make_cache()
    }
}

/// The model.
pub type Model = Decoder<Block<TiledAttention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = Names { layers: "model.layers.layers", ..Names::LLAMA };
    let (dims, eps, heads) = (args.hidden_size, args.rms_norm_eps, args.num_attention_heads);
    let head_dim = dims / heads;
    let rope = Rope::new(head_dim, &args.rope, 10_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, layers) = ([args.vocab_size, dims], args.num_hidden_layers);
    Decoder::new(w, names, sizes, Some(false), norm, layers, |_, w| {
        let attention = Attention::new(&w.pp("self_attn"), dims, heads, args.kv_heads(), head_dim)?;
        Ok(Block {
            names: BlockNames { norm1: "norm", ..BlockNames::LLAMA },
            mixer: TiledAttention { attention: Attention { rope: Some(rope.clone()), ..attention } },
            mlp: Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, Activation::Silu)?,
            norm1: w.rms_norm("norm", dims, eps)?.into(),
            norm2: None,
            order: Order::Parallel,
            residual_scale: None,
        })
    })
}
