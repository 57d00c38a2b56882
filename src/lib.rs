//! mlxport.

pub mod array;
pub mod device;
pub mod error;
pub mod fast;
mod ffi;
pub mod memory;
pub mod ops;
pub mod transforms;

pub use array::{Array, Dtype, HostTensor};
pub use device::{Device, Stream, with_device, with_stream};
pub use error::{Error, Result};
