//! MiniMax M2: norms over all heads at once, a part of each head turns, experts without a shared one.

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
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    num_experts_per_tok: i32,
    #[serde(flatten)]
    experts: ExpertCount,
    num_hidden_layers: usize,
    rms_norm_eps: f32,
    rotary_dim: Option<i32>,
    vocab_size: i32,
    #[serde(default)]
    tie_word_embeddings: bool,
    head_dim: Option<i32>,
    #[serde(default = "yes")]
    use_qk_norm: bool,
    /// The first MiniMax, whose linear attention is not here, has it.
    attn_type_list: Option<Vec<u8>>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let linear = self.attn_type_list.as_ref().is_some_and(|types| types.contains(&0));
        Checks::new("minimax")
            .that(!linear, || "`attn_type_list` has linear attention, which is not supported".to_owned())
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.hidden_size)
            .routing(self.experts.get(), &self.routing())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn routing(&self) -> Routing {
        Routing { normalize: true, ..Routing::new(self.num_experts_per_tok, Scoring::Sigmoid) }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let next = format!("model.layers.{}.*", args.num_hidden_layers);
    let rules = Rules::new()
        .drop(next, "predicts the token after the next")
        .stack_experts("*.block_sparse_moe.experts", "*.block_sparse_moe.switch_mlp");
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
    let moe = MoeNames { correction: Some("e_score_correction_bias"), ..MoeNames::PLAIN };
    let experts = [args.experts.get(), args.intermediate_size];
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, layers, |_, w| {
        let block = Block::new(
            attention(args, &w.pp(names.mixer))?,
            Moe::new(&w.pp(names.mlp), moe, args.routing(), dims, experts)?,
            w.rms_norm(names.norm1, dims, eps)?,
            w.rms_norm(names.norm2, dims, eps)?,
        );
        Ok(Block { names, ..block })
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.num_key_value_heads, args.head_dim());
    let norm = |name, heads| {
        let norm = args.use_qk_norm.then(|| w.rms_norm(name, heads * head_dim, args.rms_norm_eps));
        Ok(norm.transpose()?.map(Into::into))
    };
    let turning = args.rotary_dim.map_or_else(|| args.rope.dims(head_dim, 1.0), Ok)?;
    Ok(Attention {
        q_norm: norm("q_norm", heads)?,
        k_norm: norm("k_norm", kv_heads)?,
        norms_all_heads: true,
        rope: Some(Rope::new(turning, &args.rope, 5e6)?),
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}
