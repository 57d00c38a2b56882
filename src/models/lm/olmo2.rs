//! OLMo 2 and 3: norms after the branches and of all queries and keys of a layer at once; in OLMo 3 windows
//! in most layers.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, Decoder, LayerType, Mlp, Names, Sandwich, sandwich};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

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
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
    vocab_size: i32,
    /// By default the head is tied if the checkpoint has none.
    tie_word_embeddings: Option<bool>,
    layer_types: Option<Vec<LayerType>>,
    sliding_window: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("olmo2")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .heads(self.num_attention_heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// How many positions a layer sees; `None` for all.
    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => !(layer + 1).is_multiple_of(4),
        };
        self.sliding_window.filter(|_| slides && self.model_type == "olmo3")
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
    match args.tie_word_embeddings {
        Some(true) => rules.drop("lm_head.*", "tied to the embeddings"),
        _ => rules,
    }
}

/// The model.
pub type Model = Decoder<Sandwich<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layers = args.num_hidden_layers;
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], args.tie_word_embeddings, norm, layers, |i, w| {
        let mlp = Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?;
        let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
        Sandwich::new(attention(args, i, &w.pp("self_attn"))?, mlp, sandwich::AFTER, norm)
    })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.kv_heads(), args.head_dim());
    let norm = |name, heads| Ok(Some(w.rms_norm(name, heads * head_dim, args.rms_norm_eps)?.into()));
    let window = args.window(layer);
    let theta = args.rope.theta(if args.model_type == "olmo3" { 500_000.0 } else { 10_000.0 });
    let rope = if window.is_some() { args.rope.sliding(theta) } else { args.rope.full() };
    Ok(Attention {
        q_norm: norm("q_norm", heads)?,
        k_norm: norm("k_norm", kv_heads)?,
        norms_all_heads: true,
        rope: Some(Rope::new(head_dim, &rope, theta)?),
        window,
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}
