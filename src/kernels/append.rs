//! New positions in an array with room for them, in its place: in a [`Chain`].

use super::chain::{Chain, Node};
use super::{CustomKernel, Spec, View, ViewMut};
use crate::array::Array;
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
