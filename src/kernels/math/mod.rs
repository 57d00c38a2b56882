//! Loops over many numbers, written once for every instruction set.
//!
//! A [`Loop`] is generic over [`Lanes`], a vector of numbers; [`run`] compiles it for the instructions of a path.
//! What a new set needs is a file in `cpu`, its path in `cpu::PATHS`, and an arm in `cpu::run`.

mod cpu;

pub(crate) use cpu::{Lanes, fetch, fetch_at, path, run};
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
    T::load(&padded(from))
}

#[inline(always)]
fn padded<T: Number>(from: &[T]) -> [T; WIDEST] {
    let mut padded = [T::ZERO; WIDEST];
    padded[..from.len()].copy_from_slice(from);
    padded
}

// In each of the following `f` is called at one place, so that it is compiled into it: a closure on its own
// would lack the instructions, and call a function for each. So that nothing else is decided for each vector, the last one
// overlaps the one before it, and fewer numbers than a vector has are put into one.

/// `out[i] = f(i, x[i])`, a vector at a time.
#[inline(always)]
pub(crate) fn map<L: Lanes, I: Number, O: Number>(x: &[I], out: &mut [O], f: impl Fn(usize, L) -> L) {
    let out = &mut out[..x.len()];
    if x.is_empty() {
        return;
    }
    let few = x.len() < L::WIDTH;
    let (mut from, mut to) = ([I::ZERO; WIDEST], [O::ZERO; WIDEST]);
    if few {
        from[..x.len()].copy_from_slice(x);
    }
    {
        let (x, out) = if few { (&from[..L::WIDTH], &mut to[..L::WIDTH]) } else { (x, &mut *out) };
        let last = x.len() - L::WIDTH;
        for at in (0..x.len()).step_by(L::WIDTH) {
            let at = at.min(last);
            O::store(f(at, I::load(&x[at..])), &mut out[at..]);
        }
    }
    if few {
        out.copy_from_slice(&to[..x.len()]);
    }
}

/// `out[i] = f(a[i], b[i])`, a vector at a time.
#[inline(always)]
pub(crate) fn zip<L: Lanes, I: Number, O: Number>(a: &[I], b: &[I], out: &mut [O], f: impl Fn(L, L) -> L) {
    let (b, out) = (&b[..a.len()], &mut out[..a.len()]);
    if a.is_empty() {
        return;
    }
    let few = a.len() < L::WIDTH;
    let (mut first, mut second, mut to) = ([I::ZERO; WIDEST], [I::ZERO; WIDEST], [O::ZERO; WIDEST]);
    if few {
        first[..a.len()].copy_from_slice(a);
        second[..a.len()].copy_from_slice(b);
    }
    {
        let (a, b, out) = match few {
            true => (&first[..L::WIDTH], &second[..L::WIDTH], &mut to[..L::WIDTH]),
            false => (a, b, &mut *out),
        };
        let last = a.len() - L::WIDTH;
        for at in (0..a.len()).step_by(L::WIDTH) {
            let at = at.min(last);
            O::store(f(I::load(&a[at..]), I::load(&b[at..])), &mut out[at..]);
        }
    }
    if few {
        out.copy_from_slice(&to[..a.len()]);
    }
}

/// `x[i] = f(x[i])`, a vector at a time.
#[inline(always)]
pub(crate) fn map_in_place<L: Lanes>(x: &mut [f32], f: impl Fn(L) -> L) {
    if x.is_empty() {
        return;
    }
    let few = x.len() < L::WIDTH;
    let mut room = [0.0; WIDEST];
    if few {
        room[..x.len()].copy_from_slice(x);
    }
    {
        let x = if few { &mut room[..L::WIDTH] } else { &mut *x };
        let last = x.len() - L::WIDTH;
        // As it was before some of it is replaced.
        let end = L::load(&x[last..]);
        for at in (0..x.len()).step_by(L::WIDTH) {
            let (at, lanes) = if at > last { (last, end) } else { (at, L::load(&x[at..])) };
            f(lanes).store(&mut x[at..]);
        }
    }
    if few {
        x.copy_from_slice(&room[..x.len()]);
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

/// `out[i] = e^(x[i] - max)`, and their sum: NaN where any is. `at_each` gets the number of each vector's first.
#[inline(always)]
pub(crate) fn exp_sum<L: Lanes, I: Number>(
    x: &[I],
    max: f32,
    out: &mut [f32],
    at_each: impl Fn(usize),
) -> f32 {
    let (max, out) = (L::splat(max), &mut out[..x.len()]);
    let whole = x.len() / L::WIDTH * L::WIDTH;
    let mut parts = [L::splat(0.0); 4];
    for start in (0..whole).step_by(4 * L::WIDTH) {
        for (part, at) in parts.iter_mut().zip((start..whole).step_by(L::WIDTH)) {
            at_each(at);
            let y = I::load::<L>(&x[at..]).sub(max).exp();
            y.store(&mut out[at..]);
            *part = part.add(y);
        }
    }
    let mut last = [0.0; WIDEST];
    I::load::<L>(&padded(&x[whole..])).sub(max).exp().store(&mut last);
    let rest = &mut out[whole..];
    rest.copy_from_slice(&last[..rest.len()]);
    rest.iter().fold(parts[0].add(parts[1]).add(parts[2].add(parts[3])).sum(), |all, one| all + one)
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
    if a.is_empty() {
        return;
    }
    let few = a.len() < L::WIDTH;
    let (mut from_a, mut from_b) = ([T::ZERO; WIDEST], [T::ZERO; WIDEST]);
    let (mut to_low, mut to_high) = ([T::ZERO; WIDEST], [T::ZERO; WIDEST]);
    if few {
        from_a[..a.len()].copy_from_slice(a);
        from_b[..a.len()].copy_from_slice(b);
    }
    {
        let (a, b) = if few { (&from_a[..L::WIDTH], &from_b[..L::WIDTH]) } else { (a, b) };
        let (low, high) = match few {
            true => (&mut to_low[..L::WIDTH], &mut to_high[..L::WIDTH]),
            false => (&mut *low, &mut *high),
        };
        let last = a.len() - L::WIDTH;
        for at in (0..a.len()).step_by(L::WIDTH) {
            let at = at.min(last);
            let (y, z) = f(at, T::load(&a[at..]), T::load(&b[at..]));
            T::store(y, &mut low[at..]);
            T::store(z, &mut high[at..]);
        }
    }
    if few {
        low.copy_from_slice(&to_low[..a.len()]);
        high.copy_from_slice(&to_high[..a.len()]);
    }
}

/// What a row is divided by its root mean square with: `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(crate) fn rms_factor<L: Lanes, I: Number>(x: &[I], eps: f32) -> f32 {
    1.0 / (sum::<L, I>(x, |x| x.mul(x)) / x.len() as f32 + eps).sqrt()
}

/// Each number rounded to nearest, ties to even.
pub(crate) fn convert<I: Number, O: Number>(from: &[I], to: &mut [O]) {
    struct Convert<'a, I, O>(&'a [I], &'a mut [O]);
    impl<I: Number, O: Number> Loop for Convert<'_, I, O> {
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
