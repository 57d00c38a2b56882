//! New positions in an array with room for them: in its place, in a [`Chain`], or in a larger one.

use half::{bf16, f16};

use super::chain::{Chain, Node};
use super::path::{Path, active_of};
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype, Element};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::ops;

const NAME: &str = "append";

impl Chain {
    /// `store`, `[batch, heads, capacity, dims]`, with `new`, `[batch, heads, length, dims]`, at position `start`; `None`
    /// where it does not fit, or on another device.
    pub(crate) fn append(&mut self, store: Node, new: Node, start: i32) -> Result<Option<Node>> {
        let kernel = Append { start };
        let on_cpu = current_device().kind == DeviceKind::Cpu;
        if !on_cpu || !kernel.fits(self.spec(store), self.spec(new)) {
            return Ok(None);
        }
        Ok(self.push(kernel, [store, new])?.first().copied())
    }
}

struct Append {
    start: i32,
}

impl Append {
    fn fits(&self, store: &Spec, new: &Spec) -> bool {
        let (&[b0, h0, capacity, d0], &[b1, h1, length, d1]) = (&store.shape[..], &new.shape[..]) else {
            return false;
        };
        [b0, h0, d0] == [b1, h1, d1]
            && store.dtype == new.dtype
            && self.start >= 0
            && self.start.checked_add(length).is_some_and(|end| end <= capacity)
    }
}

impl CustomKernel for Append {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        match inputs {
            [store, new] if self.fits(store, new) => Ok(vec![store.clone()]),
            _ => Err(Error::argument(NAME, format!("{inputs:?} at {}", self.start))),
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn fills(&self) -> bool {
        true
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let (new, out) = (&inputs[1], &mut outputs[0]);
        let &[_, _, length, dims] = new.shape() else { return Ok(()) };
        let row = dims as usize * new.dtype().size();
        let (own, all) = (length as usize * row, out.shape()[2] as usize * row);
        if own == 0 {
            return Ok(());
        }
        for (to, from) in out.bytes_mut().chunks_exact_mut(all).zip(new.bytes().chunks_exact(own)) {
            to[self.start as usize * row..][..own].copy_from_slice(from);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [store, new] = inputs else { return Err(Error::argument(NAME, "not two inputs")) };
        let mut to = new.shape().to_vec();
        to[2] += self.start;
        Ok(vec![ops::slice_update(store, new, &[0, 0, self.start, 0], &to, &[1, 1, 1, 1])?])
    }
}

/// Arrays of `[batch, heads, length, dims]`, alike but for their lengths, one behind the other, and zeros up to `capacity`
/// positions.
pub(crate) fn joined(parts: &[&Array], capacity: i32) -> Result<Array> {
    let specs: Vec<Spec> = parts.iter().map(|part| Spec::new(part.shape(), part.dtype())).collect();
    let on_cpu = current_device().kind == DeviceKind::Cpu && active_of(&[]) != Path::Reference;
    let kernel = Joined { capacity };
    if on_cpu && kernel.fits(&specs) {
        return Ok(apply(kernel, parts.iter().copied())?.swap_remove(0));
    }
    kernel.join(parts)
}

struct Joined {
    capacity: i32,
}

impl Joined {
    fn fits(&self, parts: &[Spec]) -> bool {
        let Some(&[batch, heads, _, dims]) = parts.first().map(|part| &part.shape[..]) else { return false };
        let alike = parts.iter().all(|part| {
            matches!(part.shape[..], [b, h, _, d] if [b, h, d] == [batch, heads, dims])
                && part.dtype == parts[0].dtype
                && matches!(part.dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16 | Dtype::Uint32)
        });
        let length: i64 = parts.iter().map(|part| i64::from(part.shape[2])).sum();
        alike && [batch, heads, dims].iter().all(|&size| size > 0) && length <= i64::from(self.capacity)
    }

    fn join(&self, parts: &[&Array]) -> Result<Array> {
        let [&[batch, heads, _, dims], ..] = parts.iter().map(|part| part.shape()).collect::<Vec<_>>()[..]
        else {
            return Err(Error::argument(NAME, "not four dimensions"));
        };
        let length: i32 = parts.iter().map(|part| part.shape().get(2).copied().unwrap_or(0)).sum();
        let room = ops::zeros(&[batch, heads, self.capacity - length, dims], parts[0].dtype())?;
        ops::concatenate(parts.iter().copied().chain([&room]), 2)
    }

    fn fill<T: Element + Default + Send + Sync>(
        &self,
        parts: &[View<'_>],
        out: &mut ViewMut<'_>,
    ) -> Result<()> {
        let dims = out.shape()[3] as usize;
        let lengths: Vec<usize> = parts.iter().map(|part| part.shape()[2] as usize).collect();
        let some = parts.iter().filter(|part| part.size() > 0);
        let rows = some.map(|part| part.rows::<T>()).collect::<Result<Vec<_>>>()?;
        pool::for_each_piece(out.as_mut_slice::<T>()?, self.capacity as usize * dims, |head, out| {
            let mut room = Vec::new();
            let mut out = out.chunks_exact_mut(dims);
            for (rows, length) in rows.iter().zip(lengths.iter().filter(|&&length| length > 0)) {
                for (i, out) in out.by_ref().take(*length).enumerate() {
                    out.copy_from_slice(rows.get(head * length + i, &mut room));
                }
            }
            out.for_each(|out| out.fill(T::default()));
        });
        Ok(())
    }
}

impl CustomKernel for Joined {
    fn name(&self) -> &str {
        "joined"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        if !self.fits(inputs) {
            return Err(Error::argument("joined", format!("{inputs:?} within {}", self.capacity)));
        }
        let mut out = inputs[0].clone();
        out.shape[2] = self.capacity;
        Ok(vec![out])
    }

    fn takes_strided(&self, _: usize) -> bool {
        true
    }

    fn fills(&self) -> bool {
        true
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let out = &mut outputs[0];
        match out.dtype() {
            Dtype::Float16 => self.fill::<f16>(inputs, out),
            Dtype::Bfloat16 => self.fill::<bf16>(inputs, out),
            Dtype::Uint32 => self.fill::<u32>(inputs, out),
            _ => self.fill::<f32>(inputs, out),
        }
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        Ok(vec![self.join(&inputs.iter().collect::<Vec<_>>())?])
    }
}
