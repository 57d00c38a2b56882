//! Reading and writing arrays: safetensors, and NumPy's `.npy` and `.npz`.
//!
//! Files are untrusted: every size, offset and count is checked before it is used. Writers write to
//! a temporary file beside the target and rename it at the end, so that a name either holds the
//! whole new file or what it held before.

mod safetensors;

pub use safetensors::{SafeTensors, TensorInfo, load_safetensors};
