//! Functions with derivatives of their own, and functions that are recomputed for the gradient.

use std::cell::Cell;
use std::rc::Rc;

use super::vector::position;
use crate::array::Array;
use crate::device::default_device;
use crate::error::{Error, Result};
use crate::ffi::{self, Closure, JvpClosure, VectorArray, VjpClosure, VmapClosure, call};

/// A function of arrays that MLX holds. It belongs to its thread, as arrays do.
pub struct Function(pub(super) Closure<'static>);

impl Function {
    /// The values of the function.
    pub fn call<'a>(&self, args: impl IntoIterator<Item = &'a Array>) -> Result<Vec<Array>> {
        ffi::ready(default_device())?;
        self.0.apply(&VectorArray::new(args))
    }
}

/// `f` with a gradient of its own: `vjp(primals, cotangents, values)` returns the cotangent of each
/// primal, in that primal's shape. It replaces what MLX would derive.
pub fn custom_vjp<R: Into<Vec<Array>>, G: Into<Vec<Array>>>(
    f: impl Fn(&[Array]) -> Result<R> + 'static,
    vjp: impl Fn(&[Array], &[Array], &[Array]) -> Result<G> + 'static,
) -> Result<Function> {
    CustomFunction::new(f).vjp(vjp).build()
}

/// `f`, with its inner values not kept for the gradient but computed again when that is taken: less
/// memory, more time.
pub fn checkpoint<R: Into<Vec<Array>>>(f: impl Fn(&[Array]) -> Result<R> + 'static) -> Result<Function> {
    let f = Closure::new(Box::new(some_values(f, Rc::default())));
    let mut out = Closure::default();
    call!(mlx_checkpoint; out.raw; f)?;
    Ok(Function(out))
}

/// A function whose transforms are given by hand, one by one; those that are not are derived by MLX.
pub struct CustomFunction {
    f: Closure<'static>,
    vjp: VjpClosure<'static>,
    jvp: JvpClosure<'static>,
    vmap: VmapClosure<'static>,
    /// How many values `f` returned.
    values: Rc<Cell<Option<usize>>>,
}

impl CustomFunction {
    /// Starts from `f`, which always returns the same number of values, at least one.
    pub fn new<R: Into<Vec<Array>>>(f: impl Fn(&[Array]) -> Result<R> + 'static) -> Self {
        let values = Rc::default();
        Self {
            f: Closure::new(Box::new(some_values(f, Rc::clone(&values)))),
            vjp: VjpClosure::default(),
            jvp: JvpClosure::default(),
            vmap: VmapClosure::default(),
            values,
        }
    }

    /// Sets the gradient: see [`custom_vjp`].
    pub fn vjp<R: Into<Vec<Array>>>(
        mut self,
        vjp: impl Fn(&[Array], &[Array], &[Array]) -> Result<R> + 'static,
    ) -> Self {
        self.vjp = VjpClosure::new(Box::new(move |primals, cotangents, values| {
            let grads = vjp(primals, cotangents, values)?.into();
            expect_count("custom_vjp", "cotangents", primals.len(), grads.len())?;
            for (primal, grad) in primals.iter().zip(&grads) {
                if primal.shape() != grad.shape() {
                    let (lhs, rhs) = (primal.shape().to_vec(), grad.shape().to_vec());
                    return Err(Error::Shape { op: "custom_vjp", lhs, rhs });
                }
            }
            Ok(grads)
        }));
        self
    }

    /// Sets the forward derivative: `jvp(primals, tangents, argnums)` returns the tangent of each value,
    /// where `tangents[i]` belongs to `primals[argnums[i]]` and the other primals are constant.
    pub fn jvp<R: Into<Vec<Array>>>(
        mut self,
        jvp: impl Fn(&[Array], &[Array], &[i32]) -> Result<R> + 'static,
    ) -> Self {
        let values = Rc::clone(&self.values);
        self.jvp = JvpClosure::new(Box::new(move |primals, tangents, argnums| {
            let out = jvp(primals, tangents, argnums)?.into();
            expect_count("custom_jvp", "tangents", values.get().unwrap_or(0), out.len())?;
            Ok(out)
        }));
        self
    }

    /// Sets how it is mapped: `vmap(inputs, in_axes)` takes arrays with their mapped axes (`None`: not
    /// mapped) and returns the values with the axis that is mapped in each.
    pub fn vmap(
        mut self,
        vmap: impl Fn(&[Array], &[Option<i32>]) -> Result<(Vec<Array>, Vec<i32>)> + 'static,
    ) -> Self {
        let values = Rc::clone(&self.values);
        self.vmap = VmapClosure::new(Box::new(move |inputs, axes| {
            let axes: Vec<Option<i32>> = axes.iter().map(|&axis| (axis >= 0).then_some(axis)).collect();
            let (out, out_axes) = vmap(inputs, &axes)?;
            expect_count("custom_vmap", "values", values.get().unwrap_or(0), out.len())?;
            expect_count("custom_vmap", "axes", out.len(), out_axes.len())?;
            let at = out.iter().zip(&out_axes).map(|(value, &axis)| position(axis, value.ndim()));
            let at = at.collect::<Result<_>>()?;
            Ok((out, at))
        }));
        self
    }

    /// The function.
    pub fn build(self) -> Result<Function> {
        let Self { f, vjp, jvp, vmap, .. } = self;
        let mut out = Closure::default();
        call!(mlx_custom_function; out.raw; f, vjp, jvp, vmap)?;
        Ok(Function(out))
    }
}

/// `f` with what MLX takes for granted checked: at least one value, and the same number each time.
fn some_values<R: Into<Vec<Array>>>(
    f: impl Fn(&[Array]) -> Result<R> + 'static,
    count: Rc<Cell<Option<usize>>>,
) -> impl Fn(&[Array]) -> Result<Vec<Array>> + 'static {
    move |args| {
        let values = f(args)?.into();
        if values.is_empty() {
            return Err(Error::argument("custom_function", "the function returned no value"));
        }
        expect_count("custom_function", "values", count.get().unwrap_or(values.len()), values.len())?;
        count.set(Some(values.len()));
        Ok(values)
    }
}

fn expect_count(op: &'static str, what: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::argument(op, format!("{found} {what} where {expected} are due")))
}
