//! `mlxport bench`

use std::path::PathBuf;

use serde::Serialize;

use super::devices::describe;
use super::{Outcome, check_interrupt, print, print_json};
use crate::device::Machine;
use crate::generate::{Options, Speed, SpeedSettings, Spread, speed};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Speed of a language model: reading a prompt, and generating
    Model(Args),
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// Directory of the checkpoint, or its Hugging Face id
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

#[derive(Serialize)]
struct Report {
    model: String,
    #[serde(flatten)]
    speed: Speed,
    machine: Machine,
}

pub(super) fn run(command: &Command) -> Outcome {
    let Command::Model(args) = command;
    let settings = SpeedSettings {
        prompt_tokens: args.prompt_tokens,
        generate_tokens: args.generate_tokens,
        runs: args.runs,
        batch_size: args.batch_size,
    };
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
