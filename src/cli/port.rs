//! `mlxport port`

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Outcome, print, print_json};
use crate::error::Error;
use crate::port::{Options, Progress, port};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The source checkpoint: a directory, a GGUF file or a Hugging Face id
    #[arg(value_name = "SRC")]
    pub(super) source: PathBuf,
    /// Outputs of the source framework: a directory with expect.npz, or that file
    #[arg(long, value_name = "ORACLE")]
    oracle: PathBuf,
    /// Directory for the result; a second run goes on with what is there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let options = Options { source: args.source.clone(), oracle: args.oracle.clone(), out: args.out.clone() };
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("a fixed template"));
    bar.enable_steady_tick(Duration::from_millis(120));
    let say = |line: String| {
        if !args.json { bar.suspend(|| print(line + "\n")) } else { Ok(()) }
    };
    let mut told: Outcome = Ok(());
    let report = port(&options, &mut |progress| {
        let line = match progress {
            Progress::Started(step) => return bar.set_message(step.to_owned()),
            Progress::Reused(step) => format!("{step:<9} done before"),
            Progress::Finished(step, result) => format!("{step:<9} {result}"),
        };
        if told.is_ok() {
            told = say(line);
        }
    })?;
    bar.finish_and_clear();
    told?;
    if args.json {
        print_json(&report)?;
    } else {
        print(format_args!("report    {}\n", args.out.join("report.md").display()))?;
    }
    match report.parity.failure() {
        None => Ok(()),
        Some(rung) => {
            let message = format!("rung `{}` failed: {}", rung.name, rung.detail);
            Err(Error::argument("parity", message).into())
        }
    }
}
