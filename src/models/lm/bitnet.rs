//! BitNet b1.58 (Ma et al., "BitNet b1.58 2B4T Technical Report", 2025): Llama with ternary weights, a
//! squared ReLU, and a norm before the last projection of each branch.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Encoding, Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Block, Decoder, FeedForward, Mixer, Sizes};
use crate::nn::activations::Activation;
use crate::nn::{Linear, RmsNorm, Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    /// By default the squared ReLU.
    hidden_act: Option<Activation>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes.checks("bitnet").done()
    }
}

/// How the names of a checkpoint become the model's. Weights may be packed whether or not the config has
/// a `quantization_config`.
pub fn rules(args: &Args) -> Rules {
    let weight = ["*.weight", "*.scales", "*.biases"];
    let ternary = Encoding::Ternary { divided: false };
    packed_rules(args).decode(&["*.weight", "*.weight_scale"], &weight, ternary)
}

/// The same, with ternary weights as they are published, which mlx-lm has too.
pub fn packed_rules(args: &Args) -> Rules {
    args.sizes.tied().rules()
}

/// [`Attention`] with a norm of what the heads give.
#[derive(Debug)]
pub struct SubNormAttention {
    attention: Attention,
    attn_sub_norm: RmsNorm,
}

parameters!(SubNormAttention { attention: "", attn_sub_norm });

impl Mixer for SubNormAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let heads = self.attention.heads_of(x, masks, cache)?;
        self.attention.o_proj.forward(&self.attn_sub_norm.forward(&heads)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.attention.make_cache()
    }
}

/// A gated feed-forward layer with a norm of what was gated.
#[derive(Debug)]
pub struct SubNormMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    ffn_sub_norm: RmsNorm,
    act: Activation,
}

parameters!(SubNormMlp { gate_proj, up_proj, down_proj, ffn_sub_norm });

impl FeedForward for SubNormMlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let gate = self.act.apply(&self.gate_proj.forward(x)?)?;
        self.down_proj.forward(&self.ffn_sub_norm.forward(&(gate * self.up_proj.forward(x)?)?)?)
    }
}

/// The model.
pub type Model = Decoder<Block<SubNormAttention, SubNormMlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (sizes, eps) = (&args.sizes.tied(), args.sizes.rms_norm_eps);
    let (dims, hidden) = (sizes.hidden_size, sizes.intermediate_size);
    let rope = Rope::new(sizes.head_dim(), &args.rope, 10_000.0)?;
    sizes.decoder(w, |_, w| {
        let (at, mlp) = (w.pp("self_attn"), w.pp("mlp"));
        let width = sizes.num_attention_heads * sizes.head_dim();
        let attention = SubNormAttention {
            attention: Attention { rope: Some(rope.clone()), ..sizes.attention(&at)? },
            attn_sub_norm: at.rms_norm("attn_sub_norm", width, eps)?,
        };
        let mlp = SubNormMlp {
            gate_proj: mlp.linear("gate_proj", dims, hidden)?,
            up_proj: mlp.linear("up_proj", dims, hidden)?,
            down_proj: mlp.linear("down_proj", hidden, dims)?,
            ffn_sub_norm: mlp.rms_norm("ffn_sub_norm", hidden, eps)?,
            act: args.hidden_act.unwrap_or(Activation::Relu2),
        };
        sizes.block(w, attention, mlp)
    })
}
