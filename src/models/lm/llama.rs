//! Llama, and what is built as it is: Mistral, IQuestCoder, XVERSE, InternLM3, TeleChat3, MiMo, Seed-OSS,
//! with neighbouring dimensions in pairs Helium and ERNIE 4.5, and SmolLM3, some layers of which have no
//! positions; Ministral 3, whose queries grow with their position, and Granite, which scales what goes
//! from part to part.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, Block, Decoder, LayerType, LogitsScale, Mlp, Names};
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
    /// Which layers turn queries and keys (1), and which do not (0).
    no_rope_layers: Option<Vec<u8>>,
    /// By default the last of so many layers does not.
    no_rope_layer_interval: Option<usize>,
    embedding_multiplier: Option<f32>,
    /// Of the scores; by default `head_dim^-1/2`.
    attention_multiplier: Option<f32>,
    residual_multiplier: Option<f32>,
    /// What the logits are divided by.
    logits_scaling: Option<f32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("llama")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .heads(self.num_attention_heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .layer_types(self.num_hidden_layers, self.no_rope_layers.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .eps("logits_scaling", self.logits_scaling.unwrap_or(1.0))
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// How many positions a layer sees; `None` for all. Mistral has no `layer_types`: all its layers
    /// slide, or none.
    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => self.model_type == "mistral",
        };
        self.sliding_window.filter(|_| slides)
    }

    fn has_rope(&self, layer: usize) -> bool {
        match (&self.no_rope_layers, self.model_type.as_str()) {
            (Some(turn), _) => turn[layer] != 0,
            (None, "smollm3") => !(layer + 1).is_multiple_of(self.no_rope_layer_interval.unwrap_or(4).max(1)),
            (None, _) => true,
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .drop("model.mtp_layers.*", "predict further tokens, for speculation");
    match args.tie_word_embeddings {
        Some(true) => rules.drop("lm_head.*", "tied to the embeddings"),
        _ => rules,
    }
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layers = args.num_hidden_layers;
    let model = Decoder::new(
        w,
        Names::LLAMA,
        [args.vocab_size, dims],
        args.tie_word_embeddings,
        norm,
        layers,
        |i, w| {
            let block = Block::new(
                attention(args, i, &w.pp("self_attn"))?,
                Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?,
                w.rms_norm("input_layernorm", dims, eps)?,
                w.rms_norm("post_attention_layernorm", dims, eps)?,
            );
            Ok(Block { residual_scale: args.residual_multiplier, ..block })
        },
    )?;
    let logits = LogitsScale { factor: args.logits_scaling.map(f32::recip), ..LogitsScale::default() };
    Ok(Decoder { embed_scale: args.embedding_multiplier, logits, ..model })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.kv_heads(), args.head_dim());
    let mut rope = args.rope.clone();
    rope.rope_traditional |= matches!(args.model_type.as_str(), "ernie4_5" | "helium");
    let attention = Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?;
    Ok(Attention {
        rope: args.has_rope(layer).then(|| Rope::new(head_dim, &rope, 10_000.0)).transpose()?,
        window: args.window(layer),
        growth: rope.query_growth()?,
        scale: args.attention_multiplier.unwrap_or(attention.scale),
        ..attention
    })
}
