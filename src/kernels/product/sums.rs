//! What a product gives: a part of the result, and how it gets to where it belongs.

use std::ops::Range;

use half::{bf16, f16};

use crate::array::Dtype;
use crate::error::Result;
use crate::kernels::{ViewMut, math, pool};

/// Numbers that are worth another thread.
const WORK: usize = 1 << 15;

/// Some rows of the result and all columns, or `turned` all rows and some columns.
pub(crate) struct Sums {
    /// `[strips, few, width]`: strip after strip of the longer side.
    pub values: Vec<f32>,
    pub width: usize,
    pub few: Range<usize>,
    pub many: usize,
    pub turned: bool,
}

impl Sums {
    /// Which rows of the result are here.
    pub fn rows(&self) -> Range<usize> {
        if self.turned { 0..self.many } else { self.few.clone() }
    }

    /// Which columns of each row.
    pub fn columns(&self) -> Range<usize> {
        if self.turned { self.few.clone() } else { 0..self.many }
    }

    /// What is here of a row.
    pub fn read(&self, row: usize, out: &mut [f32]) {
        let (few, width) = (self.few.len(), self.width);
        if self.turned {
            let strip = &self.values[row / width * few * width..];
            let column = strip[row % width..].iter().step_by(width);
            out.iter_mut().zip(column).for_each(|(out, value)| *out = *value);
        } else {
            let row = row - self.few.start;
            for (strip, out) in self.values.chunks_exact(few * width).zip(out.chunks_mut(width)) {
                out.copy_from_slice(&strip[row * width..][..out.len()]);
            }
        }
    }

    /// Puts row `m` into elements `[m, columns]` of `out`, which begin at element `start` and are `n` to a
    /// row, after `finish(m, first column, row)`.
    pub fn store(
        &self,
        out: &mut ViewMut<'_>,
        start: usize,
        n: usize,
        finish: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) -> Result<()> {
        fn put<T: Send>(
            sums: &Sums,
            out: &mut [T],
            n: usize,
            finish: impl Fn(usize, usize, &mut [f32]) + Sync,
            cast: impl Fn(&[f32], &mut [T]) + Sync,
        ) {
            let (rows, columns) = (sums.rows(), sums.columns());
            if sums.turned && sums.width == 1 && sums.many == 1 {
                let (out, first) = (&mut out[columns.clone()], columns.start);
                return pool::for_each_piece(out, WORK, |piece, out| {
                    let mut part = sums.values[piece * WORK..][..out.len()].to_vec();
                    finish(0, first + piece * WORK, &mut part);
                    cast(&part, out);
                });
            }
            let grain = WORK.div_ceil(n);
            let out = &mut out[rows.start * n..rows.end * n];
            pool::for_each_piece(out, grain * n, |piece, out| {
                let mut row = vec![0.0; columns.len()];
                for (i, out) in out.chunks_exact_mut(n).enumerate() {
                    let m = rows.start + piece * grain + i;
                    sums.read(m, &mut row);
                    finish(m, columns.start, &mut row);
                    cast(&row, &mut out[columns.clone()]);
                }
            });
        }
        match out.dtype() {
            Dtype::Float16 => put(self, &mut out.as_mut_slice()?[start..], n, finish, to_f16),
            Dtype::Bfloat16 => put(self, &mut out.as_mut_slice()?[start..], n, finish, to_bf16),
            _ => put(self, &mut out.as_mut_slice()?[start..], n, finish, |row, out| out.copy_from_slice(row)),
        }
        Ok(())
    }

    /// As [`store`](Self::store), with row `m` at row `place(m)` of the result.
    pub fn scatter(
        &self,
        out: &mut ViewMut<'_>,
        n: usize,
        finish: impl Fn(usize, usize, &mut [f32]),
        place: impl Fn(usize) -> usize,
    ) -> Result<()> {
        fn put<T>(
            sums: &Sums,
            out: &mut [T],
            n: usize,
            finish: impl Fn(usize, usize, &mut [f32]),
            place: impl Fn(usize) -> usize,
            cast: impl Fn(&[f32], &mut [T]),
        ) {
            let columns = sums.columns();
            let mut row = vec![0.0; columns.len()];
            for m in sums.rows() {
                sums.read(m, &mut row);
                finish(m, columns.start, &mut row);
                cast(&row, &mut out[place(m) * n..][columns.clone()]);
            }
        }
        match out.dtype() {
            Dtype::Float16 => put(self, out.as_mut_slice()?, n, finish, place, to_f16),
            Dtype::Bfloat16 => put(self, out.as_mut_slice()?, n, finish, place, to_bf16),
            _ => put(self, out.as_mut_slice()?, n, finish, place, |row, out| out.copy_from_slice(row)),
        }
        Ok(())
    }
}

/// Rounds to nearest, ties to even.
pub(crate) fn to_f16(values: &[f32], out: &mut [f16]) {
    half::slice::HalfFloatSliceExt::convert_from_f32_slice(out, values);
}

/// Rounds to nearest, ties to even.
pub(crate) fn to_bf16(values: &[f32], out: &mut [bf16]) {
    math::convert(values, out);
}
