//! Reading and writing arrays: safetensors, and NumPy's `.npy` and `.npz`.
//!
//! Files are untrusted: every size, offset and count is checked before it is used. Writers write to
//! a temporary file beside the target and rename it at the end, so that a name either holds the
//! whole new file or what it held before.

pub(crate) mod atomic;
pub(crate) mod layout;
mod npy;
mod npz;
pub(crate) mod read;
mod safetensors;
mod save;

pub use npy::{load_npy, save_npy};
pub use npz::{load_npz, save_npz};
pub use safetensors::{SafeTensors, TensorInfo, load_safetensors};
#[cfg(feature = "text")]
pub(crate) use save::{Index, save_sharded_with};
pub use save::{save_safetensors, save_sharded};
