//! What a binary operation accepts beside an array: another array, the result of an operation, or a
//! plain number.

use std::ops::Deref;

use half::{bf16, f16};
use num_complex::Complex32;

use super::{Array, Dtype};
use crate::error::Result;

/// An operand as an array: borrowed, or made from a number.
#[derive(Debug)]
pub enum Arg<'a> {
    /// An array of the caller.
    Borrowed(&'a Array),
    /// A new scalar.
    Owned(Array),
}

impl Arg<'_> {
    /// The array.
    pub fn array(&self) -> &Array {
        self
    }
}

impl Deref for Arg<'_> {
    type Target = Array;
    fn deref(&self) -> &Array {
        match self {
            Arg::Borrowed(array) => array,
            Arg::Owned(array) => array,
        }
    }
}

impl crate::ffi::CArg for Arg<'_> {
    type C = crate::ffi::sys::mlx_array;
    fn c(&self) -> Self::C {
        (**self).c()
    }
}

/// One side of a binary operation.
///
/// Plain numbers are *weak*, as in MLX's Python: they take the dtype of the array beside them where
/// it can hold their kind (`&half * 0.5` stays half precision), else `float32` or `int32`.
pub trait Operand {
    /// The dtype, or `None` for a plain number, whose dtype follows the other side.
    fn operand_dtype(&self) -> Option<Dtype>;

    /// The operand as an array, given the dtype of the other side if that has one.
    fn to_arg(&self, other: Option<Dtype>) -> Result<Arg<'_>>;
}

/// Both operands of a binary operation as arrays.
pub(crate) fn operands<'a, A: Operand, B: Operand>(a: &'a A, b: &'a B) -> Result<(Arg<'a>, Arg<'a>)> {
    Ok((a.to_arg(b.operand_dtype())?, b.to_arg(a.operand_dtype())?))
}

impl Operand for Array {
    fn operand_dtype(&self) -> Option<Dtype> {
        Some(self.dtype())
    }
    fn to_arg(&self, _: Option<Dtype>) -> Result<Arg<'_>> {
        Ok(Arg::Borrowed(self))
    }
}

impl<T: Operand + ?Sized> Operand for &T {
    fn operand_dtype(&self) -> Option<Dtype> {
        (**self).operand_dtype()
    }
    fn to_arg(&self, other: Option<Dtype>) -> Result<Arg<'_>> {
        (**self).to_arg(other)
    }
}

impl Operand for Result<Array> {
    fn operand_dtype(&self) -> Option<Dtype> {
        self.as_ref().ok().map(Array::dtype)
    }
    fn to_arg(&self, _: Option<Dtype>) -> Result<Arg<'_>> {
        self.as_ref().map(Arg::Borrowed).map_err(Clone::clone)
    }
}

macro_rules! weak {
    ($($t:ty: |$value:ident, $other:ident| $dtype:expr;)*) => { $(
        impl Operand for $t {
            fn operand_dtype(&self) -> Option<Dtype> {
                None
            }
            fn to_arg(&self, other: Option<Dtype>) -> Result<Arg<'_>> {
                let $value = *self;
                let $other = other;
                scalar($value.into(), $dtype).map(Arg::Owned)
            }
        }
    )* };
}

fn float(other: Option<Dtype>) -> Dtype {
    other.filter(|d| d.is_inexact()).unwrap_or(Dtype::Float32)
}

weak! {
    f32: |value, other| float(other);
    f64: |value, other| float(other);
    f16: |value, other| float(other);
    bf16: |value, other| float(other);
    bool: |value, other| other.unwrap_or(Dtype::Bool);
    i32: |value, other| integer(other);
    i64: |value, other| integer(other).max_for(value);
    u32: |value, other| integer(other).max_for(i64::from(value));
}

fn integer(other: Option<Dtype>) -> Dtype {
    other.filter(|&d| d != Dtype::Bool).unwrap_or(Dtype::Int32)
}

impl Dtype {
    /// `self`, or `int64` where a default of `int32` could not hold `value`.
    fn max_for(self, value: i64) -> Dtype {
        if self == Dtype::Int32 && i32::try_from(value).is_err() { Dtype::Int64 } else { self }
    }
}

/// A plain number before its dtype is known.
#[derive(Clone, Copy)]
enum Number {
    Int(i64),
    Float(f64),
}

impl From<bool> for Number {
    fn from(v: bool) -> Self {
        Number::Int(v.into())
    }
}

macro_rules! numbers {
    ($($t:ty => $kind:ident),*) => { $(
        impl From<$t> for Number {
            fn from(v: $t) -> Self {
                Number::$kind(v.into())
            }
        }
    )* };
}
numbers!(i32 => Int, i64 => Int, u32 => Int, f32 => Float, f64 => Float, f16 => Float, bf16 => Float);

/// A scalar of `dtype`; integers wrap as a cast does.
fn scalar(number: Number, dtype: Dtype) -> Result<Array> {
    let (int, float) = match number {
        Number::Int(v) => (v, v as f64),
        Number::Float(v) => (v as i64, v),
    };
    Ok(match dtype {
        Dtype::Bool => Array::from(int != 0),
        Dtype::Uint8 => Array::from(int as u8),
        Dtype::Uint16 => Array::from(int as u16),
        Dtype::Uint32 => Array::from(int as u32),
        Dtype::Uint64 => Array::from(int as u64),
        Dtype::Int8 => Array::from(int as i8),
        Dtype::Int16 => Array::from(int as i16),
        Dtype::Int32 => Array::from(int as i32),
        Dtype::Int64 => Array::from(int),
        Dtype::Float16 => Array::from(f16::from_f64(float)),
        Dtype::Bfloat16 => Array::from(bf16::from_f64(float)),
        Dtype::Float32 => Array::from(float as f32),
        Dtype::Float64 => Array::from(float),
        Dtype::Complex64 => Array::from(Complex32::new(float as f32, 0.0)),
    })
}
