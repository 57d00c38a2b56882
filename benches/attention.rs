//! Attention: one query against many keys, and a prompt.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mlxport::fast::{Mask, quantized_attention, scaled_dot_product_attention};
use mlxport::kernels::{self, Path};
use mlxport::ops::{self, Quantization};
use mlxport::{Array, Dtype, random, transforms};

const HEADS: i32 = 16;
const KV_HEADS: i32 = 8;
const DIMS: i32 = 128;
const PATHS: [Path; 4] = [Path::Reference, Path::Avx2, Path::Avx512, Path::Avx512Bf16];

fn attention(c: &mut Criterion) {
    for (length, keys) in [(1, 1024), (1, 4096), (512, 512), (2048, 2048)] {
        let normal = |heads, length| {
            let shape = [1, heads, length, DIMS];
            random::normal(0.0, 1.0, &shape, Dtype::Bfloat16, None).unwrap()
        };
        let (q, k, v): (Array, Array, Array) =
            (normal(HEADS, length), normal(KV_HEADS, keys), normal(KV_HEADS, keys));
        transforms::eval([&q, &k, &v]).unwrap();
        let name = format!("attention bf16 {HEADS}/{KV_HEADS} heads d{DIMS} {length}x{keys} causal");
        let mut group = c.benchmark_group(name);
        group.sample_size(10);
        if length == 1 {
            group.throughput(Throughput::Bytes((k.nbytes() + v.nbytes()) as u64));
        } else {
            let pairs = i64::from(length) * i64::from(length) / 2;
            group.throughput(Throughput::Elements((4 * pairs * i64::from(HEADS * DIMS)) as u64));
        }
        for path in PATHS.into_iter().filter(|path| path.is_available()) {
            if length > 512 && path == Path::Reference {
                continue;
            }
            group.bench_function(path.to_string(), |b| {
                let run = || scaled_dot_product_attention(&q, &k, &v, 0.09, Mask::Causal, None)?.eval();
                b.iter(|| kernels::force(path, run).unwrap().unwrap());
            });
        }
    }
}

/// One query against a quantized cache.
fn quantized(c: &mut Criterion) {
    let normal = |heads, length| {
        let shape = [1, heads, length, DIMS];
        random::normal(0.0, 1.0, &shape, Dtype::Bfloat16, None).unwrap()
    };
    let (q, k, v): (Array, Array, Array) = (normal(HEADS, 1), normal(KV_HEADS, 4096), normal(KV_HEADS, 4096));
    for bits in [4, 8] {
        let how = Quantization::affine(64, bits);
        let [k, v] = [&k, &v].map(|x| ops::quantize(x, how, None).unwrap());
        let parts = [&k, &v].map(|x| [Some(&x.weight), Some(&x.scales), x.biases.as_ref()]).concat();
        let parts: Vec<&Array> = parts.into_iter().flatten().collect();
        transforms::eval(parts.iter().copied().chain([&q])).unwrap();
        let mut group =
            c.benchmark_group(format!("attention to {bits} bits {HEADS}/{KV_HEADS} heads d{DIMS} 1x4096"));
        let bytes: usize = parts.iter().map(|part| part.nbytes()).sum();
        group.sample_size(10).throughput(Throughput::Bytes(bytes as u64));
        for path in PATHS.into_iter().filter(|path| path.is_available()) {
            group.bench_function(path.to_string(), |b| {
                let run = || quantized_attention(&q, &k, &v, how, 0.09, Mask::Causal, None)?.eval();
                b.iter(|| kernels::force(path, run).unwrap().unwrap());
            });
        }
    }
}

criterion_group!(benches, attention, quantized);
criterion_main!(benches);
