//! StableLM 2 (Bellagente et al., "Stable LM 2 1.6B Technical Report", 2024).

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, AttentionNames, Block, Decoder, Mlp, Names, Order};
use crate::nn::activations::Activation;
use crate::nn::{LayerNorm, Norm, Rope, RopeConfig};

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
    tie_word_embeddings: Option<bool>,
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
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
    rules.tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.layer_norm_eps);
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.into());
    let (sizes, layers, tied) = ([args.vocab_size, dims], args.num_hidden_layers, args.tie_word_embeddings);
    Decoder::new(w, Names::LLAMA, sizes, tied, norm, layers, |_, w| {
        let attention = attention(args, &w.pp("self_attn"))?;
        let mlp = Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?;
        let norm1 = w.layer_norm("input_layernorm", dims, eps)?;
        if args.use_parallel_residual {
            let block = Block::new(attention, mlp, norm1.clone(), norm1);
            return Ok(Block { norm2: None, order: Order::Parallel, ..block });
        }
        Ok(Block::new(attention, mlp, norm1, w.layer_norm("post_attention_layernorm", dims, eps)?))
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads) = (args.num_attention_heads, args.num_key_value_heads);
    let head_dim = args.hidden_size / heads;
    let norm = |name: &str, heads: i32| -> Result<Option<Norm>> {
        if !args.qk_layernorm {
            return Ok(None);
        }
        let norms = w.pp(name).pp("norms");
        let norm = |i| {
            let weight = Some(norms.pp(i).get_shaped("weight", &[head_dim])?);
            Ok(LayerNorm { weight, bias: None, eps: args.layer_norm_eps, offset: 0.0 })
        };
        Ok(Some(Norm::EachHead((0..heads).map(norm).collect::<Result<_>>()?)))
    };
    let names = AttentionNames { q_norm: "q_layernorm", k_norm: "k_layernorm", ..AttentionNames::LLAMA };
    Ok(Attention {
        q_norm: norm(names.q_norm, heads)?,
        k_norm: norm(names.k_norm, kv_heads)?,
        rope: Some(Rope::new(args.rope.dims(head_dim, 0.25)?, &args.rope, 10_000.0)?),
        ..Attention::named(w, names, args.hidden_size, [heads, kv_heads, head_dim])?
    })
}
