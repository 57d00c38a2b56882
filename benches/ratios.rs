//! Kernels against what the machine gives: bytes read per second, and OpenBLAS's product in `float32`. Each round measures
//! the one and the other in turn, so that a change of the load meets both; of the rounds, the median ratio and the quartiles
//! are printed. What is read is several matrices, keys or values, more than any cache holds.
//!
//! `cargo bench --bench ratios -- [ROUNDS] [NAME...]`, where a name picks the measures that contain it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use mlxport::fast::{self, Mask};
use mlxport::nn::activations::swiglu;
use mlxport::ops::{self, Quantization, QuantizationMode, Quantized};
use mlxport::{Array, Dtype, Result, kernels, random, transforms};

/// Rows and columns of each matrix.
const SIZE: i32 = 4096;
/// Bytes that are read in a turn, and at least as many of weights.
const BYTES: usize = 128 << 20;

/// Seconds that `f` takes.
fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// Reads all of `memory`, on all threads of the kernels.
fn read(memory: &[u64]) {
    std::thread::scope(|scope| {
        for part in memory.chunks(memory.len().div_ceil(kernels::threads())) {
            scope.spawn(move || {
                let mut sums = [0u64; 32];
                for part in part.chunks_exact(32) {
                    sums.iter_mut().zip(part).for_each(|(sum, v)| *sum ^= v);
                }
                black_box(sums);
            });
        }
    });
}

/// Quartiles.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|q| values[(values.len() - 1) * q / 4])
}

fn normal(shape: &[i32], dtype: Dtype) -> Array {
    let x = random::normal(0.0, 1.0, shape, dtype, None).unwrap();
    x.eval().unwrap();
    x
}

/// Prints how `rate` compares with `other`, in billions a second of `unit`.
fn compare(name: &str, unit: &str, rounds: usize, rate: impl Fn() -> f64, other: impl Fn() -> f64) {
    rate();
    let rounds = (0..rounds).map(|_| {
        let before = other();
        let rate = rate();
        (rate, rate / ((before + other()) / 2.0))
    });
    let (rates, ratios): (Vec<f64>, Vec<f64>) = rounds.unzip();
    let ([_, rate, _], [low, ratio, high]) = (spread(rates), spread(ratios));
    println!("{name}: {:.1} {unit}, {ratio:.2} ({low:.2} to {high:.2}) times", rate / 1e9);
}

/// What works on each row or element alone, and attention.
fn others(rounds: usize, memory: &[u64], wanted: impl Fn(&str) -> bool) {
    let bandwidth = || BYTES as f64 / seconds(|| read(memory));
    let (rows, dims, dtype) = ((64 << 20) / 2 / SIZE, 128, Dtype::Bfloat16);
    if wanted("rows") {
        let [x, y] = [(); 2].map(|()| normal(&[rows, SIZE], dtype));
        let w = normal(&[SIZE], dtype);
        let heads = ops::swapaxes(&ops::reshape(&x, &[1, rows / 4, dims, dims]).unwrap(), 1, 2).unwrap();
        let bytes = |passes: usize, f: &dyn Fn() -> Result<Array>| {
            (passes * x.nbytes()) as f64 / seconds(|| f().unwrap().eval().unwrap())
        };
        let all: [(&str, usize, &dyn Fn() -> Result<Array>); 4] = [
            ("rms_norm", 2, &|| fast::rms_norm(&x, Some(&w), 1e-5)),
            ("softmax", 2, &|| ops::softmax(&x, -1, true)),
            ("swiglu", 3, &|| swiglu(&x, &y)),
            ("rope", 2, &|| fast::rope(&heads, dims, false, 1e6, 1.0, 5)),
        ];
        for (name, passes, f) in all {
            let name = format!("{name} of 64 MiB rows, against reading");
            compare(&name, "GB/s", rounds, || bytes(passes, f), bandwidth);
        }
    }
    let heads = |count: i32, length: i32| normal(&[1, count, length, dims], dtype);
    if wanted("one query") {
        let q = heads(16, 1);
        let caches: Vec<[Array; 2]> = (0..8).map(|_| [heads(8, 4096), heads(8, 4096)]).collect();
        let bytes: usize = caches.iter().flatten().map(Array::nbytes).sum();
        let attention = |[k, v]: &[Array; 2]| {
            fast::scaled_dot_product_attention(&q, k, v, 0.09, Mask::None, None).unwrap()
        };
        let rate = || {
            let all: Vec<Array> = caches.iter().map(attention).collect();
            bytes as f64 / seconds(|| transforms::eval(&all).unwrap())
        };
        compare("attention of one query to 4096 keys, against reading", "GB/s", rounds, rate, bandwidth);
    }
    let blas = [(); 2].map(|()| normal(&[1024, 1024], Dtype::Float32));
    let product = |[a, b]: &[Array; 2]| {
        let once = || ops::matmul(a, b).unwrap().eval().unwrap();
        once();
        8.0 * 2f64.powi(31) / seconds(|| (0..8).for_each(|_| once()))
    };
    let dense = || {
        let rate = product(&blas);
        // Its threads look out for more, each on a core of its own.
        std::thread::sleep(Duration::from_millis(60));
        rate
    };
    if wanted("prompt") {
        let (q, [k, v]) = (heads(16, 2048), [(); 2].map(|()| heads(8, 2048)));
        let flops = 4.0 * 2048.0 * 1024.0 * f64::from(16 * dims);
        let attention = || fast::scaled_dot_product_attention(&q, &k, &v, 0.09, Mask::Causal, None).unwrap();
        let once = || attention().eval().unwrap();
        let rate = || {
            once();
            flops / seconds(once)
        };
        compare("attention of a prompt of 2048, against OpenBLAS float32", "GFLOP/s", rounds, rate, dense);
    }
    if wanted("matmul") {
        let halves = [(); 2].map(|()| normal(&[1024, 1024], dtype));
        let name = "matmul bfloat16 1024 x 1024 x 1024, against OpenBLAS float32";
        compare(name, "GFLOP/s", rounds, || product(&halves), dense);
    }
}

struct Case {
    name: String,
    how: Quantization,
    x: Array,
    weights: Vec<Quantized>,
}

impl Case {
    fn new(name: &str, how: Quantization, rows: i32, dtype: Dtype, bytes: usize) -> Self {
        let x = random::normal(0.0, 1.0, &[rows, SIZE], dtype, None).unwrap();
        let w = random::normal(0.0, 1.0, &[SIZE, SIZE], Dtype::Bfloat16, None).unwrap();
        let one = ops::quantize(&w, how, None).unwrap();
        let copy = |a: &Array| ops::copy(a).unwrap();
        let mut case = Self { name: format!("{name}, {rows} rows {dtype}"), how, x, weights: vec![one] };
        while case.bytes() < bytes {
            let of = &case.weights[0];
            let [weight, scales] =
                [&of.weight, &of.scales].map(|a| ops::contiguous(&copy(a), false).unwrap());
            // An operation without effect, whose result is memory of its own.
            let weight = ops::bitwise_or(&weight, Array::from(0u32)).unwrap();
            case.weights.push(Quantized { weight, scales, biases: of.biases.as_ref().map(copy) });
        }
        let arrays = case.weights.iter().flat_map(|w| [&w.weight, &w.scales].into_iter().chain(&w.biases));
        transforms::eval(arrays.chain([&case.x])).unwrap();
        case
    }

    fn bytes(&self) -> usize {
        let of = |w: &Quantized| {
            w.weight.nbytes() + w.scales.nbytes() + w.biases.as_ref().map_or(0, Array::nbytes)
        };
        self.weights.iter().map(of).sum()
    }

    /// Seconds for all products.
    fn run(&self) -> f64 {
        let product = |w: &Quantized| {
            ops::quantized_matmul(&self.x, &w.weight, &w.scales, w.biases.as_ref(), true, self.how).unwrap()
        };
        seconds(|| {
            let products: Vec<Array> = self.weights.iter().map(product).collect();
            transforms::eval(&products).unwrap();
        })
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let rounds = args.first().and_then(|a| a.parse().ok()).unwrap_or(11);
    let names = &args[usize::from(args.first().is_some_and(|a| a.parse::<usize>().is_ok()))..];
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| name.contains(n.as_str()));
    println!("path {}, {} threads, medians of {rounds} (quartiles)", kernels::active(), kernels::threads());

    let modes = [2, 3, 4, 5, 6, 8].map(|bits| (format!("affine {bits}-bit"), Quantization::affine(64, bits)));
    let floats = QuantizationMode::ALL[1..].iter().map(|&mode| (mode.to_string(), mode.into()));
    let memory = vec![1u64; BYTES / 8];
    for (name, how) in modes.into_iter().chain(floats).filter(|(name, _)| wanted(name)) {
        let case = Case::new(&name, how, 1, Dtype::Bfloat16, BYTES);
        let others: Vec<Case> = [2, 4, 8]
            .into_iter()
            .map(|rows| {
                let x = random::normal(0.0, 1.0, &[rows, SIZE], Dtype::Bfloat16, None).unwrap();
                x.eval().unwrap();
                Case { name: format!("{rows} rows"), how, x, weights: case.weights.clone() }
            })
            .collect();
        let (mut bandwidths, mut shares, mut times) = (vec![], vec![], vec![]);
        let mut against: Vec<Vec<f64>> = vec![vec![]; others.len()];
        case.run();
        for _ in 0..rounds {
            let bandwidth = BYTES as f64 / seconds(|| read(&memory));
            let time = case.run();
            let after = BYTES as f64 / seconds(|| read(&memory));
            let bandwidth = (bandwidth + after) / 2.0;
            shares.push(case.bytes() as f64 / time / bandwidth);
            bandwidths.push(bandwidth / 1e9);
            times.push(time * 1e3 / case.weights.len() as f64);
            for (case, all) in others.iter().zip(&mut against) {
                all.push(case.run() / time);
            }
        }
        let ([_, bandwidth, _], [low, share, high], [_, time, _]) =
            (spread(bandwidths), spread(shares), spread(times));
        print!("{}: {time:.3} ms, {share:.2} ({low:.2} to {high:.2}) of {bandwidth:.1} GB/s", case.name);
        for (case, ratios) in others.iter().zip(against) {
            let [low, ratio, high] = spread(ratios);
            print!("; {} {ratio:.2} ({low:.2} to {high:.2}) times", case.name);
        }
        println!();
    }
    others(rounds, &memory, wanted);
    for rows in [16, 64, 512] {
        if !wanted(&format!("{rows} rows")) {
            continue;
        }
        let case = Case::new("affine 4-bit", Quantization::affine(64, 4), rows, Dtype::Bfloat16, 1);
        let [a, b] =
            [rows, SIZE].map(|n| random::normal(0.0, 1.0, &[n, SIZE], Dtype::Float32, None).unwrap());
        transforms::eval([&a, &b]).unwrap();
        let b = ops::transpose(&b, ..).unwrap();
        let dense = || seconds(|| ops::matmul(&a, &b).unwrap().eval().unwrap());
        case.run();
        dense();
        let (ratios, times): (Vec<f64>, Vec<f64>) = (0..rounds)
            .map(|_| {
                let time = case.run();
                (dense() / time, time * 1e3)
            })
            .unzip();
        let ([low, ratio, high], [_, time, _]) = (spread(ratios), spread(times));
        println!("{}: {time:.2} ms, {ratio:.2} ({low:.2} to {high:.2}) times OpenBLAS float32", case.name);
    }
}
