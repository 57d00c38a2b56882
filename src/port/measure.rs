//! Steps 5 and 6: what the model generates, and how fast, on this machine.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::oracle::Oracle;
use crate::device::Machine;
use crate::error::Result;
use crate::generate::{self, Options, Speed as Figures, Tokens, stop_tokens};
use crate::models;
use crate::text::Tokenizer;

/// Tokens that a sample has at most.
const SAMPLE_TOKENS: usize = 48;

/// What the model generates by greedy decoding after the oracle's prompt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// The prompt as text, or its ids where there is no tokenizer.
    pub prompt: String,
    /// The tokens.
    pub tokens: Vec<i32>,
    /// Their text; `None` without a tokenizer.
    pub text: Option<String>,
}

pub(super) fn sample(model: &Path, oracle: &Path) -> Result<Sample> {
    let ids = Oracle::load(oracle)?.input_ids.values;
    let tokenizer = model.join("tokenizer.json").is_file().then(|| Tokenizer::load(model)).transpose()?;
    let loaded = models::load(model)?;
    let stop = stop_tokens(model, tokenizer.as_ref().and_then(Tokenizer::eos_id))?;
    let options = Options { max_tokens: SAMPLE_TOKENS, stop, ..Options::default() };
    let mut cache = loaded.make_cache();
    let tokens = Tokens::new(&*loaded, &mut cache, &ids, options)?.map(|token| Ok(token?.id));
    let tokens: Vec<i32> = tokens.collect::<Result<_>>()?;
    let prompt = match &tokenizer {
        Some(tokenizer) => tokenizer.decode(&ids, false)?,
        None => format!("{ids:?}"),
    };
    let text = tokenizer.map(|tokenizer| tokenizer.decode(&tokens, true)).transpose()?;
    Ok(Sample { prompt, tokens, text })
}

/// How fast the model is, and where that was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Speed {
    /// The machine, and what this program was built with.
    pub machine: Machine,
    /// What was measured.
    pub figures: Figures,
}

pub(super) fn speed(model: &Path) -> Result<Speed> {
    let settings =
        generate::SpeedSettings { prompt_tokens: 128, generate_tokens: 32, runs: 3, batch_size: 1 };
    Ok(Speed { machine: Machine::here()?, figures: generate::speed(model, settings, &mut || Ok(()))? })
}

impl Speed {
    /// The two figures that matter, in a line.
    pub(super) fn line(&self) -> String {
        let Figures { prompt_tps, generation_tps, .. } = &self.figures;
        format!("prompt {:.0} tokens/s, generation {:.0} tokens/s", prompt_tps.median, generation_tps.median)
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures { settings, prompt_tps, generation_tps, first_token_s, load_s, .. } = &self.figures;
        writeln!(
            f,
            "{} ({} cores, {}), MLX {}, {} prompt tokens, {} generated, median of {} runs (least to most):\n",
            self.machine.cpu,
            self.machine.cores,
            self.machine.backends.join(", "),
            self.machine.mlx,
            settings.prompt_tokens,
            settings.generate_tokens,
            settings.runs
        )?;
        writeln!(f, "| | |\n| --- | --- |")?;
        for (name, spread) in [("prompt", prompt_tps), ("generation", generation_tps)] {
            writeln!(
                f,
                "| {name} | {:.1} tokens/s ({:.1} to {:.1}) |",
                spread.median, spread.min, spread.max
            )?;
        }
        writeln!(f, "| first token | {first_token_s:.3} s |")?;
        writeln!(f, "| load | {load_s:.3} s |")?;
        writeln!(f, "| peak memory | {} bytes |", self.figures.peak_memory_bytes)
    }
}
