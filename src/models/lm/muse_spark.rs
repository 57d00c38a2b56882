//! Muse Spark: gated attention whose heads are normed, experts of fewer features than the model, each normed,
//! and residuals that are mixed with gates that do not depend on the token.

use serde::Deserialize;

use crate::array::{Array, Dtype};
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Encoding, Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Decoder, DecoderLayer, FeedForward, LayerType, LogitsScale, Mixer, MlpType, Names, Routing, Scoring,
    SwitchGlu, TextConfig, attend, merge_heads, split_heads, weighted_sum,
};
use crate::models::{Checks, stage};
use crate::nn::{Linear, Norm, RmsNorm, Rope, RopeConfig, SwitchLinear};
use crate::{fast, ops, parameters};

/// The config.
pub type Args = TextConfig<Text>;

/// That of the language model.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Text {
    hidden_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: i32,
    vocab_size: i32,
    rms_norm_eps: f32,
    /// Of the norms after the branches, and after each expert.
    post_norm_eps: f32,
    sliding_window: i32,
    qk_scale_factor: f32,
    layer_types: Option<Vec<LayerType>>,
    /// 0 for a layer without rotary positions.
    layer_rope_theta: Option<Vec<f64>>,
    mlp_layer_types: Option<Vec<MlpType>>,
    attention_bias: bool,
    moe_hidden_size: i32,
    moe_intermediate_size: i32,
    num_local_experts: i32,
    num_experts_per_tok: i32,
    num_shared_experts: i32,
    routed_scaling_factor: f32,
    residual_gate_temperature: f32,
    tie_word_embeddings: Option<bool>,
    final_logit_softcapping: f32,
    output_multiplier: f32,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            hidden_size: 8192,
            num_hidden_layers: 62,
            num_attention_heads: 128,
            num_key_value_heads: 16,
            head_dim: 64,
            vocab_size: 202_048,
            rms_norm_eps: 1e-5,
            post_norm_eps: 1e-8,
            sliding_window: 2048,
            qk_scale_factor: 5.473_006_5,
            layer_types: None,
            layer_rope_theta: None,
            mlp_layer_types: None,
            attention_bias: false,
            moe_hidden_size: 4096,
            moe_intermediate_size: 4096,
            num_local_experts: 256,
            num_experts_per_tok: 8,
            num_shared_experts: 0,
            routed_scaling_factor: 1.0,
            residual_gate_temperature: 0.3,
            tie_word_embeddings: None,
            final_logit_softcapping: 20.0,
            output_multiplier: 0.176_776_7,
            rope: RopeConfig::default(),
        }
    }
}

impl TextConfig<Text> {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let args = &self.0;
        let factors = [args.qk_scale_factor, args.output_multiplier, args.residual_gate_temperature];
        let cap = args.final_logit_softcapping;
        let dense = args.mlp_layer_types.iter().flatten().any(|kind| *kind == MlpType::Dense);
        let width = 2 * (i64::from(args.num_attention_heads) + i64::from(args.num_key_value_heads));
        Checks::new("muse_spark")
            .size("hidden_size", args.hidden_size)
            .size("vocab_size", args.vocab_size)
            .size("sliding_window", args.sliding_window)
            .size("head_dim", args.head_dim)
            .size("moe_hidden_size", args.moe_hidden_size)
            .size("moe_intermediate_size", args.moe_intermediate_size)
            .heads(args.num_attention_heads, args.num_key_value_heads, Some(args.head_dim), args.hidden_size)
            .that(width * i64::from(args.head_dim) <= 1 << 28, || format!("{width} heads"))
            .that(args.head_dim % 2 == 0, || format!("`head_dim` is {}", args.head_dim))
            .that(factors.iter().all(|f| f.is_finite() && *f != 0.0), || format!("factors of {factors:?}"))
            .that(cap > 0.0 && cap.is_finite(), || format!("`final_logit_softcapping` is {cap}"))
            .that(!dense && args.num_shared_experts == 0, || "layers without experts of their own".into())
            .that(!args.attention_bias, || "`attention_bias` is true".into())
            .layer_types(args.num_hidden_layers, args.layer_types.as_deref())
            .layer_types(args.num_hidden_layers, args.layer_rope_theta.as_deref())
            .routing(args.num_local_experts, &args.routing())
            .eps("rms_norm_eps", args.rms_norm_eps)
            .eps("post_norm_eps", args.post_norm_eps)
            .done()
    }
}

impl Text {
    /// By default every fourth layer, counted from the last one, sees all positions and turns by none.
    fn is_special(&self, layer: usize) -> bool {
        (self.num_hidden_layers - 1 - layer).is_multiple_of(4)
    }

    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => !self.is_special(layer),
        };
        slides.then_some(self.sliding_window)
    }

    fn has_rope(&self, layer: usize) -> bool {
        self.layer_rope_theta.as_ref().map_or(!self.is_special(layer), |thetas| thetas[layer] != 0.0)
    }

    fn routing(&self) -> Routing {
        Routing {
            normalize: true,
            scale: self.routed_scaling_factor,
            ..Routing::new(self.num_experts_per_tok, Scoring::Sigmoid)
        }
    }
}

/// How the names of a checkpoint become the model's. The published one turns the halves of a head against
/// each other, the model neighbours; its norms have `weight - 1`; and its gates become what they do.
pub fn rules(args: &Args) -> Rules {
    let args = &args.0;
    let parts = ["vision_tower", "vision_adapter", "vision_projection", "audio_tower"];
    let rules = parts
        .iter()
        .fold(Rules::new(), |rules, part| rules.drop(format!("model.{part}.*"), "not of the language model"));
    let turned = |rules: Rules, (name, heads): (&str, i32)| {
        let key = &format!("*.self_attn.{name}.{{}}");
        rules
            .reshape(key, &[heads, 2, args.head_dim / 2, -1])
            .transpose(key, &[0, 2, 1, 3])
            .reshape(key, &[heads.saturating_mul(args.head_dim), -1])
    };
    let projections = [("q_proj", args.num_attention_heads), ("k_proj", args.num_key_value_heads)];
    let rules = projections.into_iter().fold(rules, turned).merge(
        &[
            "*.self_attn.q_proj.{}",
            "*.self_attn.k_proj.{}",
            "*.self_attn.v_proj.{}",
            "*.self_attn.gate_proj.{}",
        ],
        "*.self_attn.qkvg_proj.{}",
        0,
    );
    let norms = [
        "input_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
        "mlp.pre_expert_norm",
        "mlp.experts.post_expert_norm",
    ];
    let shifted = norms.iter().fold(Rules::new(), |rules, norm| rules.add(&format!("*.{norm}.weight"), 1.0));
    let gate = |rules: Rules, from: &str, to: &str| {
        let names = [format!("*.{to}_alpha"), format!("*.{to}_beta")];
        rules.residual_gate(&format!("*.{from}.gate"), names, args.residual_gate_temperature)
    };
    let rules = rules.when("*.post_attention_residual_gate.gate", shifted);
    let rules = gate(rules, "post_attention_residual_gate", "add_attn");
    let rules = gate(rules, "post_feedforward_residual_gate", "add_ffn");
    experts(rules).drop("*.rotary_emb.inv_freq", "computed from the config")
}

/// The published experts: gates and what they gate together, and `nvfp4` in parts.
fn experts(rules: Rules) -> Rules {
    let both = |rules: Rules, part: &str, to: &str| {
        let names = ["gate_proj", "up_proj"].map(|name| format!("*.experts.{name}.{to}"));
        rules.split(&format!("*.experts.gate_up_proj{part}"), &names.each_ref().map(String::as_str), 1, &[])
    };
    let rules = both(rules, "", "weight").rename("*.experts.down_proj", "*.experts.down_proj.weight");
    let rules = both(rules, "_weight_scale", "weight_scale")
        .rename("*.experts.down_proj_weight_scale", "*.experts.down_proj.weight_scale");
    let rules = both(rules, "_weight_scale_2", "weight_scale_2")
        .rename("*.experts.down_proj_weight_scale_2", "*.experts.down_proj.weight_scale_2");
    rules
        .drop("*.experts.*_input_scale", "activations are not quantized")
        .decode(
            &["*.experts.{}.weight", "*.experts.{}.weight_scale"],
            &["*.experts.{}.weight", "*.experts.{}.scales", "*.experts.{}.biases"],
            Encoding::Fp4 { divided: false },
        )
        .reshape("*.experts.{}.weight_scale_2", &[-1])
        .scale("*.experts.{}.weight_scale_2", SwitchLinear::GLOBAL)
        .rename("*.experts.{}.weight_scale_2", "*.experts.{}.global_scale")
}

/// The model.
pub type Model = Decoder<Layer>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let args = &args.0;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let names = Names {
        embed: "model.language_model.embed_tokens",
        layers: "model.language_model.layers",
        norm: "model.language_model.norm",
        head: "lm_head",
    };
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, tied) = ([args.vocab_size, dims], args.tie_word_embeddings);
    let model = Decoder::new(w, names, sizes, tied, norm, args.num_hidden_layers, |i, w| {
        Ok(Layer {
            self_attn: Attention::new(args, i, &w.pp("self_attn"))?,
            mlp: Experts::new(args, &w.pp("mlp"))?,
            input_layernorm: w.rms_norm("input_layernorm", dims, eps)?,
            pre_feedforward_layernorm: w.rms_norm("pre_feedforward_layernorm", dims, eps)?,
            post_feedforward_layernorm: InnerNorm::new(&w.pp("post_feedforward_layernorm"), dims, args)?,
            add_attn_alpha: w.get_shaped("add_attn_alpha", &[dims])?,
            add_attn_beta: w.get_shaped("add_attn_beta", &[dims])?,
            add_ffn_alpha: w.get_shaped("add_ffn_alpha", &[dims])?,
            add_ffn_beta: w.get_shaped("add_ffn_beta", &[dims])?,
        })
    })?;
    let logits =
        LogitsScale { factor: Some(args.output_multiplier), cap: Some(args.final_logit_softcapping) };
    Ok(Decoder { embed_norm: Some(Norm::Plain { eps }), logits, ..model })
}

/// Root-mean-square normalisation of what its weight has scaled.
#[derive(Debug)]
struct InnerNorm {
    weight: Array,
    eps: f32,
}

parameters!(InnerNorm { weight });

impl InnerNorm {
    fn new(w: &Weights, dims: i32, args: &Text) -> Result<Self> {
        Ok(Self { weight: w.get_shaped("weight", &[dims])?, eps: args.post_norm_eps })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        fast::rms_norm(&ops::astype(&(x * &self.weight)?, x.dtype())?, None, self.eps)
    }
}

/// A layer whose branches `y` give `alpha x + beta y`.
#[derive(Debug)]
pub struct Layer {
    self_attn: Attention,
    mlp: Experts,
    input_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    post_feedforward_layernorm: InnerNorm,
    add_attn_alpha: Array,
    add_attn_beta: Array,
    add_ffn_alpha: Array,
    add_ffn_beta: Array,
}

parameters!(Layer {
    self_attn,
    mlp,
    input_layernorm,
    pre_feedforward_layernorm,
    post_feedforward_layernorm,
    add_attn_alpha,
    add_attn_beta,
    add_ffn_alpha,
    add_ffn_beta
});

impl DecoderLayer for Layer {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let mix = |x: &Array, y: Array, [alpha, beta]: [&Array; 2]| {
            ops::astype(&((alpha * x)? + (beta * y)?)?, x.dtype())
        };
        let normed = self.input_layernorm.forward(x)?;
        let mixed = stage("self_attn", || self.self_attn.forward(&normed, masks, cache))?;
        let mixed = fast::rms_norm(&mixed, None, self.post_feedforward_layernorm.eps)?;
        let h = mix(x, mixed, [&self.add_attn_alpha, &self.add_attn_beta])?;
        let normed = self.pre_feedforward_layernorm.forward(&h)?;
        let fed = stage("mlp", || self.mlp.forward(&normed))?;
        let fed = self.post_feedforward_layernorm.forward(&fed)?;
        mix(&h, fed, [&self.add_ffn_alpha, &self.add_ffn_beta])
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.self_attn.make_cache()
    }
}

#[derive(Debug)]
struct Attention {
    /// To queries, keys, values and gates.
    qkvg_proj: Linear,
    o_proj: Linear,
    heads: i32,
    kv_heads: i32,
    scale: f32,
    eps: f32,
    rope: Option<Rope>,
    window: Option<i32>,
}

parameters!(Attention { qkvg_proj, o_proj });

impl Attention {
    fn new(args: &Text, layer: usize, w: &Weights) -> Result<Self> {
        let (dims, heads, kv_heads) = (args.hidden_size, args.num_attention_heads, args.num_key_value_heads);
        let head_dim = args.head_dim;
        let rope = RopeConfig { rope_traditional: true, ..args.rope.clone() };
        Ok(Self {
            qkvg_proj: w.linear("qkvg_proj", dims, 2 * (heads + kv_heads) * head_dim)?,
            o_proj: w.linear("o_proj", heads * head_dim, dims)?,
            heads,
            kv_heads,
            scale: args.qk_scale_factor * (head_dim as f32).powf(-0.5),
            eps: args.rms_norm_eps,
            rope: args.has_rope(layer).then(|| Rope::new(head_dim, &rope, 500_000.0)).transpose()?,
            window: args.window(layer),
        })
    }
}

impl Mixer for Attention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let (mask, offset, expected) = (masks.of(cache, self.window)?, cache.offset(), masks.expected());
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        let all = split_heads(&self.qkvg_proj.forward(x)?, 2 * (heads + kv_heads))?;
        let ends = [heads, heads + kv_heads, heads + 2 * kv_heads];
        let [queries, keys, values, gates] = ops::exactly(ops::split(&all, ends, 1)?)?;
        let place = |x: &Array| {
            let x = fast::rms_norm(x, None, self.eps)?;
            self.rope.as_ref().map_or(Ok(x.clone()), |rope| rope.forward_within(&x, &offset, expected))
        };
        let seen = cache.update(&place(&keys)?, &values)?;
        let out = attend(&place(&queries)?, &seen, self.scale, &mask, None)?;
        let out = (fast::rms_norm(&out, None, self.eps)? * ops::sigmoid(&gates)?)?;
        self.o_proj.forward(&merge_heads(&out)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::window(self.window))
    }
}

/// Experts of `moe_hidden_size` features, each normed before they are added up.
#[derive(Debug)]
struct Experts {
    gate: Linear,
    correction: Array,
    routing: Routing,
    /// Of the router's logits.
    multiplier: f32,
    pre_expert_proj: Linear,
    pre_expert_norm: RmsNorm,
    experts: SwitchGlu,
    post_expert_norm: InnerNorm,
    post_expert_proj: Linear,
}

parameters!(Experts {
    gate,
    correction: "gate.e_score_correction_bias",
    pre_expert_proj,
    pre_expert_norm,
    experts,
    post_expert_norm: "experts.post_expert_norm",
    post_expert_proj
});

impl Experts {
    fn new(args: &Text, w: &Weights) -> Result<Self> {
        let (dims, inner, count) = (args.hidden_size, args.moe_hidden_size, args.num_local_experts);
        Ok(Self {
            gate: w.linear("gate", dims, count)?,
            correction: w.get_shaped("gate.e_score_correction_bias", &[count])?,
            routing: args.routing(),
            multiplier: args.output_multiplier,
            pre_expert_proj: w.linear("pre_expert_proj", dims, inner)?,
            pre_expert_norm: w.rms_norm("pre_expert_norm", inner, args.rms_norm_eps)?,
            experts: SwitchGlu::new(&w.pp("experts"), count, inner, args.moe_intermediate_size)?,
            post_expert_norm: InnerNorm::new(&w.pp("experts.post_expert_norm"), inner, args)?,
            post_expert_proj: w.linear("post_expert_proj", inner, dims)?,
        })
    }
}

impl FeedForward for Experts {
    fn forward(&self, x: &Array) -> Result<Array> {
        let logits = (self.gate.forward(&ops::astype(x, Dtype::Float32)?)? * self.multiplier)?;
        let (experts, weights) = self.routing.route(&logits, Some(&self.correction))?;
        let inner = self.pre_expert_norm.forward(&self.pre_expert_proj.forward(x)?)?;
        let out = self.post_expert_norm.forward(&self.experts.forward(&inner, &experts)?)?;
        self.post_expert_proj.forward(&weighted_sum(&out, &weights)?)
    }
}
