//! Numbers, arrays in memory, and how close results must be.

use half::{bf16, f16};

use crate::array::Dtype;
use crate::kernels::path::Path;
use crate::kernels::{View, ViewMut};

pub const FLOATS: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Between -1 and 1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// The paths that this machine has; of those, the ones that `MLXPORT_TEST_PATHS` names if it is set.
pub fn paths() -> Vec<Path> {
    let named = std::env::var("MLXPORT_TEST_PATHS").ok();
    let wanted = |p: &Path| named.as_ref().is_none_or(|names| names.split(',').any(|name| name == p.name()));
    Path::ALL[1..].iter().copied().filter(|p| p.is_available() && wanted(p)).collect()
}

/// The number of `dtype` that is nearest.
pub fn rounded(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Float16 => f16::from_f32(value).to_f32(),
        Dtype::Bfloat16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// An array in memory.
pub struct Array {
    words: Vec<u64>,
    bytes: usize,
    origin: usize,
    shape: Vec<i32>,
    strides: Vec<i64>,
    dtype: Dtype,
}

impl Array {
    pub fn zeros(shape: &[usize], dtype: Dtype) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i] as i64;
        }
        let shape = shape.iter().map(|&size| size as i32).collect();
        Self { words: vec![0; bytes.div_ceil(8)], bytes, origin: 0, shape, strides, dtype }
    }

    pub fn of_bytes(bytes: &[u8], shape: &[usize], dtype: Dtype) -> Self {
        let mut array = Self::zeros(shape, dtype);
        array.memory().copy_from_slice(bytes);
        array
    }

    pub fn of_floats(values: &[f32], shape: &[usize], dtype: Dtype) -> Self {
        let bytes: Vec<u8> = match dtype {
            Dtype::Float16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::Bfloat16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Self::of_bytes(&bytes, shape, dtype)
    }

    /// A matrix of these values which lies in some other way: row-major, column-major, every second element, or
    /// rows in reverse.
    pub fn lying(values: &[f32], [rows, columns]: [usize; 2], dtype: Dtype, how: usize) -> Self {
        let at = |i: usize, j: usize| values[i * columns + j];
        let rearranged = |f: &dyn Fn(usize) -> f32, count: usize| (0..count).map(f).collect::<Vec<_>>();
        let all = rows * columns;
        let (memory, origin, strides) = match how {
            0 => (values.to_vec(), 0, [columns as i64, 1]),
            1 => (rearranged(&|i| at(i % rows, i / rows), all), 0, [1, rows as i64]),
            2 => (rearranged(&|i| values[i / 2], 2 * all), 0, [2 * columns as i64, 2]),
            _ => {
                let memory = rearranged(&|i| at(rows - 1 - i / columns, i % columns), all);
                (memory, (rows - 1) * columns, [-(columns as i64), 1])
            }
        };
        let stored = Self::of_floats(&memory, &[memory.len()], dtype);
        Self { origin, shape: vec![rows as i32, columns as i32], strides: strides.to_vec(), ..stored }
    }

    fn memory(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes]
    }

    pub fn view(&self) -> View<'_> {
        let bytes = &bytemuck::cast_slice(&self.words)[..self.bytes];
        View::new(bytes, self.origin, &self.shape, &self.strides, self.dtype)
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let bytes = &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes];
        ViewMut::new(bytes, &self.shape, self.dtype)
    }

    /// The elements of a row-major array.
    pub fn values(&self) -> Vec<f32> {
        let view = self.view();
        match self.dtype {
            Dtype::Float16 => view.as_slice::<f16>().unwrap().iter().map(|v| v.to_f32()).collect(),
            Dtype::Bfloat16 => view.as_slice::<bf16>().unwrap().iter().map(|v| v.to_f32()).collect(),
            _ => view.as_slice::<f32>().unwrap().to_vec(),
        }
    }
}

/// What results are held to.
pub struct Oracle {
    pub exact: Vec<f64>,
    /// The largest error of plain sums in `float32`, rounded to the dtype of the result.
    plain: f64,
}

impl Oracle {
    /// `count` results of `dtype`, each a sum of products of `f32` numbers. The plain sums multiply `f32`
    /// roundings of the second factors, which are given exactly.
    pub fn new<'a, I>(count: usize, dtype: Dtype, terms: impl Fn(usize) -> I) -> Self
    where
        I: Iterator<Item = (f32, f64)> + 'a,
    {
        let (mut exact, mut plain) = (Vec::with_capacity(count), 0.0);
        for i in 0..count {
            let (mut sum, mut single) = (0.0f64, 0.0f32);
            for (x, w) in terms(i) {
                sum += f64::from(x) * w;
                single += x * w as f32;
            }
            plain = f64::max(plain, (f64::from(rounded(single, dtype)) - sum).abs());
            exact.push(sum);
        }
        Self { exact, plain }
    }

    /// Twice the error of the plain sums and one unit in the last place of the largest result; and of terms as
    /// large as `scale` two roundings, for few results, whose plain sums may be lucky.
    pub fn allowed(&self, dtype: Dtype, scale: f64) -> f64 {
        let epsilon = match dtype {
            Dtype::Float16 => 2f64.powi(-10),
            Dtype::Bfloat16 => 2f64.powi(-7),
            _ => f64::from(f32::EPSILON),
        };
        let largest = self.exact.iter().fold(f64::MIN_POSITIVE, |max, v| max.max(v.abs()));
        2.0 * self.plain + epsilon * 2f64.powf(largest.log2().floor()) + 2.0 * scale * f64::from(f32::EPSILON)
    }
}

/// Fails unless each of `found` is within `allowed` of what is expected.
#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f64], allowed: f64, of: &dyn Fn() -> String) {
    assert_eq!(found.len(), expected.len(), "{}", of());
    for (i, (y, e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*y) - e).abs();
        assert!(error <= allowed, "{}: element {i} is {y:e}, not {e:e}: {error:e} > {allowed:e}", of());
    }
}
