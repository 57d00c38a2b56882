//! `mlxport bench`

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::devices::describe;
use super::{Outcome, check_interrupt, print, print_json};
use crate::device::Machine;
use crate::error::{Error, Result};
use crate::generate::{Options, Stats, Tokens};
use crate::models::{self, LanguageModel};
use crate::nn::Module;
use crate::{Dtype, random, transforms};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Speed of a language model: reading a prompt, and generating
    Model(Args),
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// Directory of the checkpoint
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Tokens of the prompt, drawn at random
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt_tokens: i32,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 128)]
    generate_tokens: usize,
    /// Measured runs, after one that is not
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// One quantity over the runs.
#[derive(Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

#[derive(Serialize)]
struct Report {
    model: String,
    prompt_tokens: i32,
    generate_tokens: usize,
    runs: usize,
    prompt_tps: Spread,
    generation_tps: Spread,
    /// The median.
    first_token_s: f64,
    load_s: f64,
    peak_memory_bytes: usize,
    weight_bytes: usize,
    machine: Machine,
}

pub(super) fn run(command: &Command) -> Outcome {
    let Command::Model(args) = command;
    if args.runs == 0 || args.prompt_tokens < 1 || args.generate_tokens < 2 {
        let message = "it takes a run, a prompt token and two tokens to generate, or more";
        return Err(Error::argument("bench", message).into());
    }
    let start = Instant::now();
    let model = models::load(&args.model)?;
    let weights = model.parameters();
    transforms::eval(weights.iter().map(|(_, array)| array))?;
    let load_s = start.elapsed().as_secs_f64();
    let prompt =
        random::randint(0, model.vocab_size(), &[args.prompt_tokens], Dtype::Int32, Some(&random::key(0)?))?;
    let prompt = prompt.to_vec::<i32>()?;
    let mut runs = Vec::new();
    for run in 0..=args.runs {
        let stats = measure(&*model, &prompt, args.generate_tokens)?;
        if run > 0 {
            runs.push(stats);
        }
    }
    let report = Report {
        model: args.model.display().to_string(),
        prompt_tokens: args.prompt_tokens,
        generate_tokens: args.generate_tokens,
        runs: args.runs,
        prompt_tps: spread(runs.iter().map(Stats::prompt_tps)),
        generation_tps: spread(runs.iter().map(Stats::generation_tps)),
        first_token_s: spread(runs.iter().map(|s| s.prompt_time.as_secs_f64())).median,
        load_s,
        peak_memory_bytes: runs.iter().map(|s| s.peak_memory).max().unwrap_or(0),
        weight_bytes: model.nbytes(),
        machine: Machine::here()?,
    };
    if args.json { print_json(&report) } else { print(table(&report)) }
}

fn measure(model: &dyn LanguageModel, prompt: &[i32], max_tokens: usize) -> Result<Stats> {
    let mut cache = model.make_cache();
    let options = Options { max_tokens, ..Options::default() };
    let mut tokens = Tokens::new(model, &mut cache, prompt, options)?.on_prefill(|_, _| check_interrupt());
    while let Some(token) = tokens.next() {
        token?;
        check_interrupt()?;
    }
    Ok(tokens.stats())
}

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    };
    Spread { median, min: values[0], max: values[values.len() - 1] }
}

fn table(report: &Report) -> String {
    let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
    let row = |name: &str, s: &Spread| {
        format!("{name:<18} {:>10.2} tokens/s   ({:.2} to {:.2})\n", s.median, s.min, s.max)
    };
    format!(
        "{}\n{}: {} prompt tokens, {} generated, {} runs, greedy, prompt in steps of {}\n\n{}{}\
         {:<18} {:>10.3} s\n{:<18} {:>10.3} s\n{:<18} {:>10.1} MiB\n{:<18} {:>10.1} MiB\n",
        describe(&report.machine),
        report.model,
        report.prompt_tokens,
        report.generate_tokens,
        report.runs,
        Options::default().prefill_step,
        row("prompt", &report.prompt_tps),
        row("generation", &report.generation_tps),
        "first token",
        report.first_token_s,
        "load",
        report.load_s,
        "peak memory",
        mib(report.peak_memory_bytes),
        "weights",
        mib(report.weight_bytes),
    )
}
