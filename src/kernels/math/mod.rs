//! Functions of many elements at once.

pub(super) mod cpu;

use super::path::Path;

/// Replaces each value by `exp(value - max)`, and returns their sum.
pub(crate) fn exp_sum(path: Path, values: &mut [f32], max: f32) -> f32 {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => cpu::avx2::exp_sum(values, max),
        _ => {
            values.iter_mut().for_each(|v| *v = (*v - max).exp());
            values.iter().map(|&v| f64::from(v)).sum::<f64>() as f32
        }
    }
}

/// The largest value; NaN if there is one, and minus infinity if there is none.
pub(crate) fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut nan = false;
    for chunk in values.chunks(16) {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            nan |= v.is_nan();
            *lane = if v > *lane { v } else { *lane };
        }
    }
    if nan { f32::NAN } else { lanes.iter().fold(f32::NEG_INFINITY, |max, &v| max.max(v)) }
}

/// The sum of `f` of the values, in sixteen partial sums.
pub(crate) fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    for chunk in values.chunks(16) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &v)| *lane += f(v));
    }
    lanes.iter().sum()
}

/// Replaces each `gate` by `gate / (1 + exp(-gate)) * x`.
pub(crate) fn silu_times(path: Path, gate: &mut [f32], x: &[f32]) {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => cpu::avx2::silu_times(gate, x),
        _ => gate.iter_mut().zip(x).for_each(|(gate, x)| *gate = *gate / (1.0 + (-*gate).exp()) * x),
    }
}
