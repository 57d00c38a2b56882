//! The weight map: which weight of the model comes from which tensor of the checkpoint, and how.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::array::Array;
use crate::error::Result;
use crate::io::TensorInfo;

/// What rules did to one checkpoint: a graph of steps from its tensors to the model's weights.
///
/// It displays as a table with one line per weight, and serialises with its steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct WeightMap {
    tensors: Vec<Node>,
    steps: Vec<Step>,
    /// The tensors that are weights of the model, by name.
    targets: Vec<usize>,
    dropped: Vec<Dropped>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Node {
    #[serde(flatten)]
    info: TensorInfo,
    /// The step that makes it; `None` for a tensor of the checkpoint.
    made_by: Option<usize>,
}

/// Tensors, by their number in the map, that become others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// What happens to them.
    pub transform: Transform,
    /// What goes in.
    pub inputs: Vec<usize>,
    /// What comes out.
    pub outputs: Vec<usize>,
}

/// How the values of tensors become those of others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Transform {
    /// The same values under another name.
    Rename,
    /// The same values under a second name.
    Tie,
}

/// A tensor that the model has no use for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its name in the checkpoint.
    pub key: String,
    /// Why.
    pub reason: String,
}

impl WeightMap {
    /// The map in which every tensor keeps its name.
    pub fn identity(tensors: &[TensorInfo]) -> Self {
        let node = |info: &TensorInfo| Node { info: info.clone(), made_by: None };
        let mut targets: Vec<usize> = (0..tensors.len()).collect();
        targets.sort_by_key(|&at| &tensors[at].key);
        Self { tensors: tensors.iter().map(node).collect(), targets, ..Self::default() }
    }

    /// The weights of the model, by name.
    pub fn targets(&self) -> impl Iterator<Item = &TensorInfo> {
        self.targets.iter().map(|&at| &self.tensors[at].info)
    }

    /// The tensors of the checkpoint.
    pub fn sources(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter().filter(|node| node.made_by.is_none()).map(|node| &node.info)
    }

    /// The tensors of the checkpoint that no weight comes from.
    pub fn dropped(&self) -> &[Dropped] {
        &self.dropped
    }

    /// The number of the weight `key` in the map.
    pub(super) fn target(&self, key: &str) -> Option<usize> {
        let at = self.targets.binary_search_by_key(&key, |&at| &self.tensors[at].info.key);
        at.ok().map(|at| self.targets[at])
    }

    /// The tensor of that number, from the checkpoint's tensors that `source` gives. `computed` keeps
    /// what was computed on the way.
    pub(super) fn compute(
        &self,
        at: usize,
        computed: &mut HashMap<usize, Array>,
        source: &dyn Fn(&str) -> Result<Array>,
    ) -> Result<Array> {
        if let Some(array) = computed.get(&at) {
            return Ok(array.clone());
        }
        let node = &self.tensors[at];
        let Some(step) = node.made_by.map(|step| &self.steps[step]) else {
            return source(&node.info.key);
        };
        let inputs: Vec<Array> =
            step.inputs.iter().map(|&at| self.compute(at, computed, source)).collect::<Result<_>>()?;
        let outputs = step.transform.forwards(&inputs)?;
        computed.extend(step.outputs.iter().copied().zip(outputs));
        Ok(computed[&at].clone())
    }

    pub(super) fn set_targets(&mut self, mut targets: Vec<usize>) {
        targets.sort_by_key(|&at| &self.tensors[at].info.key);
        self.targets = targets;
    }

    pub(super) fn drop_tensor(&mut self, at: usize, reason: &str) {
        let keys = self.source_keys(at);
        let dropped = keys.into_iter().map(|key| Dropped { key, reason: reason.to_owned() });
        self.dropped.extend(dropped);
    }

    /// Adds a step that makes one tensor of the first input's shape and dtype.
    pub(super) fn add_step(&mut self, transform: Transform, inputs: Vec<usize>, key: String) -> usize {
        let TensorInfo { shape, dtype, .. } = self.tensors[inputs[0]].info.clone();
        let at = self.tensors.len();
        self.tensors.push(Node { info: TensorInfo { key, shape, dtype }, made_by: Some(self.steps.len()) });
        self.steps.push(Step { transform, inputs, outputs: vec![at] });
        at
    }

    /// The names of the checkpoint's tensors that this one is made of.
    pub(super) fn source_keys(&self, at: usize) -> Vec<String> {
        let node = &self.tensors[at];
        match node.made_by {
            None => vec![node.info.key.clone()],
            Some(step) => self.steps[step].inputs.iter().flat_map(|&at| self.source_keys(at)).collect(),
        }
    }

    /// What happens on the way to this tensor, first step first.
    fn transforms(&self, at: usize) -> Vec<String> {
        let Some(step) = self.tensors[at].made_by.map(|step| &self.steps[step]) else {
            return Vec::new();
        };
        let mut all = self.transforms(step.inputs[0]);
        all.push(step.transform.to_string());
        all
    }
}

impl Transform {
    fn forwards(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        match self {
            Transform::Rename | Transform::Tie => Ok(inputs.to_vec()),
        }
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transform::Rename => f.write_str("rename"),
            Transform::Tie => f.write_str("tie"),
        }
    }
}

impl fmt::Display for WeightMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &at in &self.targets {
            let transforms = self.transforms(at);
            let how = if transforms.is_empty() { "as it is".to_owned() } else { transforms.join(", ") };
            writeln!(f, "{} <- {} ({how})", self.tensors[at].info, self.source_keys(at).join(" + "))?;
        }
        for Dropped { key, reason } in &self.dropped {
            writeln!(f, "dropped {key}: {reason}")?;
        }
        Ok(())
    }
}
