//! Single safetensors files.

use mlxport::io::{SafeTensors, load_safetensors};
use mlxport::ops::{self, Quantization, add};
use mlxport::{Array, Dtype};

use crate::raw;

#[test]
fn values_and_metadata_are_read() {
    let dir = raw::dir();
    let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"BOOL","shape":[],"data_offsets":[8,9]},"e":{"dtype":"F16","shape":[0,3],"data_offsets":[9,9]}}"#;
    let path = raw::write(dir.path(), "x.safetensors", header, &[1, 0, 0, 0, 255, 255, 255, 255, 1]);
    let (arrays, metadata) = load_safetensors(path).unwrap();
    assert_eq!(metadata["format"], "pt");
    assert_eq!(arrays.keys().collect::<Vec<_>>(), ["a", "b", "e"]);
    assert_eq!(arrays["b"].to_vec::<i32>().unwrap(), [1, -1]);
    assert!(arrays["a"].item::<bool>().unwrap());
    assert_eq!(arrays["e"].shape(), [0, 3]);
}

/// MLX may compute into an array's own memory: the file, and a second reading, must not see it.
#[test]
fn computing_with_a_mapped_array_leaves_the_file_alone() {
    let dir = raw::dir();
    // MLX takes the 8 bytes before an array's data for its size: zeros invite it to reuse the memory.
    let tensors: &[(&str, &[i32], &[f32])] = &[("zeros", &[2], &[0., 0.]), ("a", &[4], &[1., 2., 3., 4.])];
    let path = raw::write_f32(dir.path(), "x.safetensors", tensors);
    let before = std::fs::read(&path).unwrap();
    for _ in 0..3 {
        let file = SafeTensors::open(&path).unwrap();
        let a = file.array("a").unwrap();
        drop(file);
        let sum = add(add(a, 1.0).unwrap(), 1.0).unwrap();
        assert_eq!(sum.to_vec::<f32>().unwrap(), [3., 4., 5., 6.]);
    }
    let file = SafeTensors::open(&path).unwrap();
    let first = file.array("a").unwrap();
    let sum = add(first, 1.0).unwrap();
    assert_eq!(sum.to_vec::<f32>().unwrap(), [2., 3., 4., 5.]);
    assert_eq!(file.array("a").unwrap().to_vec::<f32>().unwrap(), [1., 2., 3., 4.]);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn data_that_are_not_aligned_are_read_right() {
    let dir = raw::dir();
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},"z":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}} "#;
    for pad in 0..8 {
        let mut data = vec![7];
        data.extend([1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
        let header = format!("{header}{:pad$}", "");
        let (arrays, _) = load_safetensors(raw::write(dir.path(), "x.safetensors", &header, &data)).unwrap();
        assert_eq!(arrays["a"].to_vec::<f32>().unwrap(), [1.5, -2.0]);
        assert_eq!(arrays["z"].to_vec::<u8>().unwrap(), [7]);
    }
}

#[test]
fn bytes_that_are_looked_at_as_words_are_codes() {
    let dir = raw::dir();
    let header = r#"{"a":{"dtype":"U8","shape":[1,16],"data_offsets":[1,17]},"z":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}} "#;
    let x = ops::ones(&[1, 32], Dtype::Bfloat16).unwrap();
    let [scale, bias] =
        [1.0f32, 0.0].map(|v| Array::from_slice(&[half::bf16::from_f32(v)], &[1, 1]).unwrap());
    for pad in 0..8 {
        let data = [&[7u8][..], &[0x21; 16]].concat();
        let path = raw::write(dir.path(), "x.safetensors", &format!("{header}{:pad$}", ""), &data);
        let words = ops::view(&load_safetensors(path).unwrap().0["a"], Dtype::Uint32).unwrap();
        let how = Quantization::affine(32, 4);
        let y = ops::quantized_matmul(&x, &words, &scale, Some(&bias), true, how).unwrap();
        assert_eq!(ops::astype(&y, Dtype::Float32).unwrap().item::<f32>().unwrap(), 48.0);
    }
}

/// What the error for a file with these bytes says, at opening or at reading tensor `a`.
fn refusal(bytes: &[u8]) -> String {
    let dir = raw::dir();
    let path = dir.path().join("x.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let error = load_safetensors(&path).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("x.safetensors"), "{error}");
    error
}

#[track_caller]
fn refused(header: &str, data_length: usize, because: &str) {
    let error = refusal(&raw::bytes(header, &vec![0; data_length]));
    assert!(error.contains(because), "{error}");
}

#[test]
fn a_header_that_claims_too_much_is_refused() {
    for claim in [1u64 << 60, u64::MAX, 100_000_001] {
        let error = refusal(&[&claim.to_le_bytes()[..], b"{}"].concat());
        assert!(error.contains(&format!("claims {claim} bytes")), "{error}");
    }
    assert!(refusal(&[&3u64.to_le_bytes()[..], b"{}"].concat()).contains("cut off"));
    assert!(refusal(b"1234567").contains("cut off"));
    assert!(refusal(b"").contains("cut off"));
}

#[test]
fn headers_that_are_not_json_are_refused() {
    for header in ["", "[]", "{", "\u{1}", "{\"a\":1}", &"[".repeat(100_000), "{} x", "nul"] {
        refused(header, 0, "the header is not as it should be");
    }
    refused(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, "tensor `a`");
    refused(r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4, "tensor `a`");
    refused(r#"{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}"#, 4, "unknown variant `Q4`");
    refused(r#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#, 4, "missing field `dtype`");
    refused(&format!(r#"{{"{}":1}}"#, "n".repeat(5000)), 0, "a name of 5000 bytes");
}

#[test]
fn names_that_occur_twice_are_refused() {
    let entry = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    refused(&format!("{{{entry},{entry}}}"), 1, "`a` occurs twice");
    refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "`__metadata__` occurs twice");
}

#[test]
fn offsets_that_do_not_fit_are_refused() {
    let two = |a: (usize, usize), b: (usize, usize)| {
        let entry = |name, (s, e): (usize, usize)| {
            format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{s},{e}]}}"#, e.wrapping_sub(s))
        };
        format!("{{{},{}}}", entry("a", a), entry("b", b))
    };
    refused(&two((0, 4), (2, 6)), 6, "tensor `b`: its data from 2 overlap");
    refused(&two((0, 4), (0, 4)), 4, "tensor `b`: its data from 0 overlap");
    refused(&two((0, 4), (5, 6)), 6, "bytes 4 to 5 before its data belong to no tensor");
    refused(&two((0, 4), (4, 6)), 5, "tensor `b`: its data end at 6 and the file has 5: it was cut off");
    refused(&two((0, 4), (4, 6)), 7, "7 bytes of data, of which the tensors use 6");
    let backwards = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}"#;
    refused(backwards, 2, "its data end at 0, before their start at 2");
    let max = u64::MAX;
    refused(
        &format!(r#"{{"a":{{"dtype":"U8","shape":[{max}],"data_offsets":[0,{max}]}}}}"#),
        2,
        "tensor `a`",
    );
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let with = |dtype, shape, end| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    refused(&with("F32", "[2]", 4), 4, "tensor `a`: 4 bytes for [2] of F32, which needs 8");
    refused(&with("F32", "[4294967296,4294967296]", 4), 4, "too many elements");
    refused(&with("U8", "[3000000000,0]", 0), 0, "at most 2147483647 elements");
    refused(&with("U8", &format!("[{}1]", "1,".repeat(64)), 1), 1, "at most 64 dimensions");
}

#[test]
fn dtypes_that_mlx_lacks_name_the_tensor() {
    let header = r#"{"a":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[0,1]}}"#;
    refused(header, 1, "tensor `a`");
    refused(header, 1, "no dtype F8_E5M2");
}

#[test]
fn a_bool_is_0_or_1() {
    let header = r#"{"a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}"#;
    let error = refusal(&raw::bytes(header, &[2]));
    assert!(error.contains("tensor `a`") && error.contains("neither 0 nor 1"), "{error}");
}

#[test]
fn what_is_not_a_file_is_refused() {
    let dir = raw::dir();
    assert!(SafeTensors::open(dir.path()).is_err());
    assert!(SafeTensors::open(dir.path().join("absent")).is_err());
}
