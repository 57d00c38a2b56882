//! Linear layers of which each token uses some, and those that differ from head to head.

use super::Weight;
use crate::array::Array;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::{ops, parameters};

/// `x W_i^T + b_i`, with the weights of the expert `i` that a token was sent to.
#[derive(Debug, Clone)]
pub struct SwitchLinear {
    /// `[experts, out, in]`.
    pub weight: Weight,
    /// `[experts, out]`.
    pub bias: Option<Array>,
    /// `[experts]`: the scale of each quantized matrix as a whole, times [`Self::GLOBAL`] (`nvfp4`).
    pub global_scale: Option<Array>,
}

parameters!(SwitchLinear { weight: "", bias, global_scale });

impl SwitchLinear {
    /// What the global scale of `nvfp4` counts in: the largest code times the largest scale of a group.
    pub const GLOBAL: f32 = 6.0 * 448.0;

    /// The layers `name` of experts that a checkpoint has one by one, from `input` to `output` features,
    /// without biases. Fails where they are not all dense, or all quantized in the same way.
    pub fn stacked(experts: &[Weights], name: &str, input: i32, output: i32) -> Result<Self> {
        let each = experts.iter().map(|w| Weight::load(&w.pp(name), &[output, input]));
        let weight = Weight::stack(&each.collect::<Result<Vec<_>>>()?)?;
        Ok(Self { weight, bias: None, global_scale: None })
    }

    /// `[..., m, in]` to `[..., m, out]`. `experts` are integers whose shape broadcasts with the `...`;
    /// `sorted` promises that they ascend.
    pub fn forward(&self, x: &Array, experts: &Array, sorted: bool) -> Result<Array> {
        let mut x = self.weight.gather(x, experts, sorted)?;
        if let Some(scale) = &self.global_scale {
            let factors = ops::expand_dims(&ops::take(&(scale / Self::GLOBAL)?, experts, 0)?, [-1, -2])?;
            x = ops::astype(&(&x * factors)?, x.dtype())?;
        }
        match &self.bias {
            Some(bias) => x + ops::expand_dims(&ops::take(bias, experts, 0)?, -2)?,
            None => Ok(x),
        }
    }
}

/// `x W_h^T`, with weights of its own for each head.
#[derive(Debug, Clone)]
pub struct MultiLinear {
    /// `[heads, out, in]`.
    pub weight: Weight,
}

parameters!(MultiLinear { weight: "" });

impl MultiLinear {
    /// `[batch, heads, length, in]` to `[batch, heads, length, out]`; `x` may have one head for all.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        self.weight.project(x)
    }

    /// The product with the matrices not transposed: `[batch, heads, length, out]` to
    /// `[batch, heads, length, in]`.
    pub fn back(&self, x: &Array) -> Result<Array> {
        self.weight.project_back(x)
    }
}

impl Weights {
    /// The layer `name` of so many experts, from `input` to `output` features, with biases if there are
    /// any.
    pub fn switch_linear(&self, name: &str, experts: i32, input: i32, output: i32) -> Result<SwitchLinear> {
        let w = self.pp(name);
        let bias = w.contains("bias").then(|| w.get_shaped("bias", &[experts, output])).transpose()?;
        let scaled = w.contains("global_scale") && w.contains("scales");
        let global_scale = scaled.then(|| w.get_shaped("global_scale", &[experts])).transpose()?;
        Ok(SwitchLinear { weight: Weight::load(&w, &[experts, output, input])?, bias, global_scale })
    }

    /// The layer `name` of so many heads, from `input` to `output` features.
    pub fn multi_linear(&self, name: &str, heads: i32, input: i32, output: i32) -> Result<MultiLinear> {
        Ok(MultiLinear { weight: Weight::load(&self.pp(name), &[heads, output, input])? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Dtype;

    /// Codes 2 of e2m1 are 1, and so is the scale 0x38 of e4m3: all that the matrices differ in is their
    /// scale as a whole.
    #[test]
    fn each_matrix_has_its_global_scale() {
        let codes = ops::full(&[2, 3, 2], 0x2222_2222u32, Dtype::Uint32).unwrap();
        let scales = ops::full(&[2, 3, 1], 0x38, Dtype::Uint8).unwrap();
        let global = Array::from_slice(&[2688.0f32, 672.0], &[2]).unwrap();
        let weights = [("l.weight", codes), ("l.scales", scales), ("l.global_scale", global)];
        let w = Weights::from_arrays(weights.map(|(name, array)| (name.to_owned(), array)));
        let layer = w.switch_linear("l", 2, 16, 3).unwrap();
        w.finish().unwrap();
        let x = ops::ones(&[2, 1, 16], Dtype::Float32).unwrap();
        let experts = Array::from_slice(&[1u32, 0], &[2]).unwrap();
        let out: Vec<f32> = layer.forward(&x, &experts, false).unwrap().to_vec().unwrap();
        assert_eq!(out, [4.0, 4.0, 4.0, 16.0, 16.0, 16.0]);
    }
}
