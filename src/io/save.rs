//! Writing safetensors files.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::io::{ErrorKind, Write};
use std::path::Path;

use safetensors::tensor::TensorInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;

use super::atomic::Pending;
use super::layout::{INDEX, SINGLE, shard_name, shard_number};
use super::safetensors::{MAX_HEADER, MAX_NAME, METADATA, name_of};
use crate::array::Array;
use crate::error::{Error, Result};

/// Arrays by name.
type Named<'a> = Vec<(&'a str, &'a Array)>;

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
    pending(path.as_ref(), arrays.into_iter().collect(), metadata)?.place()
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
    let dir = dir.as_ref();
    let mut arrays: Named = arrays.into_iter().collect();
    arrays.sort_by_key(|(name, _)| *name);
    let total: usize = arrays.iter().map(|(_, array)| array.nbytes()).sum();
    let mut shards: Vec<Named> = vec![Vec::new()];
    let mut filled = 0usize;
    for (name, array) in arrays {
        if filled > 0 && filled.saturating_add(array.nbytes()) > max_shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        shards.last_mut().expect("there is one from the start").push((name, array));
        filled = filled.saturating_add(array.nbytes());
    }
    let count = shards.len();
    let name_of_shard = |at| if count == 1 { SINGLE.to_owned() } else { shard_name(at + 1, count) };
    let mut weight_map = BTreeMap::new();
    let mut written = Vec::new();
    for (at, shard) in shards.into_iter().enumerate() {
        weight_map.extend(shard.iter().map(|(name, _)| (name.to_string(), name_of_shard(at))));
        written.push(pending(&dir.join(name_of_shard(at)), shard, metadata)?);
    }
    let index = dir.join(INDEX);
    let text = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    let new_index = Pending::write(&index, |out| {
        let text = serde_json::to_string_pretty(&text).map_err(|e| Error::io(&index, e))?;
        writeln!(out, "{text}").map_err(|e| Error::io(&index, e))
    })?;
    // Without the old index, a directory that is caught between two checkpoints is seen to be one.
    remove(&index)?;
    for shard in written {
        shard.place()?;
    }
    if count > 1 {
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

/// One safetensors file, written but not in its place.
fn pending(path: &Path, mut arrays: Named, metadata: &BTreeMap<String, String>) -> Result<Pending> {
    arrays.sort_by_key(|(name, array)| (Reverse(name_of(array.dtype())), *name));
    let mut infos: Vec<(&str, TensorInfo)> = Vec::with_capacity(arrays.len());
    let mut names = HashSet::new();
    let mut end = 0usize;
    for (name, array) in &arrays {
        let start = end;
        end = start.checked_add(array.nbytes()).ok_or_else(|| Error::argument("save", "too many bytes"))?;
        if name.len() > MAX_NAME || *name == METADATA || !names.insert(*name) {
            return Err(Error::argument(
                "save",
                format!("`{name:.60}` is too long, reserved, or there twice"),
            ));
        }
        let shape = array.shape().iter().map(|&dim| dim as usize).collect();
        infos.push((name, TensorInfo { dtype: name_of(array.dtype()), shape, data_offsets: (start, end) }));
    }
    let header = serde_json::to_string(&Header { metadata, infos: &infos });
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
        for (_, array) in &arrays {
            out.write_all(array.to_host()?.bytes()).map_err(fail)?;
        }
        Ok(())
    })
}

/// What a file begins with, in the order of the data.
struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    infos: &'a [(&'a str, TensorInfo)],
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
