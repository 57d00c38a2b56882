//! Quantized matrices: every mode round-trips within its own error bound, and bad arguments are refused.

use mlxport::ops::{self, Quantization, QuantizationMode};
use mlxport::{Array, Dtype};

fn matrix(rows: i32, columns: i32) -> Array {
    let ramp = ops::arange(0, rows * columns, 1, Dtype::Float32).unwrap();
    let wave = ops::sin(&(ramp * 0.37).unwrap()).unwrap();
    ops::reshape(&wave, &[rows, columns]).unwrap()
}

fn largest_difference(a: &Array, b: &Array) -> f32 {
    let difference = ops::abs(&ops::subtract(a, b).unwrap()).unwrap();
    ops::max(&ops::astype(&difference, Dtype::Float32).unwrap(), .., false).unwrap().item().unwrap()
}

fn every_quantization() -> Vec<Quantization> {
    let affine =
        [32, 64, 128].into_iter().flat_map(|g| [2, 3, 4, 5, 6, 8].map(|b| Quantization::affine(g, b)));
    affine.chain(QuantizationMode::ALL[1..].iter().map(|&mode| mode.into())).collect()
}

/// The largest error a mode can make, for values in [-1, 1].
fn error_bound(how: Quantization) -> f32 {
    match how.mode {
        // One step: MLX moves the scale so that the end of larger magnitude is exact, which cuts off less
        // than a step at the other end.
        QuantizationMode::Affine => 2.0 / ((1 << how.bits) - 1) as f32,
        // Half a step at the top, where e2m1 steps by a third of its largest number; the scale is rounded
        // up by less than a factor of two (e8m0) or by a sixteenth at most (e4m3).
        QuantizationMode::Mxfp4 => 2.0 / 6.0,
        QuantizationMode::Nvfp4 => 17.0 / 16.0 / 6.0,
        // As above; e4m3 steps by a fourteenth of its largest number.
        QuantizationMode::Mxfp8 => 2.0 / 28.0,
    }
}

#[test]
fn every_mode_round_trips_within_its_error_bound() {
    let w = matrix(4, 256);
    for how in every_quantization() {
        let q = ops::quantize(&w, how, None).unwrap();
        assert_eq!(q.weight.shape(), [4, 256 * how.bits / 32], "{how:?}");
        assert_eq!(q.scales.shape(), [4, 256 / how.group_size], "{how:?}");
        assert_eq!(q.biases.is_some(), how.mode == QuantizationMode::Affine);
        let back = ops::dequantize(&q.weight, &q.scales, q.biases.as_ref(), how, None, Some(Dtype::Float32))
            .unwrap();
        let error = largest_difference(&w, &back);
        assert!(error <= error_bound(how), "{how:?}: {error} > {}", error_bound(how));
    }
}

#[test]
fn a_quantized_product_is_the_product_with_the_dequantized_matrix() {
    let (x, w) = (matrix(3, 128), matrix(64, 128));
    for how in every_quantization() {
        let q = ops::quantize(&w, how, None).unwrap();
        let back = ops::dequantize(&q.weight, &q.scales, q.biases.as_ref(), how, None, Some(Dtype::Float32))
            .unwrap();
        let fused = ops::quantized_matmul(&x, &q.weight, &q.scales, q.biases.as_ref(), true, how).unwrap();
        let plain = ops::matmul(&x, &ops::transpose(&back, ..).unwrap()).unwrap();
        let error = largest_difference(&fused, &plain);
        assert!(error <= 1e-4, "{how:?}: {error}");
    }
}

#[test]
fn what_mlx_would_read_beyond_is_refused() {
    let how = Quantization::affine(64, 4);
    let w = matrix(4, 256);
    let q = ops::quantize(&w, how, None).unwrap();
    let biases = q.biases.as_ref();
    assert!(ops::quantize(&w, Quantization::affine(64, 7), None).is_err());
    assert!(ops::quantize(&w, Quantization::affine(48, 4), None).is_err());
    assert!(ops::quantize(&w, Quantization { bits: 8, ..QuantizationMode::Mxfp4.into() }, None).is_err());
    assert!(ops::quantize(&matrix(4, 100), how, None).is_err());
    assert!(ops::dequantize(&q.weight, &q.scales, None, how, None, None).is_err());
    let flat = ops::reshape(&q.weight, &[-1]).unwrap();
    assert!(ops::dequantize(&flat, &q.scales, biases, how, None, None).is_err());
    assert!(ops::quantized_matmul(&w, &flat, &q.scales, biases, true, how).is_err());
    let few = ops::slice(&q.scales, &[0, 0], &[2, 4], &[1, 1]).unwrap();
    assert!(ops::quantized_matmul(&w, &q.weight, &few, biases, true, how).is_err());
    let zero = Quantization::affine(0, 0);
    assert!(ops::quantized_matmul(&w, &q.weight, &q.scales, biases, true, zero).is_err());
}
