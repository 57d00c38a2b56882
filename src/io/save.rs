//! Writing safetensors files.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::io::{ErrorKind, Write};
use std::path::Path;

use safetensors::tensor::TensorInfo as StInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;

use super::atomic::Pending;
use super::layout::{INDEX, SINGLE, shard_name, shard_number};
use super::safetensors::{MAX_HEADER, MAX_NAME, METADATA, TensorInfo, name_of};
use crate::array::Array;
use crate::error::{Error, Result};

/// What will be written, and under which names.
type Infos<'a> = Vec<&'a TensorInfo>;
/// Gives a tensor when its turn comes.
type Give<'a> = dyn FnMut(&str) -> Result<Array> + 'a;

/// Writes arrays and a text of metadata as one safetensors file. The same arrays give the same bytes:
/// the tensors are sorted by dtype, the widest first, so that all are aligned, then by name.
///
/// Arrays are computed and copied one at a time. The file appears when it is whole, on the disk, and
/// replaces what was there; after an error there is what was there before.
pub fn save_safetensors<'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (&'a str, &'a Array)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let arrays: Vec<(&str, &Array)> = arrays.into_iter().collect();
    let infos: Vec<TensorInfo> = arrays.iter().map(info).collect();
    // Two of one name are refused before they are asked for.
    let by_name: BTreeMap<&str, &Array> = arrays.iter().copied().collect();
    pending(path.as_ref(), infos.iter().collect(), metadata, &mut |name| Ok(by_name[name].clone()))?.place()
}

/// Writes arrays as the weights of a checkpoint directory, as Hugging Face lays them out: one
/// `model.safetensors` if they fit `max_shard_bytes`, else `model-00001-of-0000N.safetensors` and so
/// on, by name, with `model.safetensors.index.json`. An array larger than that has a shard of its own.
///
/// The directory must be there; weights of these names that it has are replaced. They stay as they
/// are if writing fails.
pub fn save_sharded<'a>(
    dir: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (&'a str, &'a Array)>,
    max_shard_bytes: usize,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let arrays: Vec<(&str, &Array)> = arrays.into_iter().collect();
    let infos: Vec<TensorInfo> = arrays.iter().map(info).collect();
    let by_name: BTreeMap<&str, &Array> = arrays.iter().copied().collect();
    let index = Index { always: false, parameters: None };
    let give = &mut |name: &str| Ok(by_name[name].clone());
    save_sharded_with(dir.as_ref(), &infos, max_shard_bytes, metadata, index, give)
}

/// The index of a checkpoint directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Index {
    /// Also beside a single file.
    pub always: bool,
    /// `total_parameters`, for those who read it.
    pub parameters: Option<u64>,
}

/// As [`save_sharded`], with arrays that are made when their turn comes and dropped after it. Fails if
/// one is not as `infos` says.
pub(crate) fn save_sharded_with(
    dir: &Path,
    infos: &[TensorInfo],
    max_shard_bytes: usize,
    metadata: &BTreeMap<String, String>,
    index: Index,
    give: &mut Give,
) -> Result<()> {
    let mut sorted: Infos = infos.iter().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    let total: usize = infos.iter().map(nbytes).sum();
    let mut shards: Vec<Infos> = vec![Vec::new()];
    let mut filled = 0usize;
    for info in sorted {
        if filled > 0 && filled.saturating_add(nbytes(info)) > max_shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        shards.last_mut().expect("there is one from the start").push(info);
        filled = filled.saturating_add(nbytes(info));
    }
    let count = shards.len();
    let name_of_shard = |at| if count == 1 { SINGLE.to_owned() } else { shard_name(at + 1, count) };
    let mut weight_map = BTreeMap::new();
    let mut written = Vec::new();
    for (at, shard) in shards.into_iter().enumerate() {
        weight_map.extend(shard.iter().map(|info| (info.key.clone(), name_of_shard(at))));
        written.push(pending(&dir.join(name_of_shard(at)), shard, metadata, give)?);
    }
    let path = dir.join(INDEX);
    let mut about = json!({ "total_size": total });
    if let Some(parameters) = index.parameters {
        about["total_parameters"] = parameters.into();
    }
    let text = json!({ "metadata": about, "weight_map": weight_map });
    let new_index = Pending::write(&path, |out| {
        let text = serde_json::to_string_pretty(&text).map_err(|e| Error::io(&path, e))?;
        writeln!(out, "{text}").map_err(|e| Error::io(&path, e))
    })?;
    // Without the old index, a directory that is caught between two checkpoints is seen to be one.
    remove(&path)?;
    for shard in written {
        shard.place()?;
    }
    if count > 1 || index.always {
        new_index.place()?;
    }
    let stale = |name: &str| match shard_number(name) {
        Some((_, of)) => count == 1 || of != count as u64,
        None => name == SINGLE && count > 1,
    };
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let name = entry.map_err(|e| Error::io(dir, e))?.file_name();
        if name.to_str().is_some_and(stale) {
            remove(&dir.join(name))?;
        }
    }
    Ok(())
}

fn info((name, array): &(&str, &Array)) -> TensorInfo {
    TensorInfo { key: (*name).to_owned(), shape: array.shape().to_vec(), dtype: array.dtype() }
}

fn nbytes(info: &TensorInfo) -> usize {
    info.shape.iter().fold(info.dtype.size(), |bytes, &dim| bytes.saturating_mul(dim.max(0) as usize))
}

/// One safetensors file, written but not in its place.
fn pending(
    path: &Path,
    mut infos: Infos,
    metadata: &BTreeMap<String, String>,
    give: &mut Give,
) -> Result<Pending> {
    infos.sort_by(|a, b| (Reverse(name_of(a.dtype)), &a.key).cmp(&(Reverse(name_of(b.dtype)), &b.key)));
    let mut entries: Vec<(&str, StInfo)> = Vec::with_capacity(infos.len());
    let mut names = HashSet::new();
    let mut end = 0usize;
    for info in &infos {
        let (start, name) = (end, info.key.as_str());
        end = start.checked_add(nbytes(info)).ok_or_else(|| Error::argument("save", "too many bytes"))?;
        if name.len() > MAX_NAME || name == METADATA || !names.insert(name) {
            return Err(Error::argument(
                "save",
                format!("`{name:.60}` is too long, reserved, or there twice"),
            ));
        }
        let shape = info.shape.iter().map(|&dim| dim as usize).collect();
        entries.push((name, StInfo { dtype: name_of(info.dtype), shape, data_offsets: (start, end) }));
    }
    let header = serde_json::to_string(&Header { metadata, infos: &entries });
    let mut header = header.map_err(|e| Error::io(path, e))?;
    // Spaces bring the data to a multiple of 8 bytes.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    if header.len() as u64 > MAX_HEADER {
        return Err(Error::argument("save", format!("a header of {} bytes is too long", header.len())));
    }
    Pending::write(path, |out| {
        let fail = |e: std::io::Error| Error::io(path, e);
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
        out.write_all(header.as_bytes()).map_err(fail)?;
        for info in &infos {
            let array = give(&info.key)?;
            if array.shape() != info.shape || array.dtype() != info.dtype {
                let (shape, dtype) = (array.shape(), array.dtype());
                return Err(Error::argument("save", format!("{info} turned out to be {shape:?} {dtype}")));
            }
            out.write_all(array.to_host()?.bytes()).map_err(fail)?;
        }
        Ok(())
    })
}

/// What a file begins with, in the order of the data.
struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    infos: &'a [(&'a str, StInfo)],
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        for (name, info) in self.infos {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

/// Removes a file that need not be there.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}
