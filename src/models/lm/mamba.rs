//! Mamba and Falcon Mamba: nothing but state-space layers.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Decoder, Mamba, MambaSizes, MixerBlock, Names, TimeStepRank};
use crate::nn::Norm;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    hidden_size: i32,
    intermediate_size: i32,
    num_hidden_layers: usize,
    state_size: i32,
    conv_kernel: i32,
    time_step_rank: TimeStepRank,
    #[serde(default = "default_eps")]
    layer_norm_epsilon: f32,
    #[serde(default = "default_mixer_eps")]
    mixer_rms_eps: f32,
    #[serde(default)]
    use_bcdt_rms: bool,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
}

fn default_eps() -> f32 {
    1e-5
}

fn default_mixer_eps() -> f32 {
    1e-6
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let checks = Checks::new("mamba")
            .size("hidden_size", self.hidden_size)
            .size("vocab_size", self.vocab_size)
            .eps("layer_norm_epsilon", self.layer_norm_epsilon)
            .eps("mixer_rms_eps", self.mixer_rms_eps);
        self.sizes().check(checks).done()
    }

    fn sizes(&self) -> MambaSizes {
        MambaSizes {
            width: self.intermediate_size,
            state: self.state_size,
            kernel: self.conv_kernel,
            rank: self.time_step_rank.of(self.hidden_size),
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
pub type Model = Decoder<MixerBlock<Mamba>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.layer_norm_epsilon);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layer = |_, w: &Weights| {
        let mixer = Mamba::new(&w.pp("mixer"), dims, args.sizes())?;
        let mixer = match args.use_bcdt_rms || args.model_type == "falcon_mamba" {
            true => mixer.with_norms([(); 3].map(|()| Norm::Plain { eps: args.mixer_rms_eps })),
            false => mixer,
        };
        Ok(MixerBlock { mixer, norm: w.rms_norm("norm", dims, eps)? })
    };
    let sizes = [args.vocab_size, dims];
    Decoder::new(w, Names::MAMBA, sizes, args.tie_word_embeddings, norm, args.num_hidden_layers, layer)
}
