//! GGUF files, as llama.cpp writes them: metadata and tensors in one file.

mod config;
mod names;
mod reader;
mod tokenizer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use reader::Value;

use crate::array::{Array, Dtype};
use crate::checkpoint::foreign::GgmlType;
use crate::error::{Error, Result};
use crate::ffi::Mapped;
use crate::io::{TensorInfo, read};

/// A GGUF file, mapped into memory, or all the parts `NAME-00001-of-0000N.gguf` of one. Quantized tensors are
/// rows of bytes, `[..., bytes]`, until a rule decodes them; see
/// [`Encoding::Ggml`](crate::checkpoint::Encoding).
#[derive(Debug)]
pub struct Gguf {
    /// The first part, which has the metadata.
    path: PathBuf,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor>,
    parts: Vec<Part>,
}

/// One file of a model.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    /// `None` for a file without data.
    map: Option<Mapped>,
}

/// Where a tensor is, and what.
#[derive(Debug, Clone, PartialEq)]
struct Tensor {
    /// Which part has it.
    part: usize,
    shape: Vec<i32>,
    dtype: Dtype,
    /// `None` for plain numbers.
    packed: Option<GgmlType>,
    /// From the beginning of the file.
    start: usize,
    end: usize,
}

/// The GGUF file at a path: the file itself, or the one in a folder that has no `config.json`; of a file in
/// parts the first.
pub fn find(path: &Path) -> Result<Option<PathBuf>> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if !path.is_dir() {
        return Ok(is_gguf(path).then(|| path.to_path_buf()));
    }
    if read::is_there(&path.join("config.json")) {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut found: Vec<PathBuf> =
        entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| is_gguf(p)).collect();
    found.sort();
    let all: BTreeSet<PathBuf> = found.iter().cloned().collect();
    found.retain(|path| part(path, 1).is_none_or(|first| *path == first || !all.contains(&first)));
    match found.len() {
        0 | 1 => Ok(found.pop()),
        n => Err(Error::invalid(path, format!("{n} GGUF files: name one of them"))),
    }
}

/// `("NAME", 2, 5)` for `NAME-00002-of-00005.gguf`.
pub(crate) fn numbered(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, of) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let parse = |text: &str| (text.len() == 5).then(|| text.parse().ok()).flatten();
    Some((stem, parse(number)?, parse(of)?))
}

/// The name of a part of the file that has another part of this name.
pub(crate) fn part_name(name: &str, number: u64) -> Option<String> {
    let (stem, _, of) = numbered(name)?;
    Some(format!("{stem}-{number:05}-of-{of:05}.gguf"))
}

fn part(path: &Path, number: u64) -> Option<PathBuf> {
    Some(path.with_file_name(part_name(path.file_name()?.to_str()?, number)?))
}

impl Gguf {
    /// Opens a file and checks its header: every length, name, type, shape and offset. Of a file in parts, any
    /// one may be named, and all are opened; fails if they don't make a whole.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut gguf = Self::one(path)?;
        let count = gguf.int("split.count").unwrap_or(1);
        if count <= 1 {
            return Ok(gguf);
        }
        let names = path.file_name().and_then(|name| numbered(name.to_str()?));
        let Some((_, number, of)) = names.filter(|(_, _, of)| i64::try_from(*of) == Ok(count)) else {
            let message = format!("one of {count} parts, and not called NAME-00001-of-{count:05}.gguf");
            return Err(Error::invalid(path, message));
        };
        for at in 1..=of {
            let path = part(path, at).unwrap_or_default();
            if !path.exists() {
                return Err(gguf.invalid(format!("{} is missing: download it again", path.display())));
            }
            let part = if at == number && at == 1 { None } else { Some(Self::one(&path)?) };
            let which = part.as_ref().unwrap_or(&gguf);
            if (which.int("split.no"), which.int("split.count")) != (Some(at as i64 - 1), Some(count)) {
                return Err(which.invalid(format!("does not say that it is part {at} of {of}")));
            }
            match part {
                Some(first) if at == 1 => gguf = first,
                Some(next) => gguf.join(next)?,
                None => {}
            }
        }
        match gguf.int("split.tensors.count") {
            Some(all) if usize::try_from(all) != Ok(gguf.tensors.len()) => {
                Err(gguf.invalid(format!("{all} tensors, and its {of} parts have {}", gguf.tensors.len())))
            }
            _ => Ok(gguf),
        }
    }

    /// Opens one file.
    fn one(path: &Path) -> Result<Self> {
        let (file, length) = read::open(path)?;
        let header = reader::read(&file, length).map_err(|message| Error::invalid(path, message))?;
        let map = (!header.tensors.is_empty()).then(|| Mapped::new(&file)).transpose();
        let map = map.map_err(|e| Error::io(path, e))?;
        if map.as_ref().is_some_and(|map| map.len() as u64 != length) {
            return Err(Error::io(path, "its length changed while it was opened"));
        }
        let path = path.to_path_buf();
        let parts = vec![Part { path: path.clone(), map }];
        Ok(Self { path, metadata: header.metadata, tensors: header.tensors, parts })
    }

    /// Adds the tensors of the next part.
    fn join(&mut self, next: Self) -> Result<()> {
        for (key, tensor) in next.tensors {
            let tensor = Tensor { part: self.parts.len(), ..tensor };
            if let Some(other) = self.tensors.insert(key.clone(), tensor) {
                let other = self.parts[other.part].path.display();
                return Err(Error::invalid(&next.path, format!("tensor `{key}` is also in {other}")));
            }
        }
        self.parts.extend(next.parts);
        Ok(())
    }

    /// The file; of several, the first.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that it consists of.
    pub fn parts(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
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
        let Tensor { shape, dtype, start, part, .. } = self.tensor(key)?;
        let Part { path, map } = &self.parts[*part];
        let array = match map {
            Some(map) => map.array(*start, shape, *dtype),
            None => crate::ffi::array_from_bytes(&[], shape, *dtype),
        };
        array.map_err(|e| Error::invalid(path, format!("tensor `{key}`: {e}")))
    }

    /// Gives the memory of a tensor that was read back to the system.
    pub(in crate::checkpoint) fn release(&self, key: &str) {
        if let Some(tensor) = self.tensors.get(key)
            && let Some(map) = &self.parts[tensor.part].map
        {
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
