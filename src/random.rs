//! Random numbers.
//!
//! Every function takes a key, and the same key gives the same numbers on every machine and device.
//! Without a key (`None`) the next one of this thread's default sequence is used, so the numbers then
//! depend on what this thread drew before. [`seed`] restarts the sequence of the calling thread only;
//! a thread that never called it starts from entropy of the system. Inside a compiled function the
//! default sequence is read once, while the function is traced: pass keys there.
//!
//! The generator is Threefry (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};

use crate::array::{Array, Dtype, Operand, element_count, operands};
use crate::error::{Error, Result};
use crate::ffi::{ArrayHandle, call, op, ops2};

thread_local! {
    // MLX has such a sequence too. It is not used: its C++ destructor runs at the end of a thread,
    // outside of the lock, and two threads that were not seeded draw the same numbers from it.
    static NEXT: RefCell<Option<Array>> = const { RefCell::new(None) };
}

/// Restarts the default sequence of this thread. The numbers are those of MLX's Python after
/// `mx.random.seed` with the same seed.
pub fn seed(seed: u64) -> Result<()> {
    let key = key(seed)?;
    drop(NEXT.replace(Some(key)));
    Ok(())
}

/// `key`, or the next one of the default sequence.
fn key_or_next(key: Option<&Array>) -> Result<Array> {
    if let Some(key) = key {
        return Ok(key.clone());
    }
    let current = match NEXT.take() {
        Some(key) => key,
        None => self::key(RandomState::new().hash_one(0))?,
    };
    let (rest, drawn) = split(&current)?;
    NEXT.set(Some(rest));
    Ok(drawn)
}

/// Fails unless `shape` times `per_element` elements can be addressed.
fn check_shape(op: &'static str, shape: &[i32], per_element: i32) -> Result<()> {
    let elements = element_count(shape).and_then(|n| n.checked_mul(per_element.max(1) as usize));
    // The widest intermediate result has 8 bytes per element.
    match elements.filter(|&n| n <= isize::MAX as usize / 8) {
        Some(_) => Ok(()),
        None => Err(Error::argument(op, format!("impossible shape {shape:?}"))),
    }
}

/// The key of a seed: `uint32`, `[2]`.
pub fn key(seed: u64) -> Result<Array> {
    let mut out = ArrayHandle::empty();
    call!(mlx_random_key; out.0; seed)?;
    Ok(Array::from_handle(out))
}

/// Two new keys from one, which should not be used again.
pub fn split(key: &Array) -> Result<(Array, Array)> {
    ops2!(mlx_random_split(key))
}

/// `num` new keys from one, `[num, 2]`.
pub fn split_num(key: &Array, num: i32) -> Result<Array> {
    check_shape("random_split", &[num, 2], 1)?;
    op!(mlx_random_split_num(key, num))
}

/// Random bits: `uint8`, `uint16` or `uint32` for a width of 1, 2 or 4 bytes.
pub fn bits(shape: &[i32], width: i32, key: Option<&Array>) -> Result<Array> {
    check_shape("random_bits", shape, 1)?;
    let key = key_or_next(key)?;
    op!(mlx_random_bits([shape], width, key))
}

/// Uniform in `[low, high)`, which broadcast to `shape`. `float32`, `float16` or `bfloat16`.
pub fn uniform(
    low: impl Operand,
    high: impl Operand,
    shape: &[i32],
    dtype: Dtype,
    key: Option<&Array>,
) -> Result<Array> {
    check_shape("random_uniform", shape, 1)?;
    let (low, high) = (low.to_arg(Some(dtype))?, high.to_arg(Some(dtype))?);
    let key = key_or_next(key)?;
    op!(mlx_random_uniform(low, high, [shape], dtype, key))
}

/// Normal with mean `loc` and standard deviation `scale`, which broadcast with `shape`.
///
/// Any floating dtype (drawn in `float32`), or `complex64`: real and imaginary parts are then
/// independent, and each has half of the variance.
pub fn normal(
    loc: impl Operand,
    scale: impl Operand,
    shape: &[i32],
    dtype: Dtype,
    key: Option<&Array>,
) -> Result<Array> {
    check_shape("random_normal", shape, 2)?;
    let (loc, scale) = (loc.to_arg(Some(dtype))?, scale.to_arg(Some(dtype))?);
    let (loc, scale) = (Some(&*loc), Some(&*scale));
    let key = key_or_next(key)?;
    op!(mlx_random_normal_broadcast([shape], dtype, loc, scale, key))
}

/// Standard normal under the condition that it lies in `[lower, upper]`, which broadcast to `shape`.
/// `float32`, `float16` or `bfloat16`.
pub fn truncated_normal(
    lower: impl Operand,
    upper: impl Operand,
    shape: &[i32],
    dtype: Dtype,
    key: Option<&Array>,
) -> Result<Array> {
    check_shape("random_truncated_normal", shape, 1)?;
    let (lower, upper) = (lower.to_arg(Some(dtype))?, upper.to_arg(Some(dtype))?);
    let key = key_or_next(key)?;
    op!(mlx_random_truncated_normal(lower, upper, [shape], dtype, key))
}

/// Normal with the mean `mean`, `[..., n]`, and the covariance `cov`, `[..., n, n]`, `float32`.
///
/// The result has the shape that `shape` and the leading dimensions of both broadcast to, and then `n`.
/// Runs on the CPU only, as the singular value decomposition in it does.
pub fn multivariate_normal(mean: &Array, cov: &Array, shape: &[i32], key: Option<&Array>) -> Result<Array> {
    check_shape("random_multivariate_normal", shape, mean.shape().last().copied().unwrap_or(1))?;
    let key = key_or_next(key)?;
    let dtype = Dtype::Float32;
    op!(mlx_random_multivariate_normal(mean, cov, [shape], dtype, key))
}

/// Laplace with mean `loc` and scale `scale` (the variance is `2 scale^2`). Any floating dtype, drawn
/// in `float32`.
pub fn laplace(loc: f32, scale: f32, shape: &[i32], dtype: Dtype, key: Option<&Array>) -> Result<Array> {
    check_shape("random_laplace", shape, 1)?;
    let key = key_or_next(key)?;
    op!(mlx_random_laplace([shape], dtype, loc, scale, key))
}

/// Standard Gumbel: `-log(-log(u))` of a uniform `u`. `float32`, `float16` or `bfloat16`.
pub fn gumbel(shape: &[i32], dtype: Dtype, key: Option<&Array>) -> Result<Array> {
    check_shape("random_gumbel", shape, 1)?;
    let key = key_or_next(key)?;
    op!(mlx_random_gumbel([shape], dtype, key))
}

/// Integers of `[low, high)`, which broadcast to `shape`; an integer dtype, or `bool`.
///
/// Drawn through `float32`, which has 24 bits: not every number of a wider range occurs.
pub fn randint(
    low: impl Operand,
    high: impl Operand,
    shape: &[i32],
    dtype: Dtype,
    key: Option<&Array>,
) -> Result<Array> {
    check_shape("random_randint", shape, 1)?;
    let (low, high) = operands(&low, &high)?;
    let key = key_or_next(key)?;
    op!(mlx_random_randint(low, high, [shape], dtype, key))
}

/// `true` with probability `p`, which is floating and broadcasts to `shape`.
pub fn bernoulli(p: impl Operand, shape: &[i32], key: Option<&Array>) -> Result<Array> {
    check_shape("random_bernoulli", shape, 1)?;
    let p = p.to_arg(Some(Dtype::Float32))?;
    let key = key_or_next(key)?;
    op!(mlx_random_bernoulli(p, [shape], key))
}

/// One index per distribution, `uint32`: `logits` are unnormalised log probabilities along `axis`,
/// which the result lacks.
pub fn categorical(logits: &Array, axis: i32, key: Option<&Array>) -> Result<Array> {
    let key = key_or_next(key)?;
    op!(mlx_random_categorical(logits, axis, key))
}

/// As [`categorical`], with `num_samples` independent draws per distribution as a last dimension.
pub fn categorical_num_samples(
    logits: &Array,
    axis: i32,
    num_samples: i32,
    key: Option<&Array>,
) -> Result<Array> {
    let mut shape = logits.shape().to_vec();
    shape.push(num_samples);
    check_shape("random_categorical", &shape, 1)?;
    let key = key_or_next(key)?;
    op!(mlx_random_categorical_num_samples(logits, axis, num_samples, key))
}

/// As [`categorical`], with independent draws of `shape`, to which the shape of `logits` without `axis`
/// broadcasts.
pub fn categorical_shape(logits: &Array, axis: i32, shape: &[i32], key: Option<&Array>) -> Result<Array> {
    check_shape("random_categorical", shape, logits.dim(axis)?)?;
    let key = key_or_next(key)?;
    op!(mlx_random_categorical_shape(logits, axis, [shape], key))
}

/// `x` with its slices along `axis` in random order.
pub fn permutation(x: &Array, axis: i32, key: Option<&Array>) -> Result<Array> {
    x.dim(axis)?;
    let key = key_or_next(key)?;
    op!(mlx_random_permutation(x, axis, key))
}

/// The numbers of `0..n` in random order, `uint32`.
pub fn permutation_arange(n: i32, key: Option<&Array>) -> Result<Array> {
    check_shape("random_permutation", &[n], 1)?;
    let key = key_or_next(key)?;
    op!(mlx_random_permutation_arange(n, key))
}
