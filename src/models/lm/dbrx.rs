//! DBRX: clipped, fused projections; experts weighted by shares that sum to 1.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, Moe, MoeNames, Names, Qkv, Routing, Scoring,
    SwitchGlu,
};
use crate::nn::{Rope, RopeConfig, SwitchLinear};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    vocab_size: i32,
    d_model: i32,
    n_layers: usize,
    n_heads: i32,
    ffn_config: FfnConfig,
    attn_config: AttnConfig,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

#[derive(Debug, Clone, Deserialize)]
struct FfnConfig {
    ffn_hidden_size: i32,
    moe_num_experts: i32,
    moe_top_k: i32,
    /// The order of the norm by which the weights are divided; 1 is what all models have.
    #[serde(default = "one")]
    moe_normalize_expert_weights: Option<f32>,
}

fn one() -> Option<f32> {
    Some(1.0)
}

#[derive(Debug, Clone, Deserialize)]
struct AttnConfig {
    kv_n_heads: i32,
    clip_qkv: Option<f32>,
    rope_theta: Option<f64>,
}

const NAMES: Names = Names {
    embed: "transformer.wte",
    layers: "transformer.blocks",
    norm: "transformer.norm_f",
    head: "lm_head",
};

const BLOCK: BlockNames = BlockNames {
    mixer: "norm_attn_norm.attn",
    mlp: "ffn",
    norm1: "norm_attn_norm.norm_1",
    norm2: "norm_attn_norm.norm_2",
};

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let norm = self.ffn_config.moe_normalize_expert_weights;
        let clip = self.attn_config.clip_qkv.unwrap_or(1.0);
        Checks::new("dbrx")
            .size("d_model", self.d_model)
            .size("ffn_hidden_size", self.ffn_config.ffn_hidden_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.n_heads, self.attn_config.kv_n_heads, None, self.d_model)
            .routing(self.ffn_config.moe_num_experts, &self.routing())
            .that(self.ffn_config.moe_num_experts <= 1 << 12, || "`moe_num_experts` is too large".into())
            .that(clip > 0.0, || format!("`clip_qkv` is {clip}"))
            .that(norm.is_none_or(|norm| norm == 1.0), || {
                format!("`moe_normalize_expert_weights` is {norm:?}")
            })
            .done()
    }

    fn routing(&self) -> Routing {
        let normalize = self.ffn_config.moe_normalize_expert_weights.is_some();
        Routing { normalize, ..Routing::new(self.ffn_config.moe_top_k, Scoring::Softmax) }
    }
}

/// How the names of a checkpoint become the model's. Published experts lie one below the other; mlx-lm has
/// them one by one.
pub fn rules(args: &Args) -> Rules {
    let down = "*.ffn.experts.mlp.w2";
    [("w1", 0), ("v1", 0), ("w2", 1)].into_iter().fold(
        Rules::new().transpose(down, &[1, 0]),
        |rules, (layer, axis)| {
            let one = |expert| format!("*.ffn.experts.{expert}.{layer}.weight");
            let each: Vec<String> = (0..args.ffn_config.moe_num_experts).map(one).collect();
            let each: Vec<&str> = each.iter().map(String::as_str).collect();
            rules.split(&format!("*.ffn.experts.mlp.{layer}"), &each, axis, &[])
        },
    )
}

/// The model.
pub type Model = Decoder<Block<Attention, Moe>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let dims = args.d_model;
    let norm = |w: &Weights, name: &str| w.layer_norm(name, dims, 1e-5);
    let last = |name: &str| Ok(norm(w, name)?.into());
    let tied = Some(args.tie_word_embeddings);
    Decoder::new(w, NAMES, [args.vocab_size, dims], tied, last, args.n_layers, |_, w| {
        let block = Block::new(
            attention(args, &w.pp(BLOCK.mixer))?,
            feed_forward(args, &w.pp(BLOCK.mlp))?,
            norm(w, BLOCK.norm1)?,
            norm(w, BLOCK.norm2)?,
        );
        Ok(Block { names: BLOCK, ..block })
    })
}

fn feed_forward(args: &Args, w: &Weights) -> Result<Moe> {
    let (dims, count, hidden) =
        (args.d_model, args.ffn_config.moe_num_experts, args.ffn_config.ffn_hidden_size);
    let names = MoeNames { gate: "router.layer", experts: "experts", ..MoeNames::PLAIN };
    let each: Vec<Weights> = (0..count).map(|expert| w.pp(names.experts).pp(expert)).collect();
    let stacked = |layer: &str, input, output| SwitchLinear::stacked(&each, layer, input, output);
    Ok(Moe {
        names,
        gate: w.linear(names.gate, dims, count)?,
        correction: None,
        routing: args.routing(),
        experts: SwitchGlu::of([
            stacked("w1", dims, hidden)?,
            stacked("v1", dims, hidden)?,
            stacked("w2", hidden, dims)?,
        ]),
        shared: None,
        shared_gate: None,
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let head_dim = args.d_model / args.n_heads;
    let names = AttentionNames::fused("Wqkv", "out_proj");
    let sizes = [args.n_heads, args.attn_config.kv_n_heads, head_dim];
    let theta = args.attn_config.rope_theta.unwrap_or(10_000.0);
    Ok(Attention {
        clip: args.attn_config.clip_qkv,
        rope: Some(Rope::new(head_dim, &args.rope, theta)?),
        ..Attention::fused(w, names, Qkv::Joined, args.d_model, sizes)?
    })
}
