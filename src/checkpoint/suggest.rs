//! "Did you mean": the names nearest to one that was not found.

/// The names of `known` that are most like `name`, best first; at most `count`, none that is far off.
pub(crate) fn nearest<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
    count: usize,
) -> Vec<&'a str> {
    const LONGEST: usize = 256;
    if name.len() > LONGEST {
        return Vec::new();
    }
    let close = known
        .into_iter()
        .filter(|k| k.len() <= LONGEST)
        .map(|k| (strsim::normalized_levenshtein(name, k), k));
    let mut close: Vec<(f64, &str)> = close.filter(|(likeness, _)| *likeness > 0.5).collect();
    close.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    close.into_iter().take(count).map(|(_, k)| k).collect()
}
