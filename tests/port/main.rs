//! The porting workflow on the bundled checkpoint: it passes, it notices planted faults and names
//! where they are, and it does again only what changed.

mod convert;

use std::fs;
use std::path::{Path, PathBuf};

use mlxport::port::{Options, Oracle, Outcome, Progress, Report, port};

const CHECKPOINT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny-qwen3");

/// A copy of the bundled checkpoint that a test may damage.
struct Workplace(tempfile::TempDir);

impl Workplace {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(Path::new(CHECKPOINT), &dir.path().join("source"));
        Self(dir)
    }

    fn source(&self) -> PathBuf {
        self.0.path().join("source")
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("out")
    }

    fn port(&self) -> mlxport::Result<Report> {
        self.port_noting(&mut Vec::new())
    }

    /// Ports, and notes which steps were done anew.
    fn port_noting(&self, done: &mut Vec<String>) -> mlxport::Result<Report> {
        let oracle = self.source().join("oracle");
        let options = Options { source: self.source(), oracle, out: self.out() };
        port(&options, &mut |progress| {
            if let Progress::Started(name) = progress {
                done.push(name.to_owned());
            }
        })
    }

    /// Changes the values of a bfloat16 tensor in `model.safetensors`.
    fn change_weight(&self, name: &str, change: impl Fn(f32) -> f32) {
        let path = self.source().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        assert_eq!(header[name]["dtype"], "BF16");
        let offset = |i: usize| header[name]["data_offsets"][i].as_u64().unwrap() as usize + 8 + header_len;
        for pair in bytes[offset(0)..offset(1)].chunks_exact_mut(2) {
            let value = half::bf16::from_le_bytes([pair[0], pair[1]]);
            pair.copy_from_slice(&half::bf16::from_f32(change(value.to_f32())).to_le_bytes());
        }
        fs::write(&path, bytes).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn the_bundled_checkpoint_is_proven_and_runs() {
    let place = Workplace::new();
    let report = place.port().unwrap();
    assert_eq!(report.parity.failure().map(|rung| &rung.detail), None);
    let rungs: Vec<(&str, Outcome)> = report.parity.rungs.iter().map(|r| (&*r.name, r.outcome)).collect();
    let expected =
        ["weights", "stages", "logits", "greedy", "batch", "cache"].map(|name| (name, Outcome::Passed));
    assert_eq!(rungs, expected);
    let stages = &report.parity.rungs[1].measured;
    assert!(stages.len() >= 14, "embeddings, 4 blocks with attention and MLP, final norm: {}", stages.len());
    assert!(!report.sample.unwrap().tokens.is_empty());
    assert!(report.speed.is_some());

    let json = fs::read_to_string(place.out().join("report.json")).unwrap();
    let back: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(back.inspection.model_type, "qwen3");
    let markdown = fs::read_to_string(place.out().join("report.md")).unwrap();
    for part in [
        "source: proven",
        "| stages | passed |",
        "layers.0.self_attn",
        "## Sample",
        "## Speed",
        "## Weight map",
    ] {
        assert!(markdown.contains(part), "no `{part}` in the report");
    }
    mlxport::models::load(&place.out().join("model")).unwrap();
}

#[test]
fn a_wrong_weight_is_found_where_it_is() {
    let place = Workplace::new();
    place.change_weight("model.layers.2.mlp.down_proj.weight", |v| v * 1.05);
    let report = place.port().unwrap();
    let failure = report.parity.failure().expect("a planted fault must be found");
    assert_eq!(failure.name, "stages");
    assert!(failure.detail.starts_with("`layers.2.mlp` is the first to diverge"), "{}", failure.detail);
    assert!(report.sample.is_none() && report.speed.is_none());
    let markdown = fs::read_to_string(place.out().join("report.md")).unwrap();
    assert!(markdown.contains("NOT proven: rung `stages` failed"), "{markdown}");
    assert!(markdown.contains("| layers.1 | ") && markdown.contains("**diverges**"));
}

#[test]
fn a_wrong_norm_or_head_is_found_too() {
    for (weight, first) in [
        ("model.layers.1.self_attn.k_norm.weight", "`layers.1.self_attn` is the first"),
        ("model.norm.weight", "`norm` is the first"),
    ] {
        let place = Workplace::new();
        place.change_weight(weight, |v| v * 1.02 + 0.02);
        let report = place.port().unwrap();
        let detail = &report.parity.failure().expect(weight).detail;
        assert!(detail.starts_with(first), "{detail}");
    }
}

#[test]
fn a_missing_or_foreign_weight_stops_before_parity() {
    let place = Workplace::new();
    let path = place.source().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let renamed =
        String::from_utf8_lossy(&bytes[..4096]).replace("layers.3.mlp.up_proj", "layers.3.mlp.ub_proj");
    assert_ne!(renamed.as_bytes(), &bytes[..4096], "the name is not in the first part of the header");
    fs::write(&path, [renamed.as_bytes(), &bytes[4096..]].concat()).unwrap();
    let message = place.port().unwrap_err().to_string();
    assert!(message.contains("layers.3.mlp.up_proj"), "{message}");
}

#[test]
fn a_second_run_does_again_only_what_changed() {
    let place = Workplace::new();
    let mut done = Vec::new();
    place.port_noting(&mut done).unwrap();
    assert_eq!(done, ["inspect", "plan", "convert", "parity", "sample", "bench"]);

    done.clear();
    place.port_noting(&mut done).unwrap();
    assert_eq!(done, [""; 0]);

    // A lost file of the converted model.
    fs::remove_file(place.out().join("model/config.json")).unwrap();
    place.port_noting(&mut done).unwrap();
    assert_eq!(done, ["convert"]);

    // Half a step file, as no interrupted run leaves one, but a full disk of another program might.
    done.clear();
    let parity = place.out().join("4-parity.json");
    let text = fs::read_to_string(&parity).unwrap();
    fs::write(&parity, &text[..text.len() / 2]).unwrap();
    place.port_noting(&mut done).unwrap();
    assert_eq!(done, ["parity"]);

    // Another oracle.
    done.clear();
    let oracle = place.source().join("oracle/expect.npz");
    let bytes = fs::read(&oracle).unwrap();
    fs::remove_file(&oracle).unwrap();
    fs::write(&oracle, bytes).unwrap();
    place.port_noting(&mut done).unwrap();
    assert_eq!(done[0], "parity");

    // Another checkpoint: everything that depends on it, and the verdict with it.
    done.clear();
    place.change_weight("model.norm.weight", |v| v * 1.5);
    let report = place.port_noting(&mut done).unwrap();
    assert_eq!(done, ["inspect", "plan", "convert", "parity"]);
    assert!(!report.parity.passed());
}

#[test]
fn the_oracle_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let message = Oracle::load(dir.path()).unwrap_err().to_string();
    assert!(message.contains("expect.npz"), "{message}");
    fs::write(dir.path().join("expect.npz"), b"PK\x05\x06 not an archive").unwrap();
    assert!(Oracle::load(dir.path()).is_err());
}

#[test]
fn the_source_is_not_overwritten() {
    let place = Workplace::new();
    let out = place.0.path().join("elsewhere");
    fs::create_dir(&out).unwrap();
    fs::rename(place.source(), out.join("model")).unwrap();
    let oracle = out.join("model/oracle");
    let options = Options { source: out.join("model"), oracle, out: out.clone() };
    let message = port(&options, &mut |_| {}).unwrap_err().to_string();
    assert!(message.contains("lie in one another"), "{message}");
    assert!(out.join("model/model.safetensors").exists());
}
