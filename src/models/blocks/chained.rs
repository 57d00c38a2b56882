//! Layers that run as one operation of the graph.

use crate::array::Array;
use crate::cache::{Appended, LayerCache};
use crate::error::{Error, Result};
use crate::kernels::{Chain, Node};

/// Layers in a chain, at most: the stream may be idle while these are recorded.
const MOST: usize = 8;
/// Chains in a model of as many layers, at least: the next token's first begins to be handed out when this token's last begins to run.
const LEAST: usize = 2;

/// What a chain has of a layer.
pub enum Recorded {
    /// Its output.
    Whole(Node),
    /// `h`, what its mixer and what came before make, and that as the feed-forward layer takes it.
    Mixed([Node; 2]),
}

/// Layers in a chain that is not in the graph yet.
pub(super) struct Recording<'a> {
    pub chain: Chain,
    /// What comes out of the last layer.
    pub last: Node,
    /// What layers' memories are to keep.
    kept: Vec<(&'a mut LayerCache, Appended)>,
}

impl<'a> Recording<'a> {
    /// No layers yet, for `x`.
    pub fn new(x: &Array) -> Self {
        let mut chain = Chain::new();
        let last = chain.input(x);
        Self { chain, last, kept: Vec::new() }
    }

    /// Takes what a layer's memory is to keep.
    pub fn push(&mut self, cache: &'a mut LayerCache, appended: Appended) {
        self.kept.push((cache, appended));
    }

    /// Whether it has as many layers as one chain of a model of `layers` is to have.
    pub fn is_full(&self, layers: usize) -> bool {
        self.kept.len() >= layers.div_ceil(LEAST).min(MOST)
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Adds it to the graph. Returns what comes out of the last layer.
    pub fn output(self) -> Result<Array> {
        let last = self.last;
        let [out] = self.apply([last])?;
        Ok(out)
    }

    /// Adds it to the graph. Returns these of its nodes.
    pub fn apply<const N: usize>(self, nodes: [Node; N]) -> Result<[Array; N]> {
        let Self { chain, kept, .. } = self;
        let parts = kept.iter().flat_map(|(_, appended)| appended.parts);
        let mut made = chain.apply(&nodes.into_iter().chain(parts).collect::<Vec<_>>())?;
        let parts = made.split_off(N);
        for ((cache, appended), parts) in kept.into_iter().zip(parts.as_chunks().0) {
            let [keys, values]: &[Array; 2] = parts;
            cache.keep(appended, [keys.clone(), values.clone()]);
        }
        made.try_into().map_err(|_| Error::argument("chain", "fewer outputs than asked for"))
    }
}
