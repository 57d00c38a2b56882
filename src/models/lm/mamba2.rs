//! Mamba-2: nothing but state-space layers.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Decoder, Mamba2, Mamba2Sizes, MixerBlock, Names};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    num_heads: i32,
    head_dim: i32,
    state_size: i32,
    conv_kernel: i32,
    n_groups: i32,
    #[serde(default = "default_eps")]
    layer_norm_epsilon: f32,
    time_step_limit: Option<[f32; 2]>,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
}

fn default_eps() -> f32 {
    1e-5
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let checks = Checks::new("mamba2")
            .size("hidden_size", self.hidden_size)
            .size("vocab_size", self.vocab_size)
            .eps("layer_norm_epsilon", self.layer_norm_epsilon);
        self.sizes().check(checks).done()
    }

    fn sizes(&self) -> Mamba2Sizes {
        Mamba2Sizes {
            heads: self.num_heads,
            head_dim: self.head_dim,
            groups: self.n_groups,
            state: self.state_size,
            kernel: self.conv_kernel,
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new()
        .rename("backbone.embedding.weight", "backbone.embeddings.weight")
        .transpose("*.conv1d.weight [_, 1, _]", &[0, 2, 1])
        .tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<MixerBlock<Mamba2>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.layer_norm_epsilon);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layer = |_, w: &Weights| {
        let mixer = Mamba2::new(&w.pp("mixer"), dims, args.sizes(), args.n_groups, eps)?;
        Ok(MixerBlock {
            mixer: mixer.with_time_step(args.time_step_limit),
            norm: w.rms_norm("norm", dims, eps)?,
        })
    };
    Decoder::new(
        w,
        Names::MAMBA,
        [args.vocab_size, dims],
        args.tie_word_embeddings,
        norm,
        args.num_hidden_layers,
        layer,
    )
}
