//! How far two tensors are apart.

use serde::{Deserialize, Serialize};

use crate::array::HostTensor;
use crate::error::Result;

/// The distance of a tensor from its reference.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deviation {
    /// Largest absolute difference over the standard deviation of the reference.
    pub relative: f64,
    /// Where it is: the index in each dimension.
    pub at: Vec<usize>,
    /// The port's value there.
    pub found: f64,
    /// The reference's value there.
    pub expected: f64,
}

impl Deviation {
    /// Compares two `float32` tensors. `Err` if they have not; `Ok(None)` if the shapes differ.
    /// A NaN, or an infinity that the other side has not, is an infinite deviation.
    pub fn between(found: &HostTensor, expected: &HostTensor) -> Result<Option<Self>> {
        let (a, b) = (found.to_vec::<f32>()?, expected.to_vec::<f32>()?);
        if found.shape() != expected.shape() {
            return Ok(None);
        }
        let spread = standard_deviation(&b).max(f64::MIN_POSITIVE);
        let mut worst = (0, 0.0);
        for (i, (&x, &y)) in a.iter().zip(&b).enumerate() {
            let (x, y) = (f64::from(x), f64::from(y));
            let difference = if x == y { 0.0 } else { (x - y).abs() };
            let difference = if difference.is_nan() { f64::INFINITY } else { difference };
            if difference > worst.1 {
                worst = (i, difference);
            }
        }
        let value = |v: &[f32]| v.get(worst.0).copied().map_or(0.0, f64::from);
        Ok(Some(Self {
            relative: worst.1 / spread,
            at: unravel(worst.0, found.shape()),
            found: value(&a),
            expected: value(&b),
        }))
    }
}

fn standard_deviation(values: &[f32]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

fn unravel(mut flat: usize, shape: &[i32]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (slot, &size) in at.iter_mut().zip(shape).rev() {
        let size = (size as usize).max(1);
        (*slot, flat) = (flat % size, flat / size);
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[i32]) -> HostTensor {
        HostTensor::from_slice(values, shape).unwrap()
    }

    #[test]
    fn finds_the_worst_element_in_units_of_the_reference_spread() {
        let expected = tensor(&[-1.0, 1.0, -1.0, 1.0], &[2, 2]);
        let found = tensor(&[-1.0, 1.0, -1.25, 1.0], &[2, 2]);
        let deviation = Deviation::between(&found, &expected).unwrap().unwrap();
        assert_eq!((deviation.relative, deviation.at), (0.25, vec![1, 0]));
        let same = Deviation::between(&expected, &expected).unwrap().unwrap();
        assert_eq!(same.relative, 0.0);
    }

    #[test]
    fn what_is_not_a_number_never_passes() {
        let expected = tensor(&[0.0, f32::INFINITY], &[2]);
        assert_eq!(Deviation::between(&expected, &expected).unwrap().unwrap().relative, 0.0);
        for bad in [[f32::NAN, f32::INFINITY], [0.0, 1.0], [0.0, f32::NEG_INFINITY]] {
            let deviation = Deviation::between(&tensor(&bad, &[2]), &expected).unwrap().unwrap();
            assert_eq!(deviation.relative, f64::INFINITY, "{bad:?}");
        }
    }

    #[test]
    fn other_shapes_are_not_compared() {
        let (a, b) = (tensor(&[0.0; 4], &[4]), tensor(&[0.0; 4], &[2, 2]));
        assert!(Deviation::between(&a, &b).unwrap().is_none());
    }
}
