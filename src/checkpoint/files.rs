//! The files of a checkpoint that have its tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::gguf::{self, Gguf};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::io::layout::{INDEX, SINGLE, shard_number};
use crate::io::{SafeTensors, TensorInfo, read};

/// The longest index that is read, in bytes.
const MAX_INDEX: u64 = 256 << 20;

/// The tensors of a checkpoint: a GGUF file, or of a directory one `model.safetensors`, or the shards that
/// `model.safetensors.index.json` names, or, without an index, a whole set of
/// `model-00001-of-0000N.safetensors`.
///
/// A shard is a file name, without a path: an index can't point outside its directory. The file
/// itself may be a symbolic link, as it is in the cache of the Hugging Face hub.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    shards: Vec<SafeTensors>,
    /// Which shard has a tensor.
    shard_of: BTreeMap<String, usize>,
    /// In place of shards.
    gguf: Option<Gguf>,
}

/// What we need of `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Files {
    /// Opens the files of `dir`, or the GGUF file that it is, and reads their headers. Fails if there are none, if a shard is
    /// missing, if two shards have the same tensor, or if the index and the shards disagree.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if let Some(path) = gguf::find(dir)? {
            let gguf = Some(Gguf::open(&path)?);
            return Ok(Self { dir: path, shards: Vec::new(), shard_of: BTreeMap::new(), gguf });
        }
        let index = dir.join(INDEX);
        if read::is_there(&index) {
            return Self::indexed(dir, &index);
        }
        let single = dir.join(SINGLE);
        if read::is_there(&single) {
            return Self::from_shards(dir, vec![SafeTensors::open(single)?]);
        }
        let shards = unindexed_shards(dir)?;
        let shards = shards.iter().map(SafeTensors::open).collect::<Result<_>>()?;
        Self::from_shards(dir, shards)
    }

    fn indexed(dir: &Path, path: &Path) -> Result<Self> {
        let invalid = |message: String| Error::invalid(path, message);
        let text = read::whole(path, MAX_INDEX)?;
        let Index { weight_map } = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
        let names: BTreeSet<&String> = weight_map.values().collect();
        let mut shards = Vec::with_capacity(names.len().min(1024));
        for name in &names {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name.as_str())
            {
                return Err(invalid(format!("shard `{name:.100}` is not a plain file name")));
            }
            let shard = dir.join(name);
            if !read::is_there(&shard) {
                return Err(invalid(format!(
                    "shard `{name:.100}` is missing from {}: download it again",
                    dir.display()
                )));
            }
            shards.push(SafeTensors::open(shard)?);
        }
        let files = Self::from_shards(dir, shards)?;
        for (key, shard) in &weight_map {
            let found = files.shard_of.get(key).map(|&at| files.shards[at].path());
            match found {
                Some(found) if found == dir.join(shard) => {}
                Some(found) => {
                    let found = found.display();
                    return Err(invalid(format!("says that `{key}` is in {shard}, and it is in {found}")));
                }
                None => {
                    return Err(invalid(format!("says that `{key}` is in {shard}, which does not have it")));
                }
            }
        }
        if let Some(key) = files.shard_of.keys().find(|key| !weight_map.contains_key(*key)) {
            let at = files.file_of(key).display();
            return Err(invalid(format!("does not name `{key}`, which is in {at}")));
        }
        Ok(files)
    }

    fn from_shards(dir: &Path, shards: Vec<SafeTensors>) -> Result<Self> {
        let mut shard_of = BTreeMap::new();
        for (at, shard) in shards.iter().enumerate() {
            for key in shard.keys() {
                if let Some(other) = shard_of.insert(key.to_owned(), at) {
                    let other: &SafeTensors = &shards[other];
                    let message = format!("tensor `{key}` is also in {}", other.path().display());
                    return Err(Error::invalid(shard.path(), message));
                }
            }
        }
        Ok(Self { dir: dir.to_path_buf(), shards, shard_of, gguf: None })
    }

    /// The GGUF file, if that is what it is.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
    }

    /// The directory, or the GGUF file.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The opened files.
    pub fn shards(&self) -> &[SafeTensors] {
        &self.shards
    }

    /// Name, shape and dtype of every tensor, by name. Fails if MLX cannot hold one of them.
    pub fn tensors(&self) -> Result<Vec<TensorInfo>> {
        if let Some(gguf) = &self.gguf {
            return gguf.keys().map(|key| gguf.info(key)).collect();
        }
        self.shard_of.iter().map(|(key, &at)| self.shards[at].info(key)).collect()
    }

    /// A tensor, lazy: see [`SafeTensors::array`].
    pub fn array(&self, key: &str) -> Result<Array> {
        if let Some(gguf) = &self.gguf {
            return gguf.array(key);
        }
        let missing = || Error::MissingWeight { path: key.to_owned(), file: self.dir.clone() };
        let at = *self.shard_of.get(key).ok_or_else(missing)?;
        self.shards[at].array(key)
    }

    /// Gives the memory of a tensor that was read back to the system.
    pub(super) fn release(&self, key: &str) {
        match (&self.gguf, self.shard_of.get(key)) {
            (Some(gguf), _) => gguf.release(key),
            (None, Some(&at)) => self.shards[at].release(key),
            (None, None) => {}
        }
    }

    /// The file that has the tensor, or the directory if none has it.
    pub fn file_of(&self, key: &str) -> &Path {
        self.shard_of.get(key).map_or(&self.dir, |&at| self.shards[at].path())
    }
}

/// The whole set of `model-0000I-of-0000N.safetensors` in `dir`.
fn unindexed_shards(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let mut found = BTreeMap::new();
    let mut total = None;
    for entry in entries {
        let name = entry.map_err(|e| Error::io(dir, e))?.file_name();
        let Some((number, of)) = name.to_str().and_then(shard_number) else { continue };
        if *total.get_or_insert(of) != of {
            return Err(Error::invalid(
                dir,
                "shards of two different sets, and no index that says which to take",
            ));
        }
        found.insert(number, dir.join(name));
    }
    let Some(total) = total else {
        let message =
            format!("no {SINGLE}, {INDEX} or shards: this is not a directory of safetensors weights");
        return Err(Error::invalid(dir, message));
    };
    if found.len() as u64 == total && found.keys().copied().eq(1..=total) {
        return Ok(found.into_values().collect());
    }
    let missing = (1..=total).find(|number| !found.contains_key(number)).unwrap_or_default();
    Err(Error::invalid(dir, format!("shard {missing} of {total} is missing: download it again")))
}
