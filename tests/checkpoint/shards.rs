//! Checkpoint directories: one file, shards with an index, shards without.

use std::path::Path;

use mlxport::checkpoint::Files;

use crate::raw;

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

/// A directory with `a` in the first shard and `b` in the second.
fn two_shards() -> tempfile::TempDir {
    let dir = raw::dir();
    raw::write_f32(dir.path(), FIRST, &[("a", &[1], &[1.])]);
    raw::write_f32(dir.path(), SECOND, &[("b", &[1], &[2.])]);
    dir
}

fn write_index(dir: &Path, entries: &[(&str, &str)]) {
    let entries: Vec<String> = entries.iter().map(|(key, shard)| format!("{key:?}:{shard:?}")).collect();
    let text = format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{}}}}}"#, entries.join(","));
    std::fs::write(dir.join("model.safetensors.index.json"), text).unwrap();
}

#[track_caller]
fn refused(dir: &Path, because: &str) {
    let error = Files::open(dir).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(because), "{error}");
}

#[test]
fn shards_are_read_with_and_without_an_index() {
    let dir = two_shards();
    for with_index in [false, true] {
        if with_index {
            write_index(dir.path(), &[("a", FIRST), ("b", SECOND)]);
        }
        let files = Files::open(dir.path()).unwrap();
        assert_eq!(files.tensors().unwrap().len(), 2);
        assert_eq!(files.array("b").unwrap().item::<f32>().unwrap(), 2.);
        assert_eq!(files.file_of("b"), dir.path().join(SECOND));
    }
}

#[test]
fn an_index_that_disagrees_is_refused() {
    let dir = two_shards();
    write_index(dir.path(), &[("a", FIRST), ("b", FIRST)]);
    refused(dir.path(), "does not have it");
    write_index(dir.path(), &[("a", FIRST), ("b", SECOND), ("c", SECOND)]);
    refused(dir.path(), "says that `c` is in model-00002-of-00002.safetensors, which does not have it");
    write_index(dir.path(), &[("a", SECOND), ("b", FIRST)]);
    refused(dir.path(), "says that `a` is in model-00002-of-00002.safetensors, and it is in");
    raw::write_f32(dir.path(), SECOND, &[("b", &[1], &[2.]), ("d", &[1], &[2.])]);
    write_index(dir.path(), &[("a", FIRST), ("b", SECOND)]);
    refused(dir.path(), "does not name `d`");
}

#[test]
fn a_missing_shard_is_named() {
    let dir = two_shards();
    write_index(dir.path(), &[("a", FIRST), ("b", SECOND)]);
    std::fs::remove_file(dir.path().join(SECOND)).unwrap();
    refused(dir.path(), "shard `model-00002-of-00002.safetensors` is missing");
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    refused(dir.path(), "shard 2 of 2 is missing");
}

#[test]
fn an_index_cannot_leave_its_directory() {
    let dir = two_shards();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let absolute = dir.path().join(FIRST).to_str().unwrap().to_owned();
    for shard in [&format!("../{FIRST}"), &absolute, "..", ".", "", "./x.safetensors", "a/b", "x\\..\\..\\y/"]
    {
        write_index(&inner, &[("a", shard)]);
        refused(&inner, "is not a plain file name");
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = two_shards();
    raw::write_f32(dir.path(), SECOND, &[("a", &[1], &[2.])]);
    refused(dir.path(), "tensor `a` is also in");
}

#[test]
fn shards_of_two_sets_are_refused() {
    let dir = two_shards();
    raw::write_f32(dir.path(), "model-00001-of-00003.safetensors", &[("c", &[1], &[2.])]);
    refused(dir.path(), "two different sets");
}

#[test]
fn an_index_that_is_not_one_is_refused() {
    let dir = two_shards();
    for text in ["", "[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#] {
        std::fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
        refused(dir.path(), "model.safetensors.index.json");
    }
}

#[test]
fn a_directory_without_weights_says_so() {
    refused(raw::dir().path(), "not a directory of safetensors weights");
    refused(&raw::dir().path().join("absent"), "absent");
    let dir = raw::dir();
    raw::write_f32(dir.path(), "model-00001-of-18446744073709551615.safetensors", &[]);
    refused(dir.path(), "is missing");
}
