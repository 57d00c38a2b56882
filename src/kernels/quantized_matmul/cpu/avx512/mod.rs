//! x86 with AVX-512 F, BW, DQ, VL, VNNI and VBMI: what AVX2 does with half as many codes at a time.

pub mod bytes;
mod decode;
pub mod float;
mod groups;
pub mod lanes;
pub mod near;
pub mod tiles;

pub use decode::decode;
