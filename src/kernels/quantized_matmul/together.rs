//! Products of one `x` with several matrices, such as those of queries, keys and values: `x` is read and laid out once,
//! and threads share the rows of all matrices.

use std::slice::Chunks;

use smallvec::SmallVec;

use super::cpu::Batch;
use super::{NAME, QuantizedMatmul, path_for, quantized_matmul};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::kernels::chain::Nodes;
use crate::kernels::chain::Shaped;
use crate::kernels::path::Path;
use crate::kernels::{Chain, CustomKernel, Node, Spec, View, ViewMut, apply};
use crate::ops::{self, Quantization};

/// Codes, scales and biases of a matrix.
pub(crate) type Parts<'a, T = Array> = (&'a T, &'a T, Option<&'a T>);

/// `x @ dequantize(w).T` of each matrix, the same as [`quantized_matmul`](super::quantized_matmul) gives of each.
pub(crate) fn quantized_matmuls(x: &Array, all: &[Parts<'_>], how: Quantization) -> Result<Vec<Array>> {
    let one = |&(w, scales, biases): &Parts<'_>| quantized_matmul(x, w, scales, biases, true, how);
    match shared_path(x, all, how) {
        Some(path) if all.len() > 1 => {
            let arrays = all.iter().flat_map(|&(w, scales, biases)| [w, scales].into_iter().chain(biases));
            let single = QuantizedMatmul { how, path, transpose: true, picked: false };
            apply(Together { single, count: all.len() }, [x].into_iter().chain(arrays))
        }
        _ => all.iter().map(one).collect(),
    }
}

/// The path of `x` by all of them, if there is one for each and they are stored alike.
fn shared_path<W: Shaped>(x: &impl Shaped, all: &[Parts<'_, W>], how: Quantization) -> Option<Path> {
    let path = |&(w, scales, biases): &Parts<'_, W>| {
        path_for(x, w, scales, biases, true, how).filter(|_| w.ndim() == 2)
    };
    let alike = all.windows(2).all(|two| two[0].1.dtype() == two[1].1.dtype());
    let found = path(all.first()?)?;
    (alike && all[1..].iter().all(|parts| path(parts).is_some())).then_some(found)
}

impl Chain {
    /// [`quantized_matmuls`] of a few rows, or `None` where they are not a case for the kernel.
    pub(crate) fn quantized_matmuls(
        &mut self,
        x: Node,
        all: &[Parts<'_>],
        how: Quantization,
    ) -> Result<Option<Nodes>> {
        let mark = self.mark();
        let mut inputs = Nodes::from_slice(&[x]);
        let mut parts: SmallVec<[(Node, Node, Option<Node>); 3]> = SmallVec::new();
        for &(w, scales, biases) in all {
            let nodes = (self.constant(w), self.constant(scales), biases.map(|biases| self.constant(biases)));
            inputs.extend([nodes.0, nodes.1].into_iter().chain(nodes.2));
            parts.push(nodes);
        }
        let spec = |node| self.spec(node);
        let specs = parts.iter().map(|&(w, scales, biases)| (spec(w), spec(scales), biases.map(spec)));
        let path = shared_path(spec(x), &specs.collect::<SmallVec<[_; 3]>>(), how);
        let Some(path) = path else {
            self.back_to(mark);
            return Ok(None);
        };
        let single = QuantizedMatmul { how, path, transpose: true, picked: false };
        match all.len() {
            1 => self.push(single, inputs),
            count => self.push(Together { single, count }, inputs),
        }
        .map(Some)
    }
}

struct Together {
    /// The product with each.
    single: QuantizedMatmul,
    /// How many matrices there are.
    count: usize,
}

impl Together {
    /// The first of the inputs, and those of each matrix.
    fn split<'a, T>(&self, inputs: &'a [T]) -> Result<(&'a T, Chunks<'a, T>)> {
        match inputs {
            [x, rest @ ..] if rest.len() >= 2 * self.count && rest.len().is_multiple_of(self.count) => {
                Ok((x, rest.chunks(rest.len() / self.count)))
            }
            _ => Err(Error::argument(NAME, format!("{} inputs", inputs.len()))),
        }
    }

    /// What `product` gives for the inputs of each single product.
    fn each<T: Clone, R>(
        &self,
        inputs: &[T],
        mut product: impl FnMut(usize, &[T]) -> Result<R>,
    ) -> Result<Vec<R>> {
        let (x, matrices) = self.split(inputs)?;
        let own = |(i, matrix): (usize, &[T])| product(i, &[std::slice::from_ref(x), matrix].concat());
        matrices.enumerate().map(own).collect()
    }
}

impl CustomKernel for Together {
    fn name(&self) -> &str {
        "quantized_matmuls"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (x, matrices) = self.split(inputs)?;
        matrices.map(|matrix| self.single.output(x, matrix)).collect()
    }

    fn fills(&self) -> bool {
        true
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let (x, matrices) = self.split(inputs)?;
        let weights = matrices.map(|parts| {
            let batch = Batch::new(&parts[0], &parts[1], parts.get(2), self.single.how)?;
            Ok(batch.matrix(0))
        });
        self.single.together(&weights.collect::<Result<Vec<_>>>()?, x, outputs)
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        Ok(self.each(inputs, |_, inputs| self.single.reference(inputs))?.concat())
    }

    /// Of `x`: the sum over the matrices. Of scales and biases: what their own product gives.
    fn vjp(&self, inputs: &[Array], cotangents: &[Array], argnums: &[i32]) -> Result<Option<Vec<Array>>> {
        let parts = inputs.len().saturating_sub(1) / self.count;
        let mut gradients = vec![None; inputs.len()];
        self.each(inputs, |i, inputs| {
            let place = |own: usize| if own == 0 { 0 } else { i * parts + own };
            let own: Vec<i32> = (0..=parts)
                .filter(|&own| argnums.contains(&(place(own) as i32)))
                .map(|own| own as i32)
                .collect();
            let found = self.single.vjp(inputs, &cotangents[i..=i], &own)?.unwrap_or_default();
            for (own, gradient) in own.into_iter().zip(found) {
                let sum = &mut gradients[place(own as usize)];
                *sum = Some(match sum.take() {
                    Some(before) => (&before + gradient)?,
                    None => gradient,
                });
            }
            Ok(())
        })?;
        Ok(argnums.iter().map(|&i| gradients[i as usize].take()).collect())
    }

    fn vmap(&self, inputs: &[Array], axes: &[Option<i32>]) -> Result<Option<Vec<Array>>> {
        let size = |(x, axis): (&Array, &Option<i32>)| axis.map(|axis| x.dim(axis));
        let Some(count) = inputs.iter().zip(axes).find_map(size).transpose()? else { return Ok(None) };
        let (mut inputs, mut axes) = (inputs.to_vec(), axes.to_vec());
        // Of matrices that are not mapped there is a product for each index too.
        if axes[0].is_none() {
            let shape: Vec<i32> = std::iter::once(count).chain(inputs[0].shape().iter().copied()).collect();
            (inputs[0], axes[0]) = (ops::broadcast_to(&inputs[0], &shape)?, Some(0));
        }
        let (&of_x, of_matrices) = self.split(&axes)?;
        let of_matrices: Vec<_> = of_matrices.collect();
        let all =
            self.each(&inputs, |i, inputs| self.single.vmap(inputs, &[&[of_x], of_matrices[i]].concat()))?;
        Ok(all.into_iter().collect::<Option<Vec<_>>>().map(|all| all.concat()))
    }
}
