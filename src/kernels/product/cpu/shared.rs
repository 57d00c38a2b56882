//! A matrix that several threads write.

use std::marker::PhantomData;
use std::ops::Range;

/// Some columns of all rows.
pub(crate) struct Strip<'a, T> {
    data: *mut T,
    rows: usize,
    n: usize,
    columns: Range<usize>,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: it is an exclusive reference to its columns.
unsafe impl<T: Send> Send for Strip<'_, T> {}

/// A matrix of rows of `n` numbers, in strips of `width` columns and what is left.
pub(crate) fn strips<T>(matrix: &mut [T], n: usize, width: usize) -> Vec<Strip<'_, T>> {
    let (data, rows) = (matrix.as_mut_ptr(), matrix.len().checked_div(n).unwrap_or(0));
    let strip = |first| Strip { data, rows, n, columns: first..n.min(first + width), of: PhantomData };
    (0..n).step_by(width).map(strip).collect()
}

impl<T> Strip<'_, T> {
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// The columns of a row.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: within the matrix, which is borrowed as long as the strips are; no other strip has these columns, and no two
        // rows of this one are borrowed at a time.
        unsafe {
            let start = self.data.add(row * self.n + self.columns.start);
            std::slice::from_raw_parts_mut(start, self.columns.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_are_all_columns_once() {
        let mut matrix = vec![0; 3 * 5];
        for (i, mut strip) in strips(&mut matrix, 5, 2).into_iter().enumerate() {
            for row in 0..3 {
                strip.row(row).iter_mut().for_each(|x| *x += 10 * row + i + 1);
            }
        }
        assert_eq!(matrix, [1, 1, 2, 2, 3, 11, 11, 12, 12, 13, 21, 21, 22, 22, 23]);
        assert!(strips(&mut [0; 0], 0, 2).is_empty());
    }
}
