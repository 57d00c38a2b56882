//! Products of dense matrices in half precision: one row, a few and many, with the weights of a linear layer
//! and as they lie.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mlxport::kernels::{self, Path};
use mlxport::{Array, Dtype, Result, ops, random, transforms};

const SIZE: i32 = 4096;

fn normal(shape: &[i32], dtype: Dtype) -> Array {
    random::normal(0.0, 1.0, shape, dtype, None).unwrap()
}

fn compare(c: &mut Criterion, name: String, flops: i64, product: impl Fn() -> Result<Array>) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    group.throughput(Throughput::Elements(flops as u64));
    for path in [Path::Reference, Path::Avx2, Path::Avx512, Path::Avx512Bf16, Path::Amx]
        .into_iter()
        .filter(|path| path.is_available())
    {
        group.bench_function(path.to_string(), |b| {
            b.iter(|| kernels::force(path, || product()?.eval()).unwrap().unwrap());
        });
    }
}

fn matmul(c: &mut Criterion) {
    for dtype in [Dtype::Bfloat16, Dtype::Float16] {
        let w = normal(&[SIZE, SIZE], dtype);
        for rows in [1, 2, 4, 8] {
            let x = normal(&[rows, SIZE], dtype);
            transforms::eval([&w, &x]).unwrap();
            let flops = 2 * i64::from(rows) * i64::from(SIZE * SIZE);
            let name = |how: &str| format!("matmul {dtype} {rows}x{SIZE}x{SIZE} {how}");
            compare(c, name("x @ w.T"), flops, || ops::matmul(&x, &ops::swapaxes(&w, 0, 1)?));
            compare(c, name("x @ w"), flops, || ops::matmul(&x, &w));
        }
    }
    for size in [256, 1024] {
        for dtype in [Dtype::Bfloat16, Dtype::Float32] {
            let (a, b) = (normal(&[size, 1024], dtype), normal(&[1024, 1024], dtype));
            transforms::eval([&a, &b]).unwrap();
            let name = format!("matmul {dtype} {size}x1024x1024");
            compare(c, name, i64::from(size) << 21, || ops::matmul(&a, &b));
        }
    }
}

criterion_group!(benches, matmul);
criterion_main!(benches);
