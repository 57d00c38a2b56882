//! Reading safetensors files.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype as StDtype, Metadata, TensorInfo as StInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ffi::Mapped;
use crate::io::read;

/// The longest header that the format allows, in bytes.
pub(super) const MAX_HEADER: u64 = 100_000_000;
/// The key of a header that is no tensor.
pub(super) const METADATA: &str = "__metadata__";
/// The most dimensions a tensor may have, as in NumPy 2.
pub(super) const MAX_DIMS: usize = 64;

/// The longest name of a tensor, in bytes.
pub(super) const MAX_NAME: usize = 4096;

/// Name, shape and dtype of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, DeriveDeserialize)]
pub struct TensorInfo {
    /// Its name: `model.layers.0.mlp.up_proj.weight`.
    pub key: String,
    /// Size of each dimension.
    pub shape: Vec<i32>,
    /// Type of the elements.
    pub dtype: Dtype,
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.key, self.shape, self.dtype)
    }
}

/// A safetensors file, mapped into memory: opening it reads the header alone, and a tensor is read
/// when its elements are.
///
/// The file must not be shortened while it, or an array from it, is alive.
#[derive(Debug)]
pub struct SafeTensors {
    path: PathBuf,
    /// `None` for a file without data.
    map: Option<Mapped>,
    data_start: usize,
    tensors: BTreeMap<String, StInfo>,
    metadata: BTreeMap<String, String>,
}

impl SafeTensors {
    /// Opens a file and checks its header: the length it claims, every name, dtype, shape and
    /// offset, and that the tensors fill the data without holes or overlaps.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let invalid = |message: String| Error::invalid(path, message);
        let (mut file, length) = read::open(path)?;
        let mut prefix = [0u8; 8];
        if length < 8 {
            return Err(invalid(format!(
                "{length} bytes are too few for a safetensors file: it was cut off"
            )));
        }
        file.read_exact(&mut prefix).map_err(|e| Error::io(path, e))?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > MAX_HEADER {
            return Err(invalid(format!(
                "the header claims {header_length} bytes and the format allows {MAX_HEADER}: not a safetensors file"
            )));
        }
        if header_length > length - 8 {
            return Err(invalid(format!(
                "the header claims {header_length} bytes and the file has {length}: it was cut off"
            )));
        }
        let mut header = vec![0u8; header_length as usize];
        file.read_exact(&mut header).map_err(|e| Error::io(path, e))?;
        let Header { metadata, tensors } = serde_json::from_slice(&header)
            .map_err(|e| invalid(format!("the header is not as it should be: {e}")))?;
        check_layout(path, &tensors, length - 8 - header_length)?;
        let has_data = length > 8 + header_length;
        let map = has_data.then(|| Mapped::new(&file)).transpose().map_err(|e| Error::io(path, e))?;
        if map.as_ref().is_some_and(|map| map.len() as u64 != length) {
            return Err(Error::io(path, "its length changed while it was opened"));
        }
        Ok(Self { path: path.to_path_buf(), map, data_start: 8 + header.len(), tensors, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text that the file carries beside its tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The names of the tensors, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether the file has the tensor.
    pub fn contains(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// Shape and dtype of a tensor. Fails if the file does not have it, or if MLX has no such dtype
    /// or shape.
    pub fn info(&self, key: &str) -> Result<TensorInfo> {
        let info = self.raw(key)?;
        let what = || format!("tensor `{key}` in {}", self.path.display());
        let dtype = dtype_of(info.dtype)
            .ok_or_else(|| Error::unsupported(what(), format!("MLX has no dtype {:?}", info.dtype)))?;
        let shape: Option<Vec<i32>> = info.shape.iter().map(|&d| i32::try_from(d).ok()).collect();
        let shape = shape.filter(|shape| shape.len() <= MAX_DIMS).ok_or_else(|| {
            let limits = format!("at most {MAX_DIMS} dimensions of at most {} elements", i32::MAX);
            Error::unsupported(what(), format!("an array has {limits}"))
        })?;
        Ok(TensorInfo { key: key.to_owned(), shape, dtype })
    }

    /// A tensor. On the CPU its elements stay in the file until they are read, and every call gives
    /// the same array.
    pub fn array(&self, key: &str) -> Result<Array> {
        let TensorInfo { shape, dtype, .. } = self.info(key)?;
        let start = self.data_start + self.raw(key)?.data_offsets.0;
        let array = match &self.map {
            Some(map) => map.array(start, &shape, dtype),
            None => crate::ffi::array_from_bytes(&[], &shape, dtype),
        };
        array.map_err(|e| Error::invalid(&self.path, format!("tensor `{key}`: {e}")))
    }

    /// Gives the memory of a tensor that was read back to the system; reading it again is possible.
    pub(crate) fn release(&self, key: &str) {
        if let (Some(map), Some(info)) = (&self.map, self.tensors.get(key)) {
            map.release(self.data_start + info.data_offsets.0, self.data_start + info.data_offsets.1);
        }
    }

    fn raw(&self, key: &str) -> Result<&StInfo> {
        let missing = || Error::MissingWeight { path: key.to_owned(), file: self.path.clone() };
        self.tensors.get(key).ok_or_else(missing)
    }
}

/// Every array of a safetensors file by name, and the file's metadata. The arrays are lazy: see
/// [`SafeTensors::array`].
pub fn load_safetensors(
    path: impl AsRef<Path>,
) -> Result<(BTreeMap<String, Array>, BTreeMap<String, String>)> {
    let file = SafeTensors::open(path)?;
    let arrays = file.keys().map(|key| Ok((key.to_owned(), file.array(key)?))).collect::<Result<_>>()?;
    Ok((arrays, file.metadata))
}

/// The format's name of a dtype.
pub(super) fn name_of(dtype: Dtype) -> StDtype {
    match dtype {
        Dtype::Bool => StDtype::BOOL,
        Dtype::Uint8 => StDtype::U8,
        Dtype::Uint16 => StDtype::U16,
        Dtype::Uint32 => StDtype::U32,
        Dtype::Uint64 => StDtype::U64,
        Dtype::Int8 => StDtype::I8,
        Dtype::Int16 => StDtype::I16,
        Dtype::Int32 => StDtype::I32,
        Dtype::Int64 => StDtype::I64,
        Dtype::Float16 => StDtype::F16,
        Dtype::Bfloat16 => StDtype::BF16,
        Dtype::Float32 => StDtype::F32,
        Dtype::Float64 => StDtype::F64,
        Dtype::Complex64 => StDtype::C64,
    }
}

/// The dtype of MLX, if it has this one. 8-bit floats and exponents are bytes there: whoever reads
/// them says what they mean.
fn dtype_of(dtype: StDtype) -> Option<Dtype> {
    if matches!(dtype, StDtype::F8_E4M3 | StDtype::F8_E8M0) {
        return Some(Dtype::Uint8);
    }
    Dtype::ALL.iter().copied().find(|&d| name_of(d) == dtype)
}

/// Holds the tensors to the data: each as long as its shape and dtype say, one after another,
/// `data_length` bytes in all.
fn check_layout(path: &Path, tensors: &BTreeMap<String, StInfo>, data_length: u64) -> Result<()> {
    let mut in_file: Vec<(&String, &StInfo)> = tensors.iter().collect();
    in_file.sort_by_key(|(_, info)| info.data_offsets);
    let mut filled = 0;
    for (key, info) in &in_file {
        let (start, end) = info.data_offsets;
        let fail = |message: String| Err(Error::invalid(path, format!("tensor `{key}`: {message}")));
        if info.shape.len() > MAX_DIMS {
            return fail(format!("{} axes; a tensor has at most {MAX_DIMS} dimensions", info.shape.len()));
        }
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &d| n.checked_mul(d));
        let Some(bits) = bits else {
            return fail(format!("a shape of {:?} has too many elements", info.shape));
        };
        let Some(length) = end.checked_sub(start) else {
            return fail(format!("its data end at {end}, before their start at {start}"));
        };
        if length.checked_mul(8) != Some(bits) {
            let needs = bits.div_ceil(8);
            return fail(format!(
                "{length} bytes for {:?} of {:?}, which needs {needs}",
                info.shape, info.dtype
            ));
        }
        match start.cmp(&filled) {
            Ordering::Less => return fail(format!("its data from {start} overlap another tensor's")),
            Ordering::Greater => {
                return fail(format!("bytes {filled} to {start} before its data belong to no tensor"));
            }
            Ordering::Equal => filled = end,
        }
        if filled as u64 > data_length {
            return fail(format!("its data end at {filled} and the file has {data_length}: it was cut off"));
        }
    }
    if filled as u64 != data_length {
        let message = format!("{data_length} bytes of data, of which the tensors use {filled}");
        return Err(Error::invalid(path, message));
    }
    // The format's own implementation has the last word.
    let owned = in_file.iter().map(|(key, info)| ((*key).clone(), (*info).clone())).collect();
    Metadata::new(None, owned).map_err(|e| Error::invalid(path, e))?;
    Ok(())
}

/// The header: names once each, and `__metadata__`.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, StInfo>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut has_metadata = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == METADATA {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom("`__metadata__` occurs twice"));
                }
                header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                continue;
            }
            if key.len() > MAX_NAME {
                let start: String = key.chars().take(60).collect();
                return Err(A::Error::custom(format_args!("a name of {} bytes: {start}...", key.len())));
            }
            let info: StInfo =
                map.next_value().map_err(|e| A::Error::custom(format_args!("tensor `{key}`: {e}")))?;
            match header.tensors.entry(key) {
                Entry::Vacant(entry) => entry.insert(info),
                Entry::Occupied(entry) => {
                    return Err(A::Error::custom(format_args!("tensor `{}` occurs twice", entry.key())));
                }
            };
        }
        Ok(header)
    }
}
