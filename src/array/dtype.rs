//! Element types.

use std::fmt;

use half::{bf16, f16};
use num_complex::Complex32;

use crate::ffi::sys;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $name:ident = $code:ident, $text:literal, $size:literal;)*) => {
        /// The type of an array's elements.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Dtype { $($(#[$doc])* $name,)* }

        impl Dtype {
            /// Every dtype of MLX.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$name,)*];

            /// MLX's name: `float32`, `bfloat16`, `bool`, ...
            pub fn name(self) -> &'static str {
                match self { $(Dtype::$name => $text,)* }
            }

            /// Bytes per element.
            pub fn size(self) -> usize {
                match self { $(Dtype::$name => $size,)* }
            }

            pub(crate) fn code(self) -> sys::mlx_dtype {
                match self { $(Dtype::$name => sys::$code,)* }
            }

            pub(crate) fn from_code(code: sys::mlx_dtype) -> Option<Self> {
                Self::ALL.iter().copied().find(|d| d.code() == code)
            }
        }
    };
}

dtypes! {
    /// One byte, 0 or 1.
    Bool = MLX_BOOL, "bool", 1;
    /// Unsigned, 8 bits.
    Uint8 = MLX_UINT8, "uint8", 1;
    /// Unsigned, 16 bits.
    Uint16 = MLX_UINT16, "uint16", 2;
    /// Unsigned, 32 bits.
    Uint32 = MLX_UINT32, "uint32", 4;
    /// Unsigned, 64 bits.
    Uint64 = MLX_UINT64, "uint64", 8;
    /// Signed, 8 bits.
    Int8 = MLX_INT8, "int8", 1;
    /// Signed, 16 bits.
    Int16 = MLX_INT16, "int16", 2;
    /// Signed, 32 bits.
    Int32 = MLX_INT32, "int32", 4;
    /// Signed, 64 bits.
    Int64 = MLX_INT64, "int64", 8;
    /// IEEE half precision.
    Float16 = MLX_FLOAT16, "float16", 2;
    /// IEEE single precision.
    Float32 = MLX_FLOAT32, "float32", 4;
    /// IEEE double precision; on the CPU only.
    Float64 = MLX_FLOAT64, "float64", 8;
    /// The upper half of an IEEE single.
    Bfloat16 = MLX_BFLOAT16, "bfloat16", 2;
    /// Two singles: real and imaginary part.
    Complex64 = MLX_COMPLEX64, "complex64", 8;
}

impl Dtype {
    /// `float16`, `bfloat16`, `float32` or `float64`.
    pub fn is_floating(self) -> bool {
        matches!(self, Dtype::Float16 | Dtype::Bfloat16 | Dtype::Float32 | Dtype::Float64)
    }

    /// Floating or complex.
    pub fn is_inexact(self) -> bool {
        self.is_floating() || self == Dtype::Complex64
    }

    /// `int8` to `int64`.
    pub fn is_signed(self) -> bool {
        matches!(self, Dtype::Int8 | Dtype::Int16 | Dtype::Int32 | Dtype::Int64)
    }

    /// Signed or unsigned integers; not `bool`.
    pub fn is_integer(self) -> bool {
        !self.is_inexact() && self != Dtype::Bool
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Dtype {
    type Err = crate::Error;

    fn from_str(name: &str) -> crate::Result<Self> {
        let found = Self::ALL.iter().copied().find(|d| d.name() == name);
        found.ok_or_else(|| crate::Error::argument("dtype", format!("unknown dtype `{name}`")))
    }
}

impl serde::Serialize for Dtype {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Dtype {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that arrays can hold.
pub trait Element: sealed::Sealed + bytemuck::CheckedBitPattern + bytemuck::NoUninit {
    /// The dtype of arrays of this type.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($t:ty => $dtype:ident),* $(,)?) => { $(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )* };
}

elements! {
    bool => Bool,
    u8 => Uint8,
    u16 => Uint16,
    u32 => Uint32,
    u64 => Uint64,
    i8 => Int8,
    i16 => Int16,
    i32 => Int32,
    i64 => Int64,
    f16 => Float16,
    f32 => Float32,
    f64 => Float64,
    bf16 => Bfloat16,
    Complex32 => Complex64,
}
