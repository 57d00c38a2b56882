//! Floating-point operands with any strides.

use half::{bf16, f16};

use super::Lines;
use crate::array::Dtype;
use crate::error::Result;
use crate::kernels::{View, math};

/// Floating-point numbers as stored.
#[derive(Clone, Copy)]
pub(crate) enum Numbers<'a> {
    Float32(&'a [f32]),
    Float16(&'a [f16]),
    Bfloat16(&'a [bf16]),
}

impl<'a> Numbers<'a> {
    /// The memory of a view, and where in it the first element is.
    pub fn of(view: &View<'a>) -> Result<(Self, usize)> {
        Ok(match view.dtype() {
            Dtype::Float16 => view.strided().map(|(all, first)| (Self::Float16(all), first))?,
            Dtype::Bfloat16 => view.strided().map(|(all, first)| (Self::Bfloat16(all), first))?,
            _ => view.strided().map(|(all, first)| (Self::Float32(all), first))?,
        })
    }

    /// Of how many `bfloat16` each number is the sum.
    fn parts(self) -> usize {
        match self {
            Self::Float32(_) => 3,
            Self::Float16(_) => 2,
            Self::Bfloat16(_) => 1,
        }
    }

    /// Number `at`.
    pub fn get(self, at: usize) -> f32 {
        match self {
            Self::Float32(all) => all[at],
            Self::Float16(all) => all[at].to_f32(),
            Self::Bfloat16(all) => number(all[at]),
        }
    }

    /// As many numbers as `out` takes, from number `at` on.
    #[inline]
    pub fn read(self, at: usize, out: &mut [f32]) {
        let range = at..at + out.len();
        match self {
            Self::Float32(all) => out.copy_from_slice(&all[range]),
            Self::Float16(all) => math::convert(&all[range], out),
            Self::Bfloat16(all) => math::convert(&all[range], out),
        }
    }
}

/// A bfloat16 is the upper half of a `float32`.
#[inline]
pub(crate) fn number(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// Lines of numbers: element `i` of line `l` is at `origin + l * line + i * step`.
#[derive(Clone, Copy)]
pub(crate) struct Dense<'a> {
    pub numbers: Numbers<'a>,
    pub origin: usize,
    pub line: isize,
    pub step: isize,
}

impl Dense<'_> {
    fn place(&self, line: usize, i: usize) -> usize {
        self.origin.wrapping_add_signed(line as isize * self.line + i as isize * self.step)
    }
}

impl Lines for Dense<'_> {
    fn read(&self, line: usize, start: usize, out: &mut [f32]) {
        if self.step == 1 {
            return self.numbers.read(self.place(line, start), out);
        }
        for (i, out) in out.iter_mut().enumerate() {
            *out = self.numbers.get(self.place(line, start + i));
        }
    }

    fn parts(&self) -> usize {
        self.numbers.parts()
    }
}

/// Lines that begin at these places.
pub(crate) struct Picked<'a> {
    pub numbers: Numbers<'a>,
    pub origins: Vec<usize>,
    pub step: isize,
}

impl Lines for Picked<'_> {
    fn read(&self, line: usize, start: usize, out: &mut [f32]) {
        let Self { numbers, step, .. } = *self;
        Dense { numbers, origin: self.origins[line], line: 0, step }.read(0, start, out);
    }

    fn parts(&self) -> usize {
        self.numbers.parts()
    }
}
