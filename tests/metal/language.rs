//! Metal's types and library as the runner has them, held to the crate `half` and to plain Rust.

use half::{bf16, f16};
use metal_host::{Buffer, Custom, Grid, Input, Kernel, Shader};

const HEAD: &str = "#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\nusing namespace metal;\n";

fn compile(text: &str, arguments: &[&str]) -> Kernel {
    Shader::from_source("language.metal", format!("{HEAD}{text}")).kernel("probe", arguments).unwrap()
}

/// The values of each expression for each thread `i` of `count`, in threadgroups of 64.
fn table<T: bytemuck::AnyBitPattern>(ty: &str, expressions: &[&str], count: usize) -> Vec<Vec<T>> {
    let lines: String = expressions
        .iter()
        .enumerate()
        .map(|(k, e)| format!("out[i + {}] = {ty}({e});\n", k * count))
        .collect();
    let text = format!(
        "[[kernel]] void probe(device {ty}* out, uint i [[thread_position_in_grid]], \
         uint lane [[thread_index_in_simdgroup]]) {{\n{lines}}}"
    );
    let kernel = compile(&text, &[]).output::<T>(count * expressions.len());
    let out = kernel.launch_every_order(Grid::Threads([count as u32, 1, 1]), [64, 1, 1]).unwrap().read(0);
    out.chunks(count).map(<[T]>::to_vec).collect()
}

fn eval<T: bytemuck::AnyBitPattern>(ty: &str, expression: &str, count: usize) -> Vec<T> {
    table(ty, &[expression], count).remove(0)
}

#[test]
fn half_and_bfloat_round_every_operation_once() {
    // All operations on pairs of interesting numbers.
    let values: Vec<f32> = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        1.5,
        0.1,
        3.25,
        65504.0,
        -65519.0,
        65520.0,
        1e-7,
        5.96e-8,
        2.9e-8,
        6.1e-5,
        1e38,
        -3.3e38,
        1e-40,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        2049.0,
        2051.0,
        257.0,
        259.0,
        0.33333334,
    ];
    let pairs: Vec<f32> = values.iter().flat_map(|&a| values.iter().flat_map(move |&b| [a, b])).collect();
    let n = pairs.len() / 2;
    let text = "template <typename T> [[kernel]] void probe(const device float* x, device T* out, \
        uint i [[thread_position_in_grid]]) {\n\
        T a = T(x[2 * i]), b = T(x[2 * i + 1]); out[6 * i] = a + b; out[6 * i + 1] = a - b; out[6 * i + 2] = a * b;\n\
        out[6 * i + 3] = a / b; out[6 * i + 4] = -a; T c = a; c *= b; c += 1; out[6 * i + 5] = c; }";
    let run = |ty: &str| {
        let kernel = compile(text, &[ty]).input(&pairs).output::<u16>(6 * n);
        kernel.launch(Grid::Threads([n as u32, 1, 1]), [64, 1, 1]).unwrap().read::<u16>(0)
    };
    macro_rules! check {
        ($t:ty, $name:expr) => {
            for (found, pair) in run($name).chunks(6).zip(pairs.chunks(2)) {
                let (a, b) = (<$t>::from_f32(pair[0]), <$t>::from_f32(pair[1]));
                let one = <$t>::from_f32(1.0);
                for (k, want) in [a + b, a - b, a * b, a / b, -a, a * b + one].into_iter().enumerate() {
                    let found = <$t>::from_bits(found[k]);
                    assert!(
                        found.to_bits() == want.to_bits() || (found.is_nan() && want.is_nan()),
                        "{} operation {k} of {a} and {b}: {found}, not {want}",
                        $name
                    );
                }
            }
        };
    }
    check!(f16, "half");
    check!(bf16, "bfloat");
}

#[test]
fn every_half_goes_to_float_and_back() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let text = "[[kernel]] void probe(const device half* x, device float* y, device half* z, \
        uint i [[thread_position_in_grid]]) { y[i] = x[i]; z[i] = y[i]; }";
    let kernel = compile(text, &[]).input(&all).output::<f32>(1 << 16).output::<u16>(1 << 16);
    let out = kernel.launch(Grid::Threads([1 << 16, 1, 1]), [256, 1, 1]).unwrap();
    for ((&bits, y), z) in all.iter().zip(out.read::<f32>(0)).zip(out.read::<u16>(1)) {
        let x = f16::from_bits(bits);
        assert!(x.to_f32() == y || (x.is_nan() && y.is_nan()), "{bits:#x}");
        assert!(bits == z || (x.is_nan() && f16::from_bits(z).is_nan()), "{bits:#x}");
    }
}

#[test]
fn types_mix_as_in_metal() {
    // An integer takes the type of the half beside it; a float takes the half along.
    assert_eq!(eval::<u32>("uint", "uint(sizeof(half(1) + 1)) * 10 + uint(sizeof(half(1) + 1.0f))", 1), [24]);
    assert_eq!(
        eval::<f32>("float", "float(half(2048) + 1) + float(half(2048) + 1.0f)", 1),
        [2048.0 + 2049.0]
    );
    assert_eq!(eval::<f32>("float", "float(1.5h) + float(i > 0 ? half(2) : 1)", 2), [2.5, 3.5]);
    assert_eq!(eval::<i32>("int", "int(as_type<half>(ushort(0x3e00)) * 2)", 1), [3]);
    assert_eq!(eval::<u32>("uint", "as_type<uint>(half2(1, -2))", 1), [0xc000_3c00]);
    assert_eq!(
        eval::<u32>("uint", "uint(sizeof(float3)) + uint(sizeof(packed_float3)) + uint(sizeof(half4))", 1),
        [36]
    );
}

#[test]
fn vectors_build_swizzle_and_compute() {
    let text = "[[kernel]] void probe(device float* out) {\n\
        float4 v(1, 2, 3, 4); float2 a = v.zx; float3 b(a, v.w); v.xy = v.yx; v.w += 10;\n\
        float4 c = float4(b, 5) * 2 - v; v.zw *= float2(2, 0.5f);\n\
        out[0] = a.x; out[1] = a.y; out[2] = b.z; out[3] = dot(c, float4(1)); out[4] = v[0]; out[5] = v.w;\n\
        packed_float3 p(7, 8, 9); float3 q = p; out[6] = q.y + p[2]; out[7] = length(float2(3, 4));\n\
        uint4 u = uint4(1, 2, 3, 4) << 2u; out[8] = float((u & 8).y + u.w % 5); out[9] = any(v > 13) ? 1 : 0;\n\
        out[10] = select(float2(1, 2), float2(3, 4), bool2(false, true)).y; half4 h = half4(v); out[11] = h.x;\n\
        out[12] = float(int3(1, 2, 3).zyx[0]) + cross(float3(1, 0, 0), float3(0, 1, 0)).z; out[13] = v.g; }";
    let out = compile(text, &[]).output::<f32>(14).launch(Grid::Threads([1, 1, 1]), [1, 1, 1]).unwrap();
    // v is 2, 1, 3, 14 after the swizzles; c is 6-2, 2-1, 8-3, 10-14.
    let want = [3.0, 1.0, 4.0, 6.0, 2.0, 7.0, 17.0, 5.0, 9.0, 0.0, 4.0, 2.0, 4.0, 1.0];
    assert_eq!(out.read::<f32>(0), want);
}

#[test]
fn the_library_computes() {
    type F<T> = fn(T) -> T;
    let cases: [(&str, F<f32>); 9] = [
        ("metal::exp(X) + fast::exp(X)", |x| 2.0 * x.exp()),
        ("precise::sqrt(X) + metal::rsqrt(X)", |x| x.sqrt() + 1.0 / x.sqrt()),
        ("tanh(X) * sin(X) - cos(X)", |x| x.tanh() * x.sin() - x.cos()),
        ("fma(X, 2.0f, 1.0f) + log2(abs(X))", |x| x.mul_add(2.0, 1.0) + x.abs().log2()),
        ("clamp(X, -1.0f, 1.0f) + sign(X) + fract(X)", |x| x.clamp(-1.0, 1.0) + x.signum() + (x - x.floor())),
        ("rint(X) + round(X) + trunc(X) + floor(X) + ceil(X)", |x| {
            x.round_ties_even() + x.round() + x.trunc() + x.floor() + x.ceil()
        }),
        ("min(X, 0.0f) + max(X, NAN) + pow(abs(X), 1.5f)", |x| x.min(0.0) + x + x.abs().powf(1.5)),
        ("!isnan(X / 0.0f) && isinf(1 / (X - X)) ? copysign(X, -1.0f) : 0.0f", |x| -x.abs()),
        ("mix(X, 1.0f, 0.25f) + step(0.0f, X) + atan2(X, 2.0f)", |x| {
            x + (1.0 - x) * 0.25 + f32::from(u8::from(x >= 0.0)) + x.atan2(2.0)
        }),
    ];
    let texts = cases.map(|c| c.0.replace('X', "(float(i) * 0.37f - 3.0f)"));
    for ((text, f), found) in cases.iter().zip(table::<f32>("float", &texts.each_ref().map(|t| &t[..]), 20)) {
        for (i, found) in found.into_iter().enumerate() {
            let want = f(i as f32 * 0.37 - 3.0);
            let close = (found - want).abs() <= 3e-6 * want.abs().max(1.0);
            assert!(close || (found.is_nan() && want.is_nan()), "{text} of thread {i}: {found}, not {want}");
        }
    }

    let cases: [(&str, F<u32>); 6] = [
        ("popcount(W) + clz(W) * 100 + ctz(W) * 10000", |w| {
            w.count_ones() + w.leading_zeros() * 100 + w.trailing_zeros() * 10000
        }),
        ("extract_bits(W, 5, 7) + insert_bits(0u, W, 8, 4)", |w| (w >> 5 & 127) + ((w & 15) << 8)),
        ("uint(extract_bits(int(W), 28, 4))", |w| (w as i32 >> 28) as u32),
        ("rotate(W, 9u) ^ reverse_bits(W)", |w| w.rotate_left(9) ^ w.reverse_bits()),
        ("mulhi(W, 77777u) + absdiff(W, 5u)", |w| {
            (((u64::from(w) * 77777) >> 32) as u32).wrapping_add(w.abs_diff(5))
        }),
        ("addsat(W, 0x80000000u) ^ subsat(W, 77u)", |w| w.saturating_add(1 << 31) ^ w.saturating_sub(77)),
    ];
    let texts = cases.map(|c| c.0.replace('W', "(i * 0x9e3779b9u ^ 0x55u)"));
    for ((text, f), found) in cases.iter().zip(table::<u32>("uint", &texts.each_ref().map(|t| &t[..]), 20)) {
        let want: Vec<u32> = (0..20u32).map(|i| f(i.wrapping_mul(0x9e37_79b9) ^ 0x55)).collect();
        assert_eq!(found, want, "{text}");
    }
}

#[test]
fn lanes_of_a_simdgroup_exchange() {
    fn base(i: i32) -> i32 {
        i & !31
    }
    let cases: [(&str, fn(i32) -> i32); 19] = [
        ("simd_sum(int(i))", |i| base(i) * 32 + 496),
        ("simd_max(int(i) % 7) * 10 + simd_min(int(i) + 1)", |i| 60 + base(i) + 1),
        ("simd_or(1 << lane) ^ simd_and(int(i) | 1)", |i| -1 ^ (base(i) | 1)),
        ("simd_xor(int(lane == 3) * 6) + simd_product(lane == 9 ? 5 : 1)", |_| 11),
        ("simd_broadcast(int(i), 5) + simd_broadcast_first(int(i))", |i| 2 * base(i) + 5),
        ("simd_shuffle(int(i), 31 - lane)", |i| base(i) + 31 - i % 32),
        ("simd_shuffle_xor(int(i), 5)", |i| i ^ 5),
        ("simd_shuffle_down(int(i), 3)", |i| if i % 32 < 29 { i + 3 } else { i }),
        ("simd_shuffle_up(int(i), 3)", |i| if i % 32 >= 3 { i - 3 } else { i }),
        ("simd_shuffle_rotate_down(int(i), 3)", |i| base(i) + (i + 3) % 32),
        ("simd_shuffle_rotate_up(int(i), 3)", |i| base(i) + (i + 29) % 32),
        ("simd_shuffle_and_fill_up(int(i), int(i) + 1000, 3)", |i| {
            if i % 32 >= 3 { i - 3 } else { 1000 + base(i) + i % 32 + 29 }
        }),
        ("simd_prefix_inclusive_sum(int(lane))", |i| (i % 32) * (i % 32 + 1) / 2),
        ("simd_prefix_exclusive_sum(int(lane))", |i| (i % 32) * (i % 32 - 1) / 2),
        ("simd_prefix_exclusive_product(lane == 4 ? 3 : 1)", |i| if i % 32 > 4 { 3 } else { 1 }),
        ("int(simd_any(i == 7)) * 2 + int(simd_all(i < 32))", |i| if i < 32 { 3 } else { 0 }),
        ("int(simd_vote::vote_t(simd_ballot(lane % 2 == 1)) & 0xf)", |_| 0xa),
        ("quad_sum(int(i)) + quad_max(int(i))", |i| (i & !3) * 4 + 6 + (i | 3)),
        ("quad_shuffle_xor(int(i), 2) + quad_broadcast(int(i), 1)", |i| (i ^ 2) + (i & !3) + 1),
    ];
    for ((text, f), found) in cases.iter().zip(table::<i32>("int", &cases.map(|c| c.0), 64)) {
        assert_eq!(found, (0..64).map(f).collect::<Vec<_>>(), "{text}");
    }
    let halves = eval::<f16>("half", "simd_sum(half(i))", 64);
    assert_eq!(halves[..2], [f16::from_f32(496.0); 2]);
    let vectors = eval::<f32>("float", "simd_shuffle(float4(i, 1, 2, 3), 2).x", 64);
    assert_eq!((vectors[0], vectors[40]), (2.0, 34.0));
    // Of two lanes alone, the third is nobody: its value is undefined, here not a number.
    assert!(eval::<f32>("float", "simd_shuffle(float(i), 2)", 2)[0].is_nan());
}

#[test]
fn simdgroup_matrices_multiply() {
    for ty in ["float", "half", "bfloat"] {
        let text = "template <typename T> [[kernel]] void probe(const device T* a, const device T* b, device float* out, \
            uint lane [[thread_index_in_simdgroup]]) {\n\
            threadgroup T tile[64]; for (uint i = lane; i < 64; i += 32) tile[i] = b[i];\n\
            simdgroup_barrier(mem_flags::mem_threadgroup);\n\
            simdgroup_matrix<T, 8, 8> x, y; simdgroup_float8x8 z = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);\n\
            simdgroup_load(x, a + 3, 11); simdgroup_load(y, tile, 8, ulong2(0), true);\n\
            simdgroup_multiply_accumulate(z, x, y, z); simdgroup_store(z, out, 8); }";
        let number = |i: usize| (i * 7 % 13) as f32 - 6.0;
        let encode = |values: Vec<f32>| -> Vec<u8> {
            values
                .into_iter()
                .flat_map(|v| match ty {
                    "float" => v.to_ne_bytes().to_vec(),
                    "half" => f16::from_f32(v).to_ne_bytes().to_vec(),
                    _ => bf16::from_f32(v).to_ne_bytes().to_vec(),
                })
                .collect()
        };
        let a: Vec<f32> = (0..91).map(number).collect();
        let b: Vec<f32> = (0..64).map(|i| number(i + 5)).collect();
        let kernel =
            compile(text, &[ty]).input(&encode(a.clone())).input(&encode(b.clone())).output::<f32>(64);
        let found = kernel.launch_every_order(Grid::Groups([1, 1, 1]), [32, 1, 1]).unwrap().read::<f32>(0);
        for (i, found) in found.into_iter().enumerate() {
            let (row, column) = (i / 8, i % 8);
            let want: f32 = (0..8).map(|k| a[3 + row * 11 + k] * b[column * 8 + k]).sum();
            assert_eq!(found, want + 1.0, "{ty} {row},{column}");
        }
    }
}

#[test]
fn threads_know_where_they_are() {
    let text = "[[kernel]] void probe(device uint* out, uint3 p [[thread_position_in_grid]], \
        ushort2 t [[thread_position_in_threadgroup]], uint3 g [[threadgroup_position_in_grid]], \
        uint3 size [[threads_per_threadgroup]], uint3 grid [[threads_per_grid]], uint3 groups [[threadgroups_per_grid]], \
        uint index [[thread_index_in_threadgroup]], uint width [[threads_per_simdgroup]], \
        uint simd [[simdgroup_index_in_threadgroup]], uint count [[simdgroups_per_threadgroup]]) {\n\
        uint at = p.x + grid.x * p.y; out[2 * at] = t.x + 100 * t.y + 10000 * g.x + 1000000 * g.y + 100000000 * groups.x;\n\
        out[2 * at + 1] = size.x + 100 * index + 10000 * width + 1000000 * simd + 100000000 * count; }";
    let kernel = compile(text, &[]).output::<u32>(2 * 10 * 9);
    // Groups of 8 by 6 over 10 by 9 threads: the last ones are smaller.
    let out = kernel.launch_every_order(Grid::Threads([10, 9, 1]), [8, 6, 1]).unwrap().read::<u32>(0);
    for (at, found) in out.chunks(2).enumerate() {
        let (x, y) = (at as u32 % 10, at as u32 / 10);
        let (sx, sy) = ((10 - x / 8 * 8).min(8), (9 - y / 6 * 6).min(6));
        let index = x % 8 + sx * (y % 6);
        assert_eq!(found[0], x % 8 + 100 * (y % 6) + 10000 * (x / 8) + 1_000_000 * (y / 6) + 200_000_000);
        let count = (sx * sy).div_ceil(32);
        assert_eq!(found[1], sx + 100 * index + 10000 * 32 + 1_000_000 * (index / 32) + 100_000_000 * count);
    }
}

#[test]
fn threadgroup_arguments_have_the_size_that_is_given() {
    let text = "[[kernel]] void probe(device float* out, threadgroup float* a [[threadgroup(0)]], \
        threadgroup half4* b [[threadgroup(1)]], uint i [[thread_index_in_threadgroup]]) {\n\
        a[i] = i; b[i] = half4(half(i)); threadgroup_barrier(mem_flags::mem_threadgroup);\n\
        out[i] = a[31 - i] + float(b[i ^ 1].w); }";
    let kernel = compile(text, &[]).output::<f32>(32).threadgroup_memory(0, 128);
    let one = Grid::Groups([1, 1, 1]);
    let out = kernel.clone().threadgroup_memory(1, 256).launch_every_order(one, [32, 1, 1]).unwrap();
    assert_eq!(out.read::<f32>(0)[..2], [32.0, 30.0]);
    assert!(
        kernel.clone().launch(one, [32, 1, 1]).unwrap_err().to_string().contains("threadgroup argument 1")
    );
    let short = kernel.threadgroup_memory(1, 248).launch(one, [32, 1, 1]).unwrap_err().to_string();
    assert!(short.contains("threadgroup argument 1, which has 248 bytes"), "{short}");
}

#[test]
fn threadgroup_variables_are_shared_however_they_are_declared() {
    let text = "struct Pair { float x, y; };\n[[kernel]] void probe(device float* out, uint i [[thread_index_in_threadgroup]]) {\n\
        threadgroup float a[32] = {0}, b, c[2][32]; threadgroup Pair pairs[4 == 4 ? 32 : 1];\n\
        threadgroup float* p = a; { threadgroup vec<float, 2> d[32]; d[i] = float2(i, 1); }\n\
        p[i] = i; if (i == 5) b = 100; c[1][i] = 1000; pairs[i].y = 10000;\n\
        threadgroup_barrier(mem_flags::mem_threadgroup); uint j = 31 - i;\n\
        out[i] = a[j] + b + c[1][j] + pairs[j].y; }";
    let kernel = compile(text, &[]).output::<f32>(32);
    let out = kernel.launch_every_order(Grid::Groups([1, 1, 1]), [32, 1, 1]).unwrap().read::<f32>(0);
    assert_eq!(out, (0..32).map(|i| (11131 - i) as f32).collect::<Vec<_>>());
}

#[test]
fn bodies_run_with_the_signature_that_mlx_writes() {
    let x: Vec<f16> = (0..12).map(|i| f16::from_f32(i as f32)).collect();
    let mut input = Input::new("x", "half", &x, &[3, 4]);
    input.strides = vec![1, 3]; // a transposed matrix, as without `ensure_row_contiguous`
    let custom = Custom {
        name: "scaled",
        header: "template <typename T> T twice(T x) { return x + x; }",
        body: "uint i = thread_position_in_grid.x;\n\
               int at = elem_to_loc(int(i), x_shape, x_strides, x_ndim);\n\
               y[i] = T(twice(float(x[at])) * scale + N + few[i % 2]);",
        inputs: vec![
            input,
            Input::new("scale", "float", &[0.5f32], &[]),
            Input::new("few", "int", &[100, 200], &[2]),
        ],
        outputs: vec![("y", "bfloat16_t", 12)],
        template: vec![("typename", "T", "bfloat16_t"), ("int", "N", "1")],
        ..Custom::default()
    };
    assert!(
        custom.source().contains("const constant int64_t* x_strides [[buffer(2)]]"),
        "{}",
        custom.source()
    );
    let out = custom.kernel().unwrap().launch_every_order(Grid::Threads([12, 1, 1]), [5, 1, 1]).unwrap();
    let want: Vec<bf16> = (0..12)
        .map(|i| bf16::from_f32((i / 4 + 3 * (i % 4)) as f32 + 1.0 + if i % 2 == 0 { 100.0 } else { 200.0 }))
        .collect();
    assert_eq!(out.read::<bf16>(0), want);

    let count = Custom {
        name: "count",
        body: "atomic_fetch_add_explicit(&n[0], 1, memory_order_relaxed);",
        outputs: vec![("n", "uint", 1)],
        atomic_outputs: true,
        initial: 40u32.to_ne_bytes().to_vec(),
        ..Custom::default()
    };
    let out = count.kernel().unwrap().launch_every_order(Grid::Threads([100, 1, 1]), [64, 1, 1]).unwrap();
    assert_eq!(out.read::<u32>(0), [140]);
}

#[test]
fn outputs_come_in_the_order_of_the_arguments() {
    let text = "[[kernel]] void probe(device int* a, const device int* b, device int* c) { a[0] = b[0] + 1; c[0] += 2; }";
    let kernel = compile(text, &[]).output::<i32>(1).input(&[4]).buffer(Buffer::in_out(&[7]));
    let out = kernel.launch(Grid::Threads([1, 1, 1]), [1, 1, 1]).unwrap();
    assert_eq!((out.read::<i32>(0), out.read::<i32>(1)), (vec![5], vec![9]));
}
