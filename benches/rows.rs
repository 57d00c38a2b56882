//! What works on each row or element alone, on 64 MiB, against the reference. Throughput counts bytes read and written.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mlxport::kernels::{self, Path};
use mlxport::nn::activations::{Activation, swiglu};
use mlxport::{Array, Dtype, Result, fast, ops, random, transforms};

const DIMS: i32 = 4096;
const ROWS: i32 = (64 << 20) / 2 / DIMS;

fn normal(shape: &[i32]) -> Array {
    random::normal(0.0, 1.0, shape, Dtype::Bfloat16, None).unwrap()
}

fn rows(c: &mut Criterion) {
    let (x, y, w) = (normal(&[ROWS, DIMS]), normal(&[ROWS, DIMS]), normal(&[DIMS]));
    // As a projection gives them: heads within positions.
    let heads = ops::reshape(&x, &[1, ROWS / 4, 128, 128]).unwrap();
    let (heads, head) = (ops::swapaxes(&heads, 1, 2).unwrap(), normal(&[128]));
    transforms::eval([&x, &y, &w, &heads, &head]).unwrap();
    let mut compare = |name: &str, passes: u64, f: &dyn Fn() -> Result<Array>| {
        let mut group = c.benchmark_group(format!("{name} bf16 64 MiB"));
        group.sample_size(10).throughput(Throughput::Bytes(passes * x.nbytes() as u64));
        for path in [Path::Reference, Path::Avx2, Path::Avx512].into_iter().filter(|path| path.is_available())
        {
            group.bench_function(path.to_string(), |b| {
                b.iter(|| kernels::force(path, || f()?.eval()).unwrap().unwrap());
            });
        }
    };
    compare("rms_norm", 2, &|| fast::rms_norm(&x, Some(&w), 1e-5));
    compare("layer_norm", 2, &|| fast::layer_norm(&x, Some(&w), Some(&w), 1e-5));
    compare("softmax", 2, &|| ops::softmax(&x, -1, true));
    compare("swiglu", 3, &|| swiglu(&x, &y));
    compare("geglu", 3, &|| Activation::GeluTanh.gated(&x, &y));
    compare("rope", 2, &|| fast::rope(&heads, 128, false, 1e6, 1.0, 5));
    compare("rms_norm_rope", 2, &|| fast::rms_norm_rope(&heads, &head, 1e-5, 128, false, 1e6, 1.0, 5));
}

criterion_group!(benches, rows);
criterion_main!(benches);
