//! `mlxport perplexity`

use std::path::PathBuf;

use super::{Outcome, check_interrupt, print, print_json};
use crate::error::Error;
use crate::generate::{PerplexitySettings, perplexity};
use crate::models;
use crate::text::Tokenizer;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The checkpoint: a directory, a GGUF file or a Hugging Face id
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    /// The text, in UTF-8
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens of a sample
    #[arg(long, value_name = "N", default_value_t = PerplexitySettings::default().sequence_length)]
    sequence_length: usize,
    /// Samples at a time
    #[arg(long, value_name = "N", default_value_t = PerplexitySettings::default().batch_size)]
    batch_size: usize,
    /// Samples at most, from the beginning of the text; -1 for all
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true)]
    num_samples: i64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let text = std::fs::read_to_string(&args.file).map_err(|e| Error::io(&args.file, e))?;
    let tokenizer = Tokenizer::load(&args.model)?;
    let mut tokens = tokenizer.encode(&text, true)?;
    if let Some(eos) = tokenizer.eos_id()
        && tokens.last() != Some(&eos)
    {
        tokens.push(eos);
    }
    let settings = PerplexitySettings {
        sequence_length: args.sequence_length,
        batch_size: args.batch_size,
        num_samples: usize::try_from(args.num_samples).ok(),
    };
    let model = models::load(&args.model)?;
    let found = perplexity(&*model, &tokens, settings, &mut check_interrupt)?;
    if args.json {
        return print_json(&found);
    }
    print(format_args!(
        "perplexity {:.3} ± {:.3} ({} samples, {} tokens, {:.0} tokens/s, peak memory {:.1} MiB)\n",
        found.perplexity,
        found.standard_error,
        found.samples,
        found.tokens,
        found.tokens_per_second,
        found.peak_memory_bytes as f64 / (1 << 20) as f64,
    ))
}
