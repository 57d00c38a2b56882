//! The porting workflow: from a source checkpoint to a proven, running model.
//!
//! Each step is a function of plain data. It leaves a JSON file in the output folder, and is done again
//! only when something it depends on has changed. `docs/porting.md` describes the steps, the rungs of
//! parity and the format of an oracle.

mod compare;
mod convert;
mod inspect;
mod measure;
mod oracle;
mod parity;
mod quantize;
mod report;
mod step;

use std::path::{Path, PathBuf};

pub use compare::Deviation;
pub use convert::{Conversion, Plan, Rewrite, Rewritten, rewrite};
pub use inspect::{FileInfo, Inspection};
pub use measure::{Sample, Speed};
pub use oracle::{Ids, Oracle};
pub use parity::{Measured, Outcome, Parity, Rung, TOLERANCE};
pub use quantize::Recipe;
pub use report::Report;
pub use step::Progress;

use crate::array::Dtype;
use crate::device::Machine;
use crate::error::{Error, Result};
use crate::models;
use step::Steps;

/// What to port, and where to.
#[derive(Debug, Clone)]
pub struct Options {
    /// The source checkpoint's folder.
    pub source: PathBuf,
    /// The oracle: a folder with `expect.npz`, or that file.
    pub oracle: PathBuf,
    /// The output folder.
    pub out: PathBuf,
}

/// Ports a checkpoint, telling `progress` about each step. A rung of parity that fails is no error: the
/// report says so, and has neither sample nor speed. Fails if the checkpoint or the oracle is not
/// what it should be, or if a file cannot be written.
pub fn port(options: &Options, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Report> {
    let Options { source, oracle, out } = options;
    let model = out.join("model");
    refuse_overlap(source, &model)?;
    let oracle_digest = inspect::fingerprint_of(oracle)?;
    let mut steps = Steps::new(out, progress)?;

    let inspection: Inspection = steps.run(
        "inspect",
        &inspect::fingerprint(source)?,
        |_| true,
        |i: &Inspection| {
            format!("{}, {} tensors, {} parameters", i.model_type, i.tensors.len(), i.parameters)
        },
        || inspect::inspect(source),
    )?;
    let plan: Plan = steps.run(
        "plan",
        "",
        |_| true,
        |p: &Plan| format!("architecture {}", p.architecture),
        || convert::plan(source, &inspection.tensors),
    )?;
    let conversion: Conversion = steps.run(
        "convert",
        "",
        |c: &Conversion| c.is_whole(&model),
        |c| format!("{} weights", c.table.len()),
        || convert::convert(source, &plan, &model),
    )?;

    let (parity, as_used): (Parity, Option<Measured>) = steps.run(
        "parity",
        &oracle_digest,
        |_| true,
        |(parity, _): &(Parity, _)| verdict(parity),
        || prove(&model, oracle),
    )?;
    let (mut sample, mut speed) = (None, None);
    if parity.passed() {
        sample = Some(steps.run(
            "sample",
            "",
            |_| true,
            |s: &Sample| s.text.as_deref().unwrap_or("").replace('\n', " "),
            || measure::sample(&model, oracle),
        )?);
        speed = Some(steps.run("bench", "", |_| true, Speed::line, || measure::speed(&model))?);
    }
    let report = Report {
        mlxport: env!("CARGO_PKG_VERSION").into(),
        mlx: Machine::here()?.mlx,
        source: name_of(source),
        inspection,
        plan,
        conversion,
        parity,
        as_used,
        sample,
        speed,
    };
    report.write(out)?;
    Ok(report)
}

/// Loads the model twice, in float32 to compare it and as it will be used, and climbs the rungs.
fn prove(model: &Path, oracle: &Path) -> Result<(Parity, Option<Measured>)> {
    let oracle = Oracle::load(oracle)?;
    let mut exact = models::load(model)?;
    exact.set_dtype(Dtype::Float32)?;
    let parity = parity::climb(&*exact, &oracle)?;
    drop(exact);
    if !parity.passed() {
        return Ok((parity, None));
    }
    let as_used = parity::as_used(&*models::load(model)?, &oracle)?;
    Ok((parity, Some(as_used)))
}

fn verdict(parity: &Parity) -> String {
    match parity.failure() {
        Some(rung) => format!("rung {} FAILED: {}", rung.name, rung.detail),
        None => {
            let done = parity.rungs.iter().filter(|r| r.outcome == Outcome::Passed);
            let names: Vec<&str> = done.map(|rung| rung.name.as_str()).collect();
            format!("passed: {}", names.join(", "))
        }
    }
}

/// The output must not be the source: converting replaces it.
fn refuse_overlap(source: &Path, model: &Path) -> Result<()> {
    let source = source.canonicalize().map_err(|e| Error::io(source, e))?;
    match model.canonicalize() {
        Ok(model) if source.starts_with(&model) || model.starts_with(&source) => Err(Error::argument(
            "port",
            format!("the output {} and the source lie in one another", model.display()),
        )),
        _ => Ok(()),
    }
}

fn name_of(source: &Path) -> String {
    let whole = source.canonicalize().unwrap_or_else(|_| source.to_path_buf());
    whole.file_name().map_or_else(|| whole.display().to_string(), |name| name.to_string_lossy().into_owned())
}
