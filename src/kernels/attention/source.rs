//! Keys or values as they lie in memory.

use super::{Block, NAME};
use crate::error::{Error, Result};
use crate::kernels::path::Path;
use crate::kernels::product::{Dense, Lines, Numbers};
use crate::kernels::quantized_matmul::{Matrix, Scales, Weights};
use crate::kernels::{View, math};
use crate::ops::Quantization;

/// Memory, where the elements of a head begin and how far its positions and dimensions are apart.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub numbers: Numbers<'a>,
    origin: usize,
    pub strides: [isize; 4],
}

impl<'a> Heads<'a> {
    pub fn new(view: &View<'a>) -> Result<Self> {
        let (numbers, origin) = Numbers::of(view)?;
        Ok(Self { numbers, origin, strides: strides(view)? })
    }

    /// Where position `i` of a head begins.
    pub fn at(&self, [batch, head]: [usize; 2], i: usize) -> usize {
        let [b, h, l, _] = self.strides;
        self.origin.wrapping_add_signed(batch as isize * b + head as isize * h + i as isize * l)
    }

    pub fn step(&self) -> isize {
        self.strides[3]
    }

    /// The numbers of a position.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        match self.step() {
            1 => self.numbers.read(at, out),
            step => out.iter_mut().enumerate().for_each(|(i, out)| {
                *out = self.numbers.get(at.wrapping_add_signed(i as isize * step));
            }),
        }
    }
}

fn strides(view: &View<'_>) -> Result<[isize; 4]> {
    let strides: Vec<isize> = view.strides().iter().map(|&s| s as isize).collect();
    strides.try_into().map_err(|_| Error::argument(NAME, "not four dimensions"))
}

/// A part of a quantized cache, and where the rows of a head begin in it.
struct Part<T> {
    all: T,
    origin: usize,
    strides: [isize; 4],
    row: usize,
    positions: usize,
}

impl<T> Part<T> {
    /// Fails unless the positions of a head follow each other.
    fn new(view: &View<'_>, (all, origin): (T, usize)) -> Result<Self> {
        let (strides, &[_, _, positions, row]) = (strides(view)?, view.shape()) else {
            return Err(Error::argument(NAME, "not four dimensions"));
        };
        let together = (row == 1 || strides[3] == 1) && (positions == 1 || strides[2] == row as isize);
        if !together {
            return Err(Error::argument(NAME, format!("positions with strides {:?}", view.strides())));
        }
        let (row, positions) = (row as usize, positions as usize);
        Ok(Self { all, origin, strides, row, positions })
    }

    fn range(&self, [batch, head]: [usize; 2]) -> std::ops::Range<usize> {
        let [b, h, ..] = self.strides;
        let first = self.origin.wrapping_add_signed(batch as isize * b + head as isize * h);
        first..first + self.positions * self.row
    }
}

/// Quantized keys or values.
pub(super) struct Coded<'a> {
    codes: Part<&'a [u32]>,
    scales: Part<Numbers<'a>>,
    biases: Part<Numbers<'a>>,
    how: Quantization,
    path: Path,
}

impl<'a> Coded<'a> {
    pub fn new([codes, scales, biases]: [&View<'a>; 3], how: Quantization, path: Path) -> Result<Self> {
        Ok(Self {
            codes: Part::new(codes, codes.strided()?)?,
            scales: Part::new(scales, Numbers::of(scales)?)?,
            biases: Part::new(biases, Numbers::of(biases)?)?,
            how,
            path,
        })
    }

    /// Features of a position.
    fn dims(&self) -> usize {
        self.codes.row * 32 / self.how.bits as usize
    }

    pub fn matrix(&self, head: [usize; 2]) -> Matrix<'a> {
        let numbers = |part: &Part<Numbers<'a>>| match part.all {
            Numbers::Float32(all) => Scales::Float32(&all[part.range(head)]),
            Numbers::Float16(all) => Scales::Float16(&all[part.range(head)]),
            Numbers::Bfloat16(all) => Scales::Bfloat16(&all[part.range(head)]),
        };
        let w = Weights {
            codes: bytemuck::cast_slice(&self.codes.all[self.codes.range(head)]),
            scales: numbers(&self.scales),
            biases: Some(numbers(&self.biases)),
            how: self.how,
            n: self.codes.positions,
            k: self.dims(),
        };
        Matrix { w, path: self.path }
    }
}

/// Keys or values.
pub(super) enum Source<'a> {
    Plain(Heads<'a>),
    Coded(Coded<'a>),
}

impl<'a> Source<'a> {
    /// The positions of a head.
    pub fn lines(&self, head: [usize; 2]) -> Box<dyn Lines + 'a> {
        match self {
            Self::Plain(heads) => {
                let [.., line, step] = heads.strides;
                Box::new(Dense { numbers: heads.numbers, origin: heads.at(head, 0), line, step })
            }
            Self::Coded(coded) => Box::new(coded.matrix(head)),
        }
    }

    /// Whether the numbers of a position lie together.
    pub fn is_together(&self) -> bool {
        match self {
            Self::Plain(heads) => heads.step() == 1,
            Self::Coded(_) => true,
        }
    }

    /// Brings positions `first..first + count` of a head near, which are needed soon.
    pub fn fetch(&self, head: [usize; 2], first: usize, [count, dims]: [usize; 2]) {
        let Self::Plain(heads) = self else { return };
        for i in first..first + count {
            let position = heads.at(head, i)..heads.at(head, i) + dims;
            match heads.numbers {
                Numbers::Float32(all) => math::fetch(&all[position]),
                Numbers::Float16(all) => math::fetch(&all[position]),
                Numbers::Bfloat16(all) => math::fetch(&all[position]),
            }
        }
    }

    /// Positions `first..first + count` of a head as they lie, or decoded into `room`.
    pub fn block<'b>(
        &'b self,
        head: [usize; 2],
        first: usize,
        [count, dims]: [usize; 2],
        room: &'b mut Vec<f32>,
    ) -> Block<'b> {
        match self {
            Self::Plain(heads) => {
                Block { numbers: heads.numbers, origin: heads.at(head, first), line: heads.strides[2] }
            }
            Self::Coded(coded) => {
                room.resize(count * dims, 0.0);
                let matrix = coded.matrix(head);
                for (i, out) in room.chunks_exact_mut(dims).enumerate() {
                    matrix.read(first + i, 0, out);
                }
                Block { numbers: Numbers::Float32(room), origin: 0, line: dims as isize }
            }
        }
    }
}
