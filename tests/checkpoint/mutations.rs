//! Valid files with bytes changed, cut and repeated: each is read, or refused with an error. The
//! changes are the same on every run; `fuzz/` looks further.

use std::collections::BTreeMap;
use std::path::Path;

use mlxport::checkpoint::{Config, Files};
use mlxport::io::{load_npy, load_npz, load_safetensors, save_npy, save_npz, save_safetensors, save_sharded};
use mlxport::{Array, HostTensor};
use serde::Deserialize;

use crate::raw;

/// Pseudo-random numbers (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit.max(1)
    }
}

/// `bytes` with one to four changes, most of them near the beginning, where headers are.
fn mutated(bytes: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    const TELLING: &[u8] = b"\0\xff\x7f\x80\"{}[](),:.-+09eENIt\\";
    let mut out = bytes.to_vec();
    for _ in 0..=numbers.below(4) {
        let reach = if numbers.below(4) == 0 { out.len() } else { out.len().min(400) };
        let at = numbers.below(reach);
        match numbers.below(6) {
            0 => out.truncate(at),
            1 if at < out.len() => out[at] ^= 1 << numbers.below(8),
            2 if at < out.len() => _ = out.remove(at),
            3 => out.insert(at, TELLING[numbers.below(TELLING.len())]),
            4 => {
                let end = (at + numbers.below(30)).min(out.len());
                let piece = out[at..end].to_vec();
                let to = numbers.below(out.len() + 1);
                out.splice(to..to, piece);
            }
            _ if at < out.len() => out[at] = TELLING[numbers.below(TELLING.len())],
            _ => {}
        }
    }
    out
}

/// Reads `rounds` variants of `file`; `read` says whether one was accepted. Some must be, and some not.
fn survive(file: &Path, rounds: usize, mut read: impl FnMut() -> bool) {
    let valid = std::fs::read(file).unwrap();
    assert!(read(), "{}", file.display());
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let mut accepted = 0;
    for _ in 0..rounds {
        // A new file: an array may still be over the old one.
        std::fs::remove_file(file).unwrap();
        std::fs::write(file, mutated(&valid, &mut numbers)).unwrap();
        accepted += usize::from(read());
    }
    assert!(0 < accepted && accepted < rounds, "{accepted} of {rounds}");
}

fn arrays() -> BTreeMap<String, Array> {
    let array = |i: i32| {
        let values: Vec<f32> = (0..6 * i).map(|v| v as f32).collect();
        (format!("layer.{i}"), Array::from_slice(&values, &[i, 2, 3]).unwrap())
    };
    (0..4).map(array).collect()
}

fn tensors() -> BTreeMap<String, HostTensor> {
    arrays().into_iter().map(|(name, array)| (name, array.to_host().unwrap())).collect()
}

fn named(arrays: &BTreeMap<String, Array>) -> impl Iterator<Item = (&str, &Array)> {
    arrays.iter().map(|(name, array)| (name.as_str(), array))
}

#[test]
fn safetensors_files() {
    let dir = raw::dir();
    let path = dir.path().join("x.safetensors");
    let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
    save_safetensors(&path, named(&arrays()), &metadata).unwrap();
    survive(&path, 1000, || {
        let Ok((arrays, _)) = load_safetensors(&path) else { return false };
        arrays.values().all(|array| array.to_host().is_ok())
    });
}

#[test]
fn indices_of_shards() {
    let dir = raw::dir();
    save_sharded(dir.path(), named(&arrays()), 30, &BTreeMap::new()).unwrap();
    let path = dir.path().join("model.safetensors.index.json");
    survive(&path, 300, || Files::open(dir.path()).is_ok());
}

#[test]
fn numpy_files() {
    let dir = raw::dir();
    let path = dir.path().join("x.npy");
    save_npy(&path, &tensors()["layer.3"]).unwrap();
    survive(&path, 500, || load_npy(&path).is_ok());
    for compress in [false, true] {
        let path = dir.path().join("x.npz");
        save_npz(&path, &tensors(), compress).unwrap();
        survive(&path, 300, || load_npz(&path).is_ok());
    }
}

#[test]
fn configs() {
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "reading them is the test")]
    struct Args {
        vocab_size: i32,
        num_hidden_layers: usize,
        rope_scaling: Option<BTreeMap<String, f64>>,
        limits: Vec<f64>,
    }
    let text = r#"{"model_type": "llama", "vocab_size": 32, "num_hidden_layers": 2, "limits": [-Infinity, 1e5], "x": NaN,
        "rope_scaling": {"factor": 8.0, "a": {"__float__": "Infinity"}}, "torch_dtype": "bfloat16",
        "quantization": {"bits": 4, "group_size": 64, "mode": "affine", "lm_head": false}}"#;
    let dir = raw::dir();
    let path = dir.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    survive(&path, 1000, || {
        let Ok(config) = Config::load(dir.path()) else { return false };
        let typed = config.args::<Args>().is_ok() && config.model_type().is_ok();
        typed && config.dtype().is_ok() && config.quantization().is_ok()
    });
}
