//! An operation of one's own in MLX's graph: squared ReLU, `max(x, 0)^2`.

use mlxport::kernels::{CustomKernel, Spec, View, ViewMut, apply};
use mlxport::{Array, Result, ops, transforms};

struct SquaredRelu;

impl CustomKernel for SquaredRelu {
    fn name(&self) -> &str {
        "squared_relu"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        Ok(vec![inputs[0].clone()])
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let (x, y) = (inputs[0].as_slice::<f32>()?, outputs[0].as_mut_slice::<f32>()?);
        for (y, x) in y.iter_mut().zip(x) {
            *y = x.max(0.0).powi(2);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        Ok(vec![ops::square(&ops::maximum(&inputs[0], 0.0)?)?])
    }
}

fn squared_relu(x: &Array) -> Result<Array> {
    Ok(apply(SquaredRelu, [x])?.swap_remove(0))
}

fn main() -> Result<()> {
    let x = Array::from_slice(&[-1.0f32, 0.0, 1.0, 3.0], &[4])?;
    println!("{}", squared_relu(&x)?);
    let loss = |x: &Array| ops::sum(&squared_relu(x)?, .., false);
    println!("{}", transforms::grad(loss, &x)?);
    Ok(())
}
