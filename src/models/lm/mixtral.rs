//! Mixtral: Mistral with experts.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, ExpertCount, Moe, MoeNames, Names, Routing, Scoring,
};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Args {
    vocab_size: i32,
    hidden_size: i32,
    intermediate_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    head_dim: Option<i32>,
    num_experts_per_tok: i32,
    #[serde(flatten)]
    experts: ExpertCount,
    rms_norm_eps: f32,
    sliding_window: Option<i32>,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 14_336,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: Some(8),
            head_dim: None,
            num_experts_per_tok: 2,
            experts: ExpertCount::default(),
            rms_norm_eps: 1e-5,
            sliding_window: None,
            tie_word_embeddings: false,
            rope: RopeConfig::default(),
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("mixtral")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .heads(self.num_attention_heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .routing(self.experts.get(), &self.routing())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn routing(&self) -> Routing {
        Routing::new(self.num_experts_per_tok, Scoring::SoftmaxOfChosen)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .stack_experts("*.block_sparse_moe.experts", "*.block_sparse_moe.switch_mlp")
        .tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Block<Attention, Moe>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (layers, tied) = (args.num_hidden_layers, Some(args.tie_word_embeddings));
    let names = BlockNames::MIXTRAL;
    let experts = [args.experts.get(), args.intermediate_size];
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, layers, |_, w| {
        let block = Block::new(
            attention(args, &w.pp(names.mixer))?,
            Moe::new(&w.pp(names.mlp), MoeNames::PLAIN, args.routing(), dims, experts)?,
            w.rms_norm(names.norm1, dims, eps)?,
            w.rms_norm(names.norm2, dims, eps)?,
        );
        Ok(Block { names, ..block })
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.kv_heads(), args.head_dim());
    Ok(Attention {
        rope: Some(Rope::new(head_dim, &args.rope, 1e6)?),
        window: args.sliding_window,
        keeps_all: true,
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}
