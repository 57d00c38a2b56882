//! Recurrences and convolutions of hybrid models, for one position and for a prompt, and choosing a token of
//! a large vocabulary.

use criterion::{Criterion, criterion_group, criterion_main};
use mlxport::cache::LayerCache;
use mlxport::generate::{Sampler, Sampling};
use mlxport::kernels::{self, Path};
use mlxport::models::blocks::{CausalConv, Sequence, gated_delta, linear_attention, selective_scan, wkv};
use mlxport::{Array, Dtype, Result, ops, random, transforms};

const VOCABULARY: i32 = 151_936;

fn normal(shape: &[i32], dtype: Dtype) -> Array {
    let x = random::normal(0.0, 1.0, shape, dtype, None).unwrap();
    x.eval().unwrap();
    x
}

fn compare(c: &mut Criterion, name: &str, f: impl Fn() -> Result<Vec<Array>>) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    for path in [Path::Reference, Path::Portable, Path::Avx2].into_iter().filter(|path| path.is_available()) {
        group.bench_function(path.to_string(), |b| {
            b.iter(|| kernels::force(path, || transforms::eval(&f()?)).unwrap().unwrap());
        });
    }
}

fn recurrences(c: &mut Criterion) {
    for length in [1, 512] {
        let name = |what: &str| format!("{what}, {length} positions");
        let of = |heads: i32, dims: i32| normal(&[1, length, heads, dims], Dtype::Bfloat16);
        let decays = |shape: &[i32]| {
            let decays = ops::negative(&ops::abs(&normal(shape, Dtype::Float32)).unwrap()).unwrap();
            decays.eval().unwrap();
            decays
        };
        // Qwen3-Next, Kimi Linear, a 1.3B Mamba-2, a 1.5B RWKV-7, Mamba of 2.8B.
        let (q, k, v) = (of(16, 128), of(16, 128), of(32, 128));
        let k = (k * 0.08).unwrap();
        let state = normal(&[1, 32, 128, 128], Dtype::Float32);
        let (log_decay, beta) = (decays(&[1, length, 32]), normal(&[1, length, 32], Dtype::Bfloat16));
        let beta = ops::sigmoid(&beta).unwrap();
        transforms::eval([&k, &beta]).unwrap();
        let pair = |(out, state)| vec![out, state];
        compare(c, &name("gated delta 32x128x128"), || {
            let (queries, keys, values) = (&q, &k, &v);
            let sequence = Sequence { queries, keys, values, log_decay: &log_decay, state: Some(&state) };
            gated_delta(&sequence, &beta).map(pair)
        });
        let (q, k, each) = (of(32, 128), (of(32, 128) * 0.08).unwrap(), decays(&[1, length, 32, 128]));
        compare(c, &name("delta of dimensions 32x128x128"), || {
            let (queries, keys, values) = (&q, &k, &v);
            gated_delta(&Sequence { queries, keys, values, log_decay: &each, state: Some(&state) }, &beta)
                .map(pair)
        });
        let (q, k, v) = (of(1, 128), of(1, 128), of(64, 64));
        let (log_decay, state) = (decays(&[1, length, 64]), normal(&[1, 64, 64, 128], Dtype::Float32));
        compare(c, &name("Mamba-2 64x64x128"), || {
            let (queries, keys, values) = (&q, &k, &v);
            let sequence = Sequence { queries, keys, values, log_decay: &log_decay, state: Some(&state) };
            linear_attention(&sequence).map(pair)
        });
        let all: Vec<Array> = (0..5).map(|_| (of(32, 64) * 0.1).unwrap()).collect();
        let (each, state) = (decays(&[1, length, 32, 64]), normal(&[1, 32, 64, 64], Dtype::Float32));
        compare(c, &name("RWKV-7 32x64x64"), || {
            wkv([&all[0], &each, &all[1], &all[2], &all[3], &all[4]], Some(&state)).map(pair)
        });
        let x = normal(&[1, length, 5120], Dtype::Bfloat16);
        let dt = ops::abs(&normal(&[1, length, 5120], Dtype::Float32)).unwrap();
        let (a, state) = (decays(&[5120, 16]), normal(&[1, 5120, 16], Dtype::Float32));
        let (b, by) = (normal(&[1, length, 16], Dtype::Bfloat16), normal(&[1, length, 16], Dtype::Bfloat16));
        compare(c, &name("selective scan 5120x16"), || {
            selective_scan(&x, &dt, &a, [&b, &by], Some(&state)).map(pair)
        });
        let x = normal(&[1, length, 8192], Dtype::Bfloat16);
        let conv = CausalConv { weight: normal(&[8192, 4, 1], Dtype::Bfloat16), bias: None };
        let state = normal(&[1, 3, 8192], Dtype::Bfloat16);
        compare(c, &name("convolution 8192x4 with silu"), || {
            let mut cache = LayerCache::states(1);
            cache.set_state(0, state.clone())?;
            let out = conv.forward_silu(&x, &mut cache, 0)?;
            Ok(vec![out, cache.state(0).cloned().unwrap_or(state.clone())])
        });
    }
}

fn sampling(c: &mut Criterion) {
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        let logits = (normal(&[1, VOCABULARY], dtype) * 3.0).unwrap();
        logits.eval().unwrap();
        let hot = Sampling { temperature: 0.7, ..Sampling::default() };
        for (name, sampling) in [
            ("greedy", Sampling::default()),
            ("temperature", hot.clone()),
            ("top-k 50", Sampling { top_k: 50, ..hot.clone() }),
            ("top-p 0.9", Sampling { top_p: 0.9, ..hot.clone() }),
            ("min-p 0.05", Sampling { min_p: 0.05, ..hot.clone() }),
            ("top-k 50, top-p 0.9", Sampling { top_k: 50, top_p: 0.9, ..hot.clone() }),
        ] {
            compare(c, &format!("token of {VOCABULARY}, {dtype}, {name}"), || {
                let logprobs = (&logits - ops::logsumexp(&logits, -1, true)?)?;
                Ok(vec![Sampler::new(sampling.clone())?.sample(&logprobs)?])
            });
        }
    }
}

criterion_group!(benches, recurrences, sampling);
criterion_main!(benches);
