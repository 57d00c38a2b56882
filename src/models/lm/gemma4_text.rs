//! Gemma 4: windows in most layers, larger heads in the others, keys and values that the last layers
//! share, a small embedding of its own for each layer, and in one size experts beside the feed-forward
//! layer.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{Cache, LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    FeedForward, LayerType, Mlp, PerLayerEmbeddings, Seen, SharedAttention, SwitchGlu, add_finite, soft_cap,
    sources, top_k, weighted_sum,
};
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::activations::{Activation, gelu_tanh};
use crate::nn::{Embedding, Linear, RmsNorm, Rope, RopeConfig, RopeScaling};
use crate::{fast, ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: i32,
    rms_norm_eps: f32,
    pub(super) vocab_size: i32,
    vocab_size_per_layer_input: Option<i32>,
    /// 0 where the layers get no embeddings.
    #[serde(default)]
    hidden_size_per_layer_input: i32,
    #[serde(default)]
    num_kv_shared_layers: usize,
    /// Of heads in layers without a window.
    global_head_dim: Option<i32>,
    num_global_key_value_heads: Option<i32>,
    /// What differs in some layers, by their numbers.
    #[serde(default)]
    per_layer_config: BTreeMap<String, LayerConfig>,
    /// Whether the values are the keys in layers without a window.
    #[serde(default)]
    attention_k_eq_v: bool,
    sliding_window: i32,
    /// Every so many layers one sees all positions, where there are no `layer_types`.
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<LayerType>>,
    final_logit_softcapping: Option<f32>,
    #[serde(default)]
    use_double_wide_mlp: bool,
    #[serde(default)]
    enable_moe_block: bool,
    num_experts: Option<i32>,
    top_k_experts: Option<i32>,
    moe_intermediate_size: Option<i32>,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

#[derive(Debug, Clone, Deserialize)]
struct LayerConfig {
    head_dim: Option<i32>,
    num_key_value_heads: Option<i32>,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let experts =
            [self.num_experts, self.top_k_experts, self.moe_intermediate_size].map(|n| n.unwrap_or(0));
        let mut checks = Checks::new("gemma4_text")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("vocab_size_per_layer_input", self.vocab_size_per_layer_input.unwrap_or(1))
            .size("sliding_window", self.sliding_window)
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .that((0..1 << 16).contains(&self.hidden_size_per_layer_input), || {
                format!("`hidden_size_per_layer_input` is {}", self.hidden_size_per_layer_input)
            })
            .that(self.num_hidden_layers < 1 << 12, || format!("{} layers", self.num_hidden_layers))
            .eps("rms_norm_eps", self.rms_norm_eps)
            .eps("final_logit_softcapping", self.final_logit_softcapping.unwrap_or(1.0));
        if self.enable_moe_block {
            checks = checks
                .size("num_experts", experts[0])
                .size("moe_intermediate_size", experts[2])
                .that((1..=experts[0]).contains(&experts[1]), || {
                    format!("{} of {} experts", experts[1], experts[0])
                });
        }
        checks.done()?;
        let shared = sources(&self.layer_types(), self.num_kv_shared_layers).is_some();
        let mut checks = Checks::new("gemma4_text").that(shared, || {
            format!("the last {} layers have none to share keys and values with", self.num_kv_shared_layers)
        });
        for layer in 0..self.num_hidden_layers {
            let [heads, kv_heads, head_dim] = self.heads(layer);
            checks = checks.heads(heads, kv_heads, Some(head_dim), self.hidden_size);
        }
        checks.done()
    }

    fn layer_types(&self) -> Vec<LayerType> {
        let every = self.sliding_window_pattern.unwrap_or(6).max(1);
        let default = |layer: usize| match (layer + 1).is_multiple_of(every) {
            true => LayerType::FullAttention,
            false => LayerType::SlidingAttention,
        };
        self.layer_types.clone().unwrap_or_else(|| (0..self.num_hidden_layers).map(default).collect())
    }

    /// With a last layer that sees all positions, whatever the config says, unless the checkpoint has one
    /// with the heads of a window.
    fn ended(&self, w: &Weights) -> Self {
        let last = self.num_hidden_layers.saturating_sub(1);
        let mut types = self.layer_types();
        types.iter_mut().skip(last).for_each(|last| *last = LayerType::FullAttention);
        let ended = Self { layer_types: Some(types), ..self.clone() };
        let norm = w.full(format_args!("model.layers.{last}.self_attn.q_norm.weight"));
        let found = w.tensors().find(|tensor| last < self.num_hidden_layers && tensor.key == norm);
        let has = |args: &Self| found.is_some_and(|norm| norm.shape == [args.heads(last)[2]]);
        if has(self) && !has(&ended) { self.clone() } else { ended }
    }

    /// Heads, key heads, and their size.
    fn heads(&self, layer: usize) -> [i32; 3] {
        let mut heads = [self.num_attention_heads, self.num_key_value_heads, self.head_dim];
        if self.layer_types()[layer] == LayerType::FullAttention {
            let kv_heads = self.num_global_key_value_heads.filter(|_| self.attention_k_eq_v);
            heads[1] = kv_heads.unwrap_or(heads[1]);
            heads[2] = self.global_head_dim.filter(|dim| *dim > 0).unwrap_or(heads[2]);
        }
        if let Some(own) = self.per_layer_config.get(&layer.to_string()) {
            heads[1] = own.num_key_value_heads.unwrap_or(heads[1]);
            heads[2] = own.head_dim.unwrap_or(heads[2]);
        }
        heads
    }

    fn first_shared(&self) -> usize {
        self.num_hidden_layers - self.num_kv_shared_layers
    }

    fn rope(&self, layer_type: LayerType) -> RopeConfig {
        match (layer_type, &self.rope.rope_parameters) {
            (LayerType::SlidingAttention, _) => self.rope.sliding(10_000.0),
            (_, Some(_)) => self.rope.full(),
            (_, None) => {
                let scaling = RopeScaling {
                    rope_type: Some("proportional".into()),
                    partial_rotary_factor: Some(0.25),
                    ..RopeScaling::default()
                };
                RopeConfig { rope_parameters: Some(scaling), ..self.rope.clone() }
            }
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let mut rules = Rules::new()
        .drop("*.rotary_emb.*", "computed from the config")
        .split(
            "*.experts.gate_up_proj",
            &["*.experts.switch_glu.gate_proj.weight", "*.experts.switch_glu.up_proj.weight"],
            -2,
            &[],
        )
        .rename("*.experts.down_proj", "*.experts.switch_glu.down_proj.weight");
    for range in ["input_max", "input_min", "output_max", "output_min"] {
        rules = rules.drop(format!("*.{range}"), "ranges for quantized activations");
    }
    for layer in args.first_shared()..args.num_hidden_layers {
        for part in ["k_proj", "v_proj", "k_norm"] {
            rules = rules.drop(
                format!("model.layers.{layer}.self_attn.{part}.*"),
                "the layer shares the keys and values of another",
            );
        }
    }
    rules.tied_head(args.tie_word_embeddings)
}

/// A layer.
#[derive(Debug)]
struct Layer {
    self_attn: SharedAttention,
    mlp: Mlp,
    experts: Option<Experts>,
    per_layer: Option<PerLayer>,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    post_feedforward_layernorm: RmsNorm,
    layer_scalar: Array,
}

parameters!(Layer {
    self_attn,
    mlp,
    experts: "",
    per_layer: "",
    input_layernorm,
    post_attention_layernorm,
    pre_feedforward_layernorm,
    post_feedforward_layernorm,
    layer_scalar
});

/// The experts beside the feed-forward layer, their router, and the norms around both.
#[derive(Debug)]
struct Experts {
    proj: Linear,
    scale: Array,
    per_expert_scale: Array,
    experts: SwitchGlu,
    norm_in: RmsNorm,
    norm_mlp: RmsNorm,
    norm_out: RmsNorm,
    top_k: i32,
    eps: f32,
}

parameters!(Experts {
    proj: "router.proj",
    scale: "router.scale",
    per_expert_scale: "router.per_expert_scale",
    experts: "experts.switch_glu",
    norm_in: "pre_feedforward_layernorm_2",
    norm_mlp: "post_feedforward_layernorm_1",
    norm_out: "post_feedforward_layernorm_2",
});

impl Experts {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
        let [count, top_k, hidden] =
            [args.num_experts, args.top_k_experts, args.moe_intermediate_size].map(|n| n.unwrap_or(0));
        let router = w.pp("router");
        Ok(Self {
            proj: router.linear("proj", dims, count)?,
            scale: router.get_shaped("scale", &[dims])?,
            per_expert_scale: router.get_shaped("per_expert_scale", &[count])?,
            experts: SwitchGlu::new(&w.pp("experts.switch_glu"), count, dims, hidden)?
                .with(|gate, x| gelu_tanh(gate)? * x),
            norm_in: w.rms_norm("pre_feedforward_layernorm_2", dims, eps)?,
            norm_mlp: w.rms_norm("post_feedforward_layernorm_1", dims, eps)?,
            norm_out: w.rms_norm("post_feedforward_layernorm_2", dims, eps)?,
            top_k,
            eps,
        })
    }

    /// What the experts and the feed-forward layer, whose output is `mlp`, make of `h`.
    fn forward(&self, h: &Array, mlp: &Array) -> Result<Array> {
        let root = f64::from(h.dim(-1)?).sqrt();
        let scores =
            self.proj.forward(&fast::rms_norm(h, Some(&(&self.scale * (1.0 / root))?), self.eps)?)?;
        let chosen = top_k(&scores, self.top_k)?;
        let weights = ops::softmax(&ops::take_along_axis(&scores, &chosen, -1)?, -1, true)?;
        let weights = (weights * ops::take(&self.per_expert_scale, &chosen, 0)?)?;
        let out = weighted_sum(&self.experts.forward(&self.norm_in.forward(h)?, &chosen)?, &weights)?;
        self.norm_mlp.forward(mlp)? + self.norm_out.forward(&out)?
    }
}

/// What a layer does with its embedding of the tokens.
#[derive(Debug)]
struct PerLayer {
    per_layer_input_gate: Linear,
    per_layer_projection: Linear,
    post_per_layer_input_norm: RmsNorm,
}

parameters!(PerLayer { per_layer_input_gate, per_layer_projection, post_per_layer_input_norm });

impl Layer {
    fn new(args: &Args, layer: usize, layer_type: LayerType, w: &Weights) -> Result<Self> {
        let (dims, eps, size) = (args.hidden_size, args.rms_norm_eps, args.hidden_size_per_layer_input);
        let (heads, shares) = (args.heads(layer), layer >= args.first_shared());
        let is_full = layer_type == LayerType::FullAttention;
        let rope = Rope::new(heads[2], &args.rope(layer_type), 1_000_000.0)?;
        let window = (!is_full).then_some(args.sliding_window);
        let (w_attn, same) = (w.pp("self_attn"), args.attention_k_eq_v && is_full);
        let width = if args.use_double_wide_mlp && shares { 2 } else { 1 };
        let norm = |name| w.rms_norm(name, dims, eps);
        let per_layer = || -> Result<PerLayer> {
            Ok(PerLayer {
                per_layer_input_gate: w.linear("per_layer_input_gate", dims, size)?,
                per_layer_projection: w.linear("per_layer_projection", size, dims)?,
                post_per_layer_input_norm: norm("post_per_layer_input_norm")?,
            })
        };
        Ok(Self {
            self_attn: SharedAttention::new(&w_attn, dims, heads, eps, [!shares, same], rope, window)?,
            mlp: Mlp::new(&w.pp("mlp"), dims, width * args.intermediate_size, Activation::GeluTanh)?,
            experts: args.enable_moe_block.then(|| Experts::new(args, w)).transpose()?,
            per_layer: (size > 0).then(per_layer).transpose()?,
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
            layer_scalar: w.get_shaped("layer_scalar", &[1])?,
        })
    }

    fn forward(
        &self,
        x: &Array,
        masks: &mut Masks,
        cache: &mut LayerCache,
        shared: &mut Option<Seen>,
        embedding: Option<&Array>,
    ) -> Result<Array> {
        let normed = self.input_layernorm.forward(x)?;
        let mixed = stage("self_attn", || {
            let (mixed, seen) = self.self_attn.forward(&normed, masks, cache, shared.take())?;
            *shared = Some(seen);
            Ok(mixed)
        })?;
        let h = add_finite(x, &self.post_attention_layernorm.forward(&mixed)?)?;
        let normed = self.pre_feedforward_layernorm.forward(&h)?;
        let mut fed = stage("mlp", || self.mlp.forward(&normed))?;
        if let Some(experts) = &self.experts {
            fed = stage("experts", || experts.forward(&h, &fed))?;
        }
        let mut h = add_finite(&h, &self.post_feedforward_layernorm.forward(&fed)?)?;
        if let (Some(own), Some(embedding)) = (&self.per_layer, embedding) {
            let gate = (gelu_tanh(&own.per_layer_input_gate.forward(&h)?)? * embedding)?;
            let added = own.post_per_layer_input_norm.forward(&own.per_layer_projection.forward(&gate)?)?;
            h = add_finite(&h, &added)?;
        }
        h * &self.layer_scalar
    }
}

/// The model.
#[derive(Debug)]
pub struct Model {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    per_layer: Option<PerLayerEmbeddings>,
    lm_head: Option<Linear>,
    /// For each layer the one whose keys and values it attends to.
    sources: Vec<usize>,
    memories: usize,
    embed_scale: f32,
    cap: Option<f32>,
    vocab_size: i32,
}

parameters!(Model {
    embed_tokens: "model.embed_tokens",
    layers: "model.layers",
    norm: "model.norm",
    per_layer: "model",
    lm_head
});

/// Reads the weights that `args` call for.
pub fn model(args: &Args, root: &Weights) -> Result<Model> {
    args.check()?;
    let args = &args.ended(root);
    args.check()?;
    let (dims, eps, count) = (args.hidden_size, args.rms_norm_eps, args.num_hidden_layers as i32);
    let (w, size, types) = (root.pp("model"), args.hidden_size_per_layer_input, args.layer_types());
    let per_layer_vocab = args.vocab_size_per_layer_input.unwrap_or(args.vocab_size);
    let layer = |(i, layer_type)| Layer::new(args, i, layer_type, &w.pp("layers").pp(i));
    let head = root.contains("lm_head.weight").then(|| root.linear("lm_head", dims, args.vocab_size));
    let per_layer =
        (size > 0).then(|| PerLayerEmbeddings::new(&w, per_layer_vocab, count, [dims, size], eps));
    Ok(Model {
        embed_tokens: w.embedding("embed_tokens", args.vocab_size, dims)?,
        norm: w.rms_norm("norm", dims, eps)?,
        per_layer: per_layer.transpose()?,
        lm_head: head.transpose()?,
        sources: sources(&types, args.num_kv_shared_layers).unwrap_or_default(),
        layers: types.into_iter().enumerate().map(layer).collect::<Result<_>>()?,
        memories: args.first_shared(),
        embed_scale: (dims as f32).sqrt(),
        cap: args.final_logit_softcapping,
        vocab_size: args.vocab_size,
    })
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        stage("embeddings", || self.embed_tokens.forward(tokens)? * self.embed_scale)
    }

    fn forward_embeddings(&self, embeddings: &Array, tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let own = self.per_layer.as_ref().map(|own| own.forward(embeddings, tokens)).transpose()?;
        let mut masks = Masks::new(embeddings.dim(1)?).expecting(cache.expected()?);
        let caches = cache.layers_mut(self.memories)?;
        let mut seen: Vec<Option<Seen>> = vec![None; self.layers.len()];
        let mut h = embeddings.clone();
        for (i, (layer, &source)) in self.layers.iter().zip(&self.sources).enumerate() {
            let mut shared = seen[source].clone();
            let mut none = LayerCache::Stateless;
            let cache = caches.get_mut(i).unwrap_or(&mut none);
            let own = own.as_ref().map(|own| &own[i]);
            h = stage(format_args!("layers.{i}"), || layer.forward(&h, &mut masks, cache, &mut shared, own))?;
            seen[i] = shared;
        }
        let h = stage("norm", || self.norm.forward(&h))?;
        stage("logits", || {
            let logits = match &self.lm_head {
                Some(head) => head.forward(&h)?,
                None => self.embed_tokens.as_linear(&h)?,
            };
            self.cap.map_or(Ok(logits.clone()), |cap| soft_cap(&logits, cap))
        })
    }

    fn make_cache(&self) -> Cache {
        Cache::new(self.layers[..self.memories].iter().map(|layer| layer.self_attn.make_cache()))
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn vocab_size(&self) -> i32 {
        self.vocab_size
    }
}
