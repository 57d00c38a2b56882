//! `mlxport cache`

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::prompt::{Prompt, Template, TemplateArgs};
use super::settings::CacheArgs;
use super::{Outcome, check_interrupt, print, print_json};
use crate::array::Dtype;
use crate::cache::Cache;
use crate::error::Error;
use crate::generate::{Options, Tokens};
use crate::models;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Reads a prompt and writes what the model remembers of it, as mlx-lm does
    Make(Box<MakeArgs>),
    /// Shows what is in such a file
    Info(InfoArgs),
}

#[derive(clap::Args)]
pub(super) struct MakeArgs {
    /// The checkpoint: a directory, a GGUF file or a Hugging Face id
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    #[command(flatten)]
    prompt: Prompt,
    /// Tools that the model may call: a JSON list of them, or a file with it
    #[arg(long, value_name = "JSON")]
    tools: Option<String>,
    /// Read the prompt as it is, also where the checkpoint has a chat template
    #[arg(long)]
    raw: bool,
    /// The file, which ends in .safetensors
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Compute in this floating-point dtype instead of the checkpoint's
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Dtype>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct InfoArgs {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    tokens: i32,
    bytes: usize,
    layers: Vec<String>,
    metadata: BTreeMap<String, String>,
}

impl Report {
    fn of(cache: &Cache, metadata: BTreeMap<String, String>) -> Self {
        Self { tokens: cache.offset(), bytes: cache.nbytes(), layers: cache.describe(), metadata }
    }
}

pub(super) fn run(command: &Command) -> Outcome {
    match command {
        Command::Make(args) => make(args),
        Command::Info(args) => info(args),
    }
}

fn make(args: &MakeArgs) -> Outcome {
    if args.out.extension().is_none_or(|extension| extension != "safetensors") {
        let message =
            format!("{} does not end in .safetensors, by which readers know it", args.out.display());
        return Err(Error::argument("out", message).into());
    }
    let template = if args.raw { Template::Raw } else { Template::Begin };
    let (_, prompt) = args.prompt.read(&args.model, template, &args.template, args.tools.as_deref())?;
    args.cache.check_length(&args.model, prompt.len())?;
    let model = match args.dtype {
        Some(dtype) => models::load_as(&args.model, dtype)?,
        None => models::load(&args.model)?,
    };
    let mut cache = args.cache.make_cache(&*model, &args.model)?;
    let options = Options {
        max_tokens: 1,
        prefill_step: args.cache.prefill_step(),
        kv_quantization: args.cache.kv_quantization(),
        ..Options::default()
    };
    let mut tokens = Tokens::new(&*model, &mut cache, &prompt, options)?.on_prefill(|_, _| check_interrupt());
    tokens.next().transpose()?;
    drop(tokens);
    let metadata = BTreeMap::from([("model".to_owned(), args.model.display().to_string())]);
    cache.save(&args.out, &metadata)?;
    // The file has no room for more positions, as the cache had.
    let (cache, metadata) = Cache::load(&args.out)?;
    let report = Report::of(&cache, metadata);
    match args.json {
        true => print_json(&report),
        false => print(format_args!("{} tokens, {} bytes\n", report.tokens, report.bytes)),
    }
}

fn info(args: &InfoArgs) -> Outcome {
    let (cache, metadata) = Cache::load(&args.file)?;
    let report = Report::of(&cache, metadata);
    if args.json {
        return print_json(&report);
    }
    print(format_args!("{} tokens, {} bytes\n", report.tokens, report.bytes))?;
    for (i, layer) in report.layers.iter().enumerate() {
        print(format_args!("{i}: {layer}\n"))?;
    }
    report.metadata.iter().try_for_each(|(key, value)| print(format_args!("{key}: {value}\n")))
}
