//! StableLM 2 (Bellagente et al., "Stable LM 2 1.6B Technical Report", 2024).

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, Mixer, Mlp, Names, Order, attend, merge_heads,
};
use crate::nn::activations::Activation;
use crate::nn::{Norm, Rope, RopeConfig};
use crate::{fast, ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    layer_norm_eps: f32,
    vocab_size: i32,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default)]
    use_parallel_residual: bool,
    #[serde(default)]
    qk_layernorm: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("stablelm")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, None, self.hidden_size)
            .eps("layer_norm_eps", self.layer_norm_eps)
            .done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config")
}

/// Layer normalisation of each head, with a factor of its own.
#[derive(Debug)]
struct HeadNorms {
    norms: Vec<HeadNorm>,
    eps: f32,
}

#[derive(Debug)]
struct HeadNorm {
    weight: Array,
}

parameters!(HeadNorms { norms });
parameters!(HeadNorm { weight });

impl HeadNorms {
    fn new(w: &Weights, heads: i32, head_dim: i32, eps: f32) -> Result<Self> {
        let norm = |i| Ok(HeadNorm { weight: w.pp("norms").pp(i).get_shaped("weight", &[head_dim])? });
        Ok(Self { norms: (0..heads).map(norm).collect::<Result<_>>()?, eps })
    }

    /// `[batch, heads, length, head_dim]` to the same shape.
    fn forward(&self, x: &Array) -> Result<Array> {
        let weights: Vec<&Array> = self.norms.iter().map(|norm| &norm.weight).collect();
        let weights = ops::expand_dims(&ops::stack(weights, 0)?, 1)?;
        fast::layer_norm(x, None, None, self.eps)? * weights
    }
}

/// [`Attention`] with norms of queries and keys that differ from head to head.
#[derive(Debug)]
pub struct NormedAttention {
    attention: Attention,
    q_layernorm: Option<HeadNorms>,
    k_layernorm: Option<HeadNorms>,
}

parameters!(NormedAttention { attention: "", q_layernorm, k_layernorm });

impl Mixer for NormedAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let (Some(q_norm), Some(k_norm)) = (&self.q_layernorm, &self.k_layernorm) else {
            return self.attention.forward(x, masks, cache);
        };
        let mask = masks.of(cache, None)?;
        let [queries, keys, values] = self.attention.project(x)?;
        let queries = self.attention.turn(&q_norm.forward(&queries)?, cache)?;
        let keys = self.attention.turn(&k_norm.forward(&keys)?, cache)?;
        let seen = cache.update(&keys, &values)?;
        let out = attend(&queries, &seen, self.attention.scale, &mask, None)?;
        self.attention.o_proj.forward(&merge_heads(&out)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.attention.make_cache()
    }
}

/// The model.
pub type Model = Decoder<Block<NormedAttention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.layer_norm_eps, args.num_attention_heads);
    let (kv_heads, head_dim) = (args.num_key_value_heads, dims / heads);
    let rope = Rope::new(args.rope.dims(head_dim, 0.25)?, &args.rope, 10_000.0)?;
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.into());
    let (sizes, layers) = ([args.vocab_size, dims], args.num_hidden_layers);
    Decoder::new(w, Names::LLAMA, sizes, Some(false), norm, layers, |_, w| {
        let at = w.pp("self_attn");
        let head_norms = |name, heads| {
            args.qk_layernorm.then(|| HeadNorms::new(&at.pp(name), heads, head_dim, eps)).transpose()
        };
        let attention = Attention::new(&at, dims, heads, kv_heads, head_dim)?;
        let norm2 = |name| -> Result<Option<Norm>> {
            (!args.use_parallel_residual).then(|| w.layer_norm(name, dims, eps).map(Norm::from)).transpose()
        };
        Ok(Block {
            names: BlockNames::LLAMA,
            mixer: NormedAttention {
                attention: Attention { rope: Some(rope.clone()), ..attention },
                q_layernorm: head_norms("q_layernorm", heads)?,
                k_layernorm: head_norms("k_layernorm", kv_heads)?,
            },
            mlp: Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?,
            norm1: w.layer_norm("input_layernorm", dims, eps)?.into(),
            norm2: norm2("post_attention_layernorm")?,
            order: if args.use_parallel_residual { Order::Parallel } else { Order::Sequential },
            residual_scale: None,
        })
    })
}
