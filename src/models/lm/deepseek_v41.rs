//! DeepSeek-V4.1: attention to a window and to compressed groups of positions that an indexer chooses, in
//! residual streams that mix (Xie et al., "mHC: Manifold-Constrained Hyper-Connections", 2025).

use serde::Deserialize;

use crate::array::{Array, Dtype};
use crate::cache::{Cache, LayerCache, Masks};
use crate::checkpoint::{Encoding, Rules, Weights};
use crate::error::{Error, Result};
use crate::models::blocks::{
    CompressedAttention, CompressedConfig, Decoder, DecoderLayer, FeedForward, HyperConfig, HyperConnection,
    Mlp, Moe, MoeNames, Names, Routing, Scoring, SharedGroups, TextConfig, collapse, weighted_sum,
};
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::activations::{Activation, swiglu};
use crate::nn::{RmsNorm, Rope, RopeConfig, RopeScaling};
use crate::{ops, parameters};

/// The config.
pub type Args = TextConfig<Text>;

/// That of the language model.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Text {
    #[serde(flatten)]
    attention: CompressedConfig,
    #[serde(flatten)]
    streams: HyperConfig,
    vocab_size: i32,
    hidden_size: i32,
    num_hidden_layers: usize,
    moe_intermediate_size: i32,
    n_routed_experts: i32,
    num_experts_per_tok: i32,
    scoring_func: Scoring,
    gate_temp: f32,
    norm_topk_prob: bool,
    routed_scaling_factor: f32,
    swiglu_limit: f32,
    rms_norm_eps: f32,
    compress_rope_theta: f64,
    rope_theta: f64,
    rope_scaling: Option<RopeScaling>,
    max_position_embeddings: i32,
    engram_layer_ids: Vec<usize>,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            attention: CompressedConfig::default(),
            streams: HyperConfig::default(),
            vocab_size: 129_280,
            hidden_size: 5120,
            num_hidden_layers: 40,
            moe_intermediate_size: 2304,
            n_routed_experts: 384,
            num_experts_per_tok: 6,
            scoring_func: Scoring::SqrtSoftplus,
            gate_temp: 1.0,
            norm_topk_prob: true,
            routed_scaling_factor: 1.5,
            swiglu_limit: 10.0,
            rms_norm_eps: 1e-20,
            compress_rope_theta: 160_000.0,
            rope_theta: 10_000.0,
            rope_scaling: None,
            max_position_embeddings: 1 << 20,
            engram_layer_ids: Vec::new(),
        }
    }
}

impl TextConfig<Text> {
    /// Fails for sizes that no model has, and for models with an n-gram memory.
    pub fn check(&self) -> Result<()> {
        let args = &self.0;
        Checks::new("deepseek_v41")
            .size("hidden_size", args.hidden_size)
            .size("vocab_size", args.vocab_size)
            .size("moe_intermediate_size", args.moe_intermediate_size)
            .compressed(&args.attention, args.hidden_size)
            .hyper(&args.streams)
            .that(args.gate_temp > 0.0, || format!("`gate_temp` is {}", args.gate_temp))
            .that(args.engram_layer_ids.is_empty(), || "layers with an n-gram memory are not here yet".into())
            .routing(args.n_routed_experts, &args.routing())
            .eps("rms_norm_eps", args.rms_norm_eps)
            .done()
    }
}

impl Text {
    fn routing(&self) -> Routing {
        Routing {
            normalize: self.norm_topk_prob && self.num_experts_per_tok > 1,
            scale: self.routed_scaling_factor,
            ..Routing::new(self.num_experts_per_tok, self.scoring_func)
        }
    }

    /// `silu(gate) x` in `float32`, with the gate at most, and `x` within, `swiglu_limit`.
    fn act(&self) -> impl Fn(&Array, &Array) -> Result<Array> + 'static {
        let limit = self.swiglu_limit;
        move |gate, x| {
            let dtype = x.dtype();
            let [mut gate, mut x] = [ops::astype(gate, Dtype::Float32)?, ops::astype(x, Dtype::Float32)?];
            if limit > 0.0 {
                (gate, x) = (ops::minimum(&gate, limit)?, ops::clip(&x, -limit..=limit)?);
            }
            ops::astype(&swiglu(&gate, &x)?, dtype)
        }
    }

    /// Layers with groups have another base, and are stretched.
    fn rope(&self, layer: usize) -> Result<Rope> {
        let mut config = RopeConfig { rope_traditional: true, ..RopeConfig::default() };
        let dims = self.attention.qk_rope_head_dim;
        if self.attention.ratio(layer) == 0 {
            return Rope::new(dims, &config, self.rope_theta);
        }
        let scaling = self.rope_scaling.clone().unwrap_or_default();
        let context = scaling.original_max_position_embeddings;
        config.rope_scaling = Some(RopeScaling {
            r#type: Some("yarn".into()),
            rope_type: None,
            rope_theta: None,
            factor: Some(scaling.factor.unwrap_or(1.0)),
            original_max_position_embeddings: context.or(Some(f64::from(self.max_position_embeddings))),
            attention_factor: Some(1.0),
            ..scaling
        });
        Rope::new(dims, &config, self.compress_rope_theta)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let parts = ["vision.*", "aligner.*", "image_*"];
    let rules = parts.iter().fold(Rules::new(), |rules, part| rules.drop(*part, "not of the language model"));
    let to = ["*.weight", "*.scales", "*.biases"];
    let names = [
        ("*.attn.*", "*.self_attn.*"),
        ("*.ffn.*", "*.mlp.*"),
        ("*.attn_norm.*", "*.input_layernorm.*"),
        ("*.ffn_norm.*", "*.post_attention_layernorm.*"),
        ("*.hc_attn_{}", "*.attn_hc.{}"),
        ("*.hc_ffn_{}", "*.ffn_hc.{}"),
        ("*.attn_sink", "*.sinks"),
        ("*.wq_a.{}", "*.q_a_proj.{}"),
        ("*.wq_b.{}", "*.q_b_proj.{}"),
        ("*.wkv.{}", "*.kv_proj.{}"),
        ("*.wgate.{}", "*.gate_proj.{}"),
        ("*.wo_a.{}", "*.o_a_proj.{}"),
        ("*.wo_b.{}", "*.o_b_proj.{}"),
        ("*.q_norm.{}", "*.q_a_norm.{}"),
        ("*.compressor.norm.{}", "*.compressor.kv_norm.{}"),
        ("*.indexer.wk.{}", "*.indexer.k_proj.{}"),
        ("*.gate.bias", "*.gate.e_score_correction_bias"),
        ("*.shared_experts.w1.{}", "*.shared_experts.gate_proj.{}"),
        ("*.shared_experts.w2.{}", "*.shared_experts.down_proj.{}"),
        ("*.shared_experts.w3.{}", "*.shared_experts.up_proj.{}"),
    ];
    let published = names.into_iter().fold(Rules::new(), |rules, (from, to)| rules.rename(from, to));
    let published = published
        .stack_experts("*.mlp.experts", "*.mlp.experts.switch_mlp")
        .reshape("*.o_a_proj.{} [_, _]", &[args.0.attention.o_groups, args.0.attention.o_lora_rank, -1])
        .rename("*", "model.*")
        .rename("model.head.{}", "lm_head.{}")
        .rename("model.embed.{}", "model.embed_tokens.{}");
    rules
        .drop("mtp.*", "predicts further tokens, for speculation")
        .drop("*.gate.bias_vl", "sends pictures to experts")
        .decode(
            &["*.ffn.experts.{}.{}.weight", "*.ffn.experts.{}.{}.scale"],
            &to.map(|part| part.replacen('*', "*.ffn.experts.{}.{}", 1)).each_ref().map(String::as_str),
            Encoding::Fp4 { divided: false },
        )
        .decode(&["*.weight", "*.scale"], &to, Encoding::Fp8 { block: [32, 32] })
        .when("embed.weight", published)
}

/// The model.
#[derive(Debug)]
pub struct Model {
    decoder: Decoder<Layer>,
    /// Residual streams.
    streams: i32,
}

parameters!(Model { decoder: "" });

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let args = &args.0;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, layers, attention) = ([args.vocab_size, dims], args.num_hidden_layers, &args.attention);
    let decoder = Decoder::new(w, Names::LLAMA, sizes, Some(false), norm, layers, |i, w| {
        Ok(Layer {
            self_attn: CompressedAttention::new(&w.pp("self_attn"), dims, attention, i, args.rope(i)?, eps)?,
            mlp: Experts::new(args, &w.pp("mlp"))?,
            input_layernorm: w.rms_norm("input_layernorm", dims, eps)?,
            post_attention_layernorm: w.rms_norm("post_attention_layernorm", dims, eps)?,
            attn_hc: HyperConnection::new(&w.pp("attn_hc"), dims, &args.streams, eps)?,
            ffn_hc: HyperConnection::new(&w.pp("ffn_hc"), dims, &args.streams, eps)?,
        })
    })?;
    Ok(Model { decoder, streams: args.streams.hc_mult })
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        self.decoder.embed(tokens)
    }

    fn forward_embeddings(&self, embeddings: &Array, _tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let (batch, length, dims) = (embeddings.dim(0)?, embeddings.dim(1)?, embeddings.dim(2)?);
        let shape = [batch, length, self.streams, dims];
        let mut streams = ops::broadcast_to(&ops::expand_dims(embeddings, 2)?, &shape)?;
        // Of the streams, the first layer reads the first.
        let first = ops::equal(&ops::arange(0, self.streams, 1, Dtype::Int32)?, 0)?;
        let mut reads = ops::astype(&first, Dtype::Float32)?;
        let mut masks = Masks::new(length).expecting(cache.expected()?);
        let mut shared = SharedGroups::default();
        for (i, (layer, cache)) in
            self.decoder.layers.iter().zip(cache.layers_mut(self.decoder.layers.len())?).enumerate()
        {
            (streams, reads) = stage_pair(i, || layer.run(&streams, &reads, &mut shared, &mut masks, cache))?;
        }
        let h = collapse(&streams, &reads)?;
        self.decoder.head(&stage("norm", || self.decoder.norm.forward(&h))?)
    }

    fn make_cache(&self) -> Cache {
        self.decoder.make_cache()
    }
    fn num_layers(&self) -> usize {
        self.decoder.num_layers()
    }
    fn vocab_size(&self) -> i32 {
        self.decoder.vocab_size()
    }
}

/// The streams that come out of a layer are its stage.
fn stage_pair(layer: usize, run: impl FnOnce() -> Result<(Array, Array)>) -> Result<(Array, Array)> {
    let mut reads = None;
    let streams = stage(format_args!("layers.{layer}"), || {
        let (streams, next) = run()?;
        reads = Some(next);
        Ok(streams)
    })?;
    let none = || Error::argument("layer", "it did not run");
    Ok((streams, reads.ok_or_else(none)?))
}

/// A layer whose branches read one mixture of the streams, and add to each of them.
#[derive(Debug)]
pub struct Layer {
    self_attn: CompressedAttention,
    mlp: Experts,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    attn_hc: HyperConnection,
    ffn_hc: HyperConnection,
}

parameters!(Layer { self_attn, mlp, input_layernorm, post_attention_layernorm, attn_hc, ffn_hc });

impl Layer {
    /// From the streams, `[batch, length, streams, dims]`, and how much of each the layer reads, `[...,
    /// streams]`, to the same for the next one.
    fn run(
        &self,
        streams: &Array,
        reads: &Array,
        shared: &mut SharedGroups,
        masks: &mut Masks,
        cache: &mut LayerCache,
    ) -> Result<(Array, Array)> {
        let connection = self.attn_hc.forward(streams)?;
        let x = self.input_layernorm.forward(&collapse(streams, reads)?)?;
        let mixed = stage("self_attn", || self.self_attn.forward(&x, shared, masks, cache))?;
        let streams = connection.expand(&mixed, streams)?;
        let x = self.post_attention_layernorm.forward(&collapse(&streams, &connection.reads)?)?;
        let connection = self.ffn_hc.forward(&streams)?;
        let fed = stage("mlp", || self.mlp.forward(&x))?;
        Ok((connection.expand(&fed, &streams)?, connection.reads))
    }
}

impl DecoderLayer for Layer {
    /// As a model of one stream, and of this layer alone.
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let streams = ops::expand_dims(x, 2)?;
        let (streams, reads) =
            self.run(&streams, &Array::from(1.0f32), &mut SharedGroups::default(), masks, cache)?;
        collapse(&streams, &reads)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(self.self_attn.make_cache())
    }
}

/// Experts, and a layer for all tokens. The router works in `float32`.
#[derive(Debug)]
struct Experts {
    moe: Moe,
    shared: Mlp,
    temperature: f32,
}

parameters!(Experts { moe: "", shared: "shared_experts" });

impl Experts {
    fn new(args: &Text, w: &Weights) -> Result<Self> {
        let (dims, hidden) = (args.hidden_size, args.moe_intermediate_size);
        let names = MoeNames { experts: "experts.switch_mlp", ..MoeNames::DEEPSEEK };
        let moe = Moe::new(w, names, args.routing(), dims, [args.n_routed_experts, hidden])?;
        Ok(Self {
            moe: Moe { experts: moe.experts.with(args.act()), ..moe },
            shared: Mlp::new(&w.pp("shared_experts"), dims, hidden, Activation::Silu)?.with(args.act()),
            temperature: args.gate_temp,
        })
    }
}

impl FeedForward for Experts {
    fn forward(&self, x: &Array) -> Result<Array> {
        let logits = (self.moe.gate.forward(&ops::astype(x, Dtype::Float32)?)? / self.temperature)?;
        let (experts, weights) = self.moe.routing.route(&logits, self.moe.correction.as_ref())?;
        weighted_sum(&self.moe.experts.forward(x, &experts)?, &weights)? + self.shared.forward(x)?
    }
}
