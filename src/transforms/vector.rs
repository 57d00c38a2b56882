//! Products with the Jacobian, and mapping over an axis.

use crate::array::Array;
use crate::device::default_device;
use crate::error::{Error, Result};
use crate::ffi::{self, Closure, VectorArray, call};

/// The values of `f(primals)`, and the product of `cotangents` with the Jacobian: for each primal, the
/// gradient of the sum of values times cotangents. Each cotangent has the shape of the value that it
/// belongs to. Values made by `stop_gradient` have no cotangent.
pub fn vjp<'a, 'b, R: Into<Vec<Array>>>(
    f: impl Fn(&[Array]) -> Result<R>,
    primals: impl IntoIterator<Item = &'a Array>,
    cotangents: impl IntoIterator<Item = &'b Array>,
) -> Result<(Vec<Array>, Vec<Array>)> {
    ffi::ready(default_device())?;
    let f = Closure::new(Box::new(|args| f(args).map(Into::into)));
    let (primals, cotangents) = (VectorArray::new(primals), VectorArray::new(cotangents));
    let (mut values, mut products) = (VectorArray::empty(), VectorArray::empty());
    ffi::on_deep_stack(|| call!(mlx_vjp; values.0, products.0; f, primals, cotangents))?;
    Ok((values.to_arrays()?, products.to_arrays()?))
}

/// The values of `f(primals)`, and the product of the Jacobian with `tangents`: for each value, its
/// derivative along the direction `tangents`. Each tangent has the shape of its primal.
pub fn jvp<'a, 'b, R: Into<Vec<Array>>>(
    f: impl Fn(&[Array]) -> Result<R>,
    primals: impl IntoIterator<Item = &'a Array>,
    tangents: impl IntoIterator<Item = &'b Array>,
) -> Result<(Vec<Array>, Vec<Array>)> {
    ffi::ready(default_device())?;
    let f = Closure::new(Box::new(|args| f(args).map(Into::into)));
    let (primals, tangents) = (VectorArray::new(primals), VectorArray::new(tangents));
    let (mut values, mut products) = (VectorArray::empty(), VectorArray::empty());
    ffi::on_deep_stack(|| call!(mlx_jvp; values.0, products.0; f, primals, tangents))?;
    Ok((values.to_arrays()?, products.to_arrays()?))
}

/// Maps `f` over the first axis of every argument and stacks each of its values along a new first axis.
///
/// `f` sees arrays without the mapped axis, and runs once: its operations are replaced by batched ones.
///
/// ```
/// use mlxport::{Array, transforms};
/// # fn main() -> mlxport::Result<()> {
/// let x = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2])?;
/// let y = Array::from_slice(&[10.0f32, 20.0], &[2])?;
/// // `y` is a scalar inside.
/// let sums = transforms::vmap(|args| &args[0] + &args[1], [&x, &y])?;
/// assert_eq!(sums[0].to_vec::<f32>()?, [11.0, 12.0, 23.0, 24.0]);
/// # Ok(())
/// # }
/// ```
pub fn vmap<'a, R: Into<Vec<Array>>>(
    f: impl Fn(&[Array]) -> Result<R>,
    args: impl IntoIterator<Item = &'a Array>,
) -> Result<Vec<Array>> {
    map(f, args, None, None)
}

/// As [`vmap`], over chosen axes: `in_axes` names one for each argument, or `None` for an argument that
/// `f` sees whole each time; `out_axes` says where the mapped axis goes in each value. Negative axes
/// count from the last. At least one argument is mapped, and mapped axes are of one size.
pub fn vmap_with<'a, R: Into<Vec<Array>>>(
    f: impl Fn(&[Array]) -> Result<R>,
    args: impl IntoIterator<Item = &'a Array>,
    in_axes: &[Option<i32>],
    out_axes: &[i32],
) -> Result<Vec<Array>> {
    map(f, args, Some(in_axes), Some(out_axes))
}

fn map<'a, R: Into<Vec<Array>>>(
    f: impl Fn(&[Array]) -> Result<R>,
    args: impl IntoIterator<Item = &'a Array>,
    in_axes: Option<&[Option<i32>]>,
    out_axes: Option<&[i32]>,
) -> Result<Vec<Array>> {
    let args: Vec<&Array> = args.into_iter().collect();
    let in_axes = match in_axes {
        Some(axes) if axes.len() == args.len() => axes.to_vec(),
        Some(axes) => {
            let message = format!("{} axes for {} arguments", axes.len(), args.len());
            return Err(Error::argument("vmap", message));
        }
        None => vec![Some(0); args.len()],
    };
    if in_axes.iter().all(Option::is_none) {
        return Err(Error::argument("vmap", "no argument is mapped"));
    }
    // MLX writes -1 for an argument that is not mapped.
    let in_axes: Vec<i32> = (args.iter().zip(&in_axes))
        .map(|(arg, axis)| axis.map_or(Ok(-1), |axis| position(axis, arg.ndim())))
        .collect::<Result<_>>()?;

    ffi::ready(default_device())?;
    let f = Closure::new(Box::new(|args| f(args).map(Into::into)));
    let args = VectorArray::new(args);
    let (mut traced_args, mut traced) = (VectorArray::empty(), VectorArray::empty());
    call!(mlx_detail_vmap_trace; traced_args.0, traced.0; f, args, [in_axes])?;

    let values = traced.to_arrays()?;
    let out_axes = match out_axes {
        Some(axes) if axes.len() == values.len() => axes.to_vec(),
        Some(axes) => {
            let message = format!("{} axes for {} values", axes.len(), values.len());
            return Err(Error::argument("vmap", message));
        }
        None => vec![0; values.len()],
    };
    let out_axes: Vec<i32> = (values.iter().zip(&out_axes))
        .map(|(value, &axis)| position(axis, value.ndim() + 1))
        .collect::<Result<_>>()?;
    let mut out = VectorArray::empty();
    ffi::on_deep_stack(
        || call!(mlx_detail_vmap_replace; out.0; args, traced_args, traced, [in_axes], [out_axes]),
    )?;
    out.to_arrays()
}

/// `axis` of `ndim` dimensions, counted from the first.
pub(super) fn position(axis: i32, ndim: usize) -> Result<i32> {
    let at = if axis < 0 { axis + ndim as i32 } else { axis };
    if (0..ndim as i32).contains(&at) {
        return Ok(at);
    }
    Err(Error::argument("vmap", format!("axis {axis} of an array of {ndim} dimensions")))
}
