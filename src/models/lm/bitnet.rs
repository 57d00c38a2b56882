//! BitNet b1.58 (Ma et al., "BitNet b1.58 2B4T Technical Report", 2025): Llama with ternary weights, a
//! squared ReLU, and a norm before the last projection of each branch.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Encoding, Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, Block, Decoder, FeedForward, Mixer, Names};
use crate::nn::activations::Activation;
use crate::nn::{Linear, RmsNorm, Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: Option<i32>,
    rms_norm_eps: f32,
    vocab_size: i32,
    hidden_act: Option<Activation>,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("bitnet")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn tied(&self) -> bool {
        self.tie_word_embeddings.unwrap_or(true)
    }
}

/// How the names of a checkpoint become the model's. Weights may be packed whether or not the config has
/// a `quantization_config`.
pub fn rules(args: &Args) -> Rules {
    let weight = ["*.weight", "*.scales", "*.biases"];
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config").decode(
        &["*.weight", "*.weight_scale"],
        &weight,
        Encoding::Ternary { divided: false },
    );
    if args.tied() { rules.drop("lm_head.*", "tied to the embeddings") } else { rules }
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
    let (dims, eps, heads) = (args.hidden_size, args.rms_norm_eps, args.num_attention_heads);
    let (hidden, head_dim) = (args.intermediate_size, args.head_dim.unwrap_or(dims / heads));
    let rope = Rope::new(head_dim, &args.rope, 10_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, layers) = ([args.vocab_size, dims], args.num_hidden_layers);
    Decoder::new(w, Names::LLAMA, sizes, Some(args.tied()), norm, layers, |_, w| {
        let (at, mlp) = (w.pp("self_attn"), w.pp("mlp"));
        let attention = Attention::new(&at, dims, heads, args.num_key_value_heads, head_dim)?;
        let attention = SubNormAttention {
            attention: Attention { rope: Some(rope.clone()), ..attention },
            attn_sub_norm: at.rms_norm("attn_sub_norm", heads * head_dim, eps)?,
        };
        let mlp = SubNormMlp {
            gate_proj: mlp.linear("gate_proj", dims, hidden)?,
            up_proj: mlp.linear("up_proj", dims, hidden)?,
            down_proj: mlp.linear("down_proj", hidden, dims)?,
            ffn_sub_norm: mlp.rms_norm("ffn_sub_norm", hidden, eps)?,
            act: args.hidden_act.unwrap_or(Activation::Relu2),
        };
        Ok(Block::new(
            attention,
            mlp,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}
