//! GGUF files: every type against llama.cpp's own package, and headers that lie.

use std::path::Path;

use mlxport::checkpoint::foreign::{Ggml, GgmlType};
use mlxport::checkpoint::gguf::Value;
use mlxport::checkpoint::{Config, Encoding, Files, Gguf, Rules};
use mlxport::{Array, Dtype, io, ops};

use crate::raw;

const TYPES: &str = "tests/fixtures/gguf/types.gguf";

#[test]
fn every_type_means_what_llama_cpp_says() {
    let gguf = Gguf::open(TYPES).unwrap();
    let expected = io::load_npz("tests/fixtures/gguf/types.npz").unwrap();
    assert_eq!(gguf.keys().count(), GgmlType::ALL.len() + 1);
    for (name, expected) in expected {
        let key = format!("{name}.weight");
        let kind = gguf.packed(&key).unwrap();
        let encoding = Encoding::Ggml(Ggml { kind, dtype: Dtype::Float32 });
        let rules = Rules::new().decode(&["w"], &["weight", "scales", "biases"], encoding);
        let mut info = gguf.info(&key).unwrap();
        info.key = "w".into();
        let map = rules.plan(&[info]).unwrap();
        let parts = map.forwards(&|_| gguf.array(&key)).unwrap();
        for target in map.targets() {
            let part = &parts[&target.key];
            assert_eq!((part.shape(), part.dtype()), (&target.shape[..], target.dtype), "{name} {target}");
        }
        let weight = &parts["weight"];
        let f32 = |a: &Array| ops::astype(a, Dtype::Float32).unwrap();
        let values = match (parts.get("scales"), parts.get("biases")) {
            (None, _) => weight.clone(),
            (Some(scales), biases) => {
                let bits = weight.shape()[1] * 32 / 256;
                let how = match biases {
                    Some(_) => ops::Quantization::affine(32, bits),
                    None => ops::QuantizationMode::Mxfp4.into(),
                };
                let scales = if biases.is_some() { f32(scales) } else { scales.clone() };
                let biases = biases.map(f32);
                ops::dequantize(weight, &scales, biases.as_ref(), how, None, Some(Dtype::Float32)).unwrap()
            }
        };
        let expected = expected.to_vec::<f32>().unwrap();
        // A product and a sum may be fused.
        for (found, expected) in values.to_vec::<f32>().unwrap().iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= 4e-7 * (1.0 + expected.abs()),
                "{name}: {found}, not {expected}"
            );
        }
    }
    let plain = gguf.array("F16.weight").unwrap();
    assert_eq!((plain.shape(), plain.dtype()), (&[2, 3][..], Dtype::Float16));
}

/// A header in the making.
#[derive(Default)]
struct Header(Vec<u8>);

impl Header {
    fn new(tensors: u64, keys: u64) -> Self {
        Self::default().bytes(b"GGUF").u32(3).u64(tensors).u64(keys)
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn u32(self, n: u32) -> Self {
        self.bytes(&n.to_le_bytes())
    }
    fn u64(self, n: u64) -> Self {
        self.bytes(&n.to_le_bytes())
    }
    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }
    fn key(self, key: &str, value: &str) -> Self {
        self.text(key).u32(8).text(value)
    }
    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let this = self.text(name).u32(dims.len() as u32);
        dims.iter().fold(this, |this, &dim| this.u64(dim)).u32(kind).u64(offset)
    }
    /// What opening a file of this header and so many bytes of data says.
    fn refusal(self, data: usize) -> String {
        let dir = raw::dir();
        let path = dir.path().join("model.gguf");
        let mut bytes = self.0;
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        std::fs::write(&path, bytes).unwrap();
        Gguf::open(&path).unwrap_err().to_string()
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let h = || Header::new(1, 0);
    for (refusal, why) in [
        (Header::default().bytes(b"GGML").refusal(64), "does not begin with `GGUF`"),
        (Header::default().bytes(b"GGUF").u32(1).refusal(64), "version is 1"),
        (Header::default().bytes(b"GGUF").u32(3 << 24).refusal(64), "big-endian"),
        (Header::new(u64::MAX, 0).refusal(0), "cut off"),
        (Header::new(0, u64::MAX).refusal(0), "cut off"),
        (Header::new(0, 1).u64(u64::MAX).refusal(64), "cut off"),
        (Header::new(0, 1).text("k").u32(9).u32(8).u64(u64::MAX / 8).refusal(64), "`k`: "),
        (Header::new(0, 1).text("k").u32(9).u32(9).u64(1).refusal(64), "a list of values of type 9"),
        (Header::new(0, 1).text("k").u32(77).refusal(64), "a value of type 77"),
        (Header::new(0, 1).u64(2).bytes(&[0xff, 0xfe]).refusal(64), "not UTF-8"),
        (Header::new(0, 2).key("k", "a").key("k", "b").refusal(64), "`k` occurs twice"),
        (Header::new(0, 1).text("general.alignment").u32(4).u32(0).refusal(64), "`general.alignment`"),
        (Header::new(2, 0).tensor("a", &[4], 0, 0).tensor("a", &[4], 0, 32).refusal(64), "occurs twice"),
        (Header::new(2, 0).tensor("a", &[9], 0, 0).tensor("b", &[4], 0, 32).refusal(64), "overlap"),
        (h().tensor("a", &[4], 0, 8).refusal(64), "not a multiple of 32"),
        (h().tensor("a", &[99], 0, 0).refusal(64), "cut off"),
        (h().tensor("a", &[4], 0, u64::MAX - 31).refusal(64), "cut off"),
        (h().tensor("a", &[1 << 40], 0, 0).refusal(64), "a dimension of"),
        (h().tensor("a", &[1 << 31], 0, 0).refusal(64), "a dimension of"),
        (h().tensor("a", &[1 << 30; 4], 0, 0).refusal(64), "too many elements"),
        (h().tensor("a", &[1; 9], 0, 0).refusal(64), "9 dimensions"),
        (h().tensor("a", &[31], 2, 0).refusal(64), "in blocks of 32"),
        (h().tensor("a", &[], 2, 0).refusal(64), "in blocks of 32"),
        (h().tensor("a", &[32], 16, 0).refusal(64), "its type is number 16"),
    ] {
        assert!(refusal.contains(why) && refusal.contains("model.gguf"), "{why}: {refusal}");
    }
}

/// Every way of cutting a file off is an error, and none takes the process down.
#[test]
fn files_that_were_cut_off_are_refused() {
    let whole = std::fs::read("tests/fixtures/gguf/qwen3.gguf").unwrap();
    let dir = raw::dir();
    let path = dir.path().join("model.gguf");
    for length in (0..whole.len()).step_by(997) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(Gguf::open(&path).is_err(), "{length}");
    }
}

#[test]
fn a_folder_with_one_file_is_that_file() {
    let dir = raw::dir();
    let copy =
        |name: &str| _ = std::fs::copy("tests/fixtures/gguf/llama.gguf", dir.path().join(name)).unwrap();
    copy("a.gguf");
    assert_eq!(Config::load(dir.path()).unwrap().model_type().unwrap(), "llama");
    assert!(Files::open(dir.path()).unwrap().tensors().unwrap().iter().any(|t| t.key == "output.weight"));
    copy("b.GGUF");
    let error = Config::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("2 GGUF files"), "{error}");
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "other"}"#).unwrap();
    assert_eq!(Config::load(dir.path()).unwrap().model_type().unwrap(), "other");
    assert!(Config::load(Path::new("none.gguf")).unwrap_err().to_string().contains("none.gguf"));
}

/// Parts that llama.cpp's package wrote: any one of them, and their folder, are the whole.
#[test]
fn a_file_in_parts_is_one_file() {
    let dir = raw::dir();
    let name = |at: usize| format!("parts-{at:05}-of-00003.gguf");
    let to = |at: usize| dir.path().join(name(at));
    for at in 1..=3 {
        std::fs::copy(Path::new("tests/fixtures/gguf").join(name(at)), to(at)).unwrap();
    }
    let whole = |path: &Path| {
        let files = Files::open(path).unwrap();
        let keys: Vec<String> = files.tensors().unwrap().into_iter().map(|info| info.key).collect();
        assert_eq!(keys, ["at0", "at1", "at2", "at3", "at4"]);
        for (at, key) in keys.iter().enumerate() {
            assert_eq!(files.array(key).unwrap().to_vec::<f32>().unwrap(), [at as f32; 2]);
        }
        assert_eq!(files.gguf().unwrap().metadata()["general.name"], Value::Text("in parts".into()));
    };
    whole(dir.path());
    (1..=3).for_each(|at| whole(&to(at)));
    let refusal = |why: &str| {
        for at in [1, 3] {
            let error = Gguf::open(to(at)).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
    };
    let second = std::fs::read(to(2)).unwrap();
    std::fs::copy(to(3), to(2)).unwrap();
    refusal("does not say that it is part 2 of 3");
    std::fs::write(to(2), &second[..second.len() - 40]).unwrap();
    refusal("cut off");
    let last = second.windows(3).position(|bytes| bytes == b"at3").unwrap();
    for (by, why) in [(b"at0", "tensor `at0` is also in"), (b"at2", "`at2` occurs twice")] {
        let mut changed = second.clone();
        changed[last..last + 3].copy_from_slice(by);
        std::fs::write(to(2), changed).unwrap();
        refusal(why);
    }
    std::fs::remove_file(to(2)).unwrap();
    refusal("parts-00002-of-00003.gguf is missing");
    std::fs::rename(to(1), dir.path().join("other.gguf")).unwrap();
    let error = Gguf::open(dir.path().join("other.gguf")).unwrap_err().to_string();
    assert!(error.contains("not called NAME-00001-of-00003.gguf"), "{error}");
}

#[test]
fn configs_are_derived_and_absurd_ones_refused() {
    let config = Config::load("tests/fixtures/gguf/llama.gguf").unwrap();
    let json = config.json();
    assert_eq!((json["hidden_size"].as_i64(), json["num_key_value_heads"].as_i64()), (Some(32), Some(2)));
    assert_eq!(json["rope_scaling"]["rope_type"], "longrope");
    assert_eq!(json["eos_token_id"], serde_json::json!([2]));
    let config = |header: Header| {
        let dir = raw::dir();
        let path = dir.path().join("model.gguf");
        let mut bytes = header.0;
        bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
        std::fs::write(&path, bytes).unwrap();
        Config::load(&path).unwrap_err().to_string()
    };
    let int = |h: Header, key: &str, n: u32| h.text(key).u32(4).u32(n);
    assert!(config(Header::new(0, 1).key("general.architecture", "rwkv6")).contains("`rwkv6`"));
    assert!(
        config(Header::new(0, 1).key("general.architecture", "llama")).contains("`llama.embedding_length`")
    );
    let h = int(Header::new(0, 3).key("general.architecture", "llama"), "llama.embedding_length", 8);
    assert!(config(int(h, "llama.attention.head_count", 0)).contains("no attention heads"));
}
