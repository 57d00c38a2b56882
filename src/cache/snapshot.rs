//! States on the way through a text.

use super::{Cache, LayerCache};
use crate::array::Array;
use crate::error::{Error, Result};

/// What the layers of a cache held at a position that can't go back to it by themselves.
#[derive(Debug, Clone)]
pub struct Snapshot {
    position: i32,
    /// `None` for a layer that forgets its last positions at will.
    layers: Vec<Option<LayerCache>>,
}

impl Snapshot {
    /// The position.
    pub fn position(&self) -> i32 {
        self.position
    }

    /// Bytes that it holds.
    pub fn nbytes(&self) -> usize {
        self.layers.iter().flatten().flat_map(LayerCache::arrays).map(Array::nbytes).sum()
    }
}

impl Cache {
    /// What is needed to come [back](Self::rewound) to this position later.
    pub fn snapshot(&self) -> Snapshot {
        let layer = |layer: &LayerCache| (!layer.forgets()).then(|| layer.clone());
        Snapshot { position: self.offset(), layers: self.layers.iter().map(layer).collect() }
    }

    /// The cache as it was when `snapshot` was taken of it. Fails for a snapshot of another.
    pub fn rewound(&self, snapshot: &Snapshot) -> Result<Self> {
        let back = self.offset() - snapshot.position;
        let other = || Error::argument("cache", "a snapshot of another cache");
        if back < 0 || self.layers.len() != snapshot.layers.len() {
            return Err(other());
        }
        let layer = |(now, then): (&LayerCache, &Option<LayerCache>)| match then {
            Some(then) => Ok(then.clone()),
            None if now.is_trimmable(back) => {
                let mut layer = now.clone();
                layer.trim(back);
                Ok(layer)
            }
            None => Err(other()),
        };
        let layers = self.layers.iter().zip(&snapshot.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, expected: self.expected.clone() })
    }
}
