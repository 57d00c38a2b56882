//! Rust for any CPU: a row of weights is decoded once and multiplied with every row of `x`.

use super::{E2M1, Weights, e4m3};
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
    values: Vec<f32>,
}

impl<'a> Row<'a> {
    pub fn new(w: &'a Weights<'a>) -> Self {
        Self { w, values: vec![0.0; w.k] }
    }

    /// Row `n` as numbers.
    pub fn decode(&mut self, n: usize) -> &[f32] {
        decode(self.w, n, 0, &mut self.values);
        &self.values
    }
}

/// Numbers `start..start + out.len()` of row `n`; both are multiples of eight.
pub fn decode(w: &Weights<'_>, n: usize, start: usize, out: &mut [f32]) {
    let bits = w.how.bits as usize;
    let codes = &w.codes[n * w.row_bytes() + start / 8 * bits..][..out.len() / 8 * bits];
    match (w.how.mode, w.how.bits) {
        (QuantizationMode::Affine, 1) => unpack::<1>(codes, out, |c| c as f32),
        (QuantizationMode::Affine, 2) => unpack::<2>(codes, out, |c| c as f32),
        (QuantizationMode::Affine, 3) => unpack::<3>(codes, out, |c| c as f32),
        (QuantizationMode::Affine, 4) => unpack::<4>(codes, out, |c| c as f32),
        (QuantizationMode::Affine, 5) => unpack::<5>(codes, out, |c| c as f32),
        (QuantizationMode::Affine, 6) => unpack::<6>(codes, out, |c| c as f32),
        (QuantizationMode::Affine, _) => unpack::<8>(codes, out, |c| c as f32),
        (QuantizationMode::Mxfp8, _) => unpack::<8>(codes, out, |c| e4m3(c as u8)),
        (QuantizationMode::Mxfp4 | QuantizationMode::Nvfp4, _) => {
            unpack::<4>(codes, out, |c| E2M1[c as usize]);
        }
    }
    let (group, first) = (w.how.group_size as usize, n * w.groups());
    let (mut at, end) = (start, start + out.len());
    for values in std::iter::from_fn(|| {
        let next = (at / group + 1) * group;
        let range = at.min(end)..next.min(end);
        at = next;
        (!range.is_empty()).then_some(range)
    }) {
        let index = first + values.start / group;
        let [scale, bias] = w.group(index);
        for value in &mut out[values.start - start..values.end - start] {
            *value = *value * scale + bias;
        }
    }
}

fn unpack<const BITS: usize>(codes: &[u8], out: &mut [f32], value: impl Fn(u32) -> f32) {
    for (out, codes) in out.chunks_exact_mut(8).zip(codes.chunks_exact(BITS)) {
        let mut word = [0; 8];
        word[..BITS].copy_from_slice(codes);
        let word = u64::from_le_bytes(word);
        for (i, out) in out.iter_mut().enumerate() {
            *out = value((word >> (i * BITS)) as u32 & ((1 << BITS) - 1));
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
