//! Numbers of a config that may differ from layer to layer.

use serde::Deserialize;

/// One value for all layers, or one for each.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum PerLayer<T> {
    /// For all layers.
    All(T),
    /// For each layer.
    Each(Vec<T>),
}

impl<T: Copy> PerLayer<T> {
    /// The value of a layer; `None` beyond the list.
    pub fn get(&self, layer: usize) -> Option<T> {
        match self {
            PerLayer::All(value) => Some(*value),
            PerLayer::Each(values) => values.get(layer).copied(),
        }
    }

    /// Every value.
    pub fn values(&self) -> &[T] {
        match self {
            PerLayer::All(value) => std::slice::from_ref(value),
            PerLayer::Each(values) => values,
        }
    }

    /// Whether there is a value for so many layers.
    pub fn covers(&self, layers: usize) -> bool {
        matches!(self, PerLayer::All(_)) || self.values().len() >= layers
    }
}
