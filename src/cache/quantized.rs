//! Quantized keys and values of all positions.

use super::kv::{KvCache, append};
use super::{KeysValues, positions};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::ops::{self, Quantization, Quantized};

/// Keys and values of all positions, each quantized along its last axis as it comes (affine).
#[derive(Debug, Clone)]
pub struct QuantizedKvCache {
    /// Codes, scales and biases of the keys, then of the values, with room at the end.
    pub(super) store: Option<Vec<Array>>,
    pub(super) offset: i32,
    pub(super) how: Quantization,
}

/// Quantized keys and values to attend to, `[batch, kv_heads, length, dims]` before.
#[derive(Debug, Clone)]
pub struct QuantizedKeysValues {
    /// Keys.
    pub keys: Quantized,
    /// Values.
    pub values: Quantized,
    /// What the codes mean.
    pub how: Quantization,
}

impl QuantizedKvCache {
    /// Nothing yet. Fails for a quantization that does not exist, and for others than affine.
    pub fn new(how: Quantization) -> Result<Self> {
        how.check("quantized cache")?;
        if how.mode != ops::QuantizationMode::Affine {
            let why = "keys and values are quantized in the affine mode";
            return Err(Error::unsupported(format!("a cache of {}", how.mode), why));
        }
        Ok(Self { store: None, offset: 0, how })
    }

    /// The keys and values of another cache, quantized.
    pub(super) fn of(cache: &KvCache, how: Quantization) -> Result<Self> {
        let mut quantized = Self::new(how)?;
        if cache.offset() > 0 {
            let (keys, values) = cache.seen()?;
            quantized.update(&keys, &values)?;
        }
        Ok(quantized)
    }

    /// Positions seen.
    pub fn offset(&self) -> i32 {
        self.offset
    }

    /// Adds keys and values of new positions, `[batch, kv_heads, length, dims]`, and returns all.
    ///
    /// Fails for `dims` that the group size does not divide.
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<KeysValues> {
        let end = self.offset + keys.dim(2)?;
        let new = [self.quantize(keys)?, self.quantize(values)?].concat();
        let old = self.store.take();
        let grown = match &old {
            Some(old) => old.iter().zip(&new).map(|(old, new)| append(Some(old), new, self.offset)).collect(),
            None => new.iter().map(|new| append(None, new, 0)).collect::<Result<Vec<Array>>>(),
        }?;
        // The old handles go before anything is computed, so that MLX may write in place.
        drop(old);
        let seen = grown.iter().map(|part| positions(part, 0, end)).collect::<Result<Vec<Array>>>()?;
        (self.store, self.offset) = (Some(grown), end);
        let [k, k_scales, k_biases, v, v_scales, v_biases] = <[Array; 6]>::try_from(seen)
            .map_err(|parts| Error::argument("quantized cache", format!("{} arrays", parts.len())))?;
        let restore = |q: &Quantized, like: &Array| {
            ops::dequantize(&q.weight, &q.scales, q.biases.as_ref(), self.how, None, Some(like.dtype()))
        };
        let k = Quantized { weight: k, scales: k_scales, biases: Some(k_biases) };
        let v = Quantized { weight: v, scales: v_scales, biases: Some(v_biases) };
        // Computed only where a layer does not take the quantized ones.
        let (keys, values) = (restore(&k, keys)?, restore(&v, values)?);
        let quantized = Some(QuantizedKeysValues { keys: k, values: v, how: self.how });
        Ok(KeysValues { keys, values, quantized })
    }

    fn quantize(&self, x: &Array) -> Result<Vec<Array>> {
        let (dims, group_size) = (x.dim(-1)?, self.how.group_size);
        if dims % group_size != 0 {
            let message = format!("heads of {dims} do not divide into groups of {group_size}");
            return Err(Error::argument("quantized cache", message));
        }
        let Quantized { weight, scales, biases } = ops::quantize(x, self.how, None)?;
        let biases = biases.ok_or_else(|| Error::argument("quantized cache", "no biases"))?;
        Ok(vec![weight, scales, biases])
    }

    pub(super) fn trim(&mut self, count: i32) {
        self.offset -= count;
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.store.iter().flatten()
    }
}
