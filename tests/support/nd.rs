//! A naive dense array: references are computed with it, so it must be obviously right, not fast.

/// A row-major array of `T`.
#[derive(Debug, Clone, PartialEq)]
pub struct Nd<T> {
    pub shape: Vec<usize>,
    pub data: Vec<T>,
}

/// Every index of `shape`, in row-major order.
pub fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().fold(vec![vec![]], |prefixes, &size| {
        let longer = |prefix: Vec<usize>| (0..size).map(move |i| [&prefix[..], &[i]].concat());
        prefixes.into_iter().flat_map(longer).collect()
    })
}

/// NumPy's rule: align at the right; sizes are equal, or one of them is 1.
pub fn broadcast_shapes(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let ndim = a.len().max(b.len());
    let size = |shape: &[usize], i: usize| (i + shape.len()).checked_sub(ndim).map_or(1, |i| shape[i]);
    (0..ndim)
        .map(|i| match (size(a, i), size(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

impl<T: Clone> Nd<T> {
    pub fn new(shape: &[usize], data: Vec<T>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data }
    }

    pub fn scalar(value: T) -> Self {
        Self::new(&[], vec![value])
    }

    /// The array whose element at each index is `f(index)`.
    pub fn from_fn(shape: &[usize], f: impl FnMut(&[usize]) -> T) -> Self {
        let mut f = f;
        Self::new(shape, indices(shape).iter().map(|i| f(i)).collect())
    }

    pub fn at(&self, index: &[usize]) -> &T {
        assert_eq!(index.len(), self.shape.len());
        let flat = index.iter().zip(&self.shape).fold(0, |flat, (&i, &size)| {
            assert!(i < size, "index {index:?} of shape {:?}", self.shape);
            flat * size + i
        });
        &self.data[flat]
    }

    pub fn map<U: Clone>(&self, f: impl FnMut(&T) -> U) -> Nd<U> {
        Nd::new(&self.shape, self.data.iter().map(f).collect())
    }

    pub fn broadcast_to(&self, shape: &[usize]) -> Self {
        assert_eq!(broadcast_shapes(&self.shape, shape).as_deref(), Some(shape));
        Self::from_fn(shape, |index| {
            let index = &index[shape.len() - self.shape.len()..];
            let own: Vec<_> =
                index.iter().zip(&self.shape).map(|(&i, &n)| if n == 1 { 0 } else { i }).collect();
            self.at(&own).clone()
        })
    }

    /// `f` of both operands' elements, broadcast against each other.
    pub fn zip<U: Clone, V: Clone>(&self, other: &Nd<U>, mut f: impl FnMut(&T, &U) -> V) -> Nd<V> {
        let shape = broadcast_shapes(&self.shape, &other.shape).expect("shapes broadcast");
        let (a, b) = (self.broadcast_to(&shape), other.broadcast_to(&shape));
        Nd::new(&shape, a.data.iter().zip(&b.data).map(|(x, y)| f(x, y)).collect())
    }

    pub fn reshape(&self, shape: &[usize]) -> Self {
        Self::new(shape, self.data.clone())
    }

    /// Dimension `i` of the result is dimension `axes[i]` of this.
    pub fn permute(&self, axes: &[usize]) -> Self {
        let shape: Vec<_> = axes.iter().map(|&axis| self.shape[axis]).collect();
        Self::from_fn(&shape, |index| {
            let mut own = vec![0; axes.len()];
            axes.iter().zip(index).for_each(|(&axis, &i)| own[axis] = i);
            self.at(&own).clone()
        })
    }

    /// The elements at `picks[axis]` along each axis, in that order.
    pub fn pick(&self, picks: &[Vec<usize>]) -> Self {
        let shape: Vec<_> = picks.iter().map(Vec::len).collect();
        Self::from_fn(&shape, |index| {
            let own: Vec<_> = index.iter().zip(picks).map(|(&i, pick)| pick[i]).collect();
            self.at(&own).clone()
        })
    }

    /// The elements at `picks` along `axis`, and all of the other axes.
    pub fn pick_along(&self, axis: usize, picks: &[usize]) -> Self {
        let all = |(a, &n): (usize, &usize)| if a == axis { picks.to_vec() } else { (0..n).collect() };
        self.pick(&self.shape.iter().enumerate().map(all).collect::<Vec<_>>())
    }

    /// `f` of every line along `axis`; all results have the same length.
    pub fn map_lines<U: Clone>(&self, axis: usize, mut f: impl FnMut(&[T]) -> Vec<U>) -> Nd<U> {
        let mut outer = self.shape.clone();
        outer[axis] = 1;
        let lines = Nd::from_fn(&outer, |index| {
            let element = |i| {
                let mut index = index.to_vec();
                index[axis] = i;
                self.at(&index).clone()
            };
            f(&(0..self.shape[axis]).map(element).collect::<Vec<_>>())
        });
        let mut shape = outer;
        shape[axis] = lines.data.first().map_or(self.shape[axis], Vec::len);
        Nd::from_fn(&shape, |index| {
            let mut at = index.to_vec();
            at[axis] = 0;
            lines.at(&at)[index[axis]].clone()
        })
    }

    /// `f` of all elements that differ only in `axes`, in row-major order.
    pub fn reduce<U: Clone>(&self, axes: &[usize], keepdims: bool, mut f: impl FnMut(&[T]) -> U) -> Nd<U> {
        let one = |(axis, &n): (usize, &usize)| if axes.contains(&axis) { 1 } else { n };
        let kept: Vec<_> = self.shape.iter().enumerate().map(one).collect();
        let inner: Vec<_> = axes_sorted(axes).into_iter().map(|axis| self.shape[axis]).collect();
        let inner = indices(&inner);
        let reduced = Nd::from_fn(&kept, |outer| {
            let element = |inner: &Vec<usize>| {
                let mut index = outer.to_vec();
                axes_sorted(axes).into_iter().zip(inner).for_each(|(axis, &i)| index[axis] = i);
                self.at(&index).clone()
            };
            f(&inner.iter().map(element).collect::<Vec<_>>())
        });
        if keepdims {
            return reduced;
        }
        let rest = kept.iter().enumerate().filter(|(axis, _)| !axes.contains(axis)).map(|(_, &n)| n);
        reduced.reshape(&rest.collect::<Vec<_>>())
    }
}

fn axes_sorted(axes: &[usize]) -> Vec<usize> {
    let mut axes = axes.to_vec();
    axes.sort_unstable();
    axes
}
