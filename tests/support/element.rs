//! Elements of every dtype as numbers that a reference can be computed with, and back.

use half::{bf16, f16};
use mlxport::{Dtype, HostTensor};
use num_complex::Complex64;

use super::nd::Nd;

/// Every dtype with an order: `bool`, then integers, then floats.
pub const ORDERED: &[Dtype] = &[
    Dtype::Bool,
    Dtype::Uint8,
    Dtype::Uint16,
    Dtype::Uint32,
    Dtype::Uint64,
    Dtype::Int8,
    Dtype::Int16,
    Dtype::Int32,
    Dtype::Int64,
    Dtype::Float16,
    Dtype::Bfloat16,
    Dtype::Float32,
    Dtype::Float64,
];

/// Integers and floats.
pub const NUMBERS: &[Dtype] = ORDERED.split_at(1).1;

/// `bool` and integers.
pub const WHOLE: &[Dtype] = ORDERED.split_at(9).0;

/// Signed and unsigned integers.
pub const INTEGERS: &[Dtype] = WHOLE.split_at(1).1;

/// The dtypes MLX rounds in.
pub const FLOATS: &[Dtype] = ORDERED.split_at(9).1;

fn usizes(shape: &[i32]) -> Vec<usize> {
    shape.iter().map(|&n| n as usize).collect()
}

/// A shape as MLX takes it.
pub fn mlx_shape(shape: &[usize]) -> Vec<i32> {
    shape.iter().map(|&n| n as i32).collect()
}

/// The bits of every element: for operations that move elements and compute nothing.
pub fn bits(tensor: &HostTensor) -> Nd<u64> {
    let element = |chunk: &[u8]| {
        let mut wide = [0; 8];
        wide[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(wide)
    };
    let data = tensor.bytes().chunks_exact(tensor.dtype().size()).map(element).collect();
    Nd::new(&usizes(tensor.shape()), data)
}

/// The tensor with these bits.
pub fn from_bits(bits: &Nd<u64>, dtype: Dtype) -> HostTensor {
    let bytes = bits.data.iter().flat_map(|b| b.to_le_bytes()[..dtype.size()].to_vec()).collect();
    HostTensor::new(bytes, &mlx_shape(&bits.shape), dtype).unwrap()
}

/// The value that these bits mean. Every dtype but the 64-bit integers and complex fits exactly.
pub fn decode(bits: u64, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float16 => f16::from_bits(bits as u16).to_f64(),
        Dtype::Bfloat16 => bf16::from_bits(bits as u16).to_f64(),
        Dtype::Float32 => f32::from_bits(bits as u32).into(),
        Dtype::Float64 => f64::from_bits(bits),
        Dtype::Complex64 => panic!("complex numbers are two reals"),
        _ => decode_int(bits, dtype) as f64,
    }
}

/// The bits of `value` rounded to nearest, ties to even; integers are truncated and wrapped.
pub fn encode(value: f64, dtype: Dtype) -> u64 {
    match dtype {
        Dtype::Float16 => round_to_f16(value).to_bits().into(),
        Dtype::Bfloat16 => round_to_bf16(value).to_bits().into(),
        Dtype::Float32 => (value as f32).to_bits().into(),
        Dtype::Float64 => value.to_bits(),
        Dtype::Complex64 => (value as f32).to_bits().into(),
        Dtype::Bool => (value != 0.0).into(),
        _ => encode_int(value as i128, dtype),
    }
}

// Through f32 with rounding to odd, which makes the second rounding right.
fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    if !value.is_finite() || !near.is_finite() || f64::from(near) == value || near.to_bits() & 1 == 1 {
        return near;
    }
    if (f64::from(near) < value) == (value > 0.0) {
        f32::from_bits(near.to_bits() + 1)
    } else {
        f32::from_bits(near.to_bits() - 1)
    }
}

fn round_to_f16(value: f64) -> f16 {
    f16::from_f32(to_odd(value))
}

fn round_to_bf16(value: f64) -> bf16 {
    bf16::from_f32(to_odd(value))
}

/// `value` rounded to `dtype`.
pub fn round(value: f64, dtype: Dtype) -> f64 {
    decode(encode(value, dtype), dtype)
}

/// The integer (or bool) that these bits mean.
pub fn decode_int(bits: u64, dtype: Dtype) -> i128 {
    match dtype {
        Dtype::Bool | Dtype::Uint8 | Dtype::Uint16 | Dtype::Uint32 | Dtype::Uint64 => bits.into(),
        Dtype::Int8 => (bits as i8).into(),
        Dtype::Int16 => (bits as i16).into(),
        Dtype::Int32 => (bits as i32).into(),
        Dtype::Int64 => (bits as i64).into(),
        _ => panic!("{dtype} is no integer"),
    }
}

/// The bits of `value` modulo two to the dtype's width; a bool is whether it is not zero.
pub fn encode_int(value: i128, dtype: Dtype) -> u64 {
    match dtype {
        Dtype::Bool => (value != 0).into(),
        _ => value as u64 & (u64::MAX >> (64 - 8 * dtype.size())),
    }
}

/// The range of an integer dtype.
pub fn range(dtype: Dtype) -> (i128, i128) {
    let bits = 8 * dtype.size();
    match dtype {
        Dtype::Bool => (0, 1),
        Dtype::Uint8 | Dtype::Uint16 | Dtype::Uint32 | Dtype::Uint64 => (0, (1 << bits) - 1),
        _ => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
    }
}

/// Every element as a real number.
pub fn reals(tensor: &HostTensor) -> Nd<f64> {
    bits(tensor).map(|&b| decode(b, tensor.dtype()))
}

/// Every element as an exact integer.
pub fn ints(tensor: &HostTensor) -> Nd<i128> {
    bits(tensor).map(|&b| decode_int(b, tensor.dtype()))
}

/// Every element as a complex number; reals have no imaginary part.
pub fn complexes(tensor: &HostTensor) -> Nd<Complex64> {
    match tensor.dtype() {
        Dtype::Complex64 => bits(tensor).map(|&b| {
            let part = |b: u32| f64::from(f32::from_bits(b));
            Complex64::new(part(b as u32), part((b >> 32) as u32))
        }),
        _ => reals(tensor).map(|&v| v.into()),
    }
}

/// The bits of a complex64.
pub fn encode_complex(value: Complex64) -> u64 {
    u64::from((value.re as f32).to_bits()) | u64::from((value.im as f32).to_bits()) << 32
}
