//! What properties draw from.

use mlxport::{Dtype, HostTensor};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::element::{bits, encode, encode_int, from_bits, range};
use super::layout::{Input, Layout};
use super::nd::Nd;

/// Which numbers a tensor is filled with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values {
    /// Every kind: ordinary, tiny, huge; zeros of both signs, infinities, NaN, subnormals, extremes.
    Any,
    /// As `Any`, without NaN.
    Ordered,
    /// Uniform in `[low, high]`, and now and then exactly one of its ends or a whole number.
    Within(f64, f64),
}

/// Values of both signs that no sum or product of a few overflows or rounds away.
pub const MODERATE: Values = Values::Within(-4.0, 4.0);

/// A shape of up to `max_ndim` dimensions, among them the awkward sizes: 0, 1 and odd ones.
pub fn shape(max_ndim: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1 => Just(0usize), 3 => Just(1), 12 => 2..6usize], 0..=max_ndim)
}

/// As [`shape`], without empty arrays and scalars.
pub fn filled_shape(max_ndim: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1 => Just(1usize), 4 => 2..6usize, 1 => 6..20usize], 1..=max_ndim)
}

/// Two shapes that broadcast against each other.
pub fn broadcastable(max_ndim: usize) -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    let side = |full: Vec<usize>| {
        let ndim = full.len();
        (0..=ndim, prop::collection::vec(prop::bool::weighted(0.25), ndim)).prop_map(move |(drop, ones)| {
            let size = |(&n, one)| if one { 1 } else { n };
            full.iter().zip(ones).map(size).skip(drop.saturating_sub(ndim / 2)).collect::<Vec<_>>()
        })
    };
    shape(max_ndim).prop_flat_map(move |full| (side(full.clone()), side(full)))
}

/// Some axes of an array of `ndim` dimensions, in any order; at least one if there is one.
pub fn axes(ndim: usize) -> impl Strategy<Value = Vec<usize>> {
    subsequence((0..ndim).collect::<Vec<_>>(), ndim.min(1)..=ndim).prop_shuffle()
}

/// All axes in any order.
pub fn permutation(ndim: usize) -> impl Strategy<Value = Vec<usize>> {
    Just((0..ndim).collect::<Vec<_>>()).prop_shuffle()
}

/// One of `dtypes`.
pub fn dtype(dtypes: &'static [Dtype]) -> impl Strategy<Value = Dtype> {
    select(dtypes)
}

/// The bits of one element.
pub fn element(dtype: Dtype, values: Values) -> BoxedStrategy<u64> {
    if dtype == Dtype::Complex64 {
        let part = element(Dtype::Float32, values);
        return (part.clone(), part).prop_map(|(re, im)| re | im << 32).boxed();
    }
    if !dtype.is_floating() {
        return integer(dtype, values).prop_map(move |v| encode_int(v, dtype)).boxed();
    }
    let any_bits = any::<u64>().prop_map(move |b| b >> (64 - 8 * dtype.size()));
    let moderate = (-4.0..4.0).prop_map(move |v| encode(v, dtype));
    let whole = (-9..10i32).prop_map(move |v| encode(v.into(), dtype));
    match values {
        Values::Any => prop_oneof![6 => moderate, 2 => whole, 3 => any_bits, 3 => special(dtype)].boxed(),
        Values::Ordered => {
            let number = move |b: &u64| !super::element::decode(*b, dtype).is_nan();
            element(dtype, Values::Any).prop_filter("NaN has no order", number).boxed()
        }
        Values::Within(low, high) => {
            let within = move |v: f64| encode(v.clamp(low, high), dtype);
            let whole = (low as i64..=high as i64).prop_map(move |v| within(v as f64));
            let ends = select(vec![low, high]).prop_map(within);
            prop_oneof![12 => (low..=high).prop_map(within), 2 => whole, 1 => ends].boxed()
        }
    }
}

fn integer(dtype: Dtype, values: Values) -> BoxedStrategy<i128> {
    let (min, max) = range(dtype);
    match values {
        Values::Within(low, high) => {
            let (low, high) = ((low.ceil() as i128).max(min), (high.floor() as i128).min(max));
            (low..=high).boxed()
        }
        _ => {
            let small = (-9..10i128).prop_map(move |v| v.clamp(min, max));
            let edges = select(vec![min, min + 1, 0, 1, max - 1, max]);
            prop_oneof![6 => small, 2 => edges, 3 => min..=max].boxed()
        }
    }
}

fn special(dtype: Dtype) -> impl Strategy<Value = u64> {
    let (bits, mantissa) = match dtype {
        Dtype::Float16 => (16, 10),
        Dtype::Bfloat16 => (16, 7),
        Dtype::Float32 => (32, 23),
        _ => (64, 52),
    };
    let sign = 1u64 << (bits - 1);
    let infinity = (sign - 1) >> mantissa << mantissa;
    let (one, normal) = (encode(1.0, dtype), 1 << mantissa);
    // Zero, the smallest and largest subnormal, the smallest normal, 1 and its neighbours, the
    // largest number, infinity; then the same below zero, and NaN.
    let positive = [0, 1, normal - 1, normal, one - 1, one, one + 1, infinity - 1, infinity];
    let mut all = positive.map(|b| b | sign).to_vec();
    all.extend(positive);
    all.push(infinity | normal >> 1);
    select(all)
}

/// A tensor of this dtype and shape.
pub fn tensor(dtype: Dtype, shape: &[usize], values: Values) -> BoxedStrategy<HostTensor> {
    let shape = shape.to_vec();
    prop::collection::vec(element(dtype, values), shape.iter().product::<usize>())
        .prop_map(move |data| from_bits(&Nd::new(&shape, data), dtype))
        .boxed()
}

/// A tensor of this dtype and shape in any layout.
pub fn input(dtype: Dtype, shape: &[usize], values: Values) -> BoxedStrategy<Input> {
    let ndim = shape.len();
    let layout = prop_oneof![
        3 => Just(Layout::Contiguous),
        2 => Just(Layout::Transposed),
        2 => Just(Layout::Strided),
        1 => Just(Layout::Flipped),
        1 => Just(Layout::Offset),
        1 => axes(ndim).prop_map(Layout::Broadcast),
    ];
    (tensor(dtype, shape, values), layout)
        .prop_map(move |(tensor, layout)| {
            let Layout::Broadcast(axes) = &layout else { return Input { tensor, layout } };
            let values = bits(&tensor);
            let constant = Nd::from_fn(&values.shape, |index| {
                let mut at = index.to_vec();
                axes.iter().for_each(|&axis| at[axis] = 0);
                *values.at(&at)
            });
            Input { tensor: from_bits(&constant, dtype), layout }
        })
        .boxed()
}
