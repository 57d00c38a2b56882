//! Loops over many numbers, written once for every instruction set.
//!
//! A [`Loop`] is generic over [`Lanes`], a vector of numbers; [`run`] compiles it for the instructions of a path.
//! What a new set needs is a file in `cpu`, its path in `cpu::PATHS`, and an arm in `cpu::run`.

mod cpu;

pub(crate) use cpu::{Lanes, fetch, path, run};
use half::{bf16, f16};

use crate::array::Element;

/// The widest vector of any instruction set.
pub(crate) const WIDEST: usize = 16;

/// What [`run`] runs.
pub(crate) trait Loop {
    type Output;

    /// Must be `#[inline(always)]`, as must be what it calls with `L`: only so it gets the instructions.
    fn run<L: Lanes>(self) -> Self::Output;
}

/// Numbers as stored, which vectors of `float32` are made of.
pub(crate) trait Number: Element + Send + Sync {
    const ZERO: Self;

    fn load<L: Lanes>(from: &[Self]) -> L;
    fn store<L: Lanes>(lanes: L, to: &mut [Self]);
    fn number(self) -> f32;
}

macro_rules! number {
    ($type:ty, $zero:expr, $load:ident, $store:ident, $number:expr) => {
        impl Number for $type {
            const ZERO: Self = $zero;

            #[inline(always)]
            fn load<L: Lanes>(from: &[Self]) -> L {
                L::$load(from)
            }
            #[inline(always)]
            fn store<L: Lanes>(lanes: L, to: &mut [Self]) {
                lanes.$store(to);
            }
            #[inline(always)]
            fn number(self) -> f32 {
                ($number)(self)
            }
        }
    };
}

number!(f32, 0.0, load, store, |x| x);
number!(f16, f16::ZERO, load_f16, store_f16, f16::to_f32);
number!(bf16, bf16::ZERO, load_bf16, store_bf16, bf16::to_f32);

/// The first numbers, or those that there are and as many zeros as fill a vector.
#[inline(always)]
fn load<L: Lanes, T: Number>(from: &[T]) -> L {
    if from.len() >= L::WIDTH {
        return T::load(from);
    }
    let mut padded = [T::ZERO; WIDEST];
    padded[..from.len()].copy_from_slice(from);
    T::load(&padded)
}

/// As many as there is room for.
#[inline(always)]
fn store<L: Lanes, T: Number>(lanes: L, to: &mut [T]) {
    if to.len() >= L::WIDTH {
        return T::store(lanes, to);
    }
    let mut padded = [T::ZERO; WIDEST];
    T::store(lanes, &mut padded);
    to.copy_from_slice(&padded[..to.len()]);
}

// In each of the following `f` is called at one place, so that it is compiled into it: a closure on its own
// would lack the instructions, and call a function for each.

/// `out[i] = f(i, x[i])`, a vector at a time.
#[inline(always)]
pub(crate) fn map<L: Lanes, I: Number, O: Number>(x: &[I], out: &mut [O], f: impl Fn(usize, L) -> L) {
    let out = &mut out[..x.len()];
    for at in (0..x.len()).step_by(L::WIDTH) {
        store(f(at, load(&x[at..])), &mut out[at..]);
    }
}

/// `out[i] = f(a[i], b[i])`, a vector at a time.
#[inline(always)]
pub(crate) fn zip<L: Lanes, I: Number, O: Number>(a: &[I], b: &[I], out: &mut [O], f: impl Fn(L, L) -> L) {
    let (b, out) = (&b[..a.len()], &mut out[..a.len()]);
    for at in (0..a.len()).step_by(L::WIDTH) {
        store(f(load(&a[at..]), load(&b[at..])), &mut out[at..]);
    }
}

/// `x[i] = f(x[i])`, a vector at a time.
#[inline(always)]
pub(crate) fn map_in_place<L: Lanes>(x: &mut [f32], f: impl Fn(L) -> L) {
    for at in (0..x.len()).step_by(L::WIDTH) {
        store(f(load(&x[at..])), &mut x[at..]);
    }
}

/// All `f(x[i])` put together by `join`, in the vectors and order of the instruction set: `join` takes what `none`
/// is with what comes.
#[inline(always)]
fn fold<L: Lanes, I: Number>(
    x: &[I],
    none: f32,
    f: impl Fn(L) -> L,
    join: impl Fn(L, L) -> L,
    join_one: impl Fn(f32, f32) -> f32,
) -> f32 {
    let (wide, rest) = (L::WIDTH, x.len() % L::WIDTH);
    let mut parts = [L::splat(none); 4];
    let mut last = [none; WIDEST];
    for start in (0..x.len()).step_by(4 * wide) {
        for (part, at) in parts.iter_mut().zip((start..x.len()).step_by(wide)) {
            let y = f(load(&x[at..]));
            if at + wide <= x.len() { *part = join(y, *part) } else { y.store(&mut last) }
        }
    }
    let mut lanes = [none; WIDEST];
    join(join(parts[0], parts[1]), join(parts[2], parts[3])).store(&mut lanes);
    lanes[..wide].iter().chain(&last[..rest]).fold(none, |all, &one| join_one(one, all))
}

/// The sum of all `f(x[i])`.
#[inline(always)]
pub(crate) fn sum<L: Lanes, I: Number>(x: &[I], f: impl Fn(L) -> L) -> f32 {
    fold(x, 0.0, f, L::add, |a, b| a + b)
}

/// The largest number, of those that are one.
#[inline(always)]
pub(crate) fn maximum<L: Lanes, I: Number>(x: &[I]) -> f32 {
    fold(x, f32::NEG_INFINITY, |x| x, L::max, f32::max)
}

/// Replaces each by `e^(x - max)`, and returns their sum: NaN where any is.
#[inline(always)]
pub(crate) fn exp_sum<L: Lanes>(x: &mut [f32], max: f32) -> f32 {
    let max = L::splat(max);
    map_in_place::<L>(x, |x| x.sub(max).exp());
    sum::<L, f32>(x, |x| x)
}

/// `e^x` to about one unit in the last place.
///
/// `x = n ln 2 + r`, and a polynomial in `r` (Cody and Waite, "Software Manual for the Elementary Functions",
/// 1980; the coefficients are those of the series, to degree 7).
#[inline(always)]
pub(super) fn exp<L: Lanes>(x: L) -> L {
    // Beyond these the result is zero or infinite. A NaN stays.
    let x = L::splat(89.0).min(L::splat(-105.0).max(x));
    let n = x.mul(L::splat(std::f32::consts::LOG2_E)).round();
    // ln 2 in two parts, the first of few bits.
    let r = n.mul_add(L::splat(-0.693_359_4), x);
    let r = n.mul_add(L::splat(2.121_944_4e-4), r);
    let mut p = L::splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, L::splat(c));
    }
    p.times_power(n)
}

/// `tanh(x)`: near zero a Padé approximant, elsewhere by [`exp`].
#[inline(always)]
pub(super) fn tanh<L: Lanes>(x: L) -> L {
    let square = x.mul(x);
    let over = square.add(L::splat(105.0)).mul_add(square, L::splat(945.0)).mul(x);
    let under = square.mul(L::splat(15.0)).add(L::splat(420.0)).mul_add(square, L::splat(945.0));
    let e = exp(x.add(x));
    let far = L::splat(1.0).sub(L::splat(2.0).div(e.add(L::splat(1.0))));
    square.choose_below(0.36, over.div(under), far)
}

/// `(low[i], high[i]) = f(i, a[i], b[i])`, a vector at a time.
#[inline(always)]
pub(crate) fn zip_to_two<L: Lanes, T: Number>(
    a: &[T],
    b: &[T],
    low: &mut [T],
    high: &mut [T],
    f: impl Fn(usize, L, L) -> (L, L),
) {
    let (b, low, high) = (&b[..a.len()], &mut low[..a.len()], &mut high[..a.len()]);
    for at in (0..a.len()).step_by(L::WIDTH) {
        let (y, z) = f(at, load(&a[at..]), load(&b[at..]));
        store(y, &mut low[at..]);
        store(z, &mut high[at..]);
    }
}

/// What a row is divided by its root mean square with: `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(crate) fn rms_factor<L: Lanes, I: Number>(x: &[I], eps: f32) -> f32 {
    1.0 / (sum::<L, I>(x, |x| x.mul(x)) / x.len() as f32 + eps).sqrt()
}

/// Each number rounded to nearest, ties to even.
pub(crate) fn convert<T: Number>(from: &[f32], to: &mut [T]) {
    struct Convert<'a, T>(&'a [f32], &'a mut [T]);
    impl<T: Number> Loop for Convert<'_, T> {
        type Output = ();

        #[inline(always)]
        fn run<L: Lanes>(self) {
            map(self.0, self.1, |_, x: L| x);
        }
    }
    run(path(), Convert(from, to));
}

/// The largest magnitude, of those that are numbers.
pub(crate) fn largest(x: &[f32]) -> f32 {
    struct Largest<'a>(&'a [f32]);
    impl Loop for Largest<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<L: Lanes>(self) -> f32 {
            fold(self.0, 0.0, |x: L| x.max(L::splat(0.0).sub(x)), L::max, f32::max)
        }
    }
    run(path(), Largest(x))
}
