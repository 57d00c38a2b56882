//! Steps that are done once: each leaves a JSON file that says what it was made from.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::io::atomic::write_bytes;

/// A finished step on disk: `NN-name.json`.
#[derive(Serialize, Deserialize)]
struct Record<T> {
    step: String,
    /// Version of this program; another one does the step again.
    mlxport: String,
    /// Digest of everything the step depends on.
    inputs: String,
    output: T,
}

/// Runs steps in a folder, in order, and keeps their results there.
pub(super) struct Steps<'a> {
    folder: PathBuf,
    /// Digest of the outputs so far: a step is done again when one before it came out differently.
    chain: String,
    number: usize,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

/// What a caller of [`super::port`] is told while it runs.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// A step begins.
    Started(&'a str),
    /// A step was found finished, from an earlier run.
    Reused(&'a str),
    /// A step came to its end, with one line on its result.
    Finished(&'a str, &'a str),
}

impl<'a> Steps<'a> {
    pub(super) fn new(folder: &Path, progress: &'a mut dyn FnMut(Progress<'_>)) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        Ok(Self { folder: folder.to_path_buf(), chain: String::new(), number: 0, progress })
    }

    /// The result of step `name`: of an earlier run if that had the same `inputs` and is `whole`
    /// still, else of `run`. `line` says in a few words how it came out.
    pub(super) fn run<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &str,
        inputs: &str,
        whole: impl Fn(&T) -> bool,
        line: impl Fn(&T) -> String,
        run: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.number += 1;
        let path = self.folder.join(format!("{}-{name}.json", self.number));
        let inputs = digest(&[&self.chain, inputs]);
        let output = match read::<T>(&path, &inputs).filter(|output| whole(output)) {
            Some(output) => {
                (self.progress)(Progress::Reused(name));
                output
            }
            None => {
                (self.progress)(Progress::Started(name));
                let output = run()?;
                let record = Record { step: name.into(), mlxport: VERSION.into(), inputs, output };
                write_json(&path, &record)?;
                (self.progress)(Progress::Finished(name, &line(&record.output)));
                record.output
            }
        };
        let text = serde_json::to_string(&output).map_err(|e| Error::invalid(&path, e))?;
        self.chain = digest(&[&self.chain, name, &text]);
        Ok(output)
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The output of a finished step, if it was made by this version from these inputs. Anything else
/// (no file, half a file, another form) means that the step has to be done.
fn read<T: DeserializeOwned>(path: &Path, inputs: &str) -> Option<T> {
    let text = std::fs::read_to_string(path).ok()?;
    let record: Record<T> = serde_json::from_str(&text).ok()?;
    (record.mlxport == VERSION && record.inputs == inputs).then_some(record.output)
}

/// Writes `value` as JSON, whole or not at all.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::invalid(path, e))?;
    text.push('\n');
    write_bytes(path, text.as_bytes())
}

/// SHA-256 over parts that are told apart by their lengths, in hexadecimal.
pub(super) fn digest(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex(&hasher.finalize())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
