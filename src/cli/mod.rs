//! The command line: one file for each subcommand, each with its arguments and a `run`.
//!
//! An error is one line on standard error and exit code 1; wrong usage is 2; Ctrl-C is 130. A reader
//! that closes the pipe ends the command quietly. What ends a command leaves nothing half-written.

mod bench;
mod cache;
mod chat;
mod convert;
mod devices;
mod forward;
mod generate;
mod models;
mod perplexity;
mod port;
mod prompt;
mod settings;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::error::Error;
pub use crate::ffi::Allocator;
use crate::io::atomic::discard_unfinished;

#[derive(Parser)]
#[command(name = "mlxport", version, about = "Ports machine-learning models to MLX, and runs them")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ports a checkpoint, proves it against an oracle, and reports
    Port(port::Args),
    /// Writes a checkpoint in MLX's layout, quantized or not
    Convert(convert::Args),
    /// Continues a prompt
    Generate(Box<generate::Args>),
    /// Talks with a model that has a chat template
    Chat(Box<chat::Args>),
    /// What a model remembers of a prompt, in a file
    #[command(subcommand)]
    Cache(cache::Command),
    /// Measures how surprised a model is by a text
    Perplexity(perplexity::Args),
    /// Writes the logits of given token ids, and what leads to them
    Forward(forward::Args),
    /// Measures speed and memory
    #[command(subcommand)]
    Bench(bench::Command),
    /// Lists the models that can be run, and how each was proven
    Models(models::Args),
    /// Shows what this build has and this machine can do
    Devices(devices::Args),
}

/// Why a command has stopped before its end.
#[derive(Debug)]
enum Stop {
    Failed(Error),
    Interrupted,
    /// Nobody reads standard output any more.
    Unread,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        if interrupted() { Stop::Interrupted } else { Stop::Failed(error) }
    }
}

type Outcome = Result<(), Stop>;

/// Runs the command that the process was started as.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    // A process that is to outlive its terminal stays so.
    let hang_up = (!crate::ffi::ignores(SIGHUP)).then_some(SIGHUP);
    // Without them, signals end the process as they do by themselves.
    if let Ok(mut signals) = Signals::new([SIGINT, SIGTERM].into_iter().chain(hang_up)) {
        std::thread::spawn(move || signals.forever().for_each(obey));
    }
    match run(cli.command) {
        Ok(()) | Err(Stop::Unread) => ExitCode::SUCCESS,
        Err(Stop::Interrupted) => ExitCode::from(130),
        Err(Stop::Failed(error)) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut command: Command) -> Outcome {
    locate(&mut command)?;
    LISTENING.store(command.listens(), Ordering::Relaxed);
    match command {
        Command::Port(args) => port::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Cache(command) => cache::run(&command),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Forward(args) => forward::run(&args),
        Command::Bench(command) => bench::run(&command),
        Command::Models(args) => models::run(&args),
        Command::Devices(args) => devices::run(&args),
    }
}

impl Command {
    /// Whether it ends by itself once it is [`interrupted`].
    fn listens(&self) -> bool {
        use Command::*;
        match self {
            Convert(_) | Generate(_) | Chat(_) | Perplexity(_) | Forward(_) => true,
            Cache(command) => matches!(command, cache::Command::Make(_)),
            Bench(command) => matches!(command, bench::Command::Model(_)),
            Port(_) | Models(_) | Devices(_) => false,
        }
    }
}

/// Puts the directory of the checkpoint in the place of its Hugging Face id.
fn locate(command: &mut Command) -> crate::Result<()> {
    let model = match command {
        Command::Port(args) => &mut args.source,
        Command::Generate(args) => {
            if let Some(draft) = &mut args.draft_model {
                *draft = crate::hub::locate(draft)?;
            }
            &mut args.model
        }
        Command::Chat(args) => &mut args.model,
        Command::Cache(cache::Command::Make(args)) => &mut args.model,
        Command::Perplexity(args) => &mut args.model,
        Command::Convert(args) => &mut args.source,
        Command::Forward(args) => &mut args.model,
        Command::Bench(bench::Command::Model(args)) => &mut args.model,
        Command::Bench(bench::Command::Synth(_)) | Command::Cache(cache::Command::Info(_)) => return Ok(()),
        Command::Models(_) | Command::Devices(_) => return Ok(()),
    };
    *model = crate::hub::locate(model)?;
    Ok(())
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static LISTENING: AtomicBool = AtomicBool::new(false);

/// The first Ctrl-C lets a command that listens finish what it is at. Another one does not wait, nor does a
/// signal to terminate or the end of the terminal.
fn obey(signal: i32) {
    let again = INTERRUPTED.swap(signal == SIGINT, Ordering::Relaxed);
    if signal != SIGINT || again || !LISTENING.load(Ordering::Relaxed) {
        discard_unfinished();
        let _ = emulate_default_handler(signal);
    }
}

/// Whether Ctrl-C was pressed.
fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Whether Ctrl-C was pressed since this was asked last.
fn take_interrupt() -> bool {
    INTERRUPTED.swap(false, Ordering::Relaxed)
}

/// For the steps of long work: fails once Ctrl-C was pressed.
fn check_interrupt() -> crate::Result<()> {
    if interrupted() { Err(Error::argument("interrupted", "by Ctrl-C")) } else { Ok(()) }
}

/// Writes to standard output at once.
fn print(text: impl std::fmt::Display) -> Outcome {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Stop::Unread,
        _ => Stop::Failed(Error::io("standard output", e)),
    })
}

/// Writes one JSON value and a line break.
fn print_json(value: &impl serde::Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|e| Stop::Failed(Error::argument("json", e.to_string())))?;
    print(format_args!("{text}\n"))
}
