//! OLMo: layer norms without weights, two joined projections in each layer.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, Mlp, MlpNames, Names, Qkv,
};
use crate::nn::activations::{Activation, swiglu};
use crate::nn::{LayerNorm, Rope, RopeConfig};

/// The config, as `ai2-olmo` or transformers writes it.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(alias = "hidden_size")]
    d_model: i32,
    #[serde(alias = "num_hidden_layers")]
    n_layers: usize,
    #[serde(alias = "num_attention_heads")]
    n_heads: i32,
    #[serde(alias = "num_key_value_heads")]
    n_kv_heads: Option<i32>,
    /// The gate's features and those that it gates; by default `mlp_ratio` times `d_model`.
    mlp_hidden_size: Option<i32>,
    mlp_ratio: Option<i32>,
    /// Half of `mlp_hidden_size`.
    intermediate_size: Option<i32>,
    vocab_size: i32,
    /// By default `vocab_size`.
    embedding_size: Option<i32>,
    #[serde(default, alias = "tie_word_embeddings")]
    weight_tying: bool,
    clip_qkv: Option<f32>,
    #[serde(default)]
    alibi: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let clip = self.clip_qkv.unwrap_or(1.0);
        Checks::new("olmo")
            .size("d_model", self.d_model)
            .size("mlp_hidden_size", self.hidden())
            .size("embedding_size", self.tokens())
            .heads(self.n_heads, self.kv_heads(), None, self.d_model)
            .that(clip > 0.0 && clip.is_finite(), || format!("`clip_qkv` is {clip}"))
            .that(!self.alibi, || "`alibi` is not supported".to_owned())
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    fn hidden(&self) -> i32 {
        let joined =
            || self.mlp_hidden_size.unwrap_or(self.mlp_ratio.unwrap_or(4).saturating_mul(self.d_model));
        self.intermediate_size.unwrap_or_else(|| joined() / 2)
    }

    fn tokens(&self) -> i32 {
        self.embedding_size.unwrap_or(self.vocab_size)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let layer = |name: &str| format!("model.layers.{{}}.{name}.{{}}");
    let block = |name: &str| format!("model.transformer.blocks.{{}}.{name}.{{}}");
    let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| layer(&format!("self_attn.{name}")));
    let [gate, up, down] = ["gate_proj", "up_proj", "down_proj"].map(|name| layer(&format!("mlp.{name}")));
    let rules = Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .merge(&[&q, &k, &v], &block("att_proj"), 0)
        .merge(&[&up, &gate], &block("ff_proj"), 0)
        .rename(layer("self_attn.o_proj"), block("attn_out"))
        .rename(down, block("ff_out"))
        .rename("model.embed_tokens.*", "model.transformer.wte.*")
        .rename("lm_head.*", "model.transformer.ff_out.*");
    match args.weight_tying {
        true => rules.drop("model.transformer.ff_out.*", "tied to the embeddings"),
        false => rules,
    }
}

const NAMES: Names = Names {
    embed: "model.transformer.wte",
    layers: "model.transformer.blocks",
    norm: "model.transformer.norm",
    head: "model.transformer.ff_out",
};

const BLOCK: BlockNames = BlockNames { mixer: "", mlp: "", norm1: "att_norm", norm2: "ff_norm" };

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, heads, kv_heads) = (args.d_model, args.n_heads, args.kv_heads());
    let norm = || LayerNorm { weight: None, bias: None, eps: 1e-5, offset: 0.0 };
    let rope = Rope::new(dims / heads, &args.rope, 10_000.0)?;
    let (tokens, tied) = (args.tokens(), Some(args.weight_tying));
    Decoder::new(
        w,
        NAMES,
        [tokens, dims],
        tied,
        |_| Ok(norm().into()),
        args.n_layers,
        |_, w| {
            let names = AttentionNames::fused("att_proj", "attn_out");
            let attention = Attention {
                rope: Some(rope.clone()),
                clip: args.clip_qkv,
                ..Attention::fused(w, names, Qkv::Joined, dims, [heads, kv_heads, dims / heads])?
            };
            let names = MlpNames { gate: "ff_proj", up: "", down: "ff_out" };
            // What is gated comes before its gate.
            let mlp = Mlp::fused_named(w, names, dims, args.hidden(), Activation::Silu)?
                .with(|x, gate| swiglu(gate, x));
            Ok(Block { names: BLOCK, ..Block::new(attention, mlp, norm(), norm()) })
        },
    )
}
