//! IQuest-Coder with loops: Llama whose layers are gone through twice. The second time a layer attends
//! to the keys of the first and to its own within a window, and a gate mixes the two.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{Cache, KeysValues, LayerCache, Mask, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Block, Decoder, FeedForward, Mlp, Sizes, attend, merge_heads};
use crate::models::{LanguageModel, stage};
use crate::nn::{Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    loop_num: Option<i32>,
    loop_window_size: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let loops = self.loop_num.unwrap_or(2);
        self.sizes
            .checks("iquestloopcoder")
            .size("loop_window_size", self.window())
            .that(loops == 2, || format!("`loop_num` is {loops}: only 2 is supported"))
            .done()
    }

    fn window(&self) -> i32 {
        self.loop_window_size.unwrap_or(64)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes.rules()
}

/// How much of each head's output comes from all positions: `sigmoid(w . query + b)`.
#[derive(Debug)]
struct Gate {
    /// `[heads, head_dim]`.
    weight: Array,
    /// `[heads]`.
    bias: Array,
}

parameters!(Gate { weight, bias });

impl Gate {
    /// `[batch, heads, length, head_dim]` to `[batch, heads, length, 1]`.
    fn forward(&self, queries: &Array) -> Result<Array> {
        let logits = ops::matmul(queries, &ops::expand_dims(&self.weight, -1)?)?;
        ops::sigmoid(&(logits + ops::expand_dims(&self.bias, [-2, -1])?)?)
    }
}

/// The model.
#[derive(Debug)]
pub struct Model {
    decoder: Decoder<Block<Attention, Mlp>>,
    gates: Vec<Gate>,
    window: i32,
}

parameters!(Model { decoder: "", gates: "model.gate_projections" });

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (sizes, [heads, _, head_dim]) = (&args.sizes, args.sizes.heads());
    let rope = Rope::new(head_dim, &args.rope, 500_000.0)?;
    let decoder = sizes.decoder(w, |_, w| {
        let attention = Attention { rope: Some(rope.clone()), ..sizes.attention(&w.pp("self_attn"))? };
        sizes.block(w, attention, sizes.mlp(&w.pp("mlp"))?)
    })?;
    let gate = |i| {
        let w = w.pp("model.gate_projections").pp(i);
        let weight = w.get_shaped("weight", &[heads, head_dim])?;
        Ok(Gate { weight, bias: w.get_shaped("bias", &[heads])? })
    };
    let gates = (0..sizes.num_hidden_layers).map(gate).collect::<Result<_>>()?;
    Ok(Model { decoder, gates, window: args.window() })
}

impl Model {
    /// One layer, with the attention that `mix` computes from queries, keys and values in place.
    fn layer(
        block: &Block<Attention, Mlp>,
        x: &Array,
        cache: &mut LayerCache,
        mix: impl FnOnce(&Array, &Array, &Array, &mut LayerCache) -> Result<Array>,
    ) -> Result<Array> {
        let normed = block.norm1.forward(x)?;
        let mixed = stage("self_attn", || {
            let [queries, keys, values] = block.mixer.project(&normed)?;
            let (queries, keys) = (block.mixer.turn(&queries, cache)?, block.mixer.turn(&keys, cache)?);
            block.mixer.o_proj.forward(&merge_heads(&mix(&queries, &keys, &values, cache)?)?)
        })?;
        let h = (x + mixed)?;
        let normed = block.norm2.as_ref().map_or(Ok(h.clone()), |norm| norm.forward(&h))?;
        h + stage("mlp", || block.mlp.forward(&normed))?
    }
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        self.decoder.embed(tokens)
    }

    fn forward_embeddings(&self, embeddings: &Array, _tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let (layers, window) = (&self.decoder.layers, Some(self.window));
        let (first, second) = cache.layers_mut(2 * layers.len())?.split_at_mut(layers.len());
        let mut h = embeddings.clone();
        let mut masks = Masks::new(h.dim(1)?);
        let mut known: Vec<(KeysValues, Mask)> = Vec::new();
        for (i, (block, cache)) in layers.iter().zip(first).enumerate() {
            let mask = masks.of(cache, None)?;
            h = stage(format_args!("layers.{i}"), || {
                Self::layer(block, &h, cache, |queries, keys, values, cache| {
                    let seen = cache.update(keys, values)?;
                    let out = attend(queries, &seen, block.mixer.scale, &mask, None);
                    known.push((seen, mask));
                    out
                })
            })?;
        }
        for (i, ((block, gate), (cache, (seen, mask)))) in
            layers.iter().zip(&self.gates).zip(second.iter_mut().zip(&known)).enumerate()
        {
            let near = masks.of(cache, window)?;
            h = stage(format_args!("layers.{}", layers.len() + i), || {
                Self::layer(block, &h, cache, |queries, keys, values, cache| {
                    let gate = gate.forward(queries)?;
                    let all = attend(queries, seen, block.mixer.scale, mask, None)?;
                    let own = cache.update(keys, values)?;
                    let own = attend(queries, &own, block.mixer.scale, &near, None)?;
                    (&gate * all)? + ((1.0 - &gate)? * own)?
                })
            })?;
        }
        let h = stage("norm", || self.decoder.norm.forward(&h))?;
        self.decoder.head(&h)
    }

    /// Those of the first time through the layers, then those of the second.
    fn make_cache(&self) -> Cache {
        let layers = &self.decoder.layers;
        let first = layers.iter().map(|_| LayerCache::kv());
        Cache::new(first.chain(layers.iter().map(|_| LayerCache::window(Some(self.window)))))
    }

    fn num_layers(&self) -> usize {
        self.decoder.num_layers()
    }

    fn vocab_size(&self) -> i32 {
        self.decoder.vocab_size
    }
}
