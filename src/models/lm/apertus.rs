//! Apertus: norms of queries and keys, and the activation function xIELU.

use serde::Deserialize;

use crate::array::Array;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, Block, BlockNames, Decoder, FeedForward, Names};
use crate::nn::{Linear, Norm, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    rms_norm_eps: f32,
    vocab_size: i32,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("apertus")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.kv_heads(), None, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }
}

/// How the names of a checkpoint become the model's. The parameters of xIELU are numbers, published as
/// vectors of one.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .reshape("*.alpha_p [_]", &[])
        .reshape("*.alpha_n [_]", &[]);
    if args.tie_word_embeddings { rules.drop("lm_head.*", "tied to the embeddings") } else { rules }
}

/// xIELU (Huang and Schlag, "Deriving Activation Functions Using Integration", 2024):
/// `a_p x^2 + b x` where `x` is positive, and `(e^x - 1 - x) a_n + b x` elsewhere.
#[derive(Debug)]
struct XIelu {
    alpha_p: Array,
    alpha_n: Array,
    beta: Array,
    eps: Array,
}

parameters!(XIelu { alpha_p, alpha_n, beta, eps });

impl XIelu {
    fn new(w: &Weights) -> Result<Self> {
        let number = |name| w.get_shaped(name, &[]);
        Ok(Self {
            alpha_p: number("alpha_p")?,
            alpha_n: number("alpha_n")?,
            beta: number("beta")?,
            eps: number("eps")?,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let softplus = |x: &Array| ops::logaddexp(x, 0.0);
        let alpha_n = (&self.beta + softplus(&self.alpha_n)?)?;
        let linear = (&self.beta * x)?;
        let positive = ((softplus(&self.alpha_p)? * ops::square(x)?)? + &linear)?;
        let negative = (((ops::expm1(&ops::minimum(x, &self.eps)?)? - x)? * alpha_n)? + linear)?;
        ops::where_(&ops::greater(x, 0.0)?, &positive, &negative)
    }
}

/// `down(xielu(up(x)))`.
#[derive(Debug)]
pub struct Mlp {
    up_proj: Linear,
    down_proj: Linear,
    act_fn: XIelu,
}

parameters!(Mlp { up_proj, down_proj, act_fn });

impl FeedForward for Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.down_proj.forward(&self.act_fn.forward(&self.up_proj.forward(x)?)?)
    }
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.rms_norm_eps, args.num_attention_heads);
    let (hidden, head_dim) = (args.intermediate_size, dims / heads);
    let rope = Rope::new(head_dim, &args.rope, 12_000_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, tied) = ([args.vocab_size, dims], Some(args.tie_word_embeddings));
    Decoder::new(w, Names::LLAMA, sizes, tied, norm, args.num_hidden_layers, |_, w| {
        let (at, mlp) = (w.pp("self_attn"), w.pp("mlp"));
        let head_norm = |name| -> Result<Option<Norm>> { Ok(Some(at.rms_norm(name, head_dim, eps)?.into())) };
        let attention = Attention {
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
            rope: Some(rope.clone()),
            ..Attention::new(&at, dims, heads, args.kv_heads(), head_dim)?
        };
        let mlp = Mlp {
            up_proj: mlp.linear("up_proj", dims, hidden)?,
            down_proj: mlp.linear("down_proj", hidden, dims)?,
            act_fn: XIelu::new(&mlp.pp("act_fn"))?,
        };
        Ok(Block {
            names: BlockNames {
                norm1: "attention_layernorm",
                norm2: "feedforward_layernorm",
                ..BlockNames::LLAMA
            },
            ..Block::new(
                attention,
                mlp,
                w.rms_norm("attention_layernorm", dims, eps)?,
                w.rms_norm("feedforward_layernorm", dims, eps)?,
            )
        })
    })
}
