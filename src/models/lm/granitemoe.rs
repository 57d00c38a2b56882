//! Granite MoE: Granite with experts, and a factor at each of its joints.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, ExpertCount, LogitsScale, Moe, MoeNames, Names, Routing, Scoring,
};
use crate::nn::{Rope, RopeConfig};

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
    logits_scaling: f32,
    attention_multiplier: f32,
    embedding_multiplier: f32,
    residual_multiplier: f32,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let scaling = self.logits_scaling;
        Checks::new("granitemoe")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.kv_heads(), None, self.hidden_size)
            .routing(self.experts.get(), &self.routing())
            .that(scaling.is_normal(), || format!("`logits_scaling` is {scaling}"))
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn routing(&self) -> Routing {
        Routing::new(self.num_experts_per_tok, Scoring::SoftmaxOfChosen)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let experts = "*.block_sparse_moe.switch_mlp";
    let [gate, up] = ["gate_proj", "up_proj"].map(|name| format!("{experts}.{name}.{{}}"));
    let rules = Rules::new()
        .split("*.block_sparse_moe.input_linear.{}", &[&gate, &up], 1, &[])
        .rename("*.block_sparse_moe.output_linear.{}", format!("{experts}.down_proj.{{}}"));
    if args.tie_word_embeddings { rules.drop("lm_head.*", "tied to the embeddings") } else { rules }
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
    let moe = MoeNames { gate: "router.layer", ..MoeNames::PLAIN };
    let experts = [args.experts.get(), args.intermediate_size];
    let decoder = Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, layers, |_, w| {
        let block = Block::new(
            attention(args, &w.pp(names.mixer))?,
            Moe::new(&w.pp(names.mlp), moe, args.routing(), dims, experts)?,
            w.rms_norm(names.norm1, dims, eps)?,
            w.rms_norm(names.norm2, dims, eps)?,
        );
        Ok(Block { names, residual_scale: Some(args.residual_multiplier), ..block })
    })?;
    let logits = LogitsScale { factor: Some(args.logits_scaling.recip()), cap: None };
    Ok(Decoder { embed_scale: Some(args.embedding_multiplier), logits, ..decoder })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let (dims, heads) = (args.hidden_size, args.num_attention_heads);
    let head_dim = dims / heads;
    Ok(Attention {
        rope: Some(Rope::new(head_dim, &args.rope, 10_000.0)?),
        scale: args.attention_multiplier,
        ..Attention::new(w, dims, heads, args.kv_heads(), head_dim)?
    })
}
