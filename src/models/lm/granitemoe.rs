//! Granite MoE: Granite with experts, and a factor at each of its joints.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, Block, BlockNames, Decoder, ExpertCount, LogitsScale, Moe, MoeNames, Routing, Scoring, Sizes,
};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    logits_scaling: f32,
    attention_multiplier: f32,
    embedding_multiplier: f32,
    residual_multiplier: f32,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let scaling = self.logits_scaling;
        self.sizes
            .checks("granitemoe")
            .routing(self.experts.get(), &self.routing())
            .that(scaling.is_normal(), || format!("`logits_scaling` is {scaling}"))
            .done()
    }

    fn routing(&self) -> Routing {
        Routing::new(self.num_experts_per_tok, Scoring::SoftmaxOfChosen)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let experts = "*.block_sparse_moe.switch_mlp";
    let [gate, up] = ["gate_proj", "up_proj"].map(|name| format!("{experts}.{name}.{{}}"));
    args.sizes
        .tied()
        .rules()
        .split("*.block_sparse_moe.input_linear.{}", &[&gate, &up], 1, &[])
        .rename("*.block_sparse_moe.output_linear.{}", format!("{experts}.down_proj.{{}}"))
}

/// The model.
pub type Model = Decoder<Block<Attention, Moe>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (sizes, names) = (&args.sizes.tied(), BlockNames::MIXTRAL);
    let moe = MoeNames { gate: "router.layer", ..MoeNames::PLAIN };
    let experts = [args.experts.get(), sizes.intermediate_size];
    let decoder = sizes.decoder(w, |_, w| {
        let moe = Moe::new(&w.pp(names.mlp), moe, args.routing(), sizes.hidden_size, experts)?;
        let block = sizes.named_block(w, names, attention(args, &w.pp(names.mixer))?, moe)?;
        Ok(Block { residual_scale: Some(args.residual_multiplier), ..block })
    })?;
    let logits = LogitsScale { factor: Some(args.logits_scaling.recip()), cap: None };
    Ok(Decoder { embed_scale: Some(args.embedding_multiplier), logits, ..decoder })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    Ok(Attention {
        rope: Some(Rope::new(args.sizes.head_dim(), &args.rope, 10_000.0)?),
        scale: args.attention_multiplier,
        ..args.sizes.attention(w)?
    })
}
