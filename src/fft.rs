//! Fourier transforms.
//!
//! Forward, `X[k] = sum_j x[j] exp(-2 pi i j k / n)`; the inverse has the opposite sign. All of them
//! compute in `float32` and give `complex64`, or `float32` where the result is real. `n` is the size of
//! the signal along an axis: it is cut, or filled up with zeros, to that. `None` takes it as it is.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::ffi::{op, sys};
use crate::ops::Axes;

/// Where the factor `1/n` goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FftNorm {
    /// To the inverse transform.
    #[default]
    Backward,
    /// Its square root to both.
    Ortho,
    /// To the forward transform.
    Forward,
}

impl crate::ffi::CArg for FftNorm {
    type C = sys::mlx_fft_norm;
    fn c(&self) -> Self::C {
        match self {
            FftNorm::Backward => sys::MLX_FFT_NORM_BACKWARD,
            FftNorm::Ortho => sys::MLX_FFT_NORM_ORTHO,
            FftNorm::Forward => sys::MLX_FFT_NORM_FORWARD,
        }
    }
}

/// The size of the signal along `axis`: as asked for, or as it is. The inverse of a real transform
/// has `k` of `2 (k - 1)` values.
fn size(a: &Array, n: Option<i32>, axis: i32, half: bool) -> Result<i32> {
    let size = a.dim(axis)?;
    Ok(n.unwrap_or(if half { size.saturating_sub(1).saturating_mul(2) } else { size }))
}

/// The sizes of the signal along `axes`, and the axes; only the last can be half.
fn sizes(a: &Array, n: Option<&[i32]>, axes: Axes<'_>, half: bool) -> Result<(Vec<i32>, Vec<i32>)> {
    let axes = axes.list(a.ndim());
    if axes.is_empty() || n.is_some_and(|n| n.len() != axes.len()) {
        return Err(Error::argument("fft", format!("sizes {n:?} along the axes {axes:?}")));
    }
    let last = axes.len() - 1;
    let of = |(i, &axis): (usize, &i32)| size(a, n.map(|n| n[i]), axis, half && i == last);
    Ok((axes.iter().enumerate().map(of).collect::<Result<_>>()?, axes))
}

macro_rules! transforms {
    ($half:literal $(#[$doc:meta])* $one:ident $f:ident, $(#[$doc2:meta])* $two:ident $f2:ident, $(#[$docn:meta])* $many:ident $fn:ident) => {
        $(#[$doc])*
        pub fn $one(a: &Array, n: Option<i32>, axis: i32, norm: FftNorm) -> Result<Array> {
            let n = size(a, n, axis, $half)?;
            op!($f(a, n, axis, norm))
        }

        $(#[$doc2])*
        pub fn $two(a: &Array, n: Option<[i32; 2]>, norm: FftNorm) -> Result<Array> {
            let (n, axes) = sizes(a, n.as_ref().map(|n| &n[..]), [-2, -1].into(), $half)?;
            op!($f2(a, [n], [axes], norm))
        }

        $(#[$docn])*
        pub fn $many<'a>(
            a: &Array,
            n: Option<&[i32]>,
            axes: impl Into<Axes<'a>>,
            norm: FftNorm,
        ) -> Result<Array> {
            let (n, axes) = sizes(a, n, axes.into(), $half)?;
            op!($fn(a, [n], [axes], norm))
        }
    };
}

transforms! {
    false
    /// The transform along `axis`.
    fft mlx_fft_fft,
    /// The transform along the last two axes.
    fft2 mlx_fft_fft2,
    /// The transform along several axes; `n` has one size for each.
    fftn mlx_fft_fftn
}

transforms! {
    false
    /// The inverse of [`fft`].
    ifft mlx_fft_ifft,
    /// The inverse of [`fft2`].
    ifft2 mlx_fft_ifft2,
    /// The inverse of [`fftn`].
    ifftn mlx_fft_ifftn
}

transforms! {
    false
    /// The first `n / 2 + 1` values of the transform of a real signal; the others are their conjugates.
    rfft mlx_fft_rfft,
    /// The transform of a real signal along the last two axes, halved along the last.
    rfft2 mlx_fft_rfft2,
    /// The transform of a real signal along several axes, halved along the last that `axes` names.
    rfftn mlx_fft_rfftn
}

transforms! {
    true
    /// The inverse of [`rfft`]. `n` is the size of the result: 2 (k - 1) for k values if `None`, which
    /// is right for even sizes.
    irfft mlx_fft_irfft,
    /// The inverse of [`rfft2`]. `n` is the size of the result, as for [`irfft`].
    irfft2 mlx_fft_irfft2,
    /// The inverse of [`rfftn`]. `n` is the size of the result, as for [`irfft`].
    irfftn mlx_fft_irfftn
}

/// The frequencies of the values of [`fft`], in cycles per unit, for samples `d` apart: `float32`, `[n]`.
pub fn fftfreq(n: i32, d: f64) -> Result<Array> {
    op!(mlx_fft_fftfreq(n, d))
}

/// The frequencies of the values of [`rfft`]: `float32`, `[n / 2 + 1]`.
pub fn rfftfreq(n: i32, d: f64) -> Result<Array> {
    op!(mlx_fft_rfftfreq(n, d))
}

/// Moves the frequency 0 to the middle of `axes`.
pub fn fftshift<'a>(a: &Array, axes: impl Into<Axes<'a>>) -> Result<Array> {
    let axes = axes.into().list(a.ndim());
    op!(mlx_fft_fftshift(a, [axes]))
}

/// The inverse of [`fftshift`].
pub fn ifftshift<'a>(a: &Array, axes: impl Into<Axes<'a>>) -> Result<Array> {
    let axes = axes.into().list(a.ndim());
    op!(mlx_fft_ifftshift(a, [axes]))
}
