//! `mlxport generate`

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::prompt::{Prompt, Template, TemplateArgs, parse_tools};
use super::settings::{CacheArgs, GrammarArgs, SamplingArgs, load_cache};
use super::{Outcome, Stop, check_interrupt, interrupted, print, print_json};
use crate::error::Error;
use crate::generate::{Draft, FinishReason, Options, Stats, Text, Tokens, stop_tokens};
use crate::models::{self, LanguageModel};
use crate::text::{Part, Response, Tokenizer, ToolCall};

/// Tokens of the end of a text that are looked up in it, at most.
const LOOKUP: usize = 3;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The checkpoint: a directory, a GGUF file or a Hugging Face id
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    #[command(flatten)]
    prompt: Prompt,
    /// Tools that the model may call: a JSON list of them, or a file with it
    #[arg(long, value_name = "JSON")]
    tools: Option<String>,
    /// Give the prompt to the model as it is, also where the checkpoint has a chat template
    #[arg(long)]
    raw: bool,
    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after a token that ends a text
    #[arg(long)]
    ignore_eos: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
    /// A smaller model with the same tokenizer, whose guesses the model checks
    #[arg(long, value_name = "DIR", conflicts_with = "prompt_lookup")]
    pub(super) draft_model: Option<PathBuf>,
    /// Guess what followed the last tokens where they stood before
    #[arg(long)]
    prompt_lookup: bool,
    /// Guesses at a time
    #[arg(long, value_name = "N", default_value_t = 3)]
    num_draft_tokens: usize,
    /// Go on from this file of `mlxport cache make`, or of mlx-lm
    #[arg(long, value_name = "FILE", conflicts_with = "max_kv_size")]
    prompt_cache_file: Option<PathBuf>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    grammar: GrammarArgs,
}

#[derive(Serialize, Default)]
struct Report {
    tokens: Vec<i32>,
    /// What the answer says, or with `--raw` all of it; null without a tokenizer.
    text: Option<String>,
    thinking: Option<String>,
    tool_calls: Vec<ToolCall>,
    /// What stands where a tool call should, and why it is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bad_tool_calls: Vec<BadToolCall>,
    finish_reason: Option<FinishReason>,
    prompt_tokens: usize,
    /// Tokens that the prompt cache had seen.
    cached_tokens: usize,
    prompt_tps: f64,
    generation_tokens: usize,
    generation_tps: f64,
    draft_tokens: usize,
    accepted_tokens: usize,
    peak_memory_bytes: usize,
}

#[derive(Serialize)]
struct BadToolCall {
    text: String,
    reason: String,
}

pub(super) fn run(args: &Args) -> Outcome {
    let template = match (args.raw, &args.prompt_cache_file) {
        (true, _) => Template::Raw,
        (false, Some(_)) => Template::Rest,
        (false, None) => Template::Chat,
    };
    let tools = args.tools.as_deref();
    let (tokenizer, prompt) = args.prompt.read(&args.model, template, &args.template, tools)?;
    let model = models::load(&args.model)?;
    let draft =
        args.draft_model.as_deref().map(|dir| load_draft(dir, tokenizer.as_ref(), &*model)).transpose()?;
    let eos = tokenizer.as_ref().and_then(Tokenizer::eos_id);
    let stop = if args.ignore_eos { Vec::new() } else { stop_tokens(&args.model, eos)? };
    let options = Options {
        max_tokens: args.max_tokens,
        sampling: args.sampling.sampling(tokenizer.as_ref(), &stop)?,
        penalties: args.sampling.penalties(),
        stop,
        prefill_step: args.cache.prefill_step(),
        kv_quantization: args.cache.kv_quantization(),
    };
    let mut cache = match &args.prompt_cache_file {
        Some(path) => load_cache(path, &*model)?,
        None => args.cache.make_cache(&*model, &args.model)?,
    };
    args.cache.check_length(&args.model, prompt.len().saturating_add(cache.offset().max(0) as usize))?;
    let mut report = Report { cached_tokens: cache.offset().max(0) as usize, ..Report::default() };
    let bar = progress(prompt.len(), options.prefill_step);
    let tokens = Tokens::new(&*model, &mut cache, &prompt, options)?.on_prefill(|read, _| {
        bar.set_position(read as u64);
        if read == prompt.len() {
            bar.finish_and_clear();
        }
        check_interrupt()
    });
    let tokens = match &draft {
        Some(draft) => tokens.speculative(Draft::model(&**draft, args.num_draft_tokens)),
        None if args.prompt_lookup => tokens.speculative(Draft::lookup(LOOKUP, args.num_draft_tokens)),
        None => tokens,
    };
    let tokens = constrained(tokens, args, tokenizer.as_ref(), &*model)?;
    let say = |piece: String, report: &mut Report| {
        let text = report.text.get_or_insert_default();
        *text += &piece;
        if args.json { Ok(()) } else { print(piece) }
    };
    let mut stats = Stats::default();
    match &tokenizer {
        Some(tokenizer) => {
            report.text = Some(String::new());
            let mut text = Text::new(tokens, tokenizer).stop_at(args.stop.iter().cloned());
            let mut parts = None;
            if args.json && !args.raw {
                text = text.marked(tokenizer);
                let written = tokenizer.decode(&prompt, false)?;
                let known = tools.map(parse_tools).transpose()?.unwrap_or_default();
                parts = Some(Response::new(tokenizer.response_format(), &written, known));
            }
            for response in text {
                let response = response?;
                report.tokens.push(response.token);
                (report.finish_reason, stats) = (response.finish_reason, response.stats);
                match &mut parts {
                    Some(parts) => parts.push(&response.text).into_iter().for_each(|part| report.add(part)),
                    None => say(response.text, &mut report)?,
                }
                if interrupted() {
                    break;
                }
            }
            parts.into_iter().flat_map(Response::finish).for_each(|part| report.add(part));
        }
        None if !args.stop.is_empty() => return Err(no_tokenizer("--stop").into()),
        None => {
            let mut tokens = tokens;
            for token in tokens.by_ref() {
                let token = token?;
                let comma = if report.tokens.is_empty() { "" } else { "," };
                report.tokens.push(token.id);
                report.finish_reason = token.finish_reason;
                say(format!("{comma}{}", token.id), &mut report)?;
                if interrupted() {
                    break;
                }
            }
            stats = tokens.stats();
            report.text = None;
        }
    }
    report.prompt_tokens = prompt.len();
    if args.json {
        report.take(&stats);
        print_json(&report)?;
    } else {
        print("\n")?;
        summarise(&stats);
    }
    if interrupted() { Err(Stop::Interrupted) } else { Ok(()) }
}

/// A model that knows the tokens of the model it guesses for.
fn load_draft(
    dir: &Path,
    tokenizer: Option<&Tokenizer>,
    model: &dyn LanguageModel,
) -> crate::Result<Box<dyn LanguageModel>> {
    let draft = models::load(dir)?;
    let sizes = match tokenizer.filter(|_| Tokenizer::exists(dir)) {
        // Models round their vocabularies up, each its own way.
        Some(tokenizer) => (Tokenizer::load(dir)?.vocab_size(), tokenizer.vocab_size()),
        None => (draft.vocab_size() as usize, model.vocab_size() as usize),
    };
    match sizes {
        (guessed, known) if guessed != known => {
            let message =
                format!("its vocabulary has {guessed} tokens, and the model's {known}: another tokenizer");
            Err(Error::invalid(dir, message))
        }
        _ => Ok(draft),
    }
}

#[cfg(feature = "structured")]
fn constrained<'a>(
    tokens: Tokens<'a>,
    args: &Args,
    tokenizer: Option<&Tokenizer>,
    model: &dyn LanguageModel,
) -> crate::Result<Tokens<'a>> {
    let Some(grammar) = args.grammar.grammar()? else {
        return Ok(tokens);
    };
    let tokenizer = tokenizer.ok_or_else(|| no_tokenizer("a grammar"))?;
    let structure =
        crate::generate::Structure::new(tokenizer, grammar, tokens.stop_tokens(), model.vocab_size())?;
    Ok(tokens.constrained(structure))
}

#[cfg(not(feature = "structured"))]
fn constrained<'a>(
    tokens: Tokens<'a>,
    args: &Args,
    _: Option<&Tokenizer>,
    _: &dyn LanguageModel,
) -> crate::Result<Tokens<'a>> {
    match args.grammar.is_some() {
        true => Err(Error::unsupported("a grammar", "this build has not the feature `structured`")),
        false => Ok(tokens),
    }
}

fn no_tokenizer(what: &str) -> Error {
    Error::argument("generate", format!("{what} needs a tokenizer, and the checkpoint has none"))
}

/// A bar for the prompt, where a person watches and it takes a while.
fn progress(length: usize, step: usize) -> ProgressBar {
    if length <= step || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("prompt {bar:40} {pos}/{len} tokens, {per_sec}");
    let bar = ProgressBar::new(length as u64);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

impl Report {
    fn add(&mut self, part: Part) {
        match part {
            Part::Text(text) => self.text.get_or_insert_default().push_str(&text),
            Part::Thinking(text) => self.thinking.get_or_insert_default().push_str(&text),
            Part::ToolCall(call) => self.tool_calls.push(call),
            Part::BadToolCall { text, reason } => self.bad_tool_calls.push(BadToolCall { text, reason }),
        }
    }

    fn take(&mut self, stats: &Stats) {
        self.prompt_tps = stats.prompt_tps();
        self.generation_tokens = stats.generated_tokens;
        self.generation_tps = stats.generation_tps();
        self.draft_tokens = stats.draft_tokens;
        self.accepted_tokens = stats.accepted_tokens;
        self.peak_memory_bytes = stats.peak_memory;
    }
}

pub(super) fn summarise(stats: &Stats) {
    let guesses = match stats.draft_tokens {
        0 => String::new(),
        guessed => format!("; {} of {guessed} guesses accepted", stats.accepted_tokens),
    };
    let _ = writeln!(
        std::io::stderr(),
        "prompt: {} tokens, {:.1} tokens/s; generation: {} tokens, {:.1} tokens/s{guesses}; peak memory: {:.1} MiB",
        stats.prompt_tokens,
        stats.prompt_tps(),
        stats.generated_tokens,
        stats.generation_tps(),
        stats.peak_memory as f64 / (1 << 20) as f64,
    );
}
