//! The weight map: which weight of the model comes from which tensor of the checkpoint, and how.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::transform::Transform;
use crate::array::Array;
use crate::error::{Error, Result};
use crate::io::TensorInfo;

/// What rules did to one checkpoint: a graph of steps from its tensors to the model's weights.
///
/// [`forwards`](Self::forwards) turns the tensors of the checkpoint into weights,
/// [`backwards`](Self::backwards) weights into tensors of the checkpoint. It displays as a table, and
/// serialises as its [`rows`](Self::rows) and what was dropped.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WeightMap {
    tensors: Vec<Node>,
    steps: Vec<Step>,
    /// The tensors that are weights of the model, by name.
    targets: Vec<usize>,
    dropped: Vec<Dropped>,
}

#[derive(Debug, Clone, PartialEq)]
struct Node {
    info: TensorInfo,
    /// The step that makes it; `None` for a tensor of the checkpoint.
    made_by: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
struct Step {
    transform: Transform,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
}

/// One weight of the model and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row<'a> {
    /// The weight.
    pub weight: &'a TensorInfo,
    /// What happens to the sources, in order; empty if the weight is as it is in the checkpoint.
    pub transforms: Vec<String>,
    /// The tensors of the checkpoint that it is made of.
    pub sources: Vec<&'a TensorInfo>,
}

/// A tensor that the model has no use for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The tensor of the checkpoint, or the name that rules before gave to a part of it.
    pub key: String,
    /// Why.
    pub reason: String,
}

impl WeightMap {
    /// The map in which every tensor keeps its name.
    pub fn identity(tensors: &[TensorInfo]) -> Self {
        let node = |info: &TensorInfo| Node { info: info.clone(), made_by: None };
        let mut map = Self { tensors: tensors.iter().map(node).collect(), ..Self::default() };
        map.set_targets((0..tensors.len()).collect());
        map
    }

    /// The weights of the model, by name.
    pub fn targets(&self) -> impl Iterator<Item = &TensorInfo> {
        self.targets.iter().map(|&at| self.info(at))
    }

    /// The tensors of the checkpoint.
    pub fn sources(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter().filter(|node| node.made_by.is_none()).map(|node| &node.info)
    }

    /// What no weight is made of.
    pub fn dropped(&self) -> &[Dropped] {
        &self.dropped
    }

    /// A row for each weight, by name.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.targets.iter().map(|&at| Row {
            weight: self.info(at),
            transforms: self.transforms(at),
            sources: self.sources_of(at).collect(),
        })
    }

    /// The weights of the model, lazy, from the checkpoint's tensors that `source` gives.
    pub fn forwards(&self, source: &dyn Fn(&str) -> Result<Array>) -> Result<BTreeMap<String, Array>> {
        let mut computed = HashMap::new();
        let weight = |&at: &usize| Ok((self.info(at).key.clone(), self.compute(at, &mut computed, source)?));
        self.targets.iter().map(weight).collect()
    }

    /// The tensors of the checkpoint, lazy, from the weights of the model that `target` gives. Those
    /// that were dropped, whole or in part, are left out.
    pub fn backwards(&self, target: &dyn Fn(&str) -> Result<Array>) -> Result<BTreeMap<String, Array>> {
        let mut known: HashMap<usize, Array> = HashMap::new();
        for &at in &self.targets {
            known.insert(at, target(&self.info(at).key)?);
        }
        for step in self.steps.iter().rev() {
            let outputs: Option<Vec<Array>> = step.outputs.iter().map(|at| known.get(at).cloned()).collect();
            let Some(outputs) = outputs else { continue };
            let specs: Vec<_> = step.inputs.iter().map(|&at| self.spec(at)).collect();
            for (&at, array) in step.inputs.iter().zip(step.transform.backwards(&outputs, &specs)?) {
                // A tied weight has its own value already.
                known.entry(at).or_insert(array);
            }
        }
        let is_source = |at: &usize| self.tensors[*at].made_by.is_none();
        let sources = known.into_iter().filter(|(at, _)| is_source(at));
        Ok(sources.map(|(at, array)| (self.info(at).key.clone(), array)).collect())
    }

    /// The number of the weight `key` in the map.
    pub(super) fn target(&self, key: &str) -> Option<usize> {
        let at = self.targets.binary_search_by_key(&key, |&at| &self.info(at).key);
        at.ok().map(|at| self.targets[at])
    }

    /// The tensor of that number. `computed` keeps what was computed on the way.
    pub(super) fn compute(
        &self,
        at: usize,
        computed: &mut HashMap<usize, Array>,
        source: &dyn Fn(&str) -> Result<Array>,
    ) -> Result<Array> {
        if let Some(array) = computed.get(&at) {
            return Ok(array.clone());
        }
        let Some(step) = self.tensors[at].made_by.map(|step| &self.steps[step]) else {
            return source(&self.info(at).key);
        };
        let inputs: Vec<Array> =
            step.inputs.iter().map(|&at| self.compute(at, computed, source)).collect::<Result<_>>()?;
        computed.extend(step.outputs.iter().copied().zip(step.transform.forwards(&inputs)?));
        Ok(computed[&at].clone())
    }

    pub(super) fn info(&self, at: usize) -> &TensorInfo {
        &self.tensors[at].info
    }

    /// Whether the checkpoint has the tensor of this number, rather than a rule made it.
    pub(super) fn is_source(&self, at: usize) -> bool {
        self.tensors[at].made_by.is_none()
    }

    fn spec(&self, at: usize) -> super::transform::Spec {
        let TensorInfo { shape, dtype, .. } = self.info(at);
        (shape.clone(), *dtype)
    }

    pub(super) fn set_targets(&mut self, mut targets: Vec<usize>) {
        targets.sort_by(|&a, &b| self.info(a).key.cmp(&self.info(b).key));
        self.targets = targets;
    }

    pub(super) fn drop_tensor(&mut self, at: usize, reason: &str) {
        self.dropped.push(Dropped { key: self.info(at).key.clone(), reason: reason.to_owned() });
    }

    /// Adds a step that makes tensors of these names; gives their numbers.
    pub(super) fn add_step(
        &mut self,
        mut transform: Transform,
        inputs: Vec<usize>,
        names: &[String],
    ) -> Result<Vec<usize>> {
        let specs: Vec<_> = inputs.iter().map(|&at| self.spec(at)).collect();
        let made = transform.plan(&specs)?;
        if made.len() > names.len() {
            let message = format!("{transform}: {} names for {} parts", names.len(), made.len());
            return Err(Error::argument("weight_rules", message));
        }
        let first = self.tensors.len();
        let made_by = Some(self.steps.len());
        let node = |(key, (shape, dtype)): (&String, _)| Node {
            info: TensorInfo { key: key.clone(), shape, dtype },
            made_by,
        };
        self.tensors.extend(names.iter().zip(made).map(node));
        let outputs: Vec<usize> = (first..self.tensors.len()).collect();
        self.steps.push(Step { transform, inputs, outputs: outputs.clone() });
        Ok(outputs)
    }

    /// The tensors of the checkpoint that this one is made of.
    pub(super) fn sources_of(&self, at: usize) -> impl Iterator<Item = &TensorInfo> {
        let (mut sources, mut seen, mut open) = (Vec::new(), HashSet::new(), vec![at]);
        while let Some(at) = open.pop() {
            match self.tensors[at].made_by {
                _ if !seen.insert(at) => {}
                Some(step) => open.extend(self.steps[step].inputs.iter().rev()),
                None => sources.push(self.info(at)),
            }
        }
        sources.into_iter()
    }

    /// What happens on the way to this tensor, first step first, along the first inputs.
    fn transforms(&self, at: usize) -> Vec<String> {
        let mut found = Vec::new();
        let mut at = at;
        while let Some(step) = self.tensors[at].made_by.map(|step| &self.steps[step]) {
            let part = step.outputs.iter().position(|&output| output == at).unwrap_or_default() + 1;
            let of = step.outputs.len();
            let which = if of > 1 { format!("part {part} of ") } else { String::new() };
            found.push(format!("{which}{}", step.transform));
            at = step.inputs[0];
        }
        found.reverse();
        found
    }
}

impl Serialize for WeightMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Map<'a> {
            weights: Vec<Row<'a>>,
            dropped: &'a [Dropped],
        }
        Map { weights: self.rows().collect(), dropped: &self.dropped }.serialize(serializer)
    }
}

impl fmt::Display for WeightMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |row: Row| {
            let how =
                if row.transforms.is_empty() { "as it is".to_owned() } else { row.transforms.join(", ") };
            let more = row.sources.len() - 1;
            let source = row.sources[0];
            let source = if more == 0 { source.to_string() } else { format!("{source} and {more} more") };
            [row.weight.to_string(), how, source]
        };
        let lines: Vec<[String; 3]> = self.rows().map(line).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let (first, second) = (width(0), width(1));
        for [weight, how, source] in &lines {
            writeln!(f, "{weight:first$}  {how:second$}  {source}")?;
        }
        for Dropped { key, reason } in &self.dropped {
            writeln!(f, "dropped {key}: {reason}")?;
        }
        Ok(())
    }
}
