//! Operations written in Rust that take part in MLX's graph.

use super::{Spec, View, ViewMut, metal};
use crate::array::Array;
use crate::error::Result;
use crate::ffi;

/// An operation with an implementation in Rust for the CPU and a reference in operations of MLX.
///
/// [`apply`] adds it to the lazy graph. On a CPU stream [`cpu`](Self::cpu) computes it; on a GPU stream
/// [`metal`](Self::metal) does if it has a case for the inputs, else the reference. Exported
/// functions go through the reference too, and `vmap` and gradients unless [`vmap`](Self::vmap) and
/// [`vjp`](Self::vjp) have their own, so all must compute the same.
///
/// [`cpu`](Self::cpu) runs on MLX's thread for the stream, where arrays must not be used: an attempt
/// panics. A panic or an error there comes back from `eval`, and the stream can be used again.
pub trait CustomKernel: Send + Sync + 'static {
    /// How the operation is called in messages and in printed graphs.
    fn name(&self) -> &str;

    /// Shape and dtype of each output. Fails if the inputs do not fit.
    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>>;

    /// Outputs that begin as an input, of the same shape and dtype: pairs of an output and its input. Such an output has
    /// the input's elements when [`cpu`](Self::cpu) gets it, which gets no elements of the input itself. Where nobody else
    /// needs the input, its memory becomes that of the output, and nothing is copied.
    fn in_place(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }

    /// Whether [`cpu`](Self::cpu) writes every element of every output: then they are not made zero first, and hold anything
    /// (without optimisation, bytes of 255).
    fn fills(&self) -> bool {
        false
    }

    /// Computes the outputs.
    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()>;

    /// The same by a shader ([`metal_kernel`](crate::fast::metal_kernel)) on a GPU stream of MLX with Metal, or
    /// `None` for inputs that the reference is to take.
    fn metal(&self, _inputs: &[Array]) -> Option<Result<Vec<Array>>> {
        None
    }

    /// The same in operations of MLX.
    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>>;

    /// Gradients of the inputs that `argnums` names, from those of the outputs; `None` for the reference's.
    fn vjp(&self, _inputs: &[Array], _cotangents: &[Array], _argnums: &[i32]) -> Result<Option<Vec<Array>>> {
        Ok(None)
    }

    /// The outputs for each index of the axes of the inputs that are mapped, along their first axis; `None` for the
    /// reference's.
    fn vmap(&self, _inputs: &[Array], _axes: &[Option<i32>]) -> Result<Option<Vec<Array>>> {
        Ok(None)
    }

    /// Whether [`cpu`](Self::cpu) reads input `index`, one of the first 64, by its strides. Other
    /// inputs are copied where they are not row-contiguous.
    fn takes_strided(&self, _index: usize) -> bool {
        false
    }
}

/// The outputs of `kernel`, not yet computed, on the stream of the current scope.
pub fn apply<'a>(
    kernel: impl CustomKernel,
    inputs: impl IntoIterator<Item = &'a Array>,
) -> Result<Vec<Array>> {
    let inputs: Vec<&Array> = inputs.into_iter().collect();
    if metal::is_active() {
        return metal::apply(kernel, &inputs);
    }
    ffi::apply_kernel(Box::new(kernel), &inputs)
}
