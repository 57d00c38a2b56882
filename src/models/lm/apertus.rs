//! Apertus: norms of queries and keys, and the activation function xIELU.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::array::Array;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Block, BlockNames, Decoder, FeedForward, Sizes};
use crate::nn::{Linear, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    /// xIELU, which no other model has.
    #[serde(rename = "hidden_act")]
    _hidden_act: Option<IgnoredAny>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes.checks("apertus").done()
    }
}

/// How the names of a checkpoint become the model's. The parameters of xIELU are numbers, published as
/// vectors of one.
pub fn rules(args: &Args) -> Rules {
    args.sizes.rules().reshape("*.alpha_p [_]", &[]).reshape("*.alpha_n [_]", &[])
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
    let sizes = &args.sizes;
    let (dims, hidden) = (sizes.hidden_size, sizes.intermediate_size);
    let rope = Rope::new(sizes.head_dim(), &args.rope, 12_000_000.0)?;
    let names =
        BlockNames { norm1: "attention_layernorm", norm2: "feedforward_layernorm", ..BlockNames::LLAMA };
    sizes.decoder(w, |_, w| {
        let (at, mlp) = (w.pp("self_attn"), w.pp("mlp"));
        let attention = Attention {
            q_norm: sizes.heads_norm(&at, "q_norm", 1)?,
            k_norm: sizes.heads_norm(&at, "k_norm", 1)?,
            rope: Some(rope.clone()),
            ..sizes.attention(&at)?
        };
        let mlp = Mlp {
            up_proj: mlp.linear("up_proj", dims, hidden)?,
            down_proj: mlp.linear("down_proj", hidden, dims)?,
            act_fn: XIelu::new(&mlp.pp("act_fn"))?,
        };
        sizes.named_block(w, names, attention, mlp)
    })
}
