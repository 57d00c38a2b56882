//! Nothing of mlx-c is forgotten silently: every function of the bindings is called somewhere under
//! `src/`, or `assets/c-api-left-out.json` says why not; and `docs/c-api.md` is the table of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const TABLE: &str = "docs/c-api.md";
const REASONS: &str = "assets/c-api-left-out.json";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The functions that the bindings declare, sorted.
fn functions(bindings: &str) -> Vec<String> {
    let declared = bindings.split("pub fn ").skip(1);
    let names = declared.map(|rest| rest.split('(').next().unwrap_or_default().trim().to_owned());
    let mut names: Vec<String> = names.filter(|n| is_c_function(n)).collect();
    names.sort();
    names.dedup();
    names
}

fn is_c_function(name: &str) -> bool {
    ["mlx_", "_mlx_", "mlxport_"].iter().any(|prefix| name.starts_with(prefix))
}

/// Rust files below `folder`, sorted.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The words of a line of code: what is in a comment does not count as a use.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The item that `name` is called for: in a macro's table the word before `=>`, else the function
/// around the line.
fn item(lines: &[&str], at: usize) -> Option<String> {
    // A row of a macro's table may be broken over lines after its `=>`.
    for line in lines[..=at].iter().rev().take(3) {
        let row = line.split("=>").next().filter(|_| line.contains("=>"));
        if let Some(word) = row.and_then(|row| words(row.trim_start_matches("///")).next()) {
            let table = line.starts_with("    ") && !line.trim_start().starts_with(char::is_uppercase);
            let plain = word.starts_with(char::is_lowercase) && !["match", "mut", "ref"].contains(&word);
            if table && plain && !line.contains('!') {
                return Some(word.to_owned());
            }
        }
        if line.trim_end().ends_with(';') || line.trim_end().ends_with('{') {
            break;
        }
    }
    let around = lines[..=at].iter().rev().find_map(|line| {
        let mut rest = line.split("fn ").skip(1).map(|rest| words(rest).next().unwrap_or_default());
        rest.next().filter(|name| !name.is_empty() && !line.trim_start().starts_with("//")).map(str::to_owned)
    });
    around.filter(|name| name.starts_with(char::is_lowercase))
}

/// Where each function is called, as `item` in `file`, in the order of files and lines.
fn uses(names: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let file = path.strip_prefix(root()).unwrap().display().to_string();
        for (at, line) in lines.iter().enumerate() {
            for word in words(line).filter(|w| is_c_function(w)) {
                if names.binary_search_by(|n| n.as_str().cmp(word)).is_err() {
                    continue;
                }
                let place = match item(&lines, at) {
                    Some(item) => format!("`{item}` in `{file}`"),
                    None => format!("`{file}`"),
                };
                let places = found.entry(word.to_owned()).or_default();
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
    }
    found
}

fn table(
    names: &[String],
    uses: &BTreeMap<String, Vec<String>>,
    reasons: &BTreeMap<String, String>,
) -> String {
    let used = names.iter().filter(|n| uses.contains_key(*n)).count();
    let mut text = format!(
        "# Where mlx-c's functions are\n\n\
         Of {} functions in the bindings, {used} are called, and {} are left out for a reason.\n\
         This table is made by `tests/core/coverage.rs`, which fails when it is not true; `UPDATE_DOCS=1\n\
         cargo test --test core coverage` writes it again. Reasons live in `{REASONS}`.\n\n\
         | C function | Rust item, or why there is none |\n| --- | --- |\n",
        names.len(),
        names.len() - used,
    );
    for name in names {
        let place = match (uses.get(name), reasons.get(name)) {
            (Some(places), _) => places.join("; "),
            (None, Some(reason)) => format!("left out: {reason}"),
            (None, None) => "?".into(),
        };
        writeln!(text, "| `{name}` | {place} |").unwrap();
    }
    text
}

/// Reasons by function: a file of `{reason: [functions]}`.
fn read_reasons() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join(REASONS)).unwrap();
    let by_reason: BTreeMap<String, Vec<String>> = serde_json::from_str(&text).unwrap();
    let mut reasons = BTreeMap::new();
    for (reason, names) in by_reason {
        for name in names {
            let earlier = reasons.insert(name.clone(), reason.clone());
            assert_eq!(earlier, None, "{name} has two reasons");
        }
    }
    reasons
}

#[test]
fn coverage_of_the_c_api_is_complete() {
    let bindings = fs::read_to_string(env!("MLXPORT_BINDINGS")).unwrap();
    let names = functions(&bindings);
    assert!(names.len() > 500, "only {} functions were found", names.len());
    let (uses, reasons) = (uses(&names), read_reasons());

    let forgotten: Vec<_> =
        names.iter().filter(|n| !uses.contains_key(*n) && !reasons.contains_key(*n)).collect();
    assert!(forgotten.is_empty(), "neither called nor in {REASONS}: {forgotten:#?}");
    let stale: Vec<_> = reasons.keys().filter(|n| uses.contains_key(*n) || !names.contains(n)).collect();
    assert!(stale.is_empty(), "in {REASONS}, but called, or not in the bindings: {stale:#?}");

    let (path, expected) = (root().join(TABLE), table(&names, &uses, &reasons));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(found == expected, "{TABLE} is out of date (UPDATE_DOCS=1 writes it): {differs:?}");
}
