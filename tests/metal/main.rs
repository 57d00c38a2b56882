//! The runner of Metal shaders (`metal/host`): what it catches, what it computes, and MLX's shaders and ours on it.

mod faults;
mod language;
mod mlx;
mod shaders;
