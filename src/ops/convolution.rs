//! Convolutions, channels last.
//!
//! Input is `[batch, ..spatial.., in_channels]` of a floating dtype, the weight
//! `[out_channels, ..kernel.., in_channels / groups]`, the result `[batch, ..spatial.., out_channels]`.
//! The kernel is not flipped (what signal processing calls correlation). Groups other than 1 are for one
//! and two dimensions. Fails if channels do not match, or the padded input is smaller than the kernel.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::ffi::op;

/// How a kernel moves over `N` spatial dimensions. By default in steps of 1, without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv<const N: usize> {
    /// Steps of the kernel.
    pub stride: [i32; N],
    /// Zeros added at both ends.
    pub padding: [i32; N],
    /// Distance of neighbouring taps of the kernel.
    pub dilation: [i32; N],
    /// Parts that the channels are divided into, each convolved on its own.
    pub groups: i32,
}

impl<const N: usize> Default for Conv<N> {
    fn default() -> Self {
        Self { stride: [1; N], padding: [0; N], dilation: [1; N], groups: 1 }
    }
}

/// What MLX divides by, or adds without looking.
fn check(
    op: &'static str,
    input: &Array,
    positive: &[&[i32]],
    paddings: &[&[i32]],
    groups: i32,
) -> Result<()> {
    const FAR: i32 = 1 << 30;
    if groups < 1 || positive.iter().any(|values| values.iter().any(|&v| v < 1)) {
        return Err(Error::argument(op, "strides, dilations and groups must be positive"));
    }
    if paddings.iter().any(|values| values.iter().any(|p| !(-FAR..=FAR).contains(p))) {
        return Err(Error::argument(op, "a padding beyond 2^30"));
    }
    if input.shape().last().is_none_or(|&channels| channels < 1) {
        return Err(Error::argument(op, format!("an input of shape {:?} has no channels", input.shape())));
    }
    Ok(())
}

macro_rules! convolutions {
    ($($(#[$doc:meta])* $name:ident<$n:literal>($($i:tt $s:ident $p:ident $d:ident),*) => $f:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(input: &Array, weight: &Array, how: Conv<$n>) -> Result<Array> {
            let groups = how.groups;
            check(stringify!($name), input, &[&how.stride, &how.dilation], &[&how.padding], groups)?;
            $(let ($s, $p, $d) = (how.stride[$i], how.padding[$i], how.dilation[$i]);)*
            op!($f(input, weight, $($s,)* $($p,)* $($d,)* groups))
        }
    )* };
}

convolutions! {
    /// Over one spatial dimension: input `[batch, length, in_channels]`.
    conv1d<1>(0 s0 p0 d0) => mlx_conv1d;
    /// Over two spatial dimensions: input `[batch, height, width, in_channels]`.
    conv2d<2>(0 s0 p0 d0, 1 s1 p1 d1) => mlx_conv2d;
    /// Over three spatial dimensions: input `[batch, depth, height, width, in_channels]`.
    conv3d<3>(0 s0 p0 d0, 1 s1 p1 d1, 2 s2 p2 d2) => mlx_conv3d;
}

macro_rules! transposed {
    ($($(#[$doc:meta])* $name:ident<$n:literal>($($i:tt $s:ident $p:ident $d:ident $o:ident),*) => $f:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(
            input: &Array,
            weight: &Array,
            how: Conv<$n>,
            output_padding: [i32; $n],
        ) -> Result<Array> {
            let groups = how.groups;
            let paddings: &[&[i32]] = &[&how.padding, &output_padding];
            check(stringify!($name), input, &[&how.stride, &how.dilation], paddings, groups)?;
            $(let ($s, $p, $d) = (how.stride[$i], how.padding[$i], how.dilation[$i]);)*
            $(let $o = output_padding[$i];)*
            op!($f(input, weight, $($s,)* $($p,)* $($d,)* $($o,)* groups))
        }
    )* };
}

transposed! {
    /// The transpose of [`conv1d`] (its gradient in the input): spreads with `stride` what that gathers.
    /// `output_padding` makes the result longer at its end.
    conv_transpose1d<1>(0 s0 p0 d0 o0) => mlx_conv_transpose1d;
    /// The transpose of [`conv2d`]; see [`conv_transpose1d`].
    conv_transpose2d<2>(0 s0 p0 d0 o0, 1 s1 p1 d1 o1) => mlx_conv_transpose2d;
    /// The transpose of [`conv3d`]; see [`conv_transpose1d`].
    conv_transpose3d<3>(0 s0 p0 d0 o0, 1 s1 p1 d1 o1, 2 s2 p2 d2 o2) => mlx_conv_transpose3d;
}

/// How [`conv_general`] moves. Each list has one entry for every spatial dimension, or one for all, or
/// none for the default (1; for paddings 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvGeneral<'a> {
    /// Steps of the kernel.
    pub stride: &'a [i32],
    /// Zeros added in front; a negative number cuts off.
    pub padding_low: &'a [i32],
    /// Zeros added at the end; a negative number cuts off.
    pub padding_high: &'a [i32],
    /// Distance of neighbouring taps of the kernel.
    pub kernel_dilation: &'a [i32],
    /// Distance of neighbouring input elements; zeros come between them.
    pub input_dilation: &'a [i32],
    /// Parts that the channels are divided into.
    pub groups: i32,
    /// Whether the kernel is flipped, as in the mathematical convolution.
    pub flip: bool,
}

impl Default for ConvGeneral<'_> {
    fn default() -> Self {
        let none = &[];
        Self {
            stride: none,
            padding_low: none,
            padding_high: none,
            kernel_dilation: none,
            input_dilation: none,
            groups: 1,
            flip: false,
        }
    }
}

/// The convolution that all others are cases of, over one to three spatial dimensions.
pub fn conv_general(input: &Array, weight: &Array, how: ConvGeneral) -> Result<Array> {
    let ConvGeneral { stride, padding_low, padding_high, kernel_dilation, input_dilation, groups, flip } =
        how;
    let positive = [stride, kernel_dilation, input_dilation];
    check("conv_general", input, &positive, &[padding_low, padding_high], groups)?;
    op!(mlx_conv_general(
        input,
        weight,
        [stride],
        [padding_low],
        [padding_high],
        [kernel_dilation],
        [input_dilation],
        groups,
        flip
    ))
}
