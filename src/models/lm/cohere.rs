//! Command R and R7B: both branches of a layer get the same normed input; in R7B only layers with a
//! window have positions.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, Decoder, LayerType, LogitsScale, Mlp, Names, Order, tied_by_default,
};
use crate::nn::activations::Activation;
use crate::nn::{LayerNorm, Norm, Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    head_dim: Option<i32>,
    #[serde(default = "layer_norm_eps")]
    layer_norm_eps: f32,
    logit_scale: Option<f32>,
    #[serde(default)]
    use_qk_norm: bool,
    #[serde(default)]
    hidden_act: Activation,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    layer_types: Option<Vec<LayerType>>,
    sliding_window: Option<i32>,
    /// Every so many layers one sees all positions, where there are no `layer_types`.
    sliding_window_pattern: Option<usize>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn layer_norm_eps() -> f32 {
    1e-5
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("cohere")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .heads(self.num_attention_heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .eps("layer_norm_eps", self.layer_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn has_windows(&self) -> bool {
        self.model_type == "cohere2"
    }

    fn slides(&self, layer: usize) -> bool {
        self.has_windows()
            && match &self.layer_types {
                Some(types) => types[layer] == LayerType::SlidingAttention,
                None => !(layer + 1).is_multiple_of(self.sliding_window_pattern.unwrap_or(4)),
            }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
    rules.tied_head(tied_by_default(args.tie_word_embeddings))
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.layer_norm_eps);
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.into());
    let (layers, tied) = (args.num_hidden_layers, tied_by_default(args.tie_word_embeddings));
    let model = Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, layers, |i, w| {
        let norm = w.layer_norm("input_layernorm", dims, eps)?;
        let mlp = Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?;
        let block = Block::new(attention(args, i, &w.pp("self_attn"))?, mlp, norm.clone(), norm);
        Ok(Block { norm2: None, order: Order::Parallel, ..block })
    })?;
    let logits = LogitsScale { factor: Some(args.logit_scale.unwrap_or(0.0625)), ..LogitsScale::default() };
    Ok(Decoder { logits, ..model })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.kv_heads(), args.head_dim());
    let norm = |name: &str, heads| -> Result<Option<Norm>> {
        if !args.use_qk_norm {
            return Ok(None);
        }
        let weight = Some(w.pp(name).get_shaped("weight", &[heads, head_dim])?);
        Ok(Some(Norm::PerHead(LayerNorm { weight, bias: None, eps: args.layer_norm_eps, offset: 0.0 })))
    };
    let (slides, has_windows) = (args.slides(layer), args.has_windows());
    let rope = RopeConfig { rope_traditional: true, ..args.rope.clone() };
    let theta = if has_windows { 50_000.0 } else { 8_000_000.0 };
    Ok(Attention {
        q_norm: norm("q_norm", heads)?,
        k_norm: norm("k_norm", kv_heads)?,
        rope: (slides || !has_windows).then(|| Rope::new(head_dim, &rope, theta)).transpose()?,
        window: slides.then_some(args.sliding_window.unwrap_or(4096)),
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}
