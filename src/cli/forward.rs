//! `mlxport forward`

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Outcome, check_interrupt};
use crate::array::{Array, Dtype};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::kernels::{Path, force};
use crate::models::{self, LanguageModel, check_tokens, probe};
use crate::{io, ops};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The checkpoint: a directory, a GGUF file or a Hugging Face id
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    /// File with `input_ids`, int32 [batch, length]
    #[arg(long, value_name = "IN.npz")]
    inputs: PathBuf,
    /// File to write: `logits`, float32 [batch, length, vocabulary]
    #[arg(long, value_name = "OUT.npz")]
    outputs: PathBuf,
    /// Feed the ids through one cache in pieces of these lengths, and the rest in one piece; without,
    /// all go at once and no cache is kept
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    chunks: Vec<i32>,
    /// Compute in this floating-point dtype instead of the checkpoint's
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Dtype>,
    /// Compute with these kernels instead of this machine's fastest: `reference`, which is MLX's own
    /// operations, `portable`, `avx2`, `avx512` or `amx`
    #[arg(long, value_name = "PATH")]
    path: Option<Path>,
    /// Write every stage of the model too, under its name
    #[arg(long)]
    probes: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    match args.path {
        Some(path) => force(path, || compute(args))?,
        None => compute(args),
    }
}

fn compute(args: &Args) -> Outcome {
    let ids = read_ids(&args.inputs)?;
    let model = match args.dtype {
        Some(dtype) => models::load_as(&args.model, dtype)?,
        None => models::load(&args.model)?,
    };
    check_tokens(&*model, &ids.to_vec::<i32>()?)?;
    let (batch, length) = (ids.shape()[0], ids.shape()[1]);
    let pieces = pieces(&args.chunks, length)?;
    let mut cache = match args.chunks.is_empty() {
        true => model.make_cache().stateless(),
        false => model.make_cache(),
    };
    cache.expect(length);
    let mut parts: BTreeMap<String, Vec<Array>> = BTreeMap::new();
    for (start, stop) in pieces {
        let piece = ops::slice(&ids, &[0, start], &[batch, stop], &[1, 1])?;
        for (name, array) in stages(&*model, &piece, &mut cache, args.probes)? {
            array.eval()?;
            parts.entry(name).or_default().push(array);
        }
        check_interrupt()?;
    }
    let mut outputs = BTreeMap::new();
    for (name, parts) in parts {
        let whole = ops::astype(&ops::concatenate(&parts, 1)?, Dtype::Float32)?;
        outputs.insert(name, whole.to_host()?);
    }
    io::save_npz(&args.outputs, &outputs, false)?;
    Ok(())
}

/// The logits of one piece, and with `probes` what led to them.
fn stages(
    model: &dyn LanguageModel,
    ids: &Array,
    cache: &mut Cache,
    probes: bool,
) -> Result<Vec<(String, Array)>> {
    if !probes {
        return Ok(vec![("logits".to_owned(), model.forward(ids, cache)?)]);
    }
    let (logits, stages) = probe::record(|| model.forward(ids, cache));
    logits.map(|_| stages)
}

fn read_ids(path: &std::path::Path) -> Result<Array> {
    let inputs = io::load_npz(path)?;
    let ids = inputs.get("input_ids").ok_or_else(|| Error::invalid(path, "has no array `input_ids`"))?;
    match ids.shape() {
        [batch, length] if *batch > 0 && *length > 0 && ids.dtype() == Dtype::Int32 => Array::from_host(ids),
        shape => {
            let message = format!("`input_ids` is {} {shape:?}, not int32 [batch, length]", ids.dtype());
            Err(Error::invalid(path, message))
        }
    }
}

/// Where each piece begins and ends: those of `lengths` as far as the prompt goes, and the rest.
fn pieces(lengths: &[i32], total: i32) -> Result<Vec<(i32, i32)>> {
    if let Some(length) = lengths.iter().find(|length| **length < 1) {
        return Err(Error::argument("chunks", format!("a piece of {length} positions")));
    }
    let (mut pieces, mut start) = (Vec::new(), 0);
    for length in lengths.iter().copied().chain([total]) {
        let stop = length.saturating_add(start).min(total);
        if start < stop {
            pieces.push((start, stop));
        }
        start = stop;
    }
    Ok(pieces)
}
