//! NumPy's `.npy`: a header, which is a Python literal, and the elements.

use std::io::{BufReader, Read, Write};
use std::path::Path;

use super::atomic::write_whole;
use crate::array::{Dtype, HostTensor, element_count};
use crate::error::{Error, Result};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// The longest header that is read, in bytes; NumPy refuses headers over 10,000.
const MAX_HEADER: usize = 1 << 16;

/// Reads a `.npy` file, of either byte order and either order of the axes. Fails for dtypes that MLX
/// does not have: strings, objects, structures, times, `complex128`.
pub fn load_npy(path: impl AsRef<Path>) -> Result<HostTensor> {
    let path = path.as_ref();
    let (file, length) = super::read::open(path)?;
    read(&mut BufReader::new(file), length).map_err(|e| e.at(path, ""))
}

/// Writes a `.npy` file, whole or not at all. `bfloat16` fails, which NumPy does not have.
pub fn save_npy(path: impl AsRef<Path>, tensor: &HostTensor) -> Result<()> {
    let path = path.as_ref();
    let header = header(tensor).map_err(|e| e.at(path, ""))?;
    write_whole(path, |out| {
        out.write_all(&header).and_then(|()| out.write_all(tensor.bytes())).map_err(|e| Error::io(path, e))
    })
}

/// What went wrong, before it is known in which file.
#[derive(Debug)]
pub(super) enum Fault {
    Io(std::io::Error),
    Invalid(String),
    Unsupported(String),
}

impl Fault {
    /// The error of a file, and of `name` in it.
    pub(super) fn at(self, path: &Path, name: &str) -> Error {
        let of = |message: String| if name.is_empty() { message } else { format!("`{name}`: {message}") };
        match self {
            Fault::Io(e) => Error::io(path, of(e.to_string())),
            Fault::Invalid(message) => Error::invalid(path, of(message)),
            Fault::Unsupported(why) => Error::unsupported(of(path.display().to_string()), why),
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(e: std::io::Error) -> Self {
        Fault::Io(e)
    }
}

fn invalid<T>(message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Invalid(message.into()))
}

/// Reads what `save_npy` writes. The elements must not be more than `at_most` bytes: memory is taken
/// for what the file can hold, whatever its header claims.
pub(super) fn read(input: &mut impl Read, at_most: u64) -> Result<HostTensor, Fault> {
    let mut start = [0u8; 8];
    read_all(input, &mut start)?;
    if start[..6] != *MAGIC {
        return invalid("not an .npy file: it does not begin with \\x93NUMPY");
    }
    let header_length = match start[6] {
        1 => {
            let mut length = [0u8; 2];
            read_all(input, &mut length)?;
            usize::from(u16::from_le_bytes(length))
        }
        2 | 3 => {
            let mut length = [0u8; 4];
            read_all(input, &mut length)?;
            u32::from_le_bytes(length) as usize
        }
        version => return Err(Fault::Unsupported(format!("version {version} of the .npy format"))),
    };
    if header_length > MAX_HEADER {
        return invalid(format!("the header claims {header_length} bytes"));
    }
    let mut text = vec![0u8; header_length];
    read_all(input, &mut text)?;
    let Ok(text) = String::from_utf8(text) else { return invalid("the header is not text") };
    let Header { dtype, swapped, fortran_order, shape } = Header::parse(&text)?;
    let length = element_count(&shape).and_then(|n| n.checked_mul(dtype.size()));
    let Some(length) = length.filter(|&length| length as u64 <= at_most) else {
        return invalid(format!("{shape:?} of {dtype} are more bytes than the file has: it was cut off"));
    };
    let mut bytes = Vec::new();
    input.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return invalid(format!("{} bytes for {shape:?} of {dtype}: it was cut off", bytes.len()));
    }
    if input.read(&mut [0])? > 0 {
        return invalid(format!("there are bytes after the {length} of {shape:?} of {dtype}"));
    }
    if swapped {
        let part = if dtype == Dtype::Complex64 { 4 } else { dtype.size() };
        bytes.chunks_exact_mut(part).for_each(<[u8]>::reverse);
    }
    if fortran_order && !bytes.is_empty() {
        bytes = row_major(&bytes, &shape, dtype.size());
    }
    HostTensor::new(bytes, &shape, dtype).map_err(|e| Fault::Invalid(e.to_string()))
}

/// `read_exact`, which says what a file that ends early is.
fn read_all(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), Fault> {
    input.read_exact(buffer).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => Fault::Invalid("it was cut off in the header".into()),
        _ => Fault::Io(e),
    })
}

/// The bytes before the elements, a multiple of 64.
pub(super) fn header(tensor: &HostTensor) -> Result<Vec<u8>, Fault> {
    let kind = match tensor.dtype() {
        Dtype::Bfloat16 => {
            let why = "NumPy has no bfloat16: convert to float32, or write safetensors";
            return Err(Fault::Unsupported(why.into()));
        }
        Dtype::Bool => 'b',
        Dtype::Complex64 => 'c',
        dtype if dtype.is_floating() => 'f',
        dtype if dtype.name().starts_with('u') => 'u',
        _ => 'i',
    };
    let (size, comma) = (tensor.dtype().size(), if tensor.shape().len() == 1 { "," } else { "" });
    let order = match size {
        1 => '|',
        _ if cfg!(target_endian = "little") => '<',
        _ => '>',
    };
    let dims: Vec<String> = tensor.shape().iter().map(i32::to_string).collect();
    let shape = dims.join(", ") + comma;
    let text = format!("{{'descr': '{order}{kind}{size}', 'fortran_order': False, 'shape': ({shape}), }}");
    let length = (MAGIC.len() + 4 + text.len() + 1).next_multiple_of(64) - MAGIC.len() - 4;
    let text = format!("{text:<width$}\n", width = length - 1);
    let length = u16::try_from(text.len()).map_err(|_| Fault::Unsupported("so many dimensions".into()))?;
    Ok([&MAGIC[..], &[1, 0], &length.to_le_bytes(), text.as_bytes()].concat())
}

/// The elements of a column-major tensor in row-major order.
fn row_major(bytes: &[u8], shape: &[i32], size: usize) -> Vec<u8> {
    let strides: Vec<usize> =
        shape.iter().scan(size, |next, &dim| Some(std::mem::replace(next, *next * dim as usize))).collect();
    let mut out = Vec::with_capacity(bytes.len());
    let (mut index, mut at) = (vec![0i32; shape.len()], 0);
    while out.len() < bytes.len() {
        out.extend_from_slice(&bytes[at..at + size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis] as usize;
            index[axis] = 0;
        }
    }
    out
}

/// What a header says.
struct Header {
    dtype: Dtype,
    /// Whether the bytes of an element are in the order that the machine does not use.
    swapped: bool,
    fortran_order: bool,
    shape: Vec<i32>,
}

impl Header {
    /// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
    fn parse(text: &str) -> Result<Self, Fault> {
        let mut literal = Literal(text.trim());
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        literal.expect("{")?;
        while !literal.eat("}") {
            let key = literal.string()?;
            literal.expect(":")?;
            let twice = match key {
                "descr" => descr.replace(literal.dtype()?).is_some(),
                "fortran_order" => fortran_order.replace(literal.boolean()?).is_some(),
                "shape" => shape.replace(literal.shape()?).is_some(),
                _ => return invalid(format!("the header has a key `{key}`")),
            };
            if twice {
                return invalid(format!("the header has `{key}` twice"));
            }
            if !literal.eat(",") {
                literal.expect("}")?;
                break;
            }
        }
        match (descr, fortran_order, shape) {
            (Some((dtype, swapped)), Some(fortran_order), Some(shape)) if literal.0.is_empty() => {
                Ok(Self { dtype, swapped, fortran_order, shape })
            }
            _ => invalid("the header lacks `descr`, `fortran_order` or `shape`, or goes on after them"),
        }
    }
}

/// The rest of a Python literal.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    fn eat(&mut self, token: &str) -> bool {
        match self.0.strip_prefix(token) {
            Some(rest) => {
                self.0 = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), Fault> {
        if self.eat(token) {
            return Ok(());
        }
        let rest: String = self.0.chars().take(20).collect();
        invalid(format!("the header has `{rest}` where `{token}` belongs"))
    }

    fn string(&mut self) -> Result<&'a str, Fault> {
        let quote = if self.0.starts_with('"') { "\"" } else { "'" };
        self.expect(quote)?;
        let Some((text, rest)) = self.0.split_once(quote) else {
            return invalid("a string in the header does not end");
        };
        self.0 = rest.trim_start();
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, Fault> {
        if self.eat("True") {
            return Ok(true);
        }
        self.expect("False").map(|()| false)
    }

    fn shape(&mut self) -> Result<Vec<i32>, Fault> {
        let mut shape = Vec::new();
        self.expect("(")?;
        while !self.eat(")") {
            let end = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
            let (digits, rest) = self.0.split_at(end);
            let Ok(dim) = digits.parse() else {
                let found: String = self.0.chars().take(20).collect();
                return invalid(format!("`{found}` is not a size from 0 to {}", i32::MAX));
            };
            shape.push(dim);
            // Python 2 wrote `3L`.
            self.0 = rest.strip_prefix('L').unwrap_or(rest).trim_start();
            if !self.eat(",") {
                self.expect(")")?;
                break;
            }
        }
        if shape.len() > super::safetensors::MAX_DIMS {
            return Err(Fault::Unsupported(format!("{} dimensions", shape.len())));
        }
        Ok(shape)
    }

    /// A dtype, and whether its bytes are swapped.
    fn dtype(&mut self) -> Result<(Dtype, bool), Fault> {
        if self.0.starts_with('[') {
            return Err(Fault::Unsupported("an array has elements of one dtype, not structures".into()));
        }
        let text = self.string()?;
        let mut chars = text.chars();
        let order = chars.next();
        let dtype = match chars.as_str() {
            "b1" => Dtype::Bool,
            "u1" => Dtype::Uint8,
            "u2" => Dtype::Uint16,
            "u4" => Dtype::Uint32,
            "u8" => Dtype::Uint64,
            "i1" => Dtype::Int8,
            "i2" => Dtype::Int16,
            "i4" => Dtype::Int32,
            "i8" => Dtype::Int64,
            "f2" => Dtype::Float16,
            "f4" => Dtype::Float32,
            "f8" => Dtype::Float64,
            "c8" => Dtype::Complex64,
            "V2" => {
                let why =
                    "elements are 2 bytes without a meaning, perhaps of bfloat16, which NumPy does not have";
                return Err(Fault::Unsupported(why.into()));
            }
            _ => return Err(Fault::Unsupported(format!("MLX has no dtype like NumPy's `{text:.20}`"))),
        };
        let little = cfg!(target_endian = "little");
        let swapped = match order {
            Some('<') => !little,
            Some('>') => little,
            Some('|' | '=') => false,
            _ => return invalid(format!("`{text:.20}` is not a dtype")),
        };
        Ok((dtype, swapped && dtype.size() > 1))
    }
}
