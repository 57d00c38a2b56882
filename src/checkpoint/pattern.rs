//! Patterns of names and shapes.

/// A pattern of names, and optionally one of shapes after a space: `*.conv1d.weight [_, 1, _]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pattern<'a> {
    name: &'a str,
    /// One entry per dimension; `None` matches any size.
    shape: Option<&'a str>,
}

/// A wildcard of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wildcard {
    /// `*`: any characters.
    Any,
    /// `{}`: one or more characters without a dot.
    Segment,
    /// `{#}`: an index, of at least this with `{#3..}`.
    Index(usize),
}

impl<'a> Pattern<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        match text.split_once(" [").and_then(|(name, shape)| Some((name, shape.strip_suffix(']')?))) {
            Some((name, shape)) => Self { name, shape: Some(shape) },
            None => Self { name: text, shape: None },
        }
    }

    /// Whether it is one name, of any shape.
    pub(super) fn is_literal(&self) -> bool {
        self.shape.is_none() && next_wildcard(self.name).is_none()
    }

    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    /// What the wildcards match, if the pattern matches as a whole. Where several ways do, each
    /// wildcard takes as little as it can.
    pub(super) fn captures<'k>(&self, key: &'k str, shape: &[i32]) -> Option<Captures<'k>> {
        if !self.shape.is_none_or(|pattern| shape_matches(pattern, shape)) {
            return None;
        }
        let mut found = Captures::default();
        name_matches(self.name, key, &mut found).then_some(found)
    }
}

/// What the wildcards of a pattern have matched.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Captures<'k> {
    /// By `*` and `{}`, in order.
    pub(super) parts: Vec<&'k str>,
    /// By `{#}` or `{#3..}`.
    pub(super) index: Option<usize>,
}

/// `to` with its wildcards replaced by what was captured in their place.
pub(super) fn substitute(to: &str, captures: &Captures) -> String {
    let (mut out, mut rest) = (String::new(), to);
    let mut parts = captures.parts.iter();
    while let Some((literal, wildcard, after)) = next_wildcard(rest) {
        out.push_str(literal);
        match wildcard {
            Wildcard::Index(_) => out.extend(captures.index.map(|index| index.to_string())),
            Wildcard::Any | Wildcard::Segment => out.push_str(parts.next().copied().unwrap_or_default()),
        }
        rest = after;
    }
    out + rest
}

fn name_matches<'k>(pattern: &str, key: &'k str, found: &mut Captures<'k>) -> bool {
    let Some((literal, wildcard, rest)) = next_wildcard(pattern) else {
        return pattern == key;
    };
    let Some(key) = key.strip_prefix(literal) else { return false };
    let (shortest, longest) = match wildcard {
        Wildcard::Any => (0, key.len()),
        Wildcard::Segment => (1, key.find('.').unwrap_or(key.len())),
        Wildcard::Index(_) => (1, key.find(|c: char| !c.is_ascii_digit()).unwrap_or(key.len())),
    };
    for end in (shortest..=longest).filter(|&end| key.is_char_boundary(end)) {
        let before = found.clone();
        match wildcard {
            Wildcard::Index(least) => {
                found.index = key[..end].parse().ok().filter(|index| *index >= least);
                if found.index.is_none() {
                    continue;
                }
            }
            Wildcard::Any | Wildcard::Segment => found.parts.push(&key[..end]),
        }
        if name_matches(rest, &key[end..], found) {
            return true;
        }
        *found = before;
    }
    false
}

/// The text before the first wildcard, the wildcard, and the text after it.
fn next_wildcard(pattern: &str) -> Option<(&str, Wildcard, &str)> {
    let at = pattern.match_indices(['*', '{']).find_map(|(at, _)| Some((at, wildcard(&pattern[at..])?)));
    let (at, (wildcard, length)) = at?;
    Some((&pattern[..at], wildcard, &pattern[at + length..]))
}

/// The wildcard that `text` begins with, and how long it is.
fn wildcard(text: &str) -> Option<(Wildcard, usize)> {
    if text.starts_with('*') {
        return Some((Wildcard::Any, 1));
    }
    let inner = text.strip_prefix('{')?.split_once('}')?.0;
    let wildcard = match inner.strip_prefix('#') {
        None if inner.is_empty() => Wildcard::Segment,
        Some("") => Wildcard::Index(0),
        index => Wildcard::Index(index?.strip_suffix("..")?.parse().ok()?),
    };
    Some((wildcard, inner.len() + 2))
}

fn shape_matches(pattern: &str, shape: &[i32]) -> bool {
    let dims: Vec<&str> = pattern.split(',').map(str::trim).filter(|dim| !dim.is_empty()).collect();
    dims.len() == shape.len()
        && dims.iter().zip(shape).all(|(dim, size)| *dim == "_" || dim.parse() == Ok(*size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'k>(pattern: &str, key: &'k str) -> Option<Vec<&'k str>> {
        Pattern::new(pattern).captures(key, &[2, 1, 3]).map(|captures| captures.parts)
    }

    #[test]
    fn wildcards_match_what_they_say() {
        assert_eq!(parts("a.b", "a.b"), Some(vec![]));
        assert_eq!(parts("a.b", "a.bc"), None);
        assert_eq!(parts("a.{}.c", "a.12.c"), Some(vec!["12"]));
        assert_eq!(parts("a.{}.c", "a.1.2.c"), None);
        assert_eq!(parts("a.{}c", "a.c"), None);
        assert_eq!(parts("*.c", "a.b.c"), Some(vec!["a.b"]));
        assert_eq!(parts("*c*", "c"), Some(vec!["", ""]));
        assert_eq!(parts("{}.*.{}", "é.b.c.d"), Some(vec!["é", "b.c", "d"]));
        assert_eq!(parts("{}_{}", "a_b_c"), Some(vec!["a", "b_c"]));
    }

    #[test]
    fn an_index_is_a_number() {
        let index = |key| Pattern::new("e.{#}.w").captures(key, &[]).map(|captures| captures.index);
        assert_eq!(index("e.12.w"), Some(Some(12)));
        assert_eq!(index("e.x.w"), None);
        assert_eq!(index("e..w"), None);
        let from_9 = |key| Pattern::new("l.{#9..}.*").captures(key, &[]).map(|captures| captures.index);
        assert_eq!(from_9("l.8.w"), None);
        assert_eq!(from_9("l.9.w"), Some(Some(9)));
        assert_eq!(from_9("l.10.w.1"), Some(Some(10)));
        assert_eq!(from_9("l.1.10"), None);
    }

    #[test]
    fn a_shape_narrows_a_pattern() {
        assert!(parts("* [_, 1, _]", "a").is_some());
        assert!(parts("* [2,1,3]", "a").is_some());
        assert!(parts("* [_, 2, _]", "a").is_none());
        assert!(parts("* [_, _]", "a").is_none());
        assert!(parts("* []", "a").is_none());
        assert!(Pattern::new("* []").captures("a", &[]).is_some());
    }

    #[test]
    fn names_are_made_of_what_was_captured() {
        let captures = Pattern::new("*.{}.{#}").captures("a.b.c.7", &[]).unwrap();
        assert_eq!(substitute("x.{}.y.*", &captures), "x.a.b.y.c");
        assert_eq!(substitute("{}.{#}", &captures), "a.b.7");
    }
}
