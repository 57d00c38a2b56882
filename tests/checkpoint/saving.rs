//! Writing safetensors: the format's own implementation is the oracle; files appear whole or not at all.

use std::collections::BTreeMap;
use std::path::Path;

use mlxport::checkpoint::Files;
use mlxport::io::{load_safetensors, save_npy, save_npz, save_safetensors, save_sharded};
use mlxport::{Array, Dtype, HostTensor};
use safetensors::tensor::TensorView;

use crate::raw;

/// One array of every dtype, with shapes of no, one and two dimensions, and an empty one.
fn every_dtype() -> BTreeMap<String, Array> {
    let array = |(i, &dtype): (usize, &Dtype)| {
        let shape = [&[][..], &[3], &[2, 3], &[0, 2]][i % 4];
        let size = shape.iter().product::<i32>() as usize * dtype.size();
        let bytes = (0..size).map(|b| if dtype == Dtype::Bool { b % 2 } else { b + i } as u8).collect();
        let tensor = HostTensor::new(bytes, shape, dtype).unwrap();
        (format!("layer.{}.{dtype}", i % 3), Array::from_host(&tensor).unwrap())
    };
    Dtype::ALL.iter().enumerate().map(array).collect()
}

fn named(arrays: &BTreeMap<String, Array>) -> impl Iterator<Item = (&str, &Array)> {
    arrays.iter().map(|(name, array)| (name.as_str(), array))
}

fn hosts(arrays: &BTreeMap<String, Array>) -> BTreeMap<String, HostTensor> {
    arrays.iter().map(|(name, array)| (name.clone(), array.to_host().unwrap())).collect()
}

fn files_in(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

#[test]
fn the_bytes_are_those_of_the_reference_implementation() {
    let dir = raw::dir();
    let path = dir.path().join("x.safetensors");
    let arrays = every_dtype();
    let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
    save_safetensors(&path, named(&arrays), &metadata).unwrap();
    let hosts = hosts(&arrays);
    let views = hosts.iter().map(|(name, t)| {
        let shape = t.shape().iter().map(|&d| d as usize).collect();
        let dtype = match t.dtype() {
            Dtype::Bool => safetensors::Dtype::BOOL,
            Dtype::Uint8 => safetensors::Dtype::U8,
            Dtype::Uint16 => safetensors::Dtype::U16,
            Dtype::Uint32 => safetensors::Dtype::U32,
            Dtype::Uint64 => safetensors::Dtype::U64,
            Dtype::Int8 => safetensors::Dtype::I8,
            Dtype::Int16 => safetensors::Dtype::I16,
            Dtype::Int32 => safetensors::Dtype::I32,
            Dtype::Int64 => safetensors::Dtype::I64,
            Dtype::Float16 => safetensors::Dtype::F16,
            Dtype::Float32 => safetensors::Dtype::F32,
            Dtype::Float64 => safetensors::Dtype::F64,
            Dtype::Bfloat16 => safetensors::Dtype::BF16,
            Dtype::Complex64 => safetensors::Dtype::C64,
        };
        (name, TensorView::new(dtype, shape, t.bytes()).unwrap())
    });
    let expected = safetensors::serialize(views, Some(metadata.clone().into_iter().collect())).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), expected);
    let (read, read_metadata) = load_safetensors(&path).unwrap();
    assert_eq!((self::hosts(&read), read_metadata), (hosts, metadata));
}

#[test]
fn names_that_a_file_cannot_have_are_refused() {
    let dir = raw::dir();
    let (path, a, long) = (dir.path().join("x.safetensors"), Array::from(1f32), "n".repeat(5000));
    for names in [&["__metadata__"][..], &["a", "a"], &[&long]] {
        assert!(save_safetensors(&path, names.iter().map(|&name| (name, &a)), &BTreeMap::new()).is_err());
    }
    assert!(files_in(dir.path()).is_empty());
}

#[test]
fn an_array_that_fails_leaves_what_was_there() {
    let dir = raw::dir();
    let path = dir.path().join("x.safetensors");
    let old = BTreeMap::from([("a".to_owned(), Array::from(1f32))]);
    save_safetensors(&path, named(&old), &BTreeMap::new()).unwrap();
    let singular = Array::from_slice(&[0f32; 4], &[2, 2]).unwrap();
    let fails =
        mlxport::with_device(mlxport::Device::cpu(), || mlxport::linalg::inv(&singular)).unwrap().unwrap();
    let new = BTreeMap::from([("a".to_owned(), Array::from(2f32)), ("b".to_owned(), fails)]);
    assert!(save_safetensors(&path, named(&new), &BTreeMap::new()).is_err());
    assert_eq!(load_safetensors(&path).unwrap().0["a"].item::<f32>().unwrap(), 1.0);
    assert!(save_sharded(dir.path(), named(&new), 4, &BTreeMap::new()).is_err());
    assert_eq!(files_in(dir.path()), ["x.safetensors"]);
}

#[test]
fn shards_are_laid_out_as_hugging_face_does() {
    let dir = raw::dir();
    let arrays = every_dtype();
    let total: usize = arrays.values().map(Array::nbytes).sum();
    let save = |limit| save_sharded(dir.path(), named(&arrays), limit, &BTreeMap::new()).unwrap();
    let read = || {
        let files = Files::open(dir.path()).unwrap();
        let keys = files.tensors().unwrap();
        hosts(&keys.into_iter().map(|t| (t.key.clone(), files.array(&t.key).unwrap())).collect())
    };
    save(40);
    let names = files_in(dir.path());
    let count = names.len() - 1;
    assert!(count > 2, "{names:?}");
    assert_eq!(names[0], format!("model-00001-of-{count:05}.safetensors"));
    assert_eq!(names[count], "model.safetensors.index.json");
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join(&names[count])).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(index["weight_map"].as_object().unwrap().len(), arrays.len());
    assert_eq!(read(), hosts(&arrays));
    // Another number of shards, then one file: what was there before goes.
    save(100);
    assert!(files_in(dir.path()).len() < names.len());
    assert_eq!(read(), hosts(&arrays));
    save(usize::MAX);
    assert_eq!(files_in(dir.path()), ["model.safetensors"]);
    assert_eq!(read(), hosts(&arrays));
    save(0);
    assert!(!files_in(dir.path()).contains(&"model.safetensors".to_owned()));
    assert_eq!(read(), hosts(&arrays));
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let dir = raw::dir();
    let path = dir.path().join("absent/x.safetensors");
    let error = save_safetensors(&path, [], &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("absent/x.safetensors"), "{error}");
}

/// The test runs itself again under a limit on the size of files, which fails writes as a full disk
/// does: in the middle.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    const DIR: &str = "MLXPORT_TEST_FULL_DISK";
    if let Some(dir) = std::env::var_os(DIR).map(std::path::PathBuf::from) {
        let arrays =
            BTreeMap::from([("a".to_owned(), Array::from_slice(&[1f32; 1 << 18], &[1 << 18]).unwrap())]);
        let tensors = hosts(&arrays);
        let small =
            BTreeMap::from([("a".to_owned(), Array::from(1f32)), ("b".to_owned(), arrays["a"].clone())]);
        let failures = [
            save_safetensors(dir.join("x.safetensors"), named(&arrays), &BTreeMap::new()),
            save_sharded(&dir, named(&small), 4, &BTreeMap::new()),
            save_npy(dir.join("x.npy"), &tensors["a"]),
            save_npz(dir.join("x.npz"), &tensors, false),
        ];
        for failure in failures {
            let error = failure.unwrap_err().to_string();
            assert!(error.contains("File too large"), "{error}");
        }
        return;
    }
    let dir = raw::dir();
    let script = r#"trap '' XFSZ; ulimit -f 64; exec "$0" --exact saving::a_full_disk_leaves_nothing_behind"#;
    let exe = std::env::current_exe().unwrap();
    let run = std::process::Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg(exe)
        .env(DIR, dir.path())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
    assert!(String::from_utf8_lossy(&run.stdout).contains("1 passed"));
    assert_eq!(files_in(dir.path()), [""; 0]);
}
