//! Derivatives.

use crate::array::Array;
use crate::device::default_device;
use crate::error::{Error, Result};
use crate::ffi::{self, Closure, ValueAndGrad, VectorArray, call};

/// The gradient of `f` at `x`, in the shape and dtype of `x`.
///
/// `f` must return a scalar: an array without dimensions. Gradients nest:
/// `grad(|x| grad(|x| f(x), x), &x)` is the second derivative. Complex arrays are treated as MLX treats
/// them: real and imaginary part as two variables.
pub fn grad(f: impl Fn(&Array) -> Result<Array>, x: &Array) -> Result<Array> {
    let (_, mut grads) = value_and_grad(|args| f(&args[0]), [x])?;
    Ok(grads.swap_remove(0))
}

/// The value of `f(args)`, a scalar, and its gradient by each of `args`.
///
/// ```
/// use mlxport::{Array, transforms};
/// # fn main() -> mlxport::Result<()> {
/// let (w, b) = (Array::from(3.0f32), Array::from(1.0f32));
/// let x = Array::from(2.0f32);
/// let (loss, grads) = transforms::value_and_grad(|p| &p[0] * &x + &p[1], [&w, &b])?;
/// assert_eq!(loss.item::<f32>()?, 7.0);
/// assert_eq!((grads[0].item::<f32>()?, grads[1].item::<f32>()?), (2.0, 1.0));
/// # Ok(())
/// # }
/// ```
pub fn value_and_grad<'a>(
    f: impl Fn(&[Array]) -> Result<Array>,
    args: impl IntoIterator<Item = &'a Array>,
) -> Result<(Array, Vec<Array>)> {
    let args: Vec<&Array> = args.into_iter().collect();
    let argnums: Vec<i32> = (0..args.len() as i32).collect();
    let (mut values, grads) = value_and_grad_with(f, args, &argnums)?;
    Ok((values.swap_remove(0), grads))
}

/// The values of `f(args)`, and the gradient of the first of them, a scalar, by the arguments whose
/// positions `argnums` lists (negative ones count from the last), in the order of `argnums`.
///
/// Further values of `f` come back beside the first; no gradient flows through them.
pub fn value_and_grad_with<'a, R: Into<Vec<Array>>>(
    f: impl Fn(&[Array]) -> Result<R>,
    args: impl IntoIterator<Item = &'a Array>,
    argnums: &[i32],
) -> Result<(Vec<Array>, Vec<Array>)> {
    ffi::ready(default_device())?;
    let f = Closure::new(Box::new(|args| {
        let values = f(args)?.into();
        if values.is_empty() {
            return Err(Error::argument("grad", "the function returned no value"));
        }
        Ok(values)
    }));
    let args = VectorArray::new(args);
    let mut with_grad = ValueAndGrad::empty();
    call!(mlx_value_and_grad; with_grad.0; f, [argnums])?;
    let (mut values, mut grads) = (VectorArray::empty(), VectorArray::empty());
    ffi::on_deep_stack(|| call!(mlx_closure_value_and_grad_apply; values.0, grads.0; with_grad, args))?;
    Ok((values.to_arrays()?, in_order(grads.to_arrays()?, argnums, args.len())))
}

/// MLX returns gradients by rising argument number.
fn in_order(grads: Vec<Array>, argnums: &[i32], args: usize) -> Vec<Array> {
    let position = |n: i32| if n < 0 { n + args as i32 } else { n };
    let mut rank: Vec<i32> = argnums.iter().copied().map(position).collect();
    rank.sort_unstable();
    let at = |n: &i32| rank.binary_search(&position(*n)).expect("MLX has accepted argnums");
    argnums.iter().map(|n| grads[at(n)].clone()).collect()
}
