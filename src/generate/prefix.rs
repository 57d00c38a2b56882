//! Prompts that begin alike.

use crate::cache::{Cache, Snapshot};
use crate::error::Result;
use crate::models::LanguageModel;

/// What a model remembers of a text, so that a text that begins like it needs only the rest read.
///
/// Layers that keep all positions can forget the last ones. Those that can't, with windows, chunks or
/// states, are remembered at boundaries on the way.
#[derive(Debug, Clone)]
pub struct Remembered {
    tokens: Vec<i32>,
    cache: Cache,
    /// From the first to the last.
    boundaries: Vec<Snapshot>,
}

impl Remembered {
    /// `cache` has seen the first tokens of `tokens`, as many as its position says; `boundaries` were
    /// taken on the way.
    pub fn new(mut tokens: Vec<i32>, cache: Cache, boundaries: Vec<Snapshot>) -> Self {
        tokens.truncate(usize::try_from(cache.offset()).unwrap_or(0));
        Self { tokens, cache, boundaries }
    }

    /// A cache that has seen the beginning of `prompt`, and how many tokens of it: as many as can be had,
    /// but never all, as the last must be read to go on.
    pub fn begin(&self, prompt: &[i32]) -> Result<Option<(Cache, usize)>> {
        let most = prompt.len().saturating_sub(1);
        let shared = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(most);
        let mut cache = self.cache.clone();
        let back = self.tokens.len() - shared;
        if shared > 0 && cache.trim(back as i32).is_ok() {
            return Ok(Some((cache, shared)));
        }
        let usable = |snapshot: &&Snapshot| snapshot.position() as usize <= shared && snapshot.position() > 0;
        let Some(boundary) = self.boundaries.iter().rev().find(usable) else {
            return Ok(None);
        };
        Ok(Some((self.cache.rewound(boundary)?, boundary.position() as usize)))
    }

    /// Bytes that it holds.
    pub fn nbytes(&self) -> usize {
        self.cache.nbytes() + self.boundaries.iter().map(Snapshot::nbytes).sum::<usize>()
    }
}

/// Boundaries of a text that are kept.
const MOST_BOUNDARIES: usize = 16;

/// Takes one away where there are too many: that which lies the closest between its neighbours for how far
/// they are from the end.
pub(super) fn thin(boundaries: &mut Vec<Snapshot>) {
    if boundaries.len() <= MOST_BOUNDARIES {
        return;
    }
    let at = |i: usize| f64::from(boundaries[i].position());
    let end = at(boundaries.len() - 1);
    let gap = |i: usize| (at(i + 1) - at(i - 1)) / (end - at(i - 1));
    let closest = (1..boundaries.len() - 1).min_by(|&a, &b| gap(a).total_cmp(&gap(b)));
    if let Some(closest) = closest {
        boundaries.remove(closest);
    }
}

/// What a model remembers of the last texts.
#[derive(Debug, Clone)]
pub struct PrefixCache {
    /// From the one that was not used for longest.
    entries: Vec<Remembered>,
    max_bytes: usize,
}

impl PrefixCache {
    /// Nothing yet; later at most so many bytes.
    pub fn new(max_bytes: usize) -> Self {
        Self { entries: Vec::new(), max_bytes }
    }

    /// A cache for `prompt`, which has seen as many of its first tokens as any text remembered has, and
    /// how many.
    pub fn begin(&mut self, model: &dyn LanguageModel, prompt: &[i32]) -> Result<(Cache, usize)> {
        let mut best: Option<(usize, Cache, usize)> = None;
        for (i, entry) in self.entries.iter().enumerate() {
            if let Some((cache, reused)) = entry.begin(prompt)?
                && best.as_ref().is_none_or(|(_, _, most)| reused > *most)
            {
                best = Some((i, cache, reused));
            }
        }
        let Some((at, cache, reused)) = best else {
            return Ok((model.make_cache(), 0));
        };
        let used = self.entries.remove(at);
        self.entries.push(used);
        Ok((cache, reused))
    }

    /// Remembers a text, in place of those that are its beginning, and forgets old ones beyond the limit.
    pub fn insert(&mut self, text: Remembered) {
        self.entries.retain(|entry| !text.tokens.starts_with(&entry.tokens));
        self.entries.push(text);
        let mut bytes: usize = self.entries.iter().map(Remembered::nbytes).sum();
        while bytes > self.max_bytes && !self.entries.is_empty() {
            bytes -= self.entries.remove(0).nbytes();
        }
    }

    /// Texts remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
