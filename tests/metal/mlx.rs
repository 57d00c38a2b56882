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
fn assert_same(found: Vec<u8>, expected: &Array, magnitudes: Option<&Array>, tolerance: Tolerance) {
    let found = HostTensor::new(found, expected.shape(), expected.dtype()).unwrap();
    let values = |a: &Array| {
        let values = ops::astype(a, Dtype::Float32).unwrap().to_vec::<f32>().unwrap();
        let shape: Vec<usize> = a.shape().iter().map(|&d| d as usize).collect();
        Nd::new(&shape, values.into_iter().map(f64::from).collect())
    };
    let expected = Expected::sums(
        &values(expected),
        &values(magnitudes.unwrap_or(expected)).map(|v| v.abs()),
        expected.dtype(),
    );
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
            assert_same(rows(&kernel, shape[0], shape[1]), &expected, None, Tolerance::Balanced);
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
            assert_same(rows(&kernel, shape[0], shape[1]), &expected, None, Tolerance::Balanced);
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
            assert_same(found.bytes(0).to_vec(), &expected, None, Tolerance::Balanced);
        }
    }
}

#[test]
fn layer_norm() {
    let shader = Shader::from_mlx("layer_norm.metal").unwrap();
    for (dtype, name) in FLOATS {
        // Where a row does not fill its simdgroups, idle threads of the first write before their array `thread_x`.
        for (shape, function) in [([2, 512], "layer_norm_single_row"), ([1, 4100], "layer_norm_looped")] {
            let x = numbers(10, &shape, dtype);
            let [weight, bias] = [11, 12].map(|seed| numbers(seed, &shape[1..], dtype));
            let kernel = shader.kernel(function, &[name]).unwrap();
            let kernel = kernel
                .buffer(buffer(&x))
                .buffer(buffer(&weight))
                .buffer(buffer(&bias))
                .output::<u8>(x.nbytes())
                .scalar(1e-5f32)
                .scalar(shape[1])
                .scalar(1u32)
                .scalar(1u32);
            let expected = mlx(|| fast::layer_norm(&x, Some(&weight), Some(&bias), 1e-5));
            let threads = if shape[1] < 4096 { 64 } else { 1024 };
            let found =
                kernel.launch_every_order(Grid::Groups([shape[0] as u32, 1, 1]), [threads, 1, 1]).unwrap();
            assert_same(found.bytes(0).to_vec(), &expected, None, Tolerance::Balanced);
        }
    }
}

#[test]
fn layer_norm_of_mlx_writes_outside_of_an_array_when_a_row_does_not_fill_its_threads() {
    let kernel =
        Shader::from_mlx("layer_norm.metal").unwrap().kernel("layer_norm_single_row", &["float"]).unwrap();
    let row = [1f32; 130];
    let kernel = kernel.input(&row).input(&row).input(&row).output::<f32>(130);
    let kernel = kernel.scalar(1e-5f32).scalar(130).scalar(1u32).scalar(1u32);
    let error = kernel.launch(Grid::Groups([1, 1, 1]), [32, 1, 1]).unwrap_err();
    assert!(error.to_string().contains("index -6 of an array of type 'float [8]'"), "{error}");
}

/// A quantized matrix and rows of `x`, their product, and the sums of the magnitudes that it adds.
struct Product {
    how: Quantization,
    x: Array,
    w: [Array; 3],
    product: Array,
    magnitudes: Array,
}

impl Product {
    fn new(how: Quantization, m: i32, n: i32, k: i32, dtype: Dtype) -> Self {
        let q = ops::quantize(&numbers(8, &[n, k], dtype), how, None).unwrap();
        let w = [q.weight, q.scales, q.biases.unwrap()];
        let x = numbers(9, &[m, k], dtype);
        let product = mlx(|| ops::quantized_matmul(&x, &w[0], &w[1], Some(&w[2]), true, how));
        let magnitudes = mlx(|| {
            let w = ops::dequantize(&w[0], &w[1], Some(&w[2]), how, None, None)?;
            let [x, w] = [&x, &w].map(|a| ops::astype(&ops::abs(a)?, Dtype::Float32));
            ops::matmul(&x?, &ops::transpose(&w?, ..)?)
        });
        Self { how, x, w, product, magnitudes }
    }

    /// With the matrix in buffers of `room` rows.
    fn kernel(&self, shader: &Shader, function: &str, last: &[&str], room: i32) -> Kernel {
        let (group, bits) = (self.how.group_size.to_string(), self.how.bits.to_string());
        let ty = FLOATS.iter().find(|f| f.0 == self.x.dtype()).unwrap().1;
        let kernel = shader.kernel(function, &[&[ty, &group, &bits], last].concat()).unwrap();
        let kernel = self.w.iter().fold(kernel, |kernel, w| {
            let mut bytes = w.to_host().unwrap().bytes().to_vec();
            bytes.resize(bytes.len() / w.shape()[0] as usize * room as usize, 0);
            kernel.input(&bytes)
        });
        let [k, n] = [self.x.shape()[1], self.product.shape()[1]];
        kernel.buffer(buffer(&self.x)).output::<u8>(self.product.nbytes()).scalar(k).scalar(n)
    }
}

#[test]
fn quantized_matrix_vector() {
    let shader = Shader::from_mlx("quantized.metal").unwrap();
    for (dtype, _) in FLOATS {
        for (bits, group, n, k, function) in [
            (4, 64, 24, 512, "affine_qmv_fast"),
            (4, 64, 13, 192, "affine_qmv"),
            (8, 32, 8, 96, "affine_qmv"),
            (3, 128, 9, 256, "affine_qmv"),
        ] {
            let case = Product::new(Quantization::affine(group, bits), 2, n, k, dtype);
            let kernel = case.kernel(&shader, function, &["false"], n);
            // The last tile of rows begins earlier if it would reach past the end, and computes some again.
            let kernel = if n % 8 == 0 { kernel } else { kernel.equal_writes() };
            let grid = Grid::Groups([2, (n as u32).div_ceil(8), 1]);
            let found = kernel.launch_every_order(grid, [32, 2, 1]).unwrap();
            assert_same(found.bytes(0).to_vec(), &case.product, Some(&case.magnitudes), Tolerance::Strict);
        }
    }
}

#[test]
fn quantized_matrix_product_by_simdgroup_matrices() {
    let shader = Shader::from_mlx("quantized.metal").unwrap();
    for (dtype, _) in FLOATS {
        for (m, n, k, aligned) in [(5, 40, 128, "false"), (33, 64, 64, "true")] {
            let case = Product::new(Quantization::affine(64, 4), m, n, k, dtype);
            let grid = Grid::Groups([(n as u32).div_ceil(32), (m as u32).div_ceil(32), 1]);
            // The loader of weights reads whole tiles, past the end of the matrix too.
            let kernel =
                case.kernel(&shader, "affine_qmm_t", &[aligned, "false"], (n + 31) / 32 * 32).scalar(m);
            let found = kernel.launch_every_order(grid, [32, 2, 2]).unwrap();
            assert_same(found.bytes(0).to_vec(), &case.product, Some(&case.magnitudes), Tolerance::Balanced);
            let exact = case.kernel(&shader, "affine_qmm_t", &[aligned, "false"], n).scalar(m);
            match exact.launch(grid, [32, 2, 2]) {
                Ok(_) => assert_eq!(aligned, "true"),
                Err(error) => {
                    assert!(aligned == "false" && error.to_string().contains("of buffer"), "{error}")
                }
            }
        }
    }
}
