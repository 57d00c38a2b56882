//! Weight rules: how the names and layouts of a checkpoint become those of the model.
//!
//! A rule is data. [`Rules::plan`] applies rules to the names, shapes and dtypes of a checkpoint,
//! before any weight is read, and gives the [`WeightMap`], which runs forwards and backwards.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::map::{Transform, WeightMap};
use crate::error::{Error, Result};
use crate::io::TensorInfo;

/// One rule. Keys are patterns: `{}` stands for one or more characters without a dot, `*` for any
/// characters. In a new name, each `{}` or `*` is what the one in its place has matched.
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

    /// The rules in order.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// What the rules do to these tensors. Fails if two of them get the same name.
    pub fn plan(&self, tensors: &[TensorInfo]) -> Result<WeightMap> {
        let current = tensors.iter().enumerate().map(|(at, tensor)| (tensor.key.clone(), at)).collect();
        let mut plan = Plan { map: WeightMap::identity(tensors), current };
        for rule in &self.0 {
            plan.apply(rule)?;
        }
        plan.map.set_targets(plan.current.into_values().collect());
        Ok(plan.map)
    }
}

/// A map in the making: the names that hold after the rules so far.
struct Plan {
    map: WeightMap,
    current: BTreeMap<String, usize>,
}

impl Plan {
    fn apply(&mut self, rule: &Rule) -> Result<()> {
        match rule {
            Rule::Rename { from, to } => {
                let matching = self.matching(from);
                // All go before any comes, so that one rule may exchange names.
                let taken: Vec<usize> = matching.iter().map(|(key, _)| self.take(key)).collect();
                for (at, (_, captures)) in taken.into_iter().zip(matching) {
                    self.step(Transform::Rename, vec![at], substitute(to, &captures))?;
                }
            }
            Rule::Drop { key, reason } => {
                for (key, _) in self.matching(key) {
                    let at = self.take(&key);
                    self.map.drop_tensor(at, reason);
                }
            }
            Rule::Tie { from, to } => {
                for (key, captures) in self.matching(from) {
                    self.step(Transform::Tie, vec![self.current[&key]], substitute(to, &captures))?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, key: &str) -> usize {
        self.current.remove(key).expect("a key that has matched")
    }

    /// Adds a step that makes `key`.
    fn step(&mut self, transform: Transform, inputs: Vec<usize>, key: String) -> Result<()> {
        if let Some(&other) = self.current.get(&key) {
            let [a, b] = [other, inputs[0]].map(|at| self.map.source_keys(at).join("` + `"));
            let message = format!("`{a}` and `{b}` would both be `{key}`");
            return Err(Error::argument("weight_rules", message));
        }
        let at = self.map.add_step(transform, inputs, key.clone());
        self.current.insert(key, at);
        Ok(())
    }

    fn matching(&self, pattern: &str) -> Vec<(String, Vec<String>)> {
        let found = self.current.keys().filter_map(|key| {
            let captures = captures(pattern, key)?;
            Some((key.clone(), captures.into_iter().map(str::to_owned).collect()))
        });
        found.collect()
    }
}

/// What the wildcards of `pattern` match in `key`, or `None` if it does not match as a whole. Where
/// several ways match, each wildcard takes as little as it can.
fn captures<'k>(pattern: &str, key: &'k str) -> Option<Vec<&'k str>> {
    let Some((literal, dotted, rest)) = next_wildcard(pattern) else {
        return (pattern == key).then(Vec::new);
    };
    let key = key.strip_prefix(literal)?;
    let shortest = if dotted { 0 } else { 1 };
    let longest = if dotted { key.len() } else { key.find('.').unwrap_or(key.len()) };
    (shortest..=longest).filter(|&end| key.is_char_boundary(end)).find_map(|end| {
        let mut found = vec![&key[..end]];
        found.extend(captures(rest, &key[end..])?);
        Some(found)
    })
}

/// `to` with its wildcards replaced by what was captured.
fn substitute(to: &str, captures: &[String]) -> String {
    let (mut out, mut rest) = (String::new(), to);
    let mut captures = captures.iter();
    while let Some((literal, _, after)) = next_wildcard(rest) {
        out.push_str(literal);
        out.push_str(captures.next().map_or("", String::as_str));
        rest = after;
    }
    out + rest
}

/// The text before the first wildcard, whether that matches dots, and the text after it.
fn next_wildcard(pattern: &str) -> Option<(&str, bool, &str)> {
    let star = pattern.find('*').map(|at| (at, 1));
    let segment = pattern.find("{}").map(|at| (at, 2));
    let (at, len) = [star, segment].into_iter().flatten().min()?;
    Some((&pattern[..at], len == 1, &pattern[at + len..]))
}
