//! The runner held to MLX: shaders that MLX's authors wrote must give what MLX computes on the CPU.

use metal_host::{Buffer, Grid, Kernel, Shader};
use mlxport::fast::Mask;
use mlxport::kernels::{self, Path};
use mlxport::ops::{self, Quantization};
use mlxport::{Array, Dtype, HostTensor, Result, fast};
use support::{Expected, Nd, Tolerance, assert_matches};

const FLOATS: [(Dtype, &str); 3] =
    [(Dtype::Float32, "float"), (Dtype::Float16, "half"), (Dtype::Bfloat16, "bfloat16_t")];

/// Numbers that look random, around one.
fn numbers(seed: u64, shape: &[i32], dtype: Dtype) -> Array {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let count = shape.iter().product::<i32>() as usize;
    let values: Vec<f32> = (0..count).map(|_| next() * 1.7).collect();
    ops::astype(&Array::from_slice(&values, shape).unwrap(), dtype).unwrap()
}

fn buffer(array: &Array) -> Buffer {
    Buffer::input(array.to_host().unwrap().bytes())
}

/// What MLX's own operations give, without the kernels of this crate.
fn mlx(f: impl FnOnce() -> Result<Array>) -> Array {
    kernels::force(Path::Reference, || {
        let y = f().unwrap();
        y.eval().unwrap();
        y
    })
    .unwrap()
}

#[track_caller]
fn assert_same(found: Vec<u8>, expected: &Array, tolerance: Tolerance) {
    let found = HostTensor::new(found, expected.shape(), expected.dtype()).unwrap();
    let values = ops::astype(expected, Dtype::Float32).unwrap().to_vec::<f32>().unwrap();
    let shape: Vec<usize> = expected.shape().iter().map(|&d| d as usize).collect();
    let values = Nd::new(&shape, values.into_iter().map(f64::from).collect());
    let expected = Expected::reals(&values, expected.dtype());
    assert_matches(&Array::from_host(&found).unwrap(), &expected, tolerance);
}

/// A row to a threadgroup of as many simdgroups as read it four by four, or of 1024 threads.
fn rows(kernel: &Kernel, rows: i32, width: i32) -> Vec<u8> {
    let threads = if width <= 4096 { (width as u32).div_ceil(4).next_multiple_of(32) } else { 1024 };
    let grid = Grid::Threads([rows as u32 * threads, 1, 1]);
    kernel.launch_every_order(grid, [threads, 1, 1]).unwrap().bytes(0).to_vec()
}

#[test]
fn rms_norm() {
    let shader = Shader::from_mlx("rms_norm.metal").unwrap();
    for (dtype, _) in FLOATS {
        let name = match dtype {
            Dtype::Float32 => "float32",
            Dtype::Float16 => "float16",
            _ => "bfloat16",
        };
        for (shape, function) in
            [([3, 64], "rms"), ([2, 101], "rms"), ([1, 1030], "rms"), ([2, 4501], "rms_looped")]
        {
            let x = numbers(1, &shape, dtype);
            let weight = numbers(2, &shape[1..], dtype);
            let kernel = shader.kernel(&format!("{function}{name}"), &[]).unwrap();
            let kernel = kernel
                .buffer(buffer(&x))
                .buffer(buffer(&weight))
                .output::<u8>(x.nbytes())
                .scalar(1e-5f32)
                .scalar(shape[1])
                .scalar(1u32);
            let expected = mlx(|| fast::rms_norm(&x, Some(&weight), 1e-5));
            assert_same(rows(&kernel, shape[0], shape[1]), &expected, Tolerance::Balanced);
        }
    }
}

#[test]
fn softmax() {
    let shader = Shader::from_mlx("softmax.metal").unwrap();
    for (dtype, name) in FLOATS {
        for (shape, function) in
            [([3, 64], "softmax_single_row"), ([2, 33], "softmax_single_row"), ([2, 4501], "softmax_looped")]
        {
            let x = numbers(3, &shape, dtype);
            let kernel = shader.kernel(function, &[name, "float"]).unwrap();
            let kernel = kernel.buffer(buffer(&x)).output::<u8>(x.nbytes()).scalar(shape[1]);
            let expected = mlx(|| ops::softmax(&x, -1, true));
            assert_same(rows(&kernel, shape[0], shape[1]), &expected, Tolerance::Balanced);
        }
    }
}

#[test]
fn attention_of_single_queries() {
    let shader = Shader::from_mlx("scaled_dot_product_attention.metal").unwrap();
    let (heads, kv_heads, keys, dims) = (4, 2, 37, 64);
    for (dtype, name) in FLOATS {
        let kernel = shader.kernel("sdpa_vector", &[name, "64"]).unwrap();
        for (queries, causal, masked, with_sinks) in [
            (1, false, false, false),
            (3, true, false, false),
            (2, false, true, false),
            (1, false, false, true),
        ] {
            let q = numbers(4, &[1, heads, queries, dims], dtype);
            let k = numbers(5, &[1, kv_heads, keys, dims], dtype);
            let v = numbers(6, &[1, kv_heads, keys, dims], dtype);
            let sinks = numbers(7, &[heads], dtype);
            // Every third key is masked, another for each query.
            let mask: Vec<bool> =
                (0..heads * queries * keys).map(|i| (i % keys + i / keys) % 3 != 0).collect();
            let mask = Array::from_slice(&mask, &[1, heads, queries, keys]).unwrap();
            let mut run = kernel
                .clone()
                .buffer_at(0, buffer(&q))
                .buffer_at(1, buffer(&k))
                .buffer_at(2, buffer(&v))
                .buffer_at(3, Buffer::output::<u8>(q.nbytes()))
                .buffer_at(4, Buffer::input(&[heads / kv_heads]))
                .buffer_at(5, Buffer::input(&[keys]))
                .buffer_at(6, Buffer::input(&[u64::from((keys * dims) as u32)]))
                .buffer_at(7, Buffer::input(&[dims as u64]))
                .buffer_at(8, Buffer::input(&[u64::from((keys * dims) as u32)]))
                .buffer_at(9, Buffer::input(&[dims as u64]))
                .buffer_at(10, Buffer::input(&[0.125f32]))
                .constant(22, u8::from(causal));
            if masked {
                run = run
                    .constant(20, 1u8)
                    .constant(23, 1u8)
                    .buffer_at(11, buffer(&mask))
                    .buffer_at(13, Buffer::input(&[1]))
                    .buffer_at(14, Buffer::input(&[keys]))
                    .buffer_at(15, Buffer::input(&[queries * keys]));
            }
            if with_sinks {
                run = run
                    .constant(25, 1u8)
                    .buffer_at(16, buffer(&sinks))
                    .buffer_at(17, Buffer::input(&[heads]));
            }
            let grid = Grid::Groups([heads as u32, queries as u32, 1]);
            let found = run.launch(grid, [1024, 1, 1]).unwrap();
            let mask = if masked {
                Mask::Array(&mask)
            } else if causal {
                Mask::Causal
            } else {
                Mask::None
            };
            let sinks = with_sinks.then_some(&sinks);
            let expected = mlx(|| fast::scaled_dot_product_attention(&q, &k, &v, 0.125, mask, sinks));
            assert_same(found.bytes(0).to_vec(), &expected, Tolerance::Balanced);
        }
    }
}

#[test]
fn quantized_matrix_vector() {
    let shader = Shader::from_mlx("quantized.metal").unwrap();
    for (dtype, name) in FLOATS {
        for (bits, group, n, k, function) in [
            (4, 64, 24, 512, "affine_qmv_fast"),
            (4, 64, 13, 192, "affine_qmv"),
            (8, 32, 8, 96, "affine_qmv"),
            (3, 128, 9, 256, "affine_qmv"),
        ] {
            let how = Quantization::affine(group, bits);
            let packed = mlx_parts(how, n, k, dtype);
            let x = numbers(9, &[2, k], dtype);
            let kernel =
                shader.kernel(function, &[name, &group.to_string(), &bits.to_string(), "false"]).unwrap();
            let [w, scales, biases] = &packed;
            let kernel = kernel
                .buffer(buffer(w))
                .buffer(buffer(scales))
                .buffer(buffer(biases))
                .buffer(buffer(&x))
                .output::<u8>(2 * n as usize * dtype.size())
                .scalar(k)
                .scalar(n);
            let grid = Grid::Groups([2, (n as u32).div_ceil(8), 1]);
            let found = kernel.launch_every_order(grid, [32, 2, 1]).unwrap();
            let expected = mlx(|| ops::quantized_matmul(&x, w, scales, Some(biases), true, how));
            assert_same(found.bytes(0).to_vec(), &expected, Tolerance::Permissive);
        }
    }
}

fn mlx_parts(how: Quantization, n: i32, k: i32, dtype: Dtype) -> [Array; 3] {
    let q = ops::quantize(&numbers(8, &[n, k], dtype), how, None).unwrap();
    [q.weight, q.scales, q.biases.unwrap()]
}
