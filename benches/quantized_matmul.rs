//! Rows of activations by a quantized matrix: one as in generating a token, a few as in speculation, many as in
//! reading a prompt.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mlxport::kernels::{self, Path};
use mlxport::ops::{self, Quantization, QuantizationMode, Quantized};
use mlxport::{Array, Dtype, Result, random, transforms};

const SIZE: i32 = 4096;

fn product(x: &Array, w: &Quantized, how: Quantization) -> Result<Array> {
    ops::quantized_matmul(x, &w.weight, &w.scales, w.biases.as_ref(), true, how)
}

fn quantized_matmul(c: &mut Criterion) {
    let formats = [
        ("4-bit g64", Quantization::affine(64, 4), &[1, 2, 4, 8, 16, 64, 512][..]),
        ("8-bit g64", Quantization::affine(64, 8), &[1]),
        ("mxfp4", QuantizationMode::Mxfp4.into(), &[1]),
    ];
    for (name, how, rows) in formats {
        let w = random::normal(0.0, 1.0, &[SIZE, SIZE], Dtype::Bfloat16, None).unwrap();
        let w = ops::quantize(&w, how, None).unwrap();
        let parts: Vec<&Array> = [&w.weight, &w.scales].into_iter().chain(&w.biases).collect();
        for &rows in rows {
            let x = random::normal(0.0, 1.0, &[rows, SIZE], Dtype::Bfloat16, None).unwrap();
            transforms::eval(parts.iter().copied().chain([&x])).unwrap();
            let mut group = c.benchmark_group(format!("quantized_matmul {name} bf16 {rows}x{SIZE}x{SIZE}"));
            group.sample_size(10);
            group.throughput(Throughput::Bytes(parts.iter().map(|a| a.nbytes() as u64).sum()));
            // MLX's own takes a tenth of a second for each row.
            let least = if rows == 1 { Path::Reference } else { Path::Avx2 };
            for path in Path::ALL.into_iter().filter(|&path| path >= least && path.is_available()) {
                group.bench_function(path.to_string(), |b| {
                    b.iter(|| kernels::force(path, || product(&x, &w, how)?.eval()).unwrap().unwrap());
                });
            }
        }
    }
}

criterion_group!(benches, quantized_matmul);
criterion_main!(benches);
