//! Rust for any CPU: a row of weights is decoded once and multiplied with every row of `x`.

use super::{E2M1, E4M3, Weights};
use crate::kernels::pool;
use crate::ops::QuantizationMode;

/// `columns[n, m] = x[m, k] @ w[n, k]`, `grain` rows of weights at a time.
pub fn product(w: &Weights<'_>, x: &[f32], columns: &mut [f32], grain: usize) {
    let count = x.len() / w.k;
    pool::for_each_piece(columns, grain * count, |piece, columns| {
        let mut row = Row::new(w);
        for (i, out) in columns.chunks_exact_mut(count).enumerate() {
            let decoded = row.decode(piece * grain + i);
            for (out, x) in out.iter_mut().zip(x.chunks_exact(w.k)) {
                *out = dot(x, decoded);
            }
        }
    });
}

/// Room for a decoded row.
pub struct Row<'a> {
    w: &'a Weights<'a>,
    scales: Vec<f32>,
    biases: Vec<f32>,
    values: Vec<f32>,
}

impl<'a> Row<'a> {
    pub fn new(w: &'a Weights<'a>) -> Self {
        let groups = w.groups();
        Self { w, scales: vec![0.0; groups], biases: vec![0.0; groups], values: vec![0.0; w.k] }
    }

    /// Row `n` as numbers.
    pub fn decode(&mut self, n: usize) -> &[f32] {
        let (w, groups, bytes) = (self.w, self.w.groups(), self.w.row_bytes());
        w.scales.read(n * groups, &mut self.scales);
        if let Some(biases) = &w.biases {
            biases.read(n * groups, &mut self.biases);
        }
        let codes = &w.codes[n * bytes..][..bytes];
        match (w.how.mode, w.how.bits) {
            (QuantizationMode::Affine, 2) => self.decode_codes::<2>(codes, |c| c as f32),
            (QuantizationMode::Affine, 3) => self.decode_codes::<3>(codes, |c| c as f32),
            (QuantizationMode::Affine, 4) => self.decode_codes::<4>(codes, |c| c as f32),
            (QuantizationMode::Affine, 5) => self.decode_codes::<5>(codes, |c| c as f32),
            (QuantizationMode::Affine, 6) => self.decode_codes::<6>(codes, |c| c as f32),
            (QuantizationMode::Affine, _) => self.decode_codes::<8>(codes, |c| c as f32),
            (QuantizationMode::Mxfp8, _) => self.decode_codes::<8>(codes, |c| E4M3[c as usize]),
            (QuantizationMode::Mxfp4 | QuantizationMode::Nvfp4, _) => {
                self.decode_codes::<4>(codes, |c| E2M1[c as usize]);
            }
        }
        &self.values
    }

    fn decode_codes<const BITS: usize>(&mut self, codes: &[u8], value: impl Fn(u32) -> f32) {
        let eight = codes.chunks_exact(BITS);
        for (out, codes) in self.values.chunks_exact_mut(8).zip(eight) {
            let mut word = [0; 8];
            word[..BITS].copy_from_slice(codes);
            let word = u64::from_le_bytes(word);
            for (i, out) in out.iter_mut().enumerate() {
                *out = value((word >> (i * BITS)) as u32 & ((1 << BITS) - 1));
            }
        }
        let groups = self.values.chunks_exact_mut(self.w.how.group_size as usize);
        for ((values, &scale), &bias) in groups.zip(&self.scales).zip(&self.biases) {
            for value in values {
                *value = *value * scale + bias;
            }
        }
    }
}

/// The sum of products, in sixteen partial sums. In `f64`, where products are exact: without it, MLX's
/// own product, which its compiler gives fused multiply-adds, can be several times closer.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f64; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    let rest = a.len() - a.len() % LANES;
    for (sum, (a, b)) in sums.iter_mut().zip(a[rest..].iter().zip(&b[rest..])) {
        *sum += f64::from(*a) * f64::from(*b);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0] as f32
}
