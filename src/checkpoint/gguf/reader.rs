//! The header of a GGUF file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};

use super::Tensor;
use crate::array::Dtype;
use crate::checkpoint::foreign::GgmlType;

/// The longest header that is read, in bytes. Vocabularies of 256 thousand tokens take 10 MB.
const MAX_HEADER: u64 = 128 << 20;
/// The longest name of a key or a tensor.
const MAX_NAME: u64 = 4096;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Value {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Tensor>,
}

type Read_<T> = Result<T, String>;

/// Bytes that are left to read, of those that a header may have.
struct Bytes<R> {
    inner: R,
    read: u64,
    limit: u64,
}

/// Reads the header of a file of this length.
pub(super) fn read(file: &File, length: u64) -> Read_<Header> {
    let limit = length.min(MAX_HEADER);
    let mut bytes = Bytes { inner: BufReader::with_capacity(1 << 16, file), read: 0, limit };
    if &bytes.array::<4>()? != b"GGUF" {
        return Err("does not begin with `GGUF`: not a GGUF file".into());
    }
    let version = bytes.u32()?;
    if !matches!(version, 2 | 3) {
        let big = matches!(version.swap_bytes(), 2 | 3);
        let which = if big { "it is big-endian".into() } else { format!("its version is {version}") };
        return Err(format!("{which}; versions 2 and 3, little-endian, are read"));
    }
    let (tensor_count, key_count) = (bytes.u64()?, bytes.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = bytes.text(MAX_NAME)?;
        let kind = bytes.u32()?;
        let value = bytes.value(kind).map_err(|e| format!("`{key}`: {e}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("`{key}` occurs twice"));
        }
    }
    let mut found = Vec::new();
    for _ in 0..tensor_count {
        let name = bytes.text(MAX_NAME)?;
        let tensor = bytes.tensor().map_err(|e| format!("tensor `{name}`: {e}"))?;
        found.push((name, tensor));
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Int(n)) if (8..=1 << 20).contains(n) && n % 8 == 0 => *n as u64,
        Some(other) => return Err(format!("`general.alignment` is {other:?}")),
    };
    let data_start = bytes.read.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, Found { shape, dtype, packed, offset, bytes }) in found {
        let fail = |message: String| Err(format!("tensor `{name}`: {message}"));
        if offset % alignment != 0 {
            return fail(format!("its data begin at {offset}, which is not a multiple of {alignment}"));
        }
        let start = data_start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(bytes)).filter(|&end| end <= length);
        let (Some(start), Some(end)) = (start, end) else {
            return fail(format!("{bytes} bytes from {offset} on go beyond the file: it was cut off"));
        };
        let tensor = Tensor { part: 0, shape, dtype, packed, start: start as usize, end: end as usize };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("tensor `{name}` occurs twice"));
        }
    }
    let mut in_file: Vec<(&String, &Tensor)> = tensors.iter().collect();
    in_file.sort_by_key(|(_, tensor)| tensor.start);
    if let Some(pair) = in_file.windows(2).find(|pair| pair[1].1.start < pair[0].1.end) {
        return Err(format!("tensors `{}` and `{}` overlap", pair[0].0, pair[1].0));
    }
    Ok(Header { metadata, tensors })
}

/// A tensor before the place of the data is known.
struct Found {
    shape: Vec<i32>,
    dtype: Dtype,
    packed: Option<GgmlType>,
    offset: u64,
    bytes: u64,
}

impl<R: Read> Bytes<R> {
    /// Fails unless so many more bytes may come.
    fn expect(&self, count: u64) -> Read_<()> {
        let left = self.limit - self.read;
        if count <= left {
            return Ok(());
        }
        Err(format!("{count} bytes at {} of a header that ends by {}: it was cut off", self.read, self.limit))
    }

    fn array<const N: usize>(&mut self) -> Read_<[u8; N]> {
        self.expect(N as u64)?;
        let mut out = [0; N];
        self.inner.read_exact(&mut out).map_err(|e| e.to_string())?;
        self.read += N as u64;
        Ok(out)
    }

    fn u32(&mut self) -> Read_<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read_<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self, longest: u64) -> Read_<String> {
        let length = self.u64()?;
        self.expect(length)?;
        if length > longest {
            return Err(format!("a text of {length} bytes at {}", self.read));
        }
        let mut out = vec![0; length as usize];
        self.inner.read_exact(&mut out).map_err(|e| e.to_string())?;
        self.read += length;
        String::from_utf8(out).map_err(|_| format!("a text that is not UTF-8 before {}", self.read))
    }

    /// A number of this kind.
    fn int(&mut self, kind: u32) -> Read_<i64> {
        Ok(match kind {
            0 => i64::from(self.array::<1>()?[0]),
            1 => i64::from(self.array::<1>()?[0] as i8),
            2 => i64::from(u16::from_le_bytes(self.array()?)),
            3 => i64::from(i16::from_le_bytes(self.array()?)),
            4 => i64::from(self.u32()?),
            5 => i64::from(self.u32()? as i32),
            // Nothing counts so far.
            10 => i64::try_from(self.u64()?).unwrap_or(i64::MAX),
            11 => self.u64()? as i64,
            _ => return Err(format!("a value of type {kind}")),
        })
    }

    fn float(&mut self, kind: u32) -> Read_<f64> {
        if kind == 6 { Ok(f64::from(f32::from_bits(self.u32()?))) } else { Ok(f64::from_bits(self.u64()?)) }
    }

    fn bool(&mut self) -> Read_<bool> {
        Ok(self.array::<1>()?[0] != 0)
    }

    fn value(&mut self, kind: u32) -> Read_<Value> {
        Ok(match kind {
            6 | 12 => Value::Float(self.float(kind)?),
            7 => Value::Bool(self.bool()?),
            8 => Value::Text(self.text(MAX_HEADER)?),
            9 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let least = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    8 | 10..=12 => 8,
                    _ => return Err(format!("a list of values of type {kind}")),
                };
                self.expect(count.saturating_mul(least))?;
                let each = 0..count;
                match kind {
                    6 | 12 => {
                        Value::Floats(each.map(|_| Ok(self.float(kind)? as f32)).collect::<Read_<_>>()?)
                    }
                    7 => Value::Ints(each.map(|_| Ok(i64::from(self.bool()?))).collect::<Read_<_>>()?),
                    8 => Value::Texts(each.map(|_| self.text(MAX_HEADER)).collect::<Read_<_>>()?),
                    _ => Value::Ints(each.map(|_| self.int(kind)).collect::<Read_<_>>()?),
                }
            }
            _ => Value::Int(self.int(kind)?),
        })
    }

    fn tensor(&mut self) -> Read_<Found> {
        let count = self.u32()?;
        if count > 8 {
            return Err(format!("{count} dimensions"));
        }
        let dims: Vec<u64> = (0..count).map(|_| self.u64()).collect::<Read_<_>>()?;
        let (kind, offset) = (self.u32()?, self.u64()?);
        let packed = GgmlType::ALL.into_iter().find(|packed| packed.code() == kind);
        let plain = match kind {
            0 => Some(Dtype::Float32),
            1 => Some(Dtype::Float16),
            24 => Some(Dtype::Int8),
            25 => Some(Dtype::Int16),
            26 => Some(Dtype::Int32),
            27 => Some(Dtype::Int64),
            28 => Some(Dtype::Float64),
            30 => Some(Dtype::Bfloat16),
            _ => None,
        };
        let Some(dtype) = plain.or(packed.map(|_| Dtype::Uint8)) else {
            return Err(format!(
                "its type is number {kind}; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4 and Q2_K to Q6_K are read"
            ));
        };
        // The fastest dimension comes first in the file.
        let mut shape: Vec<i32> = Vec::with_capacity(dims.len());
        for dim in dims.iter().rev() {
            shape.push(i32::try_from(*dim).map_err(|_| format!("a dimension of {dim}"))?);
        }
        if let Some(packed) = packed {
            let (values, bytes) = packed.block();
            let last = shape.last_mut().filter(|last| **last % values == 0);
            let row = last.and_then(|last| (*last / values).checked_mul(bytes).map(|row| *last = row));
            row.ok_or_else(|| format!("rows of {:?} in blocks of {values}", dims.first()))?;
        }
        let bytes = shape.iter().try_fold(dtype.size() as u64, |bytes, &dim| bytes.checked_mul(dim as u64));
        let bytes = bytes.ok_or_else(|| format!("too many elements, {shape:?}"))?;
        Ok(Found { shape, dtype, packed, offset, bytes })
    }
}
