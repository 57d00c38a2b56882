//! Rotations that make matrices easier to quantize.

use crate::array::{Array, Dtype};
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::{ops, parameters};

/// A rotation of the features of a matrix: signs, and then a normalised Walsh-Hadamard transform of each
/// block of neighbouring features (Tseng et al., "QuIP#", 2024).
#[derive(Debug, Clone)]
pub struct Rotation {
    /// `[dims]`, each 1 or -1.
    signs: Array,
    /// Features of a block.
    block: i32,
}

parameters!(Rotation { signs });

impl Rotation {
    /// Reads the signs beside a matrix with `dims` columns. Fails for others than 1 and -1, and for a block
    /// that is no power of two, or does not divide the columns.
    pub fn load(w: &Weights, dims: i32, block: i32) -> Result<Self> {
        if block <= 0 || block & (block - 1) != 0 || dims % block != 0 {
            let message = format!("`{}`: {dims} features do not rotate in blocks of {block}", w.path());
            return Err(Error::invalid(w.file(), message));
        }
        let signs = ops::astype(&w.get_shaped("signs", &[dims])?, Dtype::Float32)?;
        if !ops::all(&ops::equal(&ops::abs(&signs)?, 1.0)?, .., false)?.item::<bool>()? {
            let message = format!("weight `{}` has others than 1 and -1", w.full("signs"));
            return Err(Error::invalid(w.file(), message));
        }
        Ok(Self { signs, block })
    }

    /// `[..., dims]` to the same shape, computed in `float32`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let signed = (ops::astype(x, Dtype::Float32)? * &self.signs)?;
        ops::astype(&self.transform(&signed)?, x.dtype())
    }

    /// Undoes [`forward`](Self::forward).
    pub fn back(&self, x: &Array) -> Result<Array> {
        let back = self.transform(&ops::astype(x, Dtype::Float32)?)?;
        ops::astype(&(back * &self.signs)?, x.dtype())
    }

    /// The transform is its own inverse.
    fn transform(&self, x: &Array) -> Result<Array> {
        let blocks = ops::unflatten(x, -1, &[-1, self.block])?;
        ops::flatten(&ops::hadamard_transform(&blocks, None)?, -2, -1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(signs: &[f32], block: i32) -> Result<Rotation> {
        let dims = signs.len() as i32;
        let signs = Array::from_slice(signs, &[dims])?;
        Rotation::load(&Weights::from_arrays([("signs".to_owned(), signs)]), dims, block)
    }

    /// The transform of (a, b) is (a + b, a - b) over the square root of two.
    #[test]
    fn signs_come_before_the_transform_and_go_after_it() {
        let rotation = rotation(&[1., -1., -1., 1.], 2).unwrap();
        let x = Array::from_slice(&[3f32, 1., 0., 5.], &[1, 4]).unwrap();
        let turned = rotation.forward(&x).unwrap();
        let values: Vec<f32> = (&turned * 2f32.sqrt()).unwrap().to_vec().unwrap();
        let close = |a: &[f32], b: [f32; 4]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&values, [2., 4., 5., -5.]), "{values:?}");
        let back: Vec<f32> = rotation.back(&turned).unwrap().to_vec().unwrap();
        assert!(close(&back, [3., 1., 0., 5.]), "{back:?}");
    }

    #[test]
    fn what_is_no_rotation_is_refused() {
        for (signs, block) in [(&[1f32, -1.] as &[f32], 0), (&[1., -1.], -2), (&[1., 1., 1., 1., 1., 1.], 4)]
        {
            assert!(rotation(signs, block).is_err(), "{block}");
        }
        assert!(rotation(&[1., 1., 1.], 3).is_err());
        assert!(rotation(&[1., 0.5], 2).unwrap_err().to_string().contains("others than 1 and -1"));
    }
}
