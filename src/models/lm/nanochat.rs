//! nanochat: norms without weights, squared ReLU, and a soft cap of the logits.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, LogitsScale, Names, PlainMlp,
};
use crate::nn::activations::Activation;
use crate::nn::{Norm, Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    vocab_size: i32,
    rms_norm_eps: f32,
    hidden_act: Activation,
    tie_word_embeddings: bool,
    final_logit_softcapping: Option<f32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            hidden_size: 1280,
            num_hidden_layers: 20,
            intermediate_size: 5120,
            num_attention_heads: 10,
            num_key_value_heads: 10,
            vocab_size: 65_536,
            rms_norm_eps: 1e-5,
            hidden_act: Activation::Relu2,
            tie_word_embeddings: false,
            final_logit_softcapping: Some(15.0),
            rope: RopeConfig::default(),
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("nanochat")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, None, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new()
        .rename("model.embed_tokens.*", "transformer.wte.*")
        .rename("model.layers.{}.self_attn.q_proj.*", "transformer.h.{}.attn.c_q.*")
        .rename("model.layers.{}.self_attn.k_proj.*", "transformer.h.{}.attn.c_k.*")
        .rename("model.layers.{}.self_attn.v_proj.*", "transformer.h.{}.attn.c_v.*")
        .rename("model.layers.{}.self_attn.o_proj.*", "transformer.h.{}.attn.c_proj.*")
        .rename("model.layers.{}.mlp.fc1.*", "transformer.h.{}.mlp.c_fc.*")
        .rename("model.layers.{}.mlp.fc2.*", "transformer.h.{}.mlp.c_proj.*")
}

/// The model.
pub type Model = Decoder<Block<Attention, PlainMlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = Names { embed: "transformer.wte", layers: "transformer.h", norm: "", head: "lm_head" };
    let (dims, heads) = (args.hidden_size, args.num_attention_heads);
    let head_dim = dims / heads;
    let plain = Norm::Plain { eps: args.rms_norm_eps };
    let rope = Rope::new(head_dim, &args.rope, 10_000.0)?.backwards()?;
    let layer = |_, w: &Weights| {
        let names = AttentionNames { q: "c_q", k: "c_k", v: "c_v", o: "c_proj", ..AttentionNames::LLAMA };
        let sizes = [heads, args.num_key_value_heads, head_dim];
        let attention = Attention {
            q_norm: Some(plain.clone()),
            k_norm: Some(plain.clone()),
            norms_after_rope: true,
            rope: Some(rope.clone()),
            ..Attention::named(&w.pp("attn"), names, dims, sizes)?
        };
        let act = args.hidden_act;
        let mlp = PlainMlp::new(&w.pp("mlp"), ["c_fc", "c_proj"], dims, args.intermediate_size, act)?;
        Ok(Block {
            names: BlockNames { mixer: "attn", ..BlockNames::LLAMA },
            ..Block::new(attention, mlp, plain.clone(), plain.clone())
        })
    };
    let (sizes, norm) = ([args.vocab_size, dims], |_: &str| Ok(plain.clone()));
    let tied = (!args.tie_word_embeddings).then_some(false);
    Ok(Decoder {
        embed_norm: Some(plain.clone()),
        logits: LogitsScale { factor: None, cap: args.final_logit_softcapping },
        ..Decoder::new(w, names, sizes, tied, norm, args.num_hidden_layers, layer)?
    })
}
