//! How products run: which vectors meet, and by which implementation.

use crate::error::{Error, Result};
use crate::kernels::path::Path;
use crate::kernels::product::{
    Dense, Lines, Numbers, Pick, Picked, Side, Sums, batch_origins, picks, product,
};
use crate::kernels::{View, ViewMut};

/// The names of the operations.
pub const NAME: &str = "matmul";
pub const GATHER: &str = "gather_mm";

/// Vectors that meet the larger side where it lies, without panels.
const FEW: usize = 8;

/// `a @ b`, or with `add` what that says of the product and of a third operand.
pub fn products(path: Path, add: Option<[f32; 2]>, inputs: &[View<'_>], out: &mut ViewMut<'_>) -> Result<()> {
    let (a_view, b_view) = (&inputs[0], &inputs[1]);
    let shape = out.shape().to_vec();
    let &[ref batch @ .., m, n] = &shape[..] else { return Ok(()) };
    let (mut m, n, mut batch) = (m as usize, n as usize, batch);
    if shape.contains(&0) {
        return Ok(());
    }
    let k = a_view.shape()[a_view.shape().len() - 1] as usize;
    let (a, b) = (Matrix::first(a_view)?, Matrix::first(b_view)?);
    let (a_strides, b_strides) = (batch_strides(a_view, batch.len()), batch_strides(b_view, batch.len()));
    // Where all matrices of `a` meet one of `b`, their rows are one matrix.
    while let [rest @ .., size] = batch
        && (*size == 1 || b_strides[rest.len()] == 0 && a_strides[rest.len()] == m as isize * a.rows)
    {
        m *= *size as usize;
        batch = rest;
    }
    let addend = add.map(|factors| Addend::new(&inputs[2], factors, &shape)).transpose()?;
    let mut result = Ok(());
    for (i, [a_at, b_at]) in offsets(batch, [&a_strides, &b_strides]).into_iter().enumerate() {
        multiply(path, a.at(a_at), b.at(b_at), [m, n, k], &mut |sums| {
            let stored = sums.store(out, i * m * n, n, |row, column, values| {
                if let Some(addend) = &addend {
                    addend.add(i * m + row, column, values);
                }
            });
            if result.is_ok() {
                result = stored;
            }
        });
    }
    result
}

/// The products of matrices that indices pick.
pub fn picked(path: Path, inputs: &[View<'_>], out: &mut ViewMut<'_>) -> Result<()> {
    let [a_view, b_view, lhs, rhs] = inputs else { return Ok(()) };
    let (&[.., m, k], &[.., n]) = (a_view.shape(), b_view.shape()) else { return Ok(()) };
    let [m, n, k] = [m, n, k].map(|size| size as usize);
    if out.shape().contains(&0) {
        return Ok(());
    }
    let (a, b) = (Matrix::first(a_view)?, Matrix::first(b_view)?);
    let (lefts, rights) = (batch_origins(a_view), batch_origins(b_view));
    let all = picks(GATHER, lhs, rhs, [lefts.len(), rights.len()])?;
    let mut result = Ok(());
    for same in all.chunk_by(|x, y| x.right == y.right) {
        let rows = |pick: &Pick| {
            let first = a.at(lefts[pick.left]);
            (0..m as isize).map(move |i| first.at(i * first.rows).origin)
        };
        let origins: Vec<usize> = same.iter().flat_map(rows).collect();
        let picked = Picked { numbers: a.numbers, origins, step: a.columns };
        let (b_lines, across) = b.at(rights[same[0].right]).transposed().lines();
        let few = Side { lines: &picked, count: same.len() * m, across: false };
        let many = Side { lines: &b_lines, count: n, across };
        let mut store = |sums: &Sums| {
            let stored = sums.scatter(out, n, |_, _, _| (), |row| same[row / m].out * m + row % m);
            if result.is_ok() {
                result = stored;
            }
        };
        match few_vectors(path, few, many, b_lines, k) {
            Some(sums) => store(&sums),
            None => product(path, few, many, k, &mut store),
        }
    }
    result
}

/// The strides of `count` batch dimensions; 0 where the view has but one matrix.
fn batch_strides(view: &View<'_>, count: usize) -> Vec<isize> {
    let own = view.shape().len() - 2;
    let stride = |axis: usize| match (axis + own).checked_sub(count) {
        Some(axis) if view.shape()[axis] > 1 => view.strides()[axis] as isize,
        _ => 0,
    };
    (0..count).map(stride).collect()
}

/// Where each matrix of the batch begins, by either strides.
fn offsets(batch: &[i32], strides: [&[isize]; 2]) -> Vec<[isize; 2]> {
    let mut all = vec![[0, 0]];
    for (axis, &size) in batch.iter().enumerate() {
        let along = |at: &[isize; 2]| {
            let [a, b] = *at;
            (0..size as isize).map(move |i| [a + i * strides[0][axis], b + i * strides[1][axis]])
        };
        all = all.iter().flat_map(along).collect();
    }
    all
}

/// What is added to a product.
struct Addend<'a> {
    numbers: Numbers<'a>,
    origin: usize,
    factors: [f32; 2],
    /// Size and stride of each dimension of the result, by which `c` is read.
    dims: Vec<(usize, isize)>,
}

impl<'a> Addend<'a> {
    fn new(c: &View<'a>, factors: [f32; 2], shape: &[i32]) -> Result<Self> {
        let (numbers, origin) = Numbers::of(c)?;
        let missing = shape.len().saturating_sub(c.shape().len());
        let stride = |axis: usize| match axis.checked_sub(missing) {
            Some(axis) if c.shape()[axis] > 1 => c.strides()[axis] as isize,
            _ => 0,
        };
        let dims = shape.iter().enumerate().map(|(axis, &size)| (size as usize, stride(axis))).collect();
        Ok(Self { numbers, origin, factors, dims })
    }

    /// Scales part of a row of the product and adds to it.
    fn add(&self, mut row: usize, column: usize, values: &mut [f32]) {
        let Some((&(_, step), rest)) = self.dims.split_last() else { return };
        let mut at = column as isize * step;
        for &(size, stride) in rest.iter().rev() {
            at += (row % size) as isize * stride;
            row /= size;
        }
        let origin = self.origin.wrapping_add_signed(at);
        let mut c = vec![0.0; values.len()];
        if step == 0 {
            c.fill(self.numbers.get(origin));
        } else {
            Dense { numbers: self.numbers, origin, line: 0, step }.read(0, 0, &mut c);
        }
        let [alpha, beta] = self.factors;
        values.iter_mut().zip(&c).for_each(|(value, c)| *value = alpha * *value + beta * c);
    }
}

/// A matrix in memory: element `[i, j]` is at `origin + i * rows + j * columns`.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    numbers: Numbers<'a>,
    origin: usize,
    rows: isize,
    columns: isize,
}

impl<'a> Matrix<'a> {
    /// The matrix of the last two axes, first of its batch.
    fn first(view: &View<'a>) -> Result<Self> {
        let (numbers, origin) = Numbers::of(view)?;
        let &[.., rows, columns] = view.strides() else {
            return Err(Error::argument(NAME, format!("an operand of shape {:?}", view.shape())));
        };
        Ok(Self { numbers, origin, rows: rows as isize, columns: columns as isize })
    }

    fn at(self, offset: isize) -> Self {
        Self { origin: self.origin.wrapping_add_signed(offset), ..self }
    }

    fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, ..self }
    }

    /// Its rows as vectors, in lines that lie together where there are such, and whether they run across.
    fn lines(self) -> (Dense<'a>, bool) {
        let Self { numbers, origin, rows, columns } = self;
        let across = columns != 1 && rows == 1;
        let (line, step) = if across { (columns, rows) } else { (rows, columns) };
        (Dense { numbers, origin, line, step }, across)
    }
}

/// `a @ b` of `[m, k]` and `[k, n]`.
fn multiply(path: Path, a: Matrix<'_>, b: Matrix<'_>, [m, n, k]: [usize; 3], store: &mut dyn FnMut(&Sums)) {
    let ((a_lines, a_across), (b_lines, b_across)) = (a.lines(), b.transposed().lines());
    let a = Side { lines: &a_lines, count: m, across: a_across };
    let b = Side { lines: &b_lines, count: n, across: b_across };
    let (few, many, dense, turned) = if m > n { (b, a, a_lines, true) } else { (a, b, b_lines, false) };
    match few_vectors(path, few, many, dense, k) {
        Some(sums) => store(&Sums { turned, ..sums }),
        None => product(path, a, b, k, store),
    }
}

/// The product of a few vectors with many that lie in lines, as they lie.
fn few_vectors(path: Path, few: Side<'_>, many: Side<'_>, dense: Dense<'_>, k: usize) -> Option<Sums> {
    let lines = if many.across { k } else { many.count };
    let line = usize::try_from(dense.line).ok().or((lines == 1).then_some(0))?;
    if few.count > FEW || many.count == 0 || k == 0 || dense.step != 1 {
        return None;
    }
    let mut x = vec![0.0; few.count * k];
    if few.across {
        let mut column = [0.0; FEW];
        for i in 0..k {
            few.lines.read(i, 0, &mut column[..few.count]);
            for (v, value) in column[..few.count].iter().enumerate() {
                x[v * k + i] = *value;
            }
        }
    } else {
        x.chunks_exact_mut(k).enumerate().for_each(|(v, x)| few.lines.read(v, 0, x));
    }
    match path {
        #[cfg(target_arch = "x86_64")]
        _ if path >= Path::Avx2 => {
            use crate::kernels::product::cpu::avx2::{add_rows, dot_rows};
            let (n, at) = (many.count, dense.origin);
            Some(match (dense.numbers, many.across) {
                (Numbers::Float32(w), false) => dot_rows(&x, k, w, at, line, n),
                (Numbers::Float16(w), false) => dot_rows(&x, k, w, at, line, n),
                (Numbers::Bfloat16(w), false) => dot_rows(&x, k, w, at, line, n),
                (Numbers::Float32(w), true) => add_rows(&x, k, w, at, line, n),
                (Numbers::Float16(w), true) => add_rows(&x, k, w, at, line, n),
                (Numbers::Bfloat16(w), true) => add_rows(&x, k, w, at, line, n),
            })
        }
        _ => None,
    }
}
