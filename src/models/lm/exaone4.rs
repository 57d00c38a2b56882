//! EXAONE 4: norms after the branches and of the queries and keys of each head; where most layers have a
//! window, the others have no positions.

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
    /// Which layers have a window, where there are no `layer_types`.
    sliding_window_pattern: Option<Pattern>,
    #[serde(flatten)]
    rope: RopeConfig,
}

/// Which layers have a window.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Pattern {
    /// All but every so many.
    Every(usize),
    /// Those at an `L`: the letters repeat.
    Letters(String),
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("exaone4")
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

    /// Whether a layer has a window; `None` if no layer has.
    fn slides(&self, layer: usize) -> Option<bool> {
        self.sliding_window?;
        match (&self.layer_types, &self.sliding_window_pattern) {
            (Some(types), _) => Some(types[layer] == LayerType::SlidingAttention),
            (None, Some(Pattern::Every(count))) => Some((layer + 1).checked_rem(*count)? != 0),
            (None, Some(Pattern::Letters(letters))) => {
                Some(letters.as_bytes()[layer.checked_rem(letters.len())?] == b'L')
            }
            (None, None) => None,
        }
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
    let norm = |name| Ok(Some(w.rms_norm(name, head_dim, args.rms_norm_eps)?.into()));
    let slides = args.slides(layer);
    let rope = (slides != Some(false)).then(|| Rope::new(head_dim, &args.rope, 10_000.0));
    Ok(Attention {
        q_norm: norm("q_norm")?,
        k_norm: norm("k_norm")?,
        rope: rope.transpose()?,
        window: args.sliding_window.filter(|_| slides == Some(true)),
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}
