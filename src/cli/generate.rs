//! `mlxport generate`

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{Outcome, Stop, check_interrupt, interrupted, print, print_json};
use crate::generate::{FinishReason, Options, Sampling, Stats, Tokens, stop_tokens};
use crate::models;
use crate::text::{Chat, Tokenizer};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Directory of the checkpoint, or its Hugging Face id
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    #[command(flatten)]
    prompt: Prompt,
    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Temperature; at 0 the likeliest token is taken
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temp: f32,
    /// Keep the likeliest tokens that make up this much of the probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: i32,
    /// Keep tokens at least this much as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// The same seed gives the same tokens
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Give the prompt to the model as it is, also where the checkpoint has a chat template
    #[arg(long)]
    raw: bool,
    /// Go on after a token that ends a text
    #[arg(long)]
    ignore_eos: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Prompt {
    /// Text to continue, or with a chat template to answer
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to continue, with commas between them
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    prompt_ids: Option<Vec<i32>>,
}

#[derive(Serialize)]
struct Report {
    tokens: Vec<i32>,
    /// Null without a tokenizer.
    text: Option<String>,
    finish_reason: Option<FinishReason>,
    prompt_tokens: usize,
    prompt_tps: f64,
    generation_tokens: usize,
    generation_tps: f64,
    peak_memory_bytes: usize,
}

pub(super) fn run(args: &Args) -> Outcome {
    let (tokenizer, prompt) = read_prompt(args)?;
    let model = models::load(&args.model)?;
    let options = Options {
        max_tokens: args.max_tokens,
        sampling: Sampling {
            temperature: args.temp,
            top_p: args.top_p,
            min_p: args.min_p,
            top_k: args.top_k,
            seed: args.seed,
            ..Sampling::default()
        },
        stop: if args.ignore_eos { Vec::new() } else { stop_tokens(&args.model)? },
        ..Options::default()
    };
    let mut cache = model.make_cache();
    let bar = progress(prompt.len());
    let mut tokens = Tokens::new(&*model, &mut cache, &prompt, options)?.on_prefill(|read, _| {
        bar.set_position(read as u64);
        if read == prompt.len() {
            bar.finish_and_clear();
        }
        check_interrupt()
    });
    let mut detokenizer = tokenizer.as_ref().map(Tokenizer::detokenizer);
    let (mut ids, mut text, mut finish_reason) = (Vec::new(), String::new(), None);
    for token in tokens.by_ref() {
        let token = token?;
        finish_reason = token.finish_reason;
        let mut piece = match &mut detokenizer {
            Some(detokenizer) => detokenizer.push(token.id)?,
            None => format!("{}{}", if ids.is_empty() { "" } else { "," }, token.id),
        };
        let last = finish_reason.is_some() || interrupted();
        if last && let Some(detokenizer) = detokenizer.take() {
            piece += &detokenizer.finish()?;
        }
        ids.push(token.id);
        text += &piece;
        if !args.json {
            print(piece)?;
        }
        if last {
            break;
        }
    }
    let stats = tokens.stats();
    if args.json {
        print_json(&report(ids, tokenizer.is_some().then_some(text), finish_reason, stats))?;
    } else {
        print("\n")?;
        summarise(&stats);
    }
    if interrupted() { Err(Stop::Interrupted) } else { Ok(()) }
}

/// The tokenizer, unless there is none and none is needed, and the ids of the prompt.
fn read_prompt(args: &Args) -> Result<(Option<Tokenizer>, Vec<i32>), Stop> {
    let tokenizer = || Tokenizer::load(&args.model);
    if let Some(ids) = &args.prompt.prompt_ids {
        let has_tokenizer = Tokenizer::exists(&args.model);
        return Ok((if has_tokenizer { Some(tokenizer()?) } else { None }, ids.clone()));
    }
    let (tokenizer, text) = (tokenizer()?, args.prompt.prompt.as_deref().unwrap_or_default());
    let ids = if args.raw || tokenizer.chat_template().is_none() {
        tokenizer.encode_prompt(text)?
    } else {
        let chat = Chat::new(vec![serde_json::json!({ "role": "user", "content": text })]);
        tokenizer.encode(&tokenizer.apply_chat_template(&chat)?, false)?
    };
    Ok((Some(tokenizer), ids))
}

/// A bar for the prompt, where a person watches and it takes a while.
fn progress(length: usize) -> ProgressBar {
    if length <= Options::default().prefill_step || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("prompt {bar:40} {pos}/{len} tokens, {per_sec}");
    let bar = ProgressBar::new(length as u64);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

fn report(tokens: Vec<i32>, text: Option<String>, reason: Option<FinishReason>, stats: Stats) -> Report {
    Report {
        tokens,
        text,
        finish_reason: reason,
        prompt_tokens: stats.prompt_tokens,
        prompt_tps: stats.prompt_tps(),
        generation_tokens: stats.generated_tokens,
        generation_tps: stats.generation_tps(),
        peak_memory_bytes: stats.peak_memory,
    }
}

fn summarise(stats: &Stats) {
    let _ = writeln!(
        std::io::stderr(),
        "prompt: {} tokens, {:.1} tokens/s; generation: {} tokens, {:.1} tokens/s; peak memory: {:.1} MiB",
        stats.prompt_tokens,
        stats.prompt_tps(),
        stats.generated_tokens,
        stats.generation_tps(),
        stats.peak_memory as f64 / (1 << 20) as f64,
    );
}
