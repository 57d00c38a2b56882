//! MiMo-V2-Flash: sliding layers with sinks and heads of their own number; values narrower than keys.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::{Error, Result};
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, Decoder, ExpertCount, FeedForward, Groups, Mixer, Mlp, Moe, MoeNames,
    Names, Routing, Scoring, attend, merge_heads,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    num_experts_per_tok: i32,
    /// 1 for a sliding layer.
    hybrid_layer_pattern: Vec<u8>,
    /// 1 for a layer with experts.
    moe_layer_freq: Vec<u8>,
    add_swa_attention_sink_bias: bool,
    add_full_attention_sink_bias: bool,
    sliding_window_size: i32,
    vocab_size: i32,
    hidden_size: i32,
    intermediate_size: i32,
    moe_intermediate_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    n_shared_experts: Option<i32>,
    #[serde(flatten)]
    experts: ExpertCount,
    routed_scaling_factor: Option<f32>,
    norm_topk_prob: bool,
    n_group: i32,
    topk_group: i32,
    layernorm_epsilon: f32,
    swa_rope_theta: f64,
    swa_num_attention_heads: i32,
    swa_num_key_value_heads: i32,
    head_dim: i32,
    v_head_dim: i32,
    swa_head_dim: i32,
    swa_v_head_dim: i32,
    attention_value_scale: Option<f32>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (layers, pattern, moe) =
            (self.num_hidden_layers, self.hybrid_layer_pattern.len(), self.moe_layer_freq.len());
        let [full, swa] = [false, true].map(|sliding| self.sizes(sliding));
        Checks::new("mimo_v2_flash")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("n_shared_experts", self.shared_size().unwrap_or(1))
            .size("vocab_size", self.vocab_size)
            .size("sliding_window_size", self.sliding_window_size)
            .heads(full[0], full[1], Some(full[2]), self.hidden_size)
            .heads(full[0], full[1], Some(full[3]), self.hidden_size)
            .heads(swa[0], swa[1], Some(swa[2]), self.hidden_size)
            .heads(swa[0], swa[1], Some(swa[3]), self.hidden_size)
            .routing(self.experts.get(), &self.routing())
            .that(pattern == layers, || format!("{pattern} `hybrid_layer_pattern` for {layers} layers"))
            .that(moe == layers, || format!("{moe} `moe_layer_freq` for {layers} layers"))
            .eps("layernorm_epsilon", self.layernorm_epsilon)
            .done()
    }

    /// Heads, key and value heads, and the widths of keys and values.
    fn sizes(&self, sliding: bool) -> [i32; 4] {
        if sliding {
            let heads = [self.swa_num_attention_heads, self.swa_num_key_value_heads];
            [heads[0], heads[1], self.swa_head_dim, self.swa_v_head_dim]
        } else {
            [self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.v_head_dim]
        }
    }

    fn shared_size(&self) -> Option<i32> {
        let count = self.n_shared_experts.filter(|&count| count != 0)?;
        Some(self.moe_intermediate_size.saturating_mul(count))
    }

    fn routing(&self) -> Routing {
        Routing {
            groups: Groups::by_best_two(self.n_group, self.topk_group),
            normalize: self.norm_topk_prob,
            scale: self.routed_scaling_factor.unwrap_or(1.0),
            ..Routing::new(self.num_experts_per_tok, Scoring::Sigmoid)
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new()
        .drop("model.mtp*", "predicts the tokens after the next")
        .stack_experts("*.mlp.experts", "*.mlp.switch_mlp")
}

/// The model.
pub type Model = Decoder<Block<ScaledValues, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.layernorm_epsilon);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (layers, tied) = (args.num_hidden_layers, Some(args.tie_word_embeddings));
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, layers, |i, w| {
        Ok(Block::new(
            attention(args, i, &w.pp("self_attn"))?,
            feed_forward(args, i, &w.pp("mlp"))?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<ScaledValues> {
    let sliding = args.hybrid_layer_pattern[layer] == 1;
    let sizes = args.sizes(sliding);
    let (sinks, rope) = if sliding {
        let partial_rotary_factor = args.rope.partial_rotary_factor;
        let rope = RopeConfig { partial_rotary_factor, ..args.rope.sliding(args.swa_rope_theta) };
        (args.add_swa_attention_sink_bias, rope)
    } else {
        (args.add_full_attention_sink_bias, args.rope.full())
    };
    let name = "attention_sink_bias";
    let sinks = sinks.then(|| Ok::<_, Error>((name, w.get_shaped(name, &sizes[..1])?))).transpose()?;
    let attention = Attention::uneven(w, AttentionNames::LLAMA, args.hidden_size, sizes)?;
    Ok(ScaledValues {
        attention: Attention {
            sinks,
            rope: Some(Rope::new(rope.dims(sizes[2], 1.0)?, &rope, 10_000.0)?),
            // So many tokens before the query, and the query itself.
            window: sliding.then_some(args.sliding_window_size + 1),
            ..attention
        },
        scale: args.attention_value_scale,
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let (dims, hidden) = (args.hidden_size, args.moe_intermediate_size);
    if args.moe_layer_freq[layer] != 1 {
        return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size, Activation::Silu)?));
    }
    let moe = Moe::new(w, MoeNames::DEEPSEEK, args.routing(), dims, [args.experts.get(), hidden])?;
    Ok(Box::new(moe.with_shared(w, dims, args.shared_size())?))
}

/// Attention to values that have a factor.
#[derive(Debug)]
pub struct ScaledValues {
    attention: Attention,
    scale: Option<f32>,
}

parameters!(ScaledValues { attention: "" });

impl Mixer for ScaledValues {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let Attention { rope, sinks, scale, window, o_proj, .. } = &self.attention;
        let rope = rope.as_ref().ok_or_else(|| Error::argument("mimo_v2_flash", "no positions"))?;
        let mask = masks.of(cache, *window)?;
        let [queries, keys, values] = self.attention.project(x)?;
        let values = self.scale.map_or(Ok(values.clone()), |scale| &values * scale)?;
        let offset = cache.offset();
        let seen = cache.update(&rope.forward(&keys, &offset)?, &values)?;
        let sinks = sinks.as_ref().map(|(_, sinks)| sinks);
        let heads = attend(&rope.forward(&queries, &offset)?, &seen, *scale, &mask, sinks)?;
        o_proj.forward(&merge_heads(&heads)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.attention.make_cache()
    }
}
