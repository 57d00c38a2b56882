//! LongCat-Flash (Meituan, "LongCat-Flash Technical Report", 2025): each layer has two latent attentions
//! and two feed-forward layers, and experts beside the second pair, some of which do nothing.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Decoder, DecoderLayer, FeedForward, LatentAttention, LatentConfig, Mixer, Mlp, Names, Routing, Scoring,
    SwitchGlu, weighted_sum,
};
use crate::models::{Checks, stage};
use crate::nn::activations::Activation;
use crate::nn::{Linear, RmsNorm, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    pub(super) hidden_size: i32,
    #[serde(alias = "intermediate_size")]
    ffn_hidden_size: i32,
    #[serde(alias = "moe_intermediate_size")]
    expert_ffn_hidden_size: i32,
    #[serde(alias = "num_experts_per_tok")]
    moe_topk: i32,
    #[serde(alias = "num_local_experts")]
    n_routed_experts: i32,
    zero_expert_num: Option<i32>,
    zero_expert_type: Option<String>,
    routed_scaling_factor: f32,
    #[serde(default)]
    norm_topk_prob: bool,
    num_layers: usize,
    pub(super) vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    rms_norm_eps: f32,
    mla_scale_q_lora: Option<bool>,
    mla_scale_kv_lora: Option<bool>,
    #[serde(flatten)]
    latent: LatentConfig,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (zero, kind) = (self.zero_experts(), self.zero_expert_type.as_deref());
        Checks::new("longcat_flash")
            .size("hidden_size", self.hidden_size)
            .size("ffn_hidden_size", self.ffn_hidden_size)
            .size("expert_ffn_hidden_size", self.expert_ffn_hidden_size)
            .size("n_routed_experts", self.n_routed_experts)
            .size("vocab_size", self.vocab_size)
            .that((0..=1 << 28).contains(&zero), || format!("`zero_expert_num` is {zero}"))
            .that(kind.is_none_or(|kind| kind == "identity"), || format!("`zero_expert_type` is {kind:?}"))
            .routing(self.n_routed_experts.saturating_add(zero), &self.routing())
            .latent(&self.latent)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    /// Experts that give what they get.
    fn zero_experts(&self) -> i32 {
        self.zero_expert_num.unwrap_or(0)
    }

    fn routing(&self) -> Routing {
        Routing {
            normalize: self.norm_topk_prob,
            scale: self.routed_scaling_factor,
            ..Routing::new(self.moe_topk, Scoring::Softmax)
        }
    }

    /// The model whose embeddings are `embed`.
    pub(super) fn decoder(&self, w: &Weights, embed: &'static str) -> Result<Model> {
        let (dims, eps) = (self.hidden_size, self.rms_norm_eps);
        let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
        let (names, sizes) = (Names { embed, ..Names::LLAMA }, [self.vocab_size, dims]);
        let tied = self.tie_word_embeddings;
        Decoder::new(w, names, sizes, tied, norm, self.num_layers, |_, w| Layer::new(self, w))
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .drop("model.mtp.*", "predict further tokens, for speculation")
        .drop(format!("*.mlp.experts.{{#{}..}}.*", args.n_routed_experts), "experts that give what they get")
        .stack("*.mlp.experts.{#}.{}.{}", "*.mlp.switch_mlp.{}.{}");
    args.latent.split_rules(rules).tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Layer>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    args.decoder(w, Names::LLAMA.embed)
}

/// Two ordinary layers, with experts from the middle of the first to the end of the second.
#[derive(Debug)]
pub struct Layer {
    self_attn: Vec<LatentAttention>,
    mlps: Vec<Mlp>,
    mlp: Moe,
    input_layernorm: Vec<RmsNorm>,
    post_attention_layernorm: Vec<RmsNorm>,
}

parameters!(Layer { self_attn, mlps, mlp, input_layernorm, post_attention_layernorm });

impl Layer {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (dims, latent) = (args.hidden_size, &args.latent);
        let rope = RopeConfig { rope_traditional: true, ..args.rope.clone() };
        let scale =
            |on: Option<bool>, rank: i32| on.unwrap_or(true).then(|| (dims as f32 / rank as f32).sqrt());
        let attention = |i: usize| {
            let w = w.pp("self_attn").pp(i);
            Ok(LatentAttention {
                lora_scales: [
                    latent.q_lora_rank.and_then(|rank| scale(args.mla_scale_q_lora, rank)),
                    scale(args.mla_scale_kv_lora, latent.kv_lora_rank),
                ],
                ..LatentAttention::new(&w, dims, latent, 1e-6, Some((&rope, 1e7)))?
            })
        };
        let mlp = |i| Mlp::new(&w.pp("mlps").pp(i), dims, args.ffn_hidden_size, Activation::Silu);
        let norms = |name: &str| [0, 1].map(|i| w.rms_norm(&format!("{name}.{i}"), dims, args.rms_norm_eps));
        Ok(Self {
            self_attn: [0, 1].map(attention).into_iter().collect::<Result<_>>()?,
            mlps: [0, 1].map(mlp).into_iter().collect::<Result<_>>()?,
            mlp: Moe::new(args, &w.pp("mlp"))?,
            input_layernorm: norms("input_layernorm").into_iter().collect::<Result<_>>()?,
            post_attention_layernorm: norms("post_attention_layernorm").into_iter().collect::<Result<_>>()?,
        })
    }
}

impl DecoderLayer for Layer {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let (mut h, mut shortcut) = (x.clone(), None);
        for (i, (attention, mlp)) in self.self_attn.iter().zip(&self.mlps).enumerate() {
            let normed = self.input_layernorm[i].forward(&h)?;
            let mixed =
                stage(format_args!("self_attn.{i}"), || attention.forward(&normed, masks, cache.part(i)?))?;
            h = (h + mixed)?;
            let normed = self.post_attention_layernorm[i].forward(&h)?;
            if shortcut.is_none() {
                shortcut = Some(stage("mlp", || self.mlp.forward(&normed))?);
            }
            h = (h + stage(format_args!("mlps.{i}"), || mlp.forward(&normed))?)?;
        }
        shortcut.map_or(Ok(h.clone()), |shortcut| &h + shortcut)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::List(vec![LayerCache::kv(); 2]))
    }
}

/// Experts, of which those from number `count` on give what they get.
#[derive(Debug)]
struct Moe {
    classifier: Linear,
    correction: Array,
    experts: SwitchGlu,
    routing: Routing,
    count: i32,
}

parameters!(Moe {
    classifier: "router.classifier",
    correction: "router.e_score_correction_bias",
    experts: "switch_mlp",
});

impl Moe {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (dims, count) = (args.hidden_size, args.n_routed_experts);
        let all = count + args.zero_experts();
        Ok(Self {
            classifier: w.linear("router.classifier", dims, all)?,
            correction: w.get_shaped("router.e_score_correction_bias", &[all])?,
            experts: SwitchGlu::new(&w.pp("switch_mlp"), count, dims, args.expert_ffn_hidden_size)?,
            routing: args.routing(),
            count,
        })
    }
}

impl FeedForward for Moe {
    fn forward(&self, x: &Array) -> Result<Array> {
        let (experts, weights) = self.routing.route(&self.classifier.forward(x)?, Some(&self.correction))?;
        let idle = ops::greater_equal(&experts, Array::from(self.count as u32))?;
        let experts = ops::where_(&idle, Array::from(0u32), &experts)?;
        let routed = weighted_sum(&self.experts.forward(x, &experts)?, &ops::where_(&idle, 0.0, &weights)?)?;
        let kept = ops::sum(&ops::where_(&idle, &weights, 0.0)?, -1, true)?;
        routed + (x * ops::astype(&kept, x.dtype())?)?
    }
}
