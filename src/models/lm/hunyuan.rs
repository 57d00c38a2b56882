//! Hunyuan MoE: norms after the positions, experts beside a shared layer, and in Hunyuan Large layers that
//! use the keys and values of one before (Brandon et al., "Reducing Transformer Key-Value Cache Size with
//! Cross-Layer Attention", 2024).

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::{Error, Result};
use crate::models::blocks::{
    Block, Decoder, ExpertCount, FeedForward, Mixer, Moe, MoeNames, PerLayer, Routing, Scoring, Sizes,
    attend, merge_heads, split_heads,
};
use crate::nn::{Linear, Norm, Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    moe_topk: PerLayer<i32>,
    #[serde(flatten)]
    experts: ExpertCount,
    num_shared_expert: PerLayer<i32>,
    use_mixed_mlp_moe: bool,
    use_qk_norm: bool,
    #[serde(default)]
    use_cla: bool,
    /// Of so many layers in a row, the first has keys and values.
    #[serde(default = "one")]
    cla_share_factor: usize,
    moe_intermediate_size: Option<PerLayer<i32>>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn one() -> usize {
    1
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (layers, share) = (self.sizes.num_hidden_layers, self.cla_share_factor);
        let covered = self.moe_topk.covers(layers)
            && self.num_shared_expert.covers(layers)
            && self.moe_intermediate_size.as_ref().is_none_or(|sizes| sizes.covers(layers));
        let checks = self
            .sizes
            .checks("hunyuan")
            .that(share > 0, || format!("`cla_share_factor` is {share}"))
            .that(covered, || format!("lists of sizes are shorter than {layers} layers"));
        let sizes = self.moe_intermediate_size.iter().flat_map(PerLayer::values);
        let checks = sizes.fold(checks, |checks, &size| checks.size("moe_intermediate_size", size));
        let shared = self.num_shared_expert.values().iter();
        let checks = shared.fold(checks, |checks, &count| {
            checks.size("num_shared_expert", self.sizes.intermediate_size.saturating_mul(count))
        });
        let routes = self.moe_topk.values().iter().filter(|_| self.experts.get() != 1);
        routes.fold(checks, |checks, &k| checks.routing(self.experts.get(), &routing(k))).done()
    }

    /// Whether a layer has keys and values of its own.
    fn has_keys(&self, layer: usize) -> bool {
        !self.use_cla || layer.is_multiple_of(self.cla_share_factor)
    }
}

fn routing(top_k: i32) -> Routing {
    Routing::new(top_k, Scoring::Softmax)
}

/// How the names of a checkpoint become the model's. Fused projections hold, for each key head, its
/// queries, its key and its value, and the up projection before the gate.
pub fn rules(args: &Args) -> Rules {
    let [heads, kv_heads, head_dim] = args.sizes.heads();
    let groups = heads / kv_heads;
    let parts = ["q_proj", "k_proj", "v_proj"].map(|name| format!("*.self_attn.{name}.weight"));
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Rules::new()
        .reshape("*.self_attn.qkv_proj.weight", &[kv_heads, groups + 2, head_dim, -1])
        .split("*.self_attn.qkv_proj.weight", &parts, 1, &[groups, 1, 1])
        .reshape("*.self_attn.{}.weight [_, _, _, _]", &[-1, args.sizes.hidden_size])
        .split("*.gate_and_up_proj.weight", &["*.up_proj.weight", "*.gate_proj.weight"], 0, &[])
        .stack_experts("*.mlp.experts", "*.mlp.switch_mlp")
}

/// The model.
pub type Model = Decoder<Block<SharingAttention, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    // A checkpoint without a head is tied whatever its config says.
    let sizes = &Sizes { tie_word_embeddings: None, ..args.sizes.clone() };
    sizes.decoder(w, |i, w| {
        let attention = SharingAttention::new(args, i, &w.pp("self_attn"))?;
        sizes.block(w, attention, feed_forward(args, i, &w.pp("mlp"))?)
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let (dims, hidden) = (args.sizes.hidden_size, args.sizes.intermediate_size);
    if args.experts.get() == 1 {
        return Ok(Box::new(args.sizes.mlp(w)?));
    }
    let size = args.moe_intermediate_size.as_ref().and_then(|sizes| sizes.get(layer)).unwrap_or(hidden);
    let names = MoeNames { gate: "gate.wg", shared: "shared_mlp", ..MoeNames::PLAIN };
    let routing = routing(args.moe_topk.get(layer).unwrap_or(1));
    let moe = Moe::new(w, names, routing, dims, [args.experts.get(), size])?;
    if !args.use_mixed_mlp_moe {
        return Ok(Box::new(moe));
    }
    let shared = args.num_shared_expert.get(layer).unwrap_or(1);
    Ok(Box::new(moe.with_shared(w, dims, hidden * shared)?))
}

/// Attention to keys and values of its own, or to those of a layer before.
#[derive(Debug)]
pub struct SharingAttention {
    q_proj: Linear,
    k_proj: Option<Linear>,
    v_proj: Option<Linear>,
    o_proj: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    rope: Rope,
    heads: i32,
    kv_heads: i32,
    scale: f32,
}

parameters!(SharingAttention {
    q_proj,
    k_proj,
    v_proj,
    o_proj,
    q_norm: "query_layernorm",
    k_norm: "key_layernorm"
});

impl SharingAttention {
    fn new(args: &Args, layer: usize, w: &Weights) -> Result<Self> {
        let (dims, [heads, kv_heads, head_dim]) = (args.sizes.hidden_size, args.sizes.heads());
        let own = args.has_keys(layer);
        let keyed = |name| own.then(|| w.linear(name, dims, kv_heads * head_dim)).transpose();
        let norm = |name| if args.use_qk_norm { args.sizes.heads_norm(w, name, 1) } else { Ok(None) };
        Ok(Self {
            q_proj: w.linear("q_proj", dims, heads * head_dim)?,
            k_proj: keyed("k_proj")?,
            v_proj: keyed("v_proj")?,
            o_proj: w.linear("o_proj", heads * head_dim, dims)?,
            q_norm: norm("query_layernorm")?,
            k_norm: norm("key_layernorm")?,
            rope: Rope::new(head_dim, &args.rope, 10_000.0)?,
            heads,
            kv_heads,
            scale: (head_dim as f32).powf(-0.5),
        })
    }

    fn place(&self, x: &Array, norm: Option<&Norm>, cache: &LayerCache) -> Result<Array> {
        let x = self.rope.forward(x, &cache.offset())?;
        norm.map_or(Ok(x.clone()), |norm| norm.forward(&x))
    }
}

impl Mixer for SharingAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let mask = masks.of(cache, None)?;
        if let (Some(k_proj), Some(v_proj)) = (&self.k_proj, &self.v_proj) {
            let keys = split_heads(&k_proj.forward(x)?, self.kv_heads)?;
            masks.shared = Some([keys, split_heads(&v_proj.forward(x)?, self.kv_heads)?]);
        }
        let none = || Error::argument("hunyuan", "no layer before has keys");
        let [keys, values] = masks.shared.as_ref().ok_or_else(none)?;
        let queries = split_heads(&self.q_proj.forward(x)?, self.heads)?;
        let queries = self.place(&queries, self.q_norm.as_ref(), cache)?;
        let seen = cache.update(&self.place(keys, self.k_norm.as_ref(), cache)?, values)?;
        self.o_proj.forward(&merge_heads(&attend(&queries, &seen, self.scale, &mask, None)?)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::kv())
    }
}
