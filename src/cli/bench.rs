//! `mlxport bench`

use std::path::PathBuf;

use serde::Serialize;

use super::devices::describe;
use super::{Outcome, check_interrupt, print, print_json};
use crate::device::Machine;
use crate::error::Error;
use crate::generate::{Options, Speed, SpeedSettings, Spread, context_length, speed};
use crate::ops::Quantization;
use crate::synth::{self, Shape};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Speed of a language model: reading a prompt, and generating
    Model(Args),
    /// Writes a checkpoint of random weights in the shapes of a real model, to measure
    Synth(SynthArgs),
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// The checkpoint: a directory, a GGUF file or a Hugging Face id
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    /// Tokens of the prompt, drawn at random
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt_tokens: i32,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 128)]
    generate_tokens: usize,
    /// Measured runs, after one that is not
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch_size: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct SynthArgs {
    /// Which model: tiny, qwen3-0.6b, qwen3-4b, qwen3-8b, llama-1b or llama-8b
    #[arg(long, value_name = "NAME")]
    shape: String,
    /// Bits of a weight: 2, 3, 4, 5, 6 or 8, or 16 for bfloat16
    #[arg(long, value_name = "N", default_value_t = 4)]
    bits: i32,
    /// Weights that share a scale: 32, 64 or 128
    #[arg(long, value_name = "N", default_value_t = 64)]
    group_size: i32,
    /// Directory for the result; it must not be there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Report {
    model: String,
    #[serde(flatten)]
    speed: Speed,
    machine: Machine,
}

pub(super) fn run(command: &Command) -> Outcome {
    let args = match command {
        Command::Model(args) => args,
        Command::Synth(args) => {
            let how = (args.bits != 16).then(|| Quantization::affine(args.group_size, args.bits));
            return Ok(synth::write(Shape::named(&args.shape)?, how, &args.out)?);
        }
    };
    let settings = SpeedSettings {
        prompt_tokens: args.prompt_tokens,
        generate_tokens: args.generate_tokens,
        runs: args.runs,
        batch_size: args.batch_size,
    };
    let all = args.generate_tokens.saturating_add(args.prompt_tokens.max(0) as usize);
    if let Some(most) = context_length(&args.model)?.filter(|most| all > *most) {
        let message = format!("{all} tokens, and the model was made for {most} (its config says)");
        return Err(Error::argument("bench", message).into());
    }
    let speed = speed(&args.model, settings, &mut check_interrupt)?;
    let report = Report { model: args.model.display().to_string(), speed, machine: Machine::here()? };
    if args.json { print_json(&report) } else { print(table(&report)) }
}

fn table(report: &Report) -> String {
    let Report { model, speed, machine } = report;
    let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
    let row = |name: &str, s: &Spread| {
        format!("{name:<18} {:>10.2} tokens/s   ({:.2} to {:.2})\n", s.median, s.min, s.max)
    };
    format!(
        "{}\n{}: {} at once, {} prompt tokens, {} generated, {} runs, greedy, prompt in steps of {}\n\n{}{}\
         {:<18} {:>10.3} s\n{:<18} {:>10.3} s\n{:<18} {:>10.1} MiB\n{:<18} {:>10.1} MiB\n",
        describe(machine),
        model,
        speed.settings.batch_size,
        speed.settings.prompt_tokens,
        speed.settings.generate_tokens,
        speed.settings.runs,
        Options::default().prefill_step,
        row("prompt", &speed.prompt_tps),
        row("generation", &speed.generation_tps),
        "first token",
        speed.first_token_s,
        "load",
        speed.load_s,
        "peak memory",
        mib(speed.peak_memory_bytes),
        "weights",
        mib(speed.weight_bytes),
    )
}
