//! Rows of `x` by codes that are unpacked once for all of them, strip by strip of columns of the result from all threads: which rows
//! are taken in fixed point, as in [`fixed`](super::fixed), and where results go. What fixed point takes from a row, if it is too
//! much, makes another row, whose sums are added.

use std::ops::Range;

use super::super::avx512::bytes::Bytes;
use super::fixed::{Bits, Codes, Float4, rest_of, suits};
use super::{Weights, overshadows};
use crate::kernels::product::strips;
use crate::kernels::quantized_matmul::cpu::portable::{Row, dot};
use crate::kernels::{pool, scratch};
use crate::ops::QuantizationMode;

/// Multiply-adds that are worth another thread.
const WORK: usize = 1 << 18;
/// Numbers of `x` that are worth another thread.
const READ: usize = 1 << 14;

/// Where products go.
pub struct Target<'a, T> {
    /// Of each matrix, rows as long as there are columns.
    pub outs: Vec<&'a mut [T]>,
    /// Which of them each row of the product is.
    pub place: &'a (dyn Fn(usize) -> usize + Sync),
    /// What each row of the product is divided by.
    pub powers: &'a [f32],
    pub cast: fn(&[f32], &mut [T]),
}

/// A kind of codes, as each way takes them.
pub trait Kind: Codes + Bytes {}

impl<C: Codes + Bytes> Kind for C {}

/// How rows of `x` meet codes.
pub trait Strips {
    /// Rows in a panel.
    const ROWS: usize;
    /// Columns of the result that are worked through together.
    const WIDTH: usize;
    /// Columns that a thread takes at a time, at most: a power of two times [`WIDTH`](Self::WIDTH).
    const MOST: usize;
    type Panel: Send + Sync;

    /// Rows of `x`, `[m, k]`, in fixed point, or the rest of each that fixed point has taken from it.
    ///
    /// # Safety
    /// The CPU must have the instructions.
    unsafe fn panel<C: Kind>(rows: &[usize], rest: bool, x: &[f32], k: usize, group: usize) -> Self::Panel;

    /// Adds the products of `columns` to `sums`, `[m, width]`.
    ///
    /// # Safety
    /// The CPU must have the instructions.
    unsafe fn strip<C: Kind>(
        w: &Weights<'_>,
        panels: &[Self::Panel],
        columns: Range<usize>,
        width: usize,
        sums: &mut [f32],
    );
}

/// `x[m, k] @ w[n, k].T` of rows whose numbers have `digits` bits at most, and of matrices that are quantized alike. Returns
/// which rows do not fit in fixed point: what is stored of them is nothing.
pub fn product<S: Strips, T: Send>(
    weights: &[Weights<'_>],
    x: &[f32],
    digits: u32,
    to: Target<'_, T>,
) -> Vec<usize> {
    match (weights[0].how.mode, weights[0].how.bits) {
        (QuantizationMode::Affine, 1) => product_of::<S, Bits<1>, T>(weights, x, digits, to),
        (QuantizationMode::Affine, 2) => product_of::<S, Bits<2>, T>(weights, x, digits, to),
        (QuantizationMode::Affine, 3) => product_of::<S, Bits<3>, T>(weights, x, digits, to),
        (QuantizationMode::Affine, 4) => product_of::<S, Bits<4>, T>(weights, x, digits, to),
        (QuantizationMode::Affine, 5) => product_of::<S, Bits<5>, T>(weights, x, digits, to),
        (QuantizationMode::Affine, 6) => product_of::<S, Bits<6>, T>(weights, x, digits, to),
        (QuantizationMode::Affine, _) => product_of::<S, Bits<8>, T>(weights, x, digits, to),
        _ => product_of::<S, Float4, T>(weights, x, digits, to),
    }
}

fn product_of<S: Strips, C: Kind, T: Send>(
    weights: &[Weights<'_>],
    x: &[f32],
    digits: u32,
    to: Target<'_, T>,
) -> Vec<usize> {
    let Weights { k, how, .. } = weights[0];
    let count = x.len() / k;
    let (mut forms, grain) = (vec![Form::None; count], READ.div_ceil(k));
    pool::for_each_piece(&mut forms, grain, |piece, forms| {
        let x = x[piece * grain * k..].chunks_exact(k);
        forms.iter_mut().zip(x).for_each(|(form, x)| *form = Form::of(x, how.mode, digits));
    });
    let rows = |form: fn(&Form) -> bool| -> Vec<usize> { (0..count).filter(|&m| form(&forms[m])).collect() };
    let firsts = rows(|form| *form != Form::None);
    let seconds = rows(|form| *form == Form::Two);
    let of: Vec<(&[usize], bool)> = [(&firsts, false), (&seconds, true)]
        .into_iter()
        .flat_map(|(rows, rest)| rows.chunks(S::ROWS).map(move |rows| (rows, rest)))
        .collect();
    let mut panels: Vec<Option<S::Panel>> = of.iter().map(|_| None).collect();
    let each = grain.div_ceil(S::ROWS);
    pool::for_each_piece(&mut panels, each, |piece, panels| {
        for (panel, &(rows, rest)) in panels.iter_mut().zip(&of[piece * each..]) {
            // SAFETY: this path is taken only where the CPU has the instructions.
            *panel = Some(unsafe { S::panel::<C>(rows, rest, x, k, how.group_size as usize) });
        }
    });
    let panels: Vec<S::Panel> = panels.into_iter().flatten().collect();
    let n: usize = weights.iter().map(|w| w.n).sum();
    let mut width = S::MOST;
    while width > S::WIDTH && n.div_ceil(width) < 4 * pool::threads() && width * k * count > WORK {
        width /= 2;
    }
    let mut all = Vec::new();
    for (w, out) in weights.iter().zip(to.outs) {
        all.extend(strips(out, w.n, width).into_iter().map(|strip| (w, strip)));
    }
    pool::for_each_piece(&mut all, 1, |_, strips| {
        let mut sums = scratch::take(count * width);
        for (w, strip) in strips {
            let columns = strip.columns();
            sums.fill(0.0);
            // SAFETY: as above.
            unsafe { S::strip::<C>(w, &panels, columns.clone(), width, &mut sums) };
            again(w, x, &firsts, columns.clone(), width, &mut sums);
            for (m, sums) in sums.chunks_exact_mut(width).enumerate() {
                let sums = &mut sums[..columns.len()];
                if to.powers[m] != 1.0 {
                    sums.iter_mut().for_each(|sum| *sum /= to.powers[m]);
                }
                (to.cast)(sums, strip.row((to.place)(m)));
            }
        }
    });
    rows(|form| *form == Form::None)
}

/// Computes sums of columns `range` again that are infinite or NaN.
fn again(w: &Weights<'_>, x: &[f32], rows: &[usize], range: Range<usize>, width: usize, sums: &mut [f32]) {
    const EXPONENT: u32 = 0x7f80_0000;
    let is_off = |sum: &f32| sum.to_bits() & EXPONENT == EXPONENT;
    let of = |m: usize| m * width..m * width + range.len();
    let off = |m: &&usize| sums[of(**m)].iter().fold(false, |off, sum| off | is_off(sum));
    let rows: Vec<usize> = rows.iter().filter(off).copied().collect();
    if rows.is_empty() {
        return;
    }
    let mut line = Row::new(w);
    for (c, n) in range.enumerate() {
        let mut decoded = None;
        for &m in &rows {
            let sum = &mut sums[m * width + c];
            if is_off(sum) {
                let decoded: &[f32] = decoded.get_or_insert_with(|| line.decode(n).to_vec());
                *sum = dot(&x[m * w.k..][..w.k], decoded);
            }
        }
    }
}

/// How many rows in fixed point say the same as a row.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    One,
    Two,
    None,
}

impl Form {
    fn of(x: &[f32], mode: QuantizationMode, digits: u32) -> Self {
        if suits(x, digits) {
            return Self::One;
        }
        if overshadows(x, mode, Some(digits)) {
            return Self::None;
        }
        // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C.
        let rest = unsafe { rest_of(x) };
        if suits(&rest, digits) { Self::Two } else { Self::None }
    }
}
