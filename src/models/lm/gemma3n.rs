//! Gemma 3n: several streams of which each layer works on one and corrects the others by it, keys and
//! values that the last layers share, and a small embedding of its own for each layer.

use serde::Deserialize;

use crate::array::{Array, Dtype};
use crate::cache::{Cache, LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    FeedForward, LayerType, Mlp, PerLayer, PerLayerEmbeddings, Seen, SharedAttention, TextConfig, soft_cap,
    sources,
};
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::activations::{Activation, gelu_tanh};
use crate::nn::{Embedding, Linear, RmsNorm, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config of the whole model, or of its language model alone.
pub type Args = TextConfig<TextArgs>;

/// The config of the language model.
#[derive(Debug, Clone, Deserialize)]
pub struct TextArgs {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: PerLayer<i32>,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: i32,
    rms_norm_eps: f32,
    vocab_size: i32,
    vocab_size_per_layer_input: i32,
    hidden_size_per_layer_input: i32,
    num_kv_shared_layers: usize,
    sliding_window: i32,
    layer_types: Option<Vec<LayerType>>,
    /// The part of the gate that is 0, of each layer.
    activation_sparsity_pattern: Option<Vec<f64>>,
    final_logit_softcapping: Option<f32>,
    altup_num_inputs: i32,
    #[serde(default)]
    altup_active_idx: i32,
    altup_correct_scale: bool,
    laurel_rank: i32,
    rope_local_base_freq: Option<f64>,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let args = &self.0;
        let layers = args.num_hidden_layers;
        let sparsity = args.activation_sparsity_pattern.as_deref();
        let widths = args.intermediate_size.values();
        let width = widths.iter().copied().find(|width| !(1..=1 << 28).contains(width)).unwrap_or(1);
        Checks::new("gemma3n")
            .size("hidden_size", args.hidden_size)
            .size("intermediate_size", width)
            .size("vocab_size", args.vocab_size)
            .size("vocab_size_per_layer_input", args.vocab_size_per_layer_input)
            .size("sliding_window", args.sliding_window)
            .size("laurel_rank", args.laurel_rank)
            .that((1..1 << 16).contains(&args.hidden_size_per_layer_input) && layers < 1 << 12, || {
                format!("{layers} layers with embeddings of {}", args.hidden_size_per_layer_input)
            })
            .that((2..64).contains(&args.altup_num_inputs), || {
                format!("`altup_num_inputs` is {}", args.altup_num_inputs)
            })
            .that((0..args.altup_num_inputs).contains(&args.altup_active_idx), || {
                format!("`altup_active_idx` is {}", args.altup_active_idx)
            })
            .heads(args.num_attention_heads, args.num_key_value_heads, Some(args.head_dim), args.hidden_size)
            .layer_types(layers, args.layer_types.as_deref())
            .layer_types(layers, sparsity)
            .that(args.intermediate_size.covers(layers), || "too few `intermediate_size`".into())
            .that(sparsity.unwrap_or(&[]).iter().all(|part| (0.0..1.0).contains(part)), || {
                "`activation_sparsity_pattern` has a part that is not from 0 to 1".into()
            })
            .eps("rms_norm_eps", args.rms_norm_eps)
            .eps("final_logit_softcapping", args.final_logit_softcapping.unwrap_or(1.0))
            .that(sources(&args.types(), args.num_kv_shared_layers).is_some(), || {
                "the last layers have none to share keys and values with".into()
            })
            .done()
    }
}

impl TextArgs {
    fn types(&self) -> Vec<LayerType> {
        let default = |layer: usize| match (layer + 1).is_multiple_of(5) {
            true => LayerType::FullAttention,
            false => LayerType::SlidingAttention,
        };
        let layers = self.num_hidden_layers.min(1 << 12);
        self.layer_types.clone().unwrap_or_else(|| (0..layers).map(default).collect())
    }

    fn sparsity(&self, layer: usize) -> f64 {
        let default = if self.num_hidden_layers > 10 && layer < 10 { 0.95 } else { 0.0 };
        self.activation_sparsity_pattern.as_ref().map_or(default, |parts| parts[layer])
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let why = "not of the language model";
    let drop = |rules: Rules, part: &&str| rules.drop(format!("model.{part}.*"), why);
    ["vision_tower", "audio_tower", "embed_audio", "embed_vision"]
        .iter()
        .fold(Rules::new(), drop)
        .drop("*.rotary_emb.*", "computed from the config")
        .tied_head(args.0.tie_word_embeddings)
        .rename("model.language_model.*", "text.*")
        .rename("model.*", "text.*")
        .rename("text.*", "model.language_model.*")
}

/// Predicts all streams from the active one, and corrects them by what a layer makes of it (Baykal et
/// al., "Alternating Updates for Efficient Transformers", 2023).
#[derive(Debug)]
struct AltUp {
    correct_output_scale: Array,
    correction_coefs: Linear,
    prediction_coefs: Linear,
    modality_router: Linear,
    router_norm: RmsNorm,
    streams: i32,
    active: i32,
}

parameters!(AltUp { correct_output_scale, correction_coefs, prediction_coefs, modality_router, router_norm });

impl AltUp {
    fn new(args: &TextArgs, w: &Weights) -> Result<Self> {
        let (dims, streams) = (args.hidden_size, args.altup_num_inputs);
        Ok(Self {
            correct_output_scale: w.get_shaped("correct_output_scale", &[dims])?,
            correction_coefs: w.linear("correction_coefs", streams, streams)?,
            prediction_coefs: w.linear("prediction_coefs", streams, streams * streams)?,
            modality_router: w.linear("modality_router", dims, streams)?,
            router_norm: w.rms_norm("router_norm", dims, args.rms_norm_eps)?,
            streams,
            active: args.altup_active_idx,
        })
    }

    /// `[batch, length, dims]` to `float32` `[batch, length, streams]`.
    fn modalities(&self, x: &Array) -> Result<Array> {
        let normed = (self.router_norm.forward(x)? * (1.0 / f64::from(x.dim(-1)?)))?;
        ops::tanh(&ops::astype(&self.modality_router.forward(&normed)?, Dtype::Float32)?)
    }

    /// `[streams, batch, length, dims]` to the same shape.
    fn predict(&self, x: &Array) -> Result<Array> {
        let coefs = self.prediction_coefs.forward(&self.modalities(&x.index(self.active)?)?)?;
        let coefs = ops::swapaxes(&ops::unflatten(&coefs, -1, &[self.streams, self.streams])?, -1, -2)?;
        let mixed = ops::matmul(&ops::transpose(&ops::astype(x, Dtype::Float32)?, [1, 2, 3, 0])?, &coefs)?;
        ops::astype(&(ops::transpose(&mixed, [3, 0, 1, 2])? + x)?, x.dtype())
    }

    /// `predictions` `[streams, batch, length, dims]` corrected by what became of the active one.
    fn correct(&self, predictions: &Array, activated: &Array) -> Result<Array> {
        let coefs = (self.correction_coefs.forward(&self.modalities(activated)?)? + 1.0)?;
        let coefs = ops::expand_dims(&ops::transpose(&coefs, [2, 0, 1])?, -1)?;
        let innovation = ops::expand_dims(&(activated - predictions.index(self.active)?)?, 0)?;
        ops::astype(&((coefs * innovation)? + predictions)?, activated.dtype())
    }
}

#[derive(Debug)]
struct Layer {
    self_attn: SharedAttention,
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    post_feedforward_layernorm: RmsNorm,
    altup: AltUp,
    laurel_left: Linear,
    laurel_right: Linear,
    post_laurel_norm: RmsNorm,
    per_layer_input_gate: Linear,
    per_layer_projection: Linear,
    post_per_layer_input_norm: RmsNorm,
    correct_scale: bool,
}

parameters!(Layer {
    self_attn,
    mlp,
    input_layernorm,
    post_attention_layernorm,
    pre_feedforward_layernorm,
    post_feedforward_layernorm,
    altup,
    laurel_left: "laurel.linear_left",
    laurel_right: "laurel.linear_right",
    post_laurel_norm: "laurel.post_laurel_norm",
    per_layer_input_gate,
    per_layer_projection,
    post_per_layer_input_norm
});

impl Layer {
    fn new(args: &TextArgs, layer: usize, layer_type: LayerType, w: &Weights) -> Result<Self> {
        let (dims, eps, size) = (args.hidden_size, args.rms_norm_eps, args.hidden_size_per_layer_input);
        let heads = [args.num_attention_heads, args.num_key_value_heads, args.head_dim];
        let is_full = layer_type == LayerType::FullAttention;
        let rope = match is_full {
            true => args.rope.full(),
            false => args.rope.sliding(args.rope_local_base_freq.unwrap_or(10_000.0)),
        };
        let rope = Rope::new(args.head_dim, &rope, 1_000_000.0)?;
        let (window, has_kv) = (
            (!is_full).then_some(args.sliding_window),
            layer < args.num_hidden_layers - args.num_kv_shared_layers,
        );
        let width = args.intermediate_size.get(layer).unwrap_or(0);
        let mut mlp = Mlp::new(&w.pp("mlp"), dims, width, Activation::GeluTanh)?;
        let sparsity = args.sparsity(layer);
        if sparsity > 0.0 {
            // The gate keeps what is above this many standard deviations: the quantile of the normal.
            let quantile =
                (ops::erfinv(&Array::from((2.0 * sparsity - 1.0) as f32))? * std::f64::consts::SQRT_2)?;
            mlp = mlp.with(move |gate, x| gelu_tanh(&above(gate, &quantile)?)? * x);
        }
        let norm = |name| w.rms_norm(name, dims, eps);
        let laurel = w.pp("laurel");
        Ok(Self {
            self_attn: SharedAttention::new(
                &w.pp("self_attn"),
                dims,
                heads,
                eps,
                [has_kv, false],
                rope,
                window,
            )?,
            mlp,
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
            altup: AltUp::new(args, &w.pp("altup"))?,
            laurel_left: laurel.linear("linear_left", dims, args.laurel_rank)?,
            laurel_right: laurel.linear("linear_right", args.laurel_rank, dims)?,
            post_laurel_norm: laurel.rms_norm("post_laurel_norm", dims, eps)?,
            per_layer_input_gate: w.linear("per_layer_input_gate", dims, size)?,
            per_layer_projection: w.linear("per_layer_projection", size, dims)?,
            post_per_layer_input_norm: norm("post_per_layer_input_norm")?,
            correct_scale: args.altup_correct_scale,
        })
    }

    /// `[streams, batch, length, dims]` to the same shape.
    fn forward(
        &self,
        x: &Array,
        masks: &mut Masks,
        cache: &mut LayerCache,
        shared: &mut Option<Seen>,
        embedding: &Array,
    ) -> Result<Array> {
        let predictions = self.altup.predict(x)?;
        let active = predictions.index(self.altup.active)?;
        let normed = self.input_layernorm.forward(&active)?;
        let low_rank = self.laurel_right.forward(&self.laurel_left.forward(&normed)?)?;
        let laurel = (&normed + self.post_laurel_norm.forward(&low_rank)?)?;
        let mixed = stage("self_attn", || {
            let (mixed, seen) = self.self_attn.forward(&normed, masks, cache, shared.take())?;
            *shared = Some(seen);
            Ok(mixed)
        })?;
        let h = (&active + self.post_attention_layernorm.forward(&mixed)?)?;
        let h = ((h + laurel)? * std::f64::consts::FRAC_1_SQRT_2)?;
        let normed = self.pre_feedforward_layernorm.forward(&h)?;
        let fed = stage("mlp", || self.mlp.forward(&normed))?;
        let h = (&h + self.post_feedforward_layernorm.forward(&fed)?)?;
        let corrected = self.altup.correct(&predictions, &h)?;
        let mut first = corrected.index(self.altup.active)?;
        if self.correct_scale {
            first = (first * &self.altup.correct_output_scale)?;
        }
        let gate = (gelu_tanh(&self.per_layer_input_gate.forward(&first)?)? * embedding)?;
        let added = self.post_per_layer_input_norm.forward(&self.per_layer_projection.forward(&gate)?)?;
        let [first, others] = ops::exactly(ops::split(&corrected, [1], 0)?)?;
        ops::concatenate([&first, &(others + added)?], 0)
    }
}

/// What of `x` lies above its mean by `quantile` standard deviations, and by how much.
fn above(x: &Array, quantile: &Array) -> Result<Array> {
    let mean = ops::mean(x, -1, true)?;
    let deviation = ops::std(x, -1, true, 0)?;
    let cutoff = (mean + (deviation * ops::astype(quantile, x.dtype())?)?)?;
    ops::maximum(&(x - cutoff)?, 0)
}

/// The model.
#[derive(Debug)]
pub struct Model {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    per_layer: PerLayerEmbeddings,
    altup_projections: Vec<Linear>,
    altup_unembed_projections: Vec<Linear>,
    /// `None` if tied to the embeddings.
    lm_head: Option<Linear>,
    /// For each layer the one whose keys and values it attends to.
    sources: Vec<usize>,
    memories: usize,
    embed_scale: f32,
    cap: Option<f32>,
    vocab_size: i32,
}

parameters!(Model {
    embed_tokens: "model.language_model.embed_tokens",
    layers: "model.language_model.layers",
    norm: "model.language_model.norm",
    per_layer: "model.language_model",
    altup_projections: "model.language_model.altup_projections",
    altup_unembed_projections: "model.language_model.altup_unembed_projections",
    lm_head
});

/// Reads the weights that `args` call for.
pub fn model(args: &Args, root: &Weights) -> Result<Model> {
    args.check()?;
    let (args, w) = (&args.0, root.pp("model.language_model"));
    let (dims, eps, types) = (args.hidden_size, args.rms_norm_eps, args.types());
    let sizes = [dims, args.hidden_size_per_layer_input];
    let (count, vocab) = (args.num_hidden_layers as i32, args.vocab_size_per_layer_input);
    let projections = |name: &str| -> Result<Vec<Linear>> {
        (0..args.altup_num_inputs - 1).map(|i| w.pp(name).linear(&i.to_string(), dims, dims)).collect()
    };
    let layer = |(i, layer_type)| Layer::new(args, i, layer_type, &w.pp("layers").pp(i));
    let head = root.contains("lm_head.weight").then(|| root.linear("lm_head", dims, args.vocab_size));
    Ok(Model {
        embed_tokens: w.embedding("embed_tokens", args.vocab_size, dims)?,
        lm_head: head.transpose()?,
        norm: w.rms_norm("norm", dims, eps)?,
        per_layer: PerLayerEmbeddings::new(&w, vocab, count, sizes, eps)?,
        altup_projections: projections("altup_projections")?,
        altup_unembed_projections: projections("altup_unembed_projections")?,
        sources: sources(&types, args.num_kv_shared_layers).unwrap_or_default(),
        layers: types.into_iter().enumerate().map(layer).collect::<Result<_>>()?,
        memories: args.num_hidden_layers - args.num_kv_shared_layers,
        embed_scale: (dims as f32).sqrt(),
        cap: args.final_logit_softcapping,
        vocab_size: args.vocab_size,
    })
}

/// The mean square of each row.
fn mean_square(x: &Array) -> Result<Array> {
    ops::mean(&ops::square(x)?, -1, true)
}

/// `first`, and the projections of `others` with its magnitude: `[1 + others, batch, length, dims]`.
fn beside(first: &Array, others: &[Array], projections: &[Linear]) -> Result<Array> {
    let target = ops::sqrt(&mean_square(first)?)?;
    let mut all = vec![first.clone()];
    for (x, projection) in others.iter().zip(projections) {
        let x = projection.forward(x)?;
        let own = ops::sqrt(&ops::maximum(&mean_square(&x)?, 1e-5)?)?;
        all.push((x * (&target / own)?)?);
    }
    ops::stack(&all, 0)
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        stage("embeddings", || self.embed_tokens.forward(tokens)? * self.embed_scale)
    }

    fn forward_embeddings(&self, embeddings: &Array, tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let own = self.per_layer.forward(embeddings, tokens)?;
        let mut masks = Masks::new(embeddings.dim(1)?).expecting(cache.expected()?);
        let caches = cache.layers_mut(self.memories)?;
        let mut seen: Vec<Option<Seen>> = vec![None; self.layers.len()];
        let copies = vec![embeddings.clone(); self.altup_projections.len()];
        let mut h = beside(embeddings, &copies, &self.altup_projections)?;
        for (i, (layer, &source)) in self.layers.iter().zip(&self.sources).enumerate() {
            let mut shared = seen[source].clone();
            let mut none = LayerCache::Stateless;
            let cache = caches.get_mut(i).unwrap_or(&mut none);
            h = stage(format_args!("layers.{i}"), || {
                layer.forward(&h, &mut masks, cache, &mut shared, &own[i])
            })?;
            seen[i] = shared;
        }
        let streams = self.altup_projections.len() as i32 + 1;
        let others = (1..streams).map(|i| h.index(i)).collect::<Result<Vec<_>>>()?;
        let h = ops::mean(&beside(&h.index(0)?, &others, &self.altup_unembed_projections)?, 0, false)?;
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
