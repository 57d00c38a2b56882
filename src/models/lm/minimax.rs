//! MiniMax M2: norms over all heads at once, a part of each head turns, experts without a shared one.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, ExpertCount, Moe, MoeNames, Routing, Scoring, Sizes,
};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    num_experts_per_tok: i32,
    #[serde(flatten)]
    experts: ExpertCount,
    rotary_dim: Option<i32>,
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
        self.sizes
            .checks("minimax")
            .that(!linear, || "`attn_type_list` has linear attention, which is not supported".to_owned())
            .routing(self.experts.get(), &self.routing())
            .done()
    }

    fn routing(&self) -> Routing {
        Routing { normalize: true, ..Routing::new(self.num_experts_per_tok, Scoring::Sigmoid) }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let next = format!("model.layers.{}.*", args.sizes.num_hidden_layers);
    let rules = args.sizes.rules();
    rules
        .drop(next, "predicts the token after the next")
        .stack_experts("*.block_sparse_moe.experts", "*.block_sparse_moe.switch_mlp")
}

/// The model.
pub type Model = Decoder<Block<Attention, Moe>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (sizes, names) = (&args.sizes, BlockNames::MIXTRAL);
    let moe = MoeNames { correction: Some("e_score_correction_bias"), ..MoeNames::PLAIN };
    let experts = [args.experts.get(), sizes.intermediate_size];
    sizes.decoder(w, |_, w| {
        let mlp = Moe::new(&w.pp(names.mlp), moe, args.routing(), sizes.hidden_size, experts)?;
        Ok(Block { names, ..sizes.block(w, attention(args, &w.pp(names.mixer))?, mlp)? })
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let sizes = &args.sizes;
    let norm = |name, heads| if args.use_qk_norm { sizes.heads_norm(w, name, heads) } else { Ok(None) };
    let turning = args.rotary_dim.map_or_else(|| args.rope.dims(sizes.head_dim(), 1.0), Ok)?;
    Ok(Attention {
        q_norm: norm("q_norm", sizes.num_attention_heads)?,
        k_norm: norm("k_norm", sizes.kv_heads())?,
        norms_all_heads: true,
        rope: Some(Rope::new(turning, &args.rope, 5e6)?),
        ..sizes.attention(w)?
    })
}
