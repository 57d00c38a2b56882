//! GGUF files, as llama.cpp writes them: metadata and tensors in one file.

mod config;
mod names;
mod reader;
mod tokenizer;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

pub use reader::Value;

use crate::array::{Array, Dtype};
use crate::checkpoint::foreign::GgmlType;
use crate::error::{Error, Result};
use crate::ffi::Mapped;
use crate::io::TensorInfo;

/// A GGUF file, mapped into memory. Quantized tensors are rows of bytes, `[..., bytes]`, until a rule
/// decodes them; see [`Encoding::Ggml`](crate::checkpoint::Encoding).
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor>,
    /// `None` for a file without data.
    map: Option<Mapped>,
}

/// Where a tensor is, and what.
#[derive(Debug, Clone, PartialEq)]
struct Tensor {
    shape: Vec<i32>,
    dtype: Dtype,
    /// `None` for plain numbers.
    packed: Option<GgmlType>,
    /// From the beginning of the file.
    start: usize,
    end: usize,
}

/// The GGUF file at a path: the file itself, or the one in a folder that has no `config.json`.
pub fn find(path: &Path) -> Result<Option<PathBuf>> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if !path.is_dir() {
        return Ok(is_gguf(path).then(|| path.to_path_buf()));
    }
    if path.join("config.json").exists() {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut found: Vec<PathBuf> =
        entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| is_gguf(p)).collect();
    found.sort();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        n => Err(Error::invalid(path, format!("{n} GGUF files: name one of them"))),
    }
}

impl Gguf {
    /// Opens a file and checks its header: every length, name, type, shape and offset.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let about = file.metadata().map_err(|e| Error::io(path, e))?;
        if !about.is_file() {
            return Err(Error::io(path, "not a regular file"));
        }
        let header = reader::read(&file, about.len()).map_err(|message| Error::invalid(path, message))?;
        let map = (!header.tensors.is_empty()).then(|| Mapped::new(&file)).transpose();
        let map = map.map_err(|e| Error::io(path, e))?;
        if map.as_ref().is_some_and(|map| map.len() as u64 != about.len()) {
            return Err(Error::io(path, "its length changed while it was opened"));
        }
        let gguf = Self { path: path.to_path_buf(), metadata: header.metadata, tensors: header.tensors, map };
        if gguf.int("split.count").is_some_and(|count| count > 1) {
            let what = format!("{}, one of several parts", path.display());
            return Err(Error::unsupported(what, "merge them with `llama-gguf-split --merge`"));
        }
        Ok(gguf)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says beside its tensors.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// The names of the tensors, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Name, shape and dtype of a tensor; of a quantized one, of its bytes.
    pub fn info(&self, key: &str) -> Result<TensorInfo> {
        let Tensor { shape, dtype, .. } = self.tensor(key)?;
        Ok(TensorInfo { key: key.to_owned(), shape: shape.clone(), dtype: *dtype })
    }

    /// How a tensor is quantized, if it is.
    pub fn packed(&self, key: &str) -> Option<GgmlType> {
        self.tensors.get(key)?.packed
    }

    /// A tensor, lazy, as [`info`](Self::info) says.
    pub fn array(&self, key: &str) -> Result<Array> {
        let Tensor { shape, dtype, start, .. } = self.tensor(key)?;
        let array = match &self.map {
            Some(map) => map.array(*start, shape, *dtype),
            None => crate::ffi::array_from_bytes(&[], shape, *dtype),
        };
        array.map_err(|e| Error::invalid(&self.path, format!("tensor `{key}`: {e}")))
    }

    /// Gives the memory of a tensor that was read back to the system.
    pub(in crate::checkpoint) fn release(&self, key: &str) {
        if let (Some(map), Some(tensor)) = (&self.map, self.tensors.get(key)) {
            map.release(tensor.start, tensor.end);
        }
    }

    fn tensor(&self, key: &str) -> Result<&Tensor> {
        let missing = || Error::MissingWeight { path: key.to_owned(), file: self.path.clone() };
        self.tensors.get(key).ok_or_else(missing)
    }

    fn int(&self, key: &str) -> Option<i64> {
        match self.metadata.get(key)? {
            Value::Int(n) => Some(*n),
            _ => None,
        }
    }

    fn float(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            Value::Float(x) => Some(*x),
            Value::Int(n) => Some(*n as f64),
            _ => None,
        }
    }

    fn bool(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn invalid(&self, message: impl std::fmt::Display) -> Error {
        Error::invalid(&self.path, message)
    }
}
