//! Ports machine-learning models to Apple's MLX, proves the port, and runs it.
//!
//! The library has three layers: a safe, lazy array API over MLX's C++ core ([`Array`], [`ops`],
//! [`transforms`], [`device`]); models with their weights, caches and generation; and the porting workflow.
//!
//! # Arrays
//!
//! Operations are functions and operators on `&Array`. They return `Result<Array>`, with shapes and dtypes
//! checked at once. Numbers are operands too, and take the dtype of the array beside them.
//!
//! ```
//! use mlxport::{Array, Dtype, ops};
//! # fn main() -> mlxport::Result<()> {
//! let x = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3])?;
//! let y = ((&x * 0.5) + &x)?; // a chain needs one `?`
//! assert_eq!(y.shape(), [2, 3]);
//! assert_eq!(ops::sum(&y, -1, false)?.to_vec::<f32>()?, [9.0, 22.5]);
//! assert!(ops::matmul(&x, &y).is_err()); // [2, 3] by [2, 3]
//!
//! let half = ops::astype(&x, Dtype::Float16)?;
//! assert_eq!((&half * 2.0)?.dtype(), Dtype::Float16);
//! # Ok(())
//! # }
//! ```
//!
//! # Laziness
//!
//! An operation only adds a node to a graph. Values are computed when they are read, or by
//! [`eval`](transforms::eval), in one go for everything they need.
//!
//! ```
//! # use mlxport::{Array, ops, transforms};
//! # fn main() -> mlxport::Result<()> {
//! let a = ops::ones(&[512, 512], mlxport::Dtype::Float32)?;
//! let b = ops::matmul(&a, &a)?; // nothing is computed yet
//! let c = ops::mean(&b, .., false)?;
//! transforms::eval([&b, &c])?; // both, and `b` once
//! assert_eq!(c.item::<f32>()?, 512.0);
//! # Ok(())
//! # }
//! ```
//!
//! # Gradients and compiled functions
//!
//! Transforms take closures, which may capture arrays.
//!
//! ```
//! # use mlxport::{Array, ops, transforms};
//! # fn main() -> mlxport::Result<()> {
//! let x = Array::from(3.0f32);
//! let cube = |x: &Array| (x * x) * x;
//! assert_eq!(transforms::grad(cube, &x)?.item::<f32>()?, 27.0);
//! assert_eq!(transforms::grad(|x| transforms::grad(cube, x), &x)?.item::<f32>()?, 18.0);
//!
//! // Traced once for each shape, then run as one fused function.
//! let silu = transforms::compile(|args: &[Array]| &args[0] * ops::sigmoid(&args[0])?);
//! assert_eq!(silu.call([&Array::from(0.0f32)])?[0].item::<f32>()?, 0.0);
//! # Ok(())
//! # }
//! ```
//!
//! # Devices and streams
//!
//! No operation takes a device: a scope sets it.
//!
//! ```
//! # use mlxport::{Array, Device, Stream, with_device, with_stream};
//! # fn main() -> mlxport::Result<()> {
//! let x = Array::from(2.0f32);
//! let on_cpu = with_device(Device::cpu(), || &x * &x)??;
//! let stream = Stream::new(Device::cpu())?;
//! let beside = with_stream(&stream, || &x + &x)?; // may run while the default stream works
//! assert_eq!((&on_cpu - &beside)?.item::<f32>()?, 0.0);
//! # Ok(())
//! # }
//! ```
//!
//! An [`Array`] belongs to its thread; [`HostTensor`] carries values between threads.

#![deny(missing_docs, unsafe_code)]

pub mod array;
pub mod cache;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod device;
pub mod distributed;
pub mod error;
pub mod fast;
#[allow(unsafe_code)]
mod ffi;
pub mod fft;
pub mod generate;
#[cfg(feature = "hub")]
pub mod hub;
pub mod io;
pub mod kernels;
pub mod linalg;
pub mod memory;
pub mod metal;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
#[cfg(feature = "text")]
pub mod port;
pub mod random;
pub mod synth;
#[cfg(feature = "text")]
pub mod text;
pub mod transforms;

pub use array::{Array, Dtype, HostTensor};
pub use device::{Device, Stream, with_device, with_stream};
pub use error::{Error, Result};

/// The example of the README, so that it stays true.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
