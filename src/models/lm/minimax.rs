//! MiniMax M2: norms over all heads at once, a part of each head turns, experts without a shared one. The
//! first MiniMax has the same `model_type`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::minimax_01;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::LanguageModel;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, ExpertCount, Moe, MoeNames, Routing, Scoring, Sizes,
};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone)]
pub enum Args {
    /// That of a model with linear attention.
    First(minimax_01::Args),
    /// That of one without.
    Second(Second),
}

impl<'de> Deserialize<'de> for Args {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let config = Value::deserialize(deserializer)?;
        let has = |key: &str, value: Value| config[key].as_array().is_some_and(|list| list.contains(&value));
        // transformers writes the factors always.
        let first = has("attn_type_list", 0.into())
            || has("layer_types", "linear_attention".into())
            || config.get("linear_attn_alpha_factor").is_some();
        match first {
            true => serde_json::from_value(config).map(Args::First),
            false => serde_json::from_value(config).map(Args::Second),
        }
        .map_err(D::Error::custom)
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        match self {
            Args::First(args) => args.check(),
            Args::Second(args) => args.check(),
        }
    }
}

/// The config of MiniMax M2.
#[derive(Debug, Clone, Deserialize)]
pub struct Second {
    #[serde(flatten)]
    sizes: Sizes,
    num_experts_per_tok: i32,
    #[serde(flatten)]
    experts: ExpertCount,
    rotary_dim: Option<i32>,
    #[serde(default = "yes")]
    use_qk_norm: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn yes() -> bool {
    true
}

impl Second {
    fn check(&self) -> Result<()> {
        self.sizes.checks("minimax").routing(self.experts.get(), &self.routing()).done()
    }

    fn routing(&self) -> Routing {
        Routing { normalize: true, ..Routing::new(self.num_experts_per_tok, Scoring::Sigmoid) }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let args = match args {
        Args::First(args) => return minimax_01::rules(args),
        Args::Second(args) => args,
    };
    let next = format!("model.layers.{}.*", args.sizes.num_hidden_layers);
    let rules = args.sizes.rules();
    rules
        .drop(next, "predicts the token after the next")
        .stack_experts("*.block_sparse_moe.experts", "*.block_sparse_moe.switch_mlp")
}

/// The model.
pub type Model = Box<dyn LanguageModel>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    match args {
        Args::First(args) => Ok(Box::new(minimax_01::model(args, w)?)),
        Args::Second(args) => Ok(Box::new(second(args, w)?)),
    }
}

fn second(args: &Second, w: &Weights) -> Result<Decoder<Block<Attention, Moe>>> {
    args.check()?;
    let (sizes, names) = (&args.sizes, BlockNames::MIXTRAL);
    let moe = MoeNames { correction: Some("e_score_correction_bias"), ..MoeNames::PLAIN };
    let experts = [args.experts.get(), sizes.intermediate_size];
    sizes.decoder(w, |_, w| {
        let mlp = Moe::new(&w.pp(names.mlp), moe, args.routing(), sizes.hidden_size, experts)?;
        Ok(Block { names, ..sizes.block(w, attention(args, &w.pp(names.mixer))?, mlp)? })
    })
}

fn attention(args: &Second, w: &Weights) -> Result<Attention> {
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
