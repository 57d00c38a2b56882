//! One row of activations by a 4-bit matrix, as in generating a token: MLX's own product and ours.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mlxport::kernels::{self, Path};
use mlxport::ops::{self, Quantization, Quantized};
use mlxport::{Array, Dtype, Result, random, transforms};

const SIZE: i32 = 4096;

fn product(x: &Array, w: &Quantized, how: Quantization) -> Result<Array> {
    ops::quantized_matmul(x, &w.weight, &w.scales, w.biases.as_ref(), true, how)
}

fn quantized_matmul(c: &mut Criterion) {
    for (name, how) in [("4-bit", Quantization::affine(64, 4)), ("8-bit", Quantization::affine(64, 8))] {
        let w = random::normal(0.0, 1.0, &[SIZE, SIZE], Dtype::Bfloat16, None).unwrap();
        let w = ops::quantize(&w, how, None).unwrap();
        let x = random::normal(0.0, 1.0, &[1, SIZE], Dtype::Bfloat16, None).unwrap();
        let parts: Vec<&Array> = [&w.weight, &w.scales].into_iter().chain(&w.biases).collect();
        transforms::eval(parts.iter().copied().chain([&x])).unwrap();
        let mut group = c.benchmark_group(format!("quantized_matmul {name} g64 bf16 1x{SIZE}x{SIZE}"));
        group.sample_size(10);
        group.throughput(Throughput::Bytes(parts.iter().map(|a| a.nbytes() as u64).sum()));
        for path in Path::ALL.iter().copied().filter(|path| path.is_available()) {
            group.bench_function(path.to_string(), |b| {
                b.iter(|| kernels::force(path, || product(&x, &w, how)?.eval()).unwrap().unwrap());
            });
        }
    }
}

criterion_group!(benches, quantized_matmul);
criterion_main!(benches);
