//! Kimi K3: Kimi Linear whose layers start from a mixture of what earlier blocks of layers gave, with
//! experts that work on fewer features.

use std::collections::BTreeSet;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::array::{Array, Dtype};
use crate::cache::{Cache, LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Decoder, DecoderLayer, DeltaAttention, DeltaSizes, FeedForward, Groups, Inputs, LatentAttention,
    LatentConfig, Mixer, Mlp, Names, Routing, Scoring, SwitchGlu, TextPart, weighted_sum,
};
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::activations::Activation;
use crate::nn::{Linear, Module, RmsNorm, join};
use crate::{fast, ops, parameters};

/// The config, or that of the model that the language model is a part of.
#[derive(Debug, Clone)]
pub struct Args(Text);

impl<'de> Deserialize<'de> for Args {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut config = serde_json::Value::deserialize(deserializer)?;
        let text = config.get_mut("text_config").map(serde_json::Value::take).unwrap_or(config);
        serde_json::from_value(text).map(Args).map_err(D::Error::custom)
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Text {
    hidden_size: i32,
    intermediate_size: i32,
    num_hidden_layers: usize,
    vocab_size: i32,
    #[serde(default = "eps")]
    rms_norm_eps: f32,
    linear_attn_config: Delta,
    hidden_act: Option<String>,
    activation_situ_beta: Option<f32>,
    activation_situ_linear_beta: Option<f32>,
    attn_res_block_size: Option<usize>,
    q_lora_rank: Option<i32>,
    #[serde(flatten)]
    latent: LatentConfig,
    mla_use_nope: Option<bool>,
    #[serde(default)]
    mla_use_output_gate: bool,
    num_experts: Option<i32>,
    #[serde(default = "sixteen")]
    num_experts_per_token: i32,
    num_shared_experts: Option<i32>,
    moe_intermediate_size: Option<i32>,
    moe_router_activation_func: Option<Scoring>,
    moe_renormalize: Option<bool>,
    routed_scaling_factor: Option<f32>,
    #[serde(default)]
    first_k_dense_replace: usize,
    moe_layer_freq: Option<usize>,
    num_expert_group: Option<i32>,
    topk_group: Option<i32>,
    routed_expert_hidden_size: Option<i32>,
    #[serde(default)]
    latent_moe_use_norm: bool,
    tie_word_embeddings: Option<bool>,
}

fn eps() -> f32 {
    1e-5
}

fn sixteen() -> i32 {
    16
}

/// The delta attention, and which layers have it, counted from 1.
#[derive(Debug, Clone, Deserialize)]
struct Delta {
    num_heads: i32,
    head_dim: i32,
    short_conv_kernel_size: i32,
    kda_layers: Vec<usize>,
    gate_lower_bound: Option<f32>,
}

const INPUTS: Inputs = &[("qkv_proj", "qkv_conv.conv")];

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let text = &self.0;
        let (act, beta) = (text.hidden_act.as_deref(), text.activation_situ_beta);
        let checks = Checks::new("kimi_k3")
            .size("hidden_size", text.hidden_size)
            .size("intermediate_size", text.intermediate_size)
            .size("vocab_size", text.vocab_size)
            .size("moe_intermediate_size", text.moe_intermediate_size.unwrap_or(1))
            .size("num_shared_experts", text.shared_size().max(1))
            .size("routed_expert_hidden_size", text.routed_expert_hidden_size.unwrap_or(1))
            .latent(&text.latent())
            .delta(text.delta())
            .that(act.is_none_or(|act| act == "situ"), || format!("`hidden_act` is {act:?}, not situ"))
            .that(beta != Some(0.0) && text.activation_situ_linear_beta != Some(0.0), || "a beta is 0".into())
            .that(text.mla_use_nope.unwrap_or(true), || "`mla_use_nope` is false".into())
            .that(text.moe_layer_freq != Some(0), || "`moe_layer_freq` is 0".into())
            .that(text.attn_res_block_size != Some(0), || "`attn_res_block_size` is 0".into())
            .eps("rms_norm_eps", text.rms_norm_eps);
        match text.num_experts {
            Some(count) if count != 0 => checks.routing(count, &text.routing()).done(),
            _ => checks.done(),
        }
    }
}

impl Text {
    fn latent(&self) -> LatentConfig {
        LatentConfig { q_lora_rank: self.q_lora_rank, ..self.latent }
    }

    fn delta(&self) -> DeltaSizes {
        let Delta { num_heads: heads, head_dim, short_conv_kernel_size: kernel, .. } =
            self.linear_attn_config;
        DeltaSizes { heads, head_dim, kernel }
    }

    /// The layers with delta attention, counted from 0.
    fn delta_layers(&self) -> BTreeSet<usize> {
        let named = self.linear_attn_config.kda_layers.iter().filter_map(|layer| layer.checked_sub(1));
        named.filter(|&layer| layer < self.num_hidden_layers).collect()
    }

    fn shared_size(&self) -> i32 {
        self.moe_intermediate_size.unwrap_or(1).saturating_mul(self.num_shared_experts.unwrap_or(0))
    }

    fn routing(&self) -> Routing {
        Routing {
            groups: Groups::by_best_two(self.num_expert_group.unwrap_or(1), self.topk_group.unwrap_or(1)),
            normalize: self.num_experts_per_token > 1 && self.moe_renormalize.unwrap_or(true),
            scale: self.routed_scaling_factor.unwrap_or(1.0),
            ..Routing::new(
                self.num_experts_per_token,
                self.moe_router_activation_func.unwrap_or(Scoring::Sigmoid),
            )
        }
    }

    /// `beta tanh(gate / beta) sigmoid(gate)` times `x`, which is bent in the same way, in `float32`.
    fn act(&self) -> impl Fn(&Array, &Array) -> Result<Array> + 'static {
        let (beta, linear) = (self.activation_situ_beta.unwrap_or(1.0), self.activation_situ_linear_beta);
        move |gate, x| {
            let dtype = x.dtype();
            let bend = |x: &Array, beta: f32| ops::tanh(&(x / beta)?)? * beta;
            let [gate, x] = [ops::astype(gate, Dtype::Float32)?, ops::astype(x, Dtype::Float32)?];
            let gate = (bend(&gate, beta)? * ops::sigmoid(&gate)?)?;
            let x = linear.map_or(Ok(x.clone()), |beta| bend(&x, beta))?;
            ops::astype(&(gate * x)?, dtype)
        }
    }

    fn mlp(&self, w: &Weights, hidden: i32) -> Result<Mlp> {
        Ok(Mlp::new(w, self.hidden_size, hidden, Activation::Silu)?.with(self.act()))
    }

    fn has_experts(&self, layer: usize) -> bool {
        let frequent = layer.is_multiple_of(self.moe_layer_freq.unwrap_or(1));
        self.num_experts.unwrap_or(0) > 0 && layer >= self.first_k_dense_replace && frequent
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let text = &args.0;
    let parts = ["vision_tower", "vision_model", "multi_modal_projector", "mm_projector"];
    let drop = |rules: Rules, part| rules.drop(format!("{part}.*"), "not of the language model");
    let next = "predict further tokens, for speculation";
    let rules = parts
        .into_iter()
        .fold(Rules::new(), drop)
        .rename("model.*", "language_model.model.*")
        .rename("lm_head.*", "language_model.lm_head.*")
        .drop("mtp*", next)
        .drop("language_model.mtp*", next)
        .drop("language_model.model.mtp*", next)
        .drop(format!("*.layers.{{#{}..}}.*", text.num_hidden_layers), next)
        .rename("*_res.proj_weight", "*_res_proj.weight")
        .rename("*_res.norm_weight", "*_res_norm.weight")
        .rename("*.block_sparse_moe.gate.e_score_correction_bias", "*.mlp.e_score_correction_bias")
        .stack("*.block_sparse_moe.experts.{#}.w1.{}", "*.mlp.switch_mlp.gate_proj.{}")
        .stack("*.block_sparse_moe.experts.{#}.w2.{}", "*.mlp.switch_mlp.down_proj.{}")
        .stack("*.block_sparse_moe.experts.{#}.w3.{}", "*.mlp.switch_mlp.up_proj.{}")
        .rename("*.block_sparse_moe.*", "*.mlp.*")
        .transpose("*.{}_conv1d.weight [_, 1, _]", &[0, 2, 1])
        .rename("*.{}_conv1d.weight", "*.{}_conv.conv.weight")
        .merge(
            &["*.q_conv.conv.weight", "*.k_conv.conv.weight", "*.v_conv.conv.weight"],
            "*.qkv_conv.conv.weight",
            0,
        );
    let join = |rules: Rules, layer: usize| {
        let at = format!("*.layers.{layer}.self_attn");
        let [q, k, v, qkv] = ["q", "k", "v", "qkv"].map(|part| format!("{at}.{part}_proj.{{}}"));
        rules.merge(&[&q, &k, &v], &qkv, 0)
    };
    let rules = text.delta_layers().into_iter().fold(rules, join);
    let rules = text.latent().split_rules(rules);
    match text.tie_word_embeddings {
        Some(true) => rules.drop("language_model.lm_head.*", "tied to the embeddings"),
        _ => rules,
    }
}

/// The model.
pub type Model = TextPart<LanguagePart>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (text, w) = (&args.0, &w.pp("language_model"));
    let (dims, eps) = (text.hidden_size, text.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (layers, tied) = (text.num_hidden_layers, text.tie_word_embeddings);
    let decoder = Decoder::new(w, Names::LLAMA, [text.vocab_size, dims], tied, norm, layers, |i, w| {
        let mix = |name| Mixture::new(w, name, dims, eps);
        Ok(Layer {
            self_attn: mixer(text, i, &w.pp("self_attn"))?,
            mlp: mlp(text, i, &w.pp("mlp"))?,
            input_layernorm: w.rms_norm("input_layernorm", dims, eps)?,
            post_attention_layernorm: w.rms_norm("post_attention_layernorm", dims, eps)?,
            mixtures: match text.attn_res_block_size {
                None => Vec::new(),
                Some(_) => vec![mix("self_attention_res")?, mix("mlp_res")?],
            },
            starts_block: text.attn_res_block_size.is_some_and(|size| i.is_multiple_of(size)),
        })
    })?;
    let mix = |_| Mixture::new(&w.pp("model"), "output_attn_res", dims, eps);
    let output = text.attn_res_block_size.map(mix).transpose()?;
    Ok(TextPart { language_model: LanguagePart { decoder, output } })
}

fn mixer(text: &Text, layer: usize, w: &Weights) -> Result<Box<dyn Mixer>> {
    let dims = text.hidden_size;
    let linear = &text.linear_attn_config;
    if linear.kda_layers.contains(&(layer + 1)) {
        let (sizes, bound) = (text.delta(), linear.gate_lower_bound);
        return Ok(Box::new(DeltaAttention::new(w, INPUTS, dims, sizes, text.rms_norm_eps, bound)?));
    }
    let latent = text.latent();
    let width = latent.num_attention_heads * latent.v_head_dim;
    let gate = text.mla_use_output_gate.then(|| w.linear("g_proj", dims, width)).transpose()?;
    Ok(Box::new(LatentAttention { gate, ..LatentAttention::new(w, dims, &latent, 1e-6, None)? }))
}

fn mlp(text: &Text, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    match text.num_experts.filter(|_| text.has_experts(layer)) {
        Some(count) => Ok(Box::new(Experts::new(text, count, w)?)),
        None => Ok(Box::new(text.mlp(w, text.intermediate_size)?)),
    }
}

/// The language model.
#[derive(Debug)]
pub struct LanguagePart {
    decoder: Decoder<Layer>,
    output: Option<Mixture>,
}

impl LanguageModel for LanguagePart {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        self.decoder.embed(tokens)
    }

    fn forward_embeddings(&self, embeddings: &Array, _tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let (mut h, mut blocks) = (embeddings.clone(), Vec::new());
        let mut masks = Masks::new(h.dim(1)?).expecting(cache.expected()?);
        let caches = cache.layers_mut(self.decoder.layers.len())?;
        for (i, (layer, cache)) in self.decoder.layers.iter().zip(caches).enumerate() {
            h = stage(format_args!("layers.{i}"), || layer.run(&h, &mut blocks, &mut masks, cache))?;
        }
        if let Some(output) = &self.output {
            h = output.of(&blocks, &h)?;
        }
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

impl Module for LanguagePart {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.decoder.visit(path, f);
        self.output.visit(&join(path, "model"), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.decoder.visit_mut(path, f);
        self.output.visit_mut(&join(path, "model"), f);
    }
}

/// A layer that adds to the sum of its block, and reads a mixture of this and the sums of blocks before.
#[derive(Debug)]
pub struct Layer {
    self_attn: Box<dyn Mixer>,
    mlp: Box<dyn FeedForward>,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    /// For attention and for the feed-forward layer; none if both read the sum alone.
    mixtures: Vec<Mixture>,
    starts_block: bool,
}

impl Module for Layer {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.self_attn.visit(&join(path, "self_attn"), f);
        self.mlp.visit(&join(path, "mlp"), f);
        self.input_layernorm.visit(&join(path, "input_layernorm"), f);
        self.post_attention_layernorm.visit(&join(path, "post_attention_layernorm"), f);
        self.mixtures.iter().for_each(|mixture| mixture.visit(path, f));
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.self_attn.visit_mut(&join(path, "self_attn"), f);
        self.mlp.visit_mut(&join(path, "mlp"), f);
        self.input_layernorm.visit_mut(&join(path, "input_layernorm"), f);
        self.post_attention_layernorm.visit_mut(&join(path, "post_attention_layernorm"), f);
        self.mixtures.iter_mut().for_each(|mixture| mixture.visit_mut(path, f));
    }
}

impl Layer {
    /// The sum of the block with what this layer adds. `blocks` are the sums of the blocks before.
    fn run(
        &self,
        sum: &Array,
        blocks: &mut Vec<Array>,
        masks: &mut Masks,
        cache: &mut LayerCache,
    ) -> Result<Array> {
        let mixed = |i: usize, blocks: &[Array], sum: &Array| match self.mixtures.get(i) {
            Some(mixture) => mixture.of(blocks, sum),
            None => Ok(sum.clone()),
        };
        let h = mixed(0, blocks, sum)?;
        let normed = self.input_layernorm.forward(&h)?;
        let mut added = stage("self_attn", || self.self_attn.forward(&normed, masks, cache))?;
        if self.starts_block {
            blocks.push(sum.clone());
        } else {
            added = (sum + added)?;
        }
        let h = mixed(1, blocks, &added)?;
        let normed = self.post_attention_layernorm.forward(&h)?;
        added + stage("mlp", || self.mlp.forward(&normed))?
    }
}

impl DecoderLayer for Layer {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        self.run(x, &mut Vec::new(), masks, cache)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.self_attn.make_cache()
    }
}

/// A mean of the sums of blocks, weighted by attention of one learned query to them.
#[derive(Debug)]
struct Mixture {
    names: [String; 2],
    /// `[1, dims]`.
    proj: Array,
    norm: Array,
    eps: f32,
}

impl Module for Mixture {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.proj.visit(&join(path, &self.names[0]), f);
        self.norm.visit(&join(path, &self.names[1]), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.proj.visit_mut(&join(path, &self.names[0]), f);
        self.norm.visit_mut(&join(path, &self.names[1]), f);
    }
}

impl Mixture {
    fn new(w: &Weights, name: &str, dims: i32, eps: f32) -> Result<Self> {
        let names = [format!("{name}_proj.weight"), format!("{name}_norm.weight")];
        let (proj, norm) = (w.get_shaped(&names[0], &[1, dims])?, w.get_shaped(&names[1], &[dims])?);
        Ok(Self { names, proj, norm, eps })
    }

    /// Of `blocks` and `last`, all `[batch, length, dims]`.
    fn of(&self, blocks: &[Array], last: &Array) -> Result<Array> {
        if blocks.is_empty() {
            return Ok(last.clone());
        }
        let all = ops::stack(blocks.iter().chain([last]), 0)?;
        let float = ops::astype(&all, Dtype::Float32)?;
        let query = (ops::astype(&self.norm, Dtype::Float32)? * &self.proj)?;
        let scores = ops::matmul(&fast::rms_norm(&float, None, self.eps)?, &ops::swapaxes(&query, 0, 1)?)?;
        let weights = ops::softmax(&scores, 0, true)?;
        ops::astype(&ops::sum(&(weights * float)?, 0, false)?, last.dtype())
    }
}

/// Experts that work on fewer features than the model has, and a layer for all tokens.
#[derive(Debug)]
struct Experts {
    gate: Linear,
    correction: Array,
    experts: SwitchGlu,
    down: Option<Linear>,
    norm: Option<RmsNorm>,
    up: Option<Linear>,
    shared: Option<Mlp>,
    routing: Routing,
}

parameters!(Experts {
    gate,
    correction: "e_score_correction_bias",
    experts: "switch_mlp",
    down: "routed_expert_down_proj",
    norm: "routed_expert_norm",
    up: "routed_expert_up_proj",
    shared: "shared_experts",
});

impl Experts {
    fn new(text: &Text, count: i32, w: &Weights) -> Result<Self> {
        let (dims, few) = (text.hidden_size, text.routed_expert_hidden_size);
        let hidden = text.moe_intermediate_size.unwrap_or(text.intermediate_size);
        let normed = few.filter(|_| text.latent_moe_use_norm);
        let norm = |few| w.rms_norm("routed_expert_norm", few, text.rms_norm_eps);
        let shared = Some(text.shared_size()).filter(|&size| size > 0);
        Ok(Self {
            gate: w.linear("gate", dims, count)?,
            correction: w.get_shaped("e_score_correction_bias", &[count])?,
            experts: SwitchGlu::new(&w.pp("switch_mlp"), count, few.unwrap_or(dims), hidden)?
                .with(text.act()),
            down: few.map(|few| w.linear("routed_expert_down_proj", dims, few)).transpose()?,
            norm: normed.map(norm).transpose()?,
            up: few.map(|few| w.linear("routed_expert_up_proj", few, dims)).transpose()?,
            shared: shared.map(|size| text.mlp(&w.pp("shared_experts"), size)).transpose()?,
            routing: text.routing(),
        })
    }
}

impl FeedForward for Experts {
    fn forward(&self, x: &Array) -> Result<Array> {
        let (experts, weights) = self.routing.route(&self.gate.forward(x)?, Some(&self.correction))?;
        let mut y = self.down.as_ref().map_or(Ok(x.clone()), |down| down.forward(x))?;
        y = weighted_sum(&self.experts.forward(&y, &experts)?, &weights)?;
        if let Some(norm) = &self.norm {
            y = norm.forward(&y)?;
        }
        if let Some(up) = &self.up {
            y = up.forward(&y)?;
        }
        self.shared.as_ref().map_or(Ok(y.clone()), |shared| &y + shared.forward(x)?)
    }
}
