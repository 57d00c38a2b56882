//! Weight rules: how the names and layouts of a checkpoint become those of the model.
//!
//! A rule is data. [`Rules::plan`] applies rules to the names, shapes and dtypes of a checkpoint,
//! before any weight is read, and gives the [`WeightMap`], which runs forwards and backwards.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::foreign::Encoding;
use super::map::WeightMap;
use super::nearest;
use super::pattern::{Captures, Pattern, substitute};
use super::transform::Transform;
use crate::array::Dtype;
use crate::error::{Error, Result};
use crate::io::TensorInfo;

/// One rule.
///
/// Keys are patterns: `{}` stands for one or more characters without a dot, `*` for any characters,
/// `{#}` for an index, `{#61..}` for one of at least 61. A pattern of shapes may follow: `*.conv1d.weight [_, 1, _]` matches three
/// dimensions of which the second is 1. In a new name, each `{}` or `*` is what the one in its place
/// has matched.
///
/// A rule applies to every key that matches when its turn comes, and to nothing if none does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rule {
    /// Another name.
    Rename {
        /// The keys.
        from: String,
        /// Their new names.
        to: String,
    },
    /// The model has no use for it.
    Drop {
        /// The keys.
        key: String,
        /// Why, for whoever reads the map.
        reason: String,
    },
    /// A second name for the same weight.
    Tie {
        /// The weight.
        from: String,
        /// Its second name.
        to: String,
    },
    /// One tensor cut into several.
    Split {
        /// The keys.
        from: String,
        /// The names of the parts.
        to: Vec<String>,
        /// Along which axis; negative axes count from the last.
        axis: i32,
        /// The sizes of the parts; equal ones if empty.
        #[serde(default)]
        sizes: Vec<i32>,
    },
    /// Several tensors joined along an axis that they have.
    Merge {
        /// The keys, in order. The first one's wildcards say where the others are.
        from: Vec<String>,
        /// The name of the whole.
        to: String,
        /// Along which axis.
        axis: i32,
    },
    /// Tensors of one shape joined along a new axis: the experts of a layer.
    Stack {
        /// The keys; `{#}` counts from 0 without gaps.
        from: String,
        /// The name of the whole.
        to: String,
        /// Where the new axis is.
        axis: i32,
    },
    /// The axes in another order.
    Transpose {
        /// The keys.
        key: String,
        /// Which axis comes first, second, ...
        axes: Vec<i32>,
    },
    /// The same elements, row-major, in another shape.
    Reshape {
        /// The keys.
        key: String,
        /// The shape; 0 stands for the size that is there, one -1 for what is left.
        shape: Vec<i32>,
    },
    /// A number added to every element: the 1 of a norm whose checkpoint has `weight - 1`. Backwards
    /// it is exact as far as the dtype holds the sums.
    Add {
        /// The keys.
        key: String,
        /// The number.
        value: f32,
    },
    /// Divided by its Euclidean norm along an axis. Backwards it stays as it is.
    Normalize {
        /// The keys.
        key: String,
        /// Along which axis.
        axis: i32,
    },
    /// Every element times a number that is not 0. Backwards it is exact but for rounding.
    Scale {
        /// The keys.
        key: String,
        /// The number.
        value: f32,
    },
    /// Rules for one of several layouts.
    When {
        /// What marks the layout: the rules apply if a key matches.
        key: String,
        /// The rules.
        rules: Rules,
    },
    /// Another dtype. Backwards it is exact if the other dtype is the wider one.
    Cast {
        /// The keys.
        key: String,
        /// The dtype.
        dtype: Dtype,
    },
    /// The same bytes as elements of another dtype, along the last axis.
    View {
        /// The keys.
        key: String,
        /// The dtype.
        dtype: Dtype,
    },
    /// One tensor whose slices along an axis belong to several in turn: interleaved projections.
    Deal {
        /// The keys.
        from: String,
        /// The names of the parts: of slices 0, n, 2n, ..., of 1, n + 1, ..., and so on.
        to: Vec<String>,
        /// Along which axis; negative axes count from the last.
        axis: i32,
    },
    /// The parameter `g` of a gate between a residual and a branch, which does not depend on the token,
    /// becomes the factors of both: `beta = sigmoid(g / temperature)` of the branch, and of the residual
    /// `alpha = sqrt(max(1 - beta^2, 0.001))` (Muse Spark). Backwards it is exact but for rounding.
    ResidualGate {
        /// The keys.
        from: String,
        /// The names of `alpha` and `beta`.
        to: [String; 2],
        /// Not 0.
        temperature: f32,
    },
    /// A quantized matrix that another program has stored in parts. It applies where all parts are.
    /// Backwards it is not defined: the parts are left out.
    Decode {
        /// The keys, in the order of the encoding. The first one's wildcards say where the others are.
        from: Vec<String>,
        /// The names of codes, scales and biases; of the first alone if the matrix becomes dense.
        to: Vec<String>,
        /// How it was stored.
        encoding: Encoding,
    },
}

/// Rules, applied in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// No rules: the model's names are the checkpoint's.
    pub fn new() -> Self {
        Self::default()
    }

    /// And this rule.
    pub fn and(mut self, rule: Rule) -> Self {
        self.0.push(rule);
        self
    }

    /// And [`Rule::Rename`].
    pub fn rename(self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.and(Rule::Rename { from: from.into(), to: to.into() })
    }

    /// And [`Rule::Drop`].
    pub fn drop(self, key: impl Into<String>, reason: impl Into<String>) -> Self {
        self.and(Rule::Drop { key: key.into(), reason: reason.into() })
    }

    /// And [`Rule::Tie`].
    pub fn tie(self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.and(Rule::Tie { from: from.into(), to: to.into() })
    }

    /// And [`Rule::Split`].
    pub fn split(self, from: &str, to: &[&str], axis: i32, sizes: &[i32]) -> Self {
        let to = to.iter().map(|&to| to.into()).collect();
        self.and(Rule::Split { from: from.into(), to, axis, sizes: sizes.to_vec() })
    }

    /// And [`Rule::Merge`].
    pub fn merge(self, from: &[&str], to: &str, axis: i32) -> Self {
        let from = from.iter().map(|&from| from.into()).collect();
        self.and(Rule::Merge { from, to: to.into(), axis })
    }

    /// And [`Rule::Stack`] along a new first axis.
    pub fn stack(self, from: &str, to: &str) -> Self {
        self.and(Rule::Stack { from: from.into(), to: to.into(), axis: 0 })
    }

    /// And [`Rule::Transpose`].
    pub fn transpose(self, key: &str, axes: &[i32]) -> Self {
        self.and(Rule::Transpose { key: key.into(), axes: axes.to_vec() })
    }

    /// And [`Rule::Reshape`].
    pub fn reshape(self, key: &str, shape: &[i32]) -> Self {
        self.and(Rule::Reshape { key: key.into(), shape: shape.to_vec() })
    }

    /// And [`Rule::Add`].
    pub fn add(self, key: &str, value: f32) -> Self {
        self.and(Rule::Add { key: key.into(), value })
    }

    /// And [`Rule::Normalize`].
    pub fn normalize(self, key: &str, axis: i32) -> Self {
        self.and(Rule::Normalize { key: key.into(), axis })
    }

    /// And [`Rule::Cast`].
    pub fn cast(self, key: &str, dtype: Dtype) -> Self {
        self.and(Rule::Cast { key: key.into(), dtype })
    }

    /// And [`Rule::View`].
    pub fn view(self, key: &str, dtype: Dtype) -> Self {
        self.and(Rule::View { key: key.into(), dtype })
    }

    /// And [`Rule::Deal`].
    pub fn deal(self, from: &str, to: &[&str], axis: i32) -> Self {
        let to = to.iter().map(|&to| to.into()).collect();
        self.and(Rule::Deal { from: from.into(), to, axis })
    }

    /// And [`Rule::ResidualGate`].
    pub fn residual_gate(self, from: &str, to: [String; 2], temperature: f32) -> Self {
        self.and(Rule::ResidualGate { from: from.into(), to, temperature })
    }

    /// And [`Rule::Decode`].
    pub fn decode(self, from: &[&str], to: &[&str], encoding: Encoding) -> Self {
        let [from, to] = [from, to].map(|names| names.iter().map(|&name| name.into()).collect());
        self.and(Rule::Decode { from, to, encoding })
    }

    /// And all of these.
    pub fn append(mut self, rules: Rules) -> Self {
        self.0.extend(rules.0);
        self
    }

    /// The same rules for a model whose names all begin with `prefix`, which ends in a dot.
    pub fn under(self, prefix: &str) -> Self {
        let put = |name: &mut String| name.insert_str(0, prefix);
        let place = |mut rule| {
            match &mut rule {
                Rule::Rename { from, to } | Rule::Tie { from, to } | Rule::Stack { from, to, .. } => {
                    put(from);
                    put(to);
                }
                Rule::Split { from, to, .. } | Rule::Deal { from, to, .. } => {
                    put(from);
                    to.iter_mut().for_each(put);
                }
                Rule::ResidualGate { from, to, .. } => {
                    put(from);
                    to.iter_mut().for_each(put);
                }
                Rule::Merge { from, to, .. } => {
                    from.iter_mut().for_each(put);
                    put(to);
                }
                Rule::Drop { key, .. }
                | Rule::Transpose { key, .. }
                | Rule::Reshape { key, .. }
                | Rule::Add { key, .. }
                | Rule::Scale { key, .. }
                | Rule::Normalize { key, .. }
                | Rule::Cast { key, .. }
                | Rule::View { key, .. } => put(key),
                Rule::Decode { from, to, .. } => from.iter_mut().chain(to).for_each(put),
                Rule::When { key, rules } => {
                    put(key);
                    *rules = std::mem::take(rules).under(prefix);
                }
            }
            rule
        };
        Self(self.0.into_iter().map(place).collect())
    }

    /// And [`Rule::Scale`].
    pub fn scale(self, key: &str, value: f32) -> Self {
        self.and(Rule::Scale { key: key.into(), value })
    }

    /// And [`Rule::When`].
    pub fn when(self, key: &str, rules: Rules) -> Self {
        self.and(Rule::When { key: key.into(), rules })
    }

    /// The rules in order.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// What the rules do to these tensors, which have different names. Fails if two weights get the
    /// same name, if a part to merge or stack is missing, and if shapes do not fit; all such are told.
    pub fn plan(&self, tensors: &[TensorInfo]) -> Result<WeightMap> {
        let (map, misfits) = self.plan_what_fits(tensors);
        if misfits.is_empty() {
            return Ok(map);
        }
        let messages: Vec<String> = misfits.into_iter().map(|misfit| misfit.message).collect();
        Err(Error::argument("weight_rules", messages.join("\n  ")))
    }

    /// As [`plan`](Self::plan), without what does not fit, and that.
    pub(super) fn plan_what_fits(&self, tensors: &[TensorInfo]) -> (WeightMap, Vec<Misfit>) {
        let current = tensors.iter().enumerate().map(|(at, tensor)| (tensor.key.clone(), at)).collect();
        let mut plan = Plan { map: WeightMap::identity(tensors), current, misfits: Vec::new() };
        for rule in &self.0 {
            plan.apply(rule);
        }
        let loose: Vec<&str> = plan
            .current
            .iter()
            .filter(|(_, at)| plan.map.is_source(**at))
            .map(|(key, _)| key.as_str())
            .collect();
        for misfit in &mut plan.misfits {
            let close = misfit.missing.as_ref().map(|name| nearest(name, loose.iter().copied(), 1));
            if let Some(name) = close.unwrap_or_default().first() {
                let _ = write!(misfit.message, " (there is `{name}`)");
            }
        }
        plan.map.set_targets(plan.current.into_values().collect());
        (plan.map, plan.misfits)
    }
}

/// What did not fit a rule.
#[derive(Debug)]
pub(super) struct Misfit {
    pub(super) message: String,
    /// The tensor that is not there, if that is why.
    missing: Option<String>,
    /// What would have been made: there is no use in telling that it is missing too.
    pub(super) names: Vec<String>,
}

/// Misfits that are told.
const MOST_MISFITS: usize = 64;

/// A map in the making.
struct Plan {
    map: WeightMap,
    /// The names that hold after the rules so far.
    current: BTreeMap<String, usize>,
    misfits: Vec<Misfit>,
}

/// One place where a rule applies: the tensors that go in, and the names of those that come out.
type Place = (Vec<usize>, Vec<String>);

impl Plan {
    /// What does not fit is left out.
    fn apply(&mut self, rule: &Rule) {
        let renamed = |to: &String| vec![to.clone()];
        let (transform, places) = match rule {
            Rule::Drop { key, reason } => {
                for at in self.same(key).into_iter().flat_map(|(inputs, _)| inputs) {
                    self.map.drop_tensor(at, reason);
                    self.current.remove(&self.map.info(at).key);
                }
                return;
            }
            Rule::When { key, rules } => {
                if !self.matching(key).is_empty() {
                    rules.iter().for_each(|rule| self.apply(rule));
                }
                return;
            }
            Rule::Rename { from, to } => (Transform::Rename, self.places(from, &renamed(to))),
            Rule::Tie { from, to } => (Transform::Tie, self.places(from, &renamed(to))),
            Rule::Split { from, to, axis, sizes } => {
                if !sizes.is_empty() && sizes.len() != to.len() {
                    let message = format!("`{from}`: {} sizes for {} parts", sizes.len(), to.len());
                    return self.note(message, None, Vec::new());
                }
                let sizes = if sizes.is_empty() { vec![-1; to.len()] } else { sizes.clone() };
                (Transform::Split { axis: *axis, sizes }, self.places(from, to))
            }
            Rule::Merge { from, to, axis } => (Transform::Merge { axis: *axis }, self.merged(from, to)),
            Rule::Stack { from, to, axis } => (Transform::Stack { axis: *axis }, self.stacked(from, to)),
            Rule::Transpose { key, axes } => (Transform::Transpose { axes: axes.clone() }, self.same(key)),
            Rule::Reshape { key, shape } => (Transform::Reshape { shape: shape.clone() }, self.same(key)),
            Rule::Add { key, value } => (Transform::Add { value: *value }, self.same(key)),
            Rule::Scale { key, value } => (Transform::Scale { value: *value }, self.same(key)),
            Rule::Normalize { key, axis } => (Transform::Normalize { axis: *axis }, self.same(key)),
            Rule::Cast { key, dtype } => (Transform::Cast { dtype: *dtype }, self.same(key)),
            Rule::View { key, dtype } => (Transform::View { dtype: *dtype }, self.same(key)),
            Rule::Deal { from, to, axis } => {
                let parts = i32::try_from(to.len()).unwrap_or(0);
                (Transform::Deal { axis: *axis, parts }, self.places(from, to))
            }
            Rule::ResidualGate { from, to, temperature } => {
                (Transform::ResidualGate { temperature: *temperature }, self.places(from, to))
            }
            Rule::Decode { from, to, encoding } => {
                (Transform::Decode { encoding: *encoding }, self.in_parts(from, to))
            }
        };
        // All inputs go before any output comes, so that one rule may exchange names.
        if transform != Transform::Tie {
            for at in places.iter().flat_map(|(inputs, _)| inputs) {
                self.current.remove(&self.map.info(*at).key);
            }
        }
        for (inputs, names) in places {
            if let Err(message) = self.step(transform.clone(), inputs, &names) {
                self.note(message, None, names);
            }
        }
    }

    fn note(&mut self, message: String, missing: Option<String>, names: Vec<String>) {
        if self.misfits.len() < MOST_MISFITS {
            self.misfits.push(Misfit { message, missing, names });
        }
    }

    /// Fails with what does not fit.
    fn step(&mut self, transform: Transform, inputs: Vec<usize>, names: &[String]) -> Result<(), String> {
        let made_of =
            |at: usize| self.map.sources_of(at).map(|tensor| tensor.key.clone()).collect::<Vec<_>>();
        let first = made_of(inputs[0]).join("` + `");
        for name in names {
            if let Some(&other) = self.current.get(name) {
                let other = made_of(other).join("` + `");
                return Err(format!("`{first}` and `{other}` would both be `{name}`"));
            }
        }
        let made = self.map.add_step(transform, inputs, names).map_err(|e| format!("`{first}`: {e}"))?;
        for (name, at) in names.iter().zip(made) {
            if self.current.insert(name.clone(), at).is_some() {
                return Err(format!("two parts of `{first}` would be `{name}`"));
            }
        }
        Ok(())
    }

    /// The keys that match, with their tensors.
    fn matching(&self, pattern: &str) -> Vec<(String, usize, Captures<'_>)> {
        let pattern = Pattern::new(pattern);
        if pattern.is_literal() {
            let at = self.current.get_key_value(pattern.name());
            return at.map(|(key, &at)| (key.clone(), at, Captures::default())).into_iter().collect();
        }
        let found = self.current.iter().filter_map(|(key, &at)| {
            let captures = pattern.captures(key, &self.map.info(at).shape)?;
            Some((key.clone(), at, captures))
        });
        found.collect()
    }

    /// Each tensor on its own, and new names for what becomes of it.
    fn places(&self, from: &str, to: &[String]) -> Vec<Place> {
        let names = |captures: &Captures| to.iter().map(|to| substitute(to, captures)).collect();
        self.matching(from).iter().map(|(_, at, captures)| (vec![*at], names(captures))).collect()
    }

    /// Each tensor on its own, under the name that it has.
    fn same(&self, key: &str) -> Vec<Place> {
        self.matching(key).into_iter().map(|(key, at, _)| (vec![at], vec![key])).collect()
    }

    fn merged(&mut self, from: &[String], to: &str) -> Vec<Place> {
        let Some(first) = from.first() else { return Vec::new() };
        let (mut places, mut misfits, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        for (key, _, captures) in &self.matching(first) {
            let parts = from.iter().map(|from| substitute(Pattern::new(from).name(), captures));
            let (there, missing): (Vec<String>, Vec<String>) =
                parts.partition(|name| self.current.contains_key(name));
            let whole = vec![substitute(to, captures)];
            if missing.is_empty() {
                places.push((there.iter().map(|name| self.current[name]).collect(), whole));
                continue;
            }
            for name in missing {
                let message = format!("`{name}` is missing, which is to be merged with `{key}`");
                misfits.push((message, name, whole.clone()));
            }
            taken.extend(there);
        }
        self.leave_out(taken, misfits);
        places
    }

    /// Notes what is missing, and takes away what would have been used with it.
    fn leave_out(&mut self, taken: Vec<String>, misfits: Vec<(String, String, Vec<String>)>) {
        for (message, missing, names) in misfits {
            self.note(message, Some(missing), names);
        }
        for name in taken {
            self.current.remove(&name);
        }
    }

    /// Where all parts are, with as many names as will be needed.
    fn in_parts(&self, from: &[String], to: &[String]) -> Vec<Place> {
        let Some((first, rest)) = from.split_first() else { return Vec::new() };
        let place = |(_, at, captures): &(String, usize, Captures)| {
            let part =
                |from: &String| self.current.get(&substitute(Pattern::new(from).name(), captures)).copied();
            let rest = rest.iter().map(part).collect::<Option<Vec<usize>>>()?;
            let names = to.iter().map(|to| substitute(to, captures)).collect();
            Some((std::iter::once(*at).chain(rest).collect(), names))
        };
        self.matching(first).iter().filter_map(place).collect()
    }

    fn stacked(&mut self, from: &str, to: &str) -> Vec<Place> {
        let mut stacks: BTreeMap<Vec<String>, (String, BTreeMap<usize, usize>)> = BTreeMap::new();
        let (mut misfits, mut taken, mut twice) = (Vec::new(), Vec::new(), None);
        for (_, at, captures) in self.matching(from) {
            let stack: Vec<String> = captures.parts.iter().map(|&part| part.to_owned()).collect();
            let whole = substitute(to, &Captures { index: None, ..captures.clone() });
            let index = captures.index.unwrap_or_default();
            let (_, members) = stacks.entry(stack).or_insert((whole, BTreeMap::new()));
            if members.insert(index, at).is_some() {
                twice = Some(index);
            }
        }
        if let Some(index) = twice {
            self.note(format!("`{from}` matches number {index} twice"), None, Vec::new());
            return Vec::new();
        }
        let mut places = Vec::new();
        for (stack, (whole, members)) in stacks {
            let last = members.last_key_value().map_or(0, |(&last, _)| last);
            // No more than twice as many are looked for, whatever number the last one has.
            let count = last.saturating_add(1).min(2 * members.len());
            let missing: Vec<usize> = (0..count).filter(|index| !members.contains_key(index)).collect();
            if missing.is_empty() {
                places.push((members.into_values().collect(), vec![whole]));
                continue;
            }
            let parts: Vec<&str> = stack.iter().map(String::as_str).collect();
            for index in missing {
                let captures = Captures { parts: parts.clone(), index: Some(index) };
                let name = substitute(Pattern::new(from).name(), &captures);
                let message = format!("number {index} of `{from}` is missing for `{whole}`: `{name}`");
                misfits.push((message, name, vec![whole.clone()]));
            }
            taken.extend(members.values().map(|&at| self.map.info(at).key.clone()));
        }
        self.leave_out(taken, misfits);
        places
    }
}
