//! What this machine can do at most: bytes read and multiply-adds per second, on all threads at once.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mlxport::kernels;

/// Far more than any cache.
const BYTES: usize = 1 << 29;
/// Multiply-adds of a thread, in vectors.
const STEPS: u64 = 1 << 20;

/// Runs `work(i)` for each thread of the kernels, at once.
fn on_all_threads(work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for i in 0..kernels::threads() {
            let work = &work;
            scope.spawn(move || work(i));
        }
    });
}

fn read(c: &mut Criterion) {
    let memory = vec![1u64; BYTES / 8];
    let share = memory.len() / kernels::threads();
    let mut group = c.benchmark_group(format!("read {} MiB", BYTES >> 20));
    group.sample_size(10).throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function("all threads", |b| {
        b.iter(|| {
            on_all_threads(|i| {
                let mut sums = [0u64; 32];
                for part in memory[i * share..][..share].chunks_exact(32) {
                    sums.iter_mut().zip(part).for_each(|(sum, v)| *sum ^= v);
                }
                black_box(sums);
            });
        });
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add(steps: u64) -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
    let mut sums = [_mm256_set1_ps(1.0); 12];
    for _ in 0..steps {
        sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
    }
    let sum = sums.iter().fold(_mm256_setzero_ps(), |all, sum| _mm256_add_ps(all, *sum));
    _mm256_cvtss_f32(sum)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_add_512(steps: u64) -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    let mut sums = [_mm512_set1_ps(1.0); 12];
    for _ in 0..steps {
        sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
    }
    _mm512_reduce_add_ps(sums.iter().fold(_mm512_setzero_ps(), |all, sum| _mm512_add_ps(all, *sum)))
}

/// Products of pairs.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_add_bf16(steps: u64) -> f32 {
    use std::arch::x86_64::*;
    let [a, b] = [0.999, 0.001].map(|x| {
        let x = _mm512_set1_ps(black_box(x));
        _mm512_cvtne2ps_pbh(x, x)
    });
    let mut sums = [_mm512_set1_ps(1.0); 12];
    for _ in 0..steps {
        sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, a, b));
    }
    _mm512_reduce_add_ps(sums.iter().fold(_mm512_setzero_ps(), |all, sum| _mm512_add_ps(all, *sum)))
}

/// Of the instruction that each path multiplies with; groups are named by it.
fn fma(c: &mut Criterion) {
    #[cfg(target_arch = "x86_64")]
    {
        let all: [(kernels::Path, u64, unsafe fn(u64) -> f32); 3] = [
            (kernels::Path::Avx2, 8, multiply_add),
            (kernels::Path::Avx512, 16, multiply_add_512),
            (kernels::Path::Avx512Bf16, 32, multiply_add_bf16),
        ];
        for (path, products, work) in all.into_iter().filter(|(path, ..)| path.is_available()) {
            let flops = 12 * products * 2 * STEPS * kernels::threads() as u64;
            let mut group = c.benchmark_group(format!("fma {path}"));
            group.sample_size(10).throughput(Throughput::Elements(flops));
            group.bench_function("all threads", |b| {
                b.iter(|| {
                    on_all_threads(|_| {
                        // SAFETY: the CPU has what the path takes.
                        black_box(unsafe { work(STEPS) });
                    });
                });
            });
        }
    }
    let _ = c;
}

criterion_group!(benches, read, fma);
criterion_main!(benches);
