//! Quantized checkpoints of other programs, against what their codes mean.

use std::path::{Path, PathBuf};

use mlxport::checkpoint::{Config, Encoding, Rules, Weights};
use mlxport::nn::Weight;
use mlxport::ops::{self, Quantization, QuantizationMode};
use mlxport::{Array, Dtype, Result, io};

use crate::raw;

fn case(name: &str) -> PathBuf {
    Path::new("tests/fixtures/foreign").join(name)
}

fn weights(dir: &Path) -> Result<Weights> {
    Weights::of(&Config::load(dir)?, dir, &Rules::new())
}

fn expected(name: &str) -> Array {
    Array::from_host(&io::load_npy(case(name).join("expect.npy")).unwrap()).unwrap()
}

fn dense(weight: &Weight) -> Array {
    match weight {
        Weight::Dense(dense) => ops::astype(dense, Dtype::Float32).unwrap(),
        Weight::Quantized { weight, scales, biases, how } => {
            let f32 = |a: &Array| ops::astype(a, Dtype::Float32).unwrap();
            let wide = scales.dtype().is_floating();
            let scales = if wide { f32(scales) } else { scales.clone() };
            let biases = biases.as_ref().map(f32);
            ops::dequantize(weight, &scales, biases.as_ref(), *how, None, Some(Dtype::Float32)).unwrap()
        }
        Weight::Rotated { .. } => panic!("{weight:?}"),
    }
}

fn how(weight: &Weight) -> Option<Quantization> {
    match weight {
        Weight::Dense(_) => None,
        Weight::Quantized { how, .. } => Some(*how),
        Weight::Rotated { .. } => panic!("{weight:?}"),
    }
}

/// The largest error over the largest value; the form the matrix has; every tensor was used.
fn read(name: &str) -> (f32, Option<Quantization>) {
    let (w, expected) = (weights(&case(name)).unwrap(), expected(name));
    let layer = Weight::load(&w.pp("layer"), expected.shape()).unwrap();
    w.pp("layer").finish().unwrap();
    let error: Vec<f32> = ops::abs(&(dense(&layer) - &expected).unwrap()).unwrap().to_vec().unwrap();
    let largest = ops::max(&ops::abs(&expected).unwrap(), .., false).unwrap().item::<f32>().unwrap();
    (error.into_iter().fold(0.0, f32::max) / largest, how(&layer))
}

#[test]
fn codes_stay_packed_where_mlx_has_their_groups() {
    // Biases are rounded to half precision: 2^-11 of themselves.
    for (name, group_size, bits, error) in [
        ("awq", 64, 4, 5e-4),
        ("gptq2", 64, 2, 5e-4),
        ("gptq3", 64, 3, 5e-4),
        ("gptq4", 64, 4, 5e-4),
        ("gptq8", 128, 8, 5e-4),
        ("packed4", 32, 4, 0.0),
        ("packed8", 128, 8, 0.0),
        ("packed4_zero", 64, 4, 5e-4),
        ("int8", 128, 8, 0.0),
        ("bitnet", 128, 2, 0.0),
        ("bitnet_auto", 128, 2, 0.0),
    ] {
        let (found, how) = read(name);
        assert_eq!(how, Some(Quantization::affine(group_size, bits)), "{name}");
        assert!(found <= error, "{name}: {found}");
    }
}

#[test]
fn small_floats_keep_their_bits() {
    for (name, mode) in [("mxfp4", QuantizationMode::Mxfp4), ("fp8_e8m0", QuantizationMode::Mxfp8)] {
        assert_eq!(read(name), (0.0, Some(mode.into())), "{name}");
    }
}

#[test]
fn what_mlx_lacks_becomes_dense() {
    for name in ["fp8_blocks", "fp8_one", "nvfp4"] {
        assert_eq!(read(name), (0.0, None), "{name}");
    }
    for name in ["gptq_act_order", "packed4_zero_groups_of_16"] {
        let (error, how) = read(name);
        assert!(error <= 2f32.powi(-11) && how.is_none(), "{name}: {error}, {how:?}");
    }
}

/// Bit for bit, and the norm in the dtype of the scales.
#[test]
fn awq_is_what_mlx_lm_makes_of_it() {
    let w = weights(&case("awq")).unwrap();
    for (name, theirs) in io::load_npz(case("awq").join("mlx_lm.npz")).unwrap() {
        let ours = w.pp("layer").get(&name).unwrap();
        assert_eq!(ours.to_host().unwrap(), theirs, "{name}");
    }
    assert_eq!(w.get("norm.weight").unwrap().dtype(), Dtype::Float16);
    assert!(
        w.map().to_string().contains("layer.biases [32, 2] float16  part 3 of decode AWQ"),
        "{}",
        w.map()
    );
}

fn refusal(name: &str, config: &str) -> String {
    let dir = raw::dir();
    std::fs::copy(case(name).join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let w = match weights(dir.path()) {
        Ok(w) => w,
        Err(error) => return error.to_string(),
    };
    Weight::load(&w.pp("layer"), &[32, 128]).and(w.finish()).unwrap_err().to_string()
}

#[test]
fn formats_that_are_not_read_say_so() {
    let refusal = |block: &str| refusal("gptq4", &format!(r#"{{"quantization_config": {block}}}"#));
    for (block, why) in [
        (r#"{"quant_method": "bitsandbytes"}"#, "`bitsandbytes`"),
        (r#"{"quant_method": "awq", "version": "gemv", "bits": 4}"#, "version gemv"),
        (r#"{"quant_method": "awq", "bits": 3}"#, "3 bits"),
        (r#"{"quant_method": "gptq", "bits": 0}"#, "0 bits"),
        (r#"{"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}"#, "`marlin`"),
        (r#"{"quant_method": "gptq", "bits": 8}"#, "does not have parts"),
        (r#"{"quant_method": "compressed-tensors", "format": "sparse"}"#, "`sparse`"),
        (r#"{"quant_method": "modelopt", "quant_algo": "FP8"}"#, "FP8"),
        (r#"{"quant_method": 7}"#, "quantization by ``"),
    ] {
        let error = refusal(block);
        assert!(error.contains(why), "{block}: {error}");
    }
}

#[test]
fn parts_that_disagree_are_refused() {
    let gptq = r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#;
    let dir = raw::dir();
    std::fs::write(dir.path().join("config.json"), gptq).unwrap();
    let header = |g_idx: &str, scales: &str| {
        format!(
            r#"{{"l.qweight":{{"dtype":"I32","shape":[8,4],"data_offsets":[0,128]}},
            "l.scales":{{"dtype":"F32","shape":{scales},"data_offsets":[128,160]}},
            "l.g_idx":{{"dtype":"I32","shape":{g_idx},"data_offsets":[160,176]}}}}"#
        )
    };
    for (g_idx, scales, why) in [
        ("[4]", "[2,4]", "does not have parts"),
        ("[4]", "[8]", "group 16843009 of 8"),
        ("[2,2]", "[2,4]", "one int32 for each column"),
        ("[4]", "[0,4]", ""),
    ] {
        let mut data = vec![1u8; 176];
        data[160..].fill(if why.contains("group") { 1 } else { 0 });
        raw::write(dir.path(), "model.safetensors", &header(g_idx, scales), &data);
        let error = weights(dir.path()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_config_and_the_weights_must_agree_on_a_layer() {
    let file = |config: &str| {
        let dir = raw::dir();
        let w = weights(&case("packed4")).unwrap().pp("layer");
        let [weight, scales, biases] = ["weight", "scales", "biases"].map(|name| w.get(name).unwrap());
        let parts = [("layer.weight", &weight), ("layer.scales", &scales), ("layer.biases", &biases)];
        io::save_safetensors(dir.path().join("model.safetensors"), parts, &Default::default()).unwrap();
        std::fs::write(dir.path().join("config.json"), format!(r#"{{"quantization": {config}}}"#)).unwrap();
        let w = weights(dir.path()).unwrap();
        Weight::load(&w.pp("layer"), &[32, 128]).map(|weight| how(&weight))
    };
    let here = Some(Quantization::affine(32, 4));
    // The layer's own entry binds; without a mode it is affine. The default does not: shapes tell.
    assert_eq!(
        file(r#"{"bits": 8, "mode": "mxfp8", "layer": {"bits": 4, "group_size": 32}}"#).unwrap(),
        here
    );
    assert_eq!(file(r#"{"bits": 8, "group_size": 64}"#).unwrap(), here);
    for config in [
        r#"{"bits": 4, "layer": {"bits": 4, "group_size": 64}}"#,
        r#"{"bits": 4, "layer": {"mode": "mxfp4"}}"#,
        r#"{"bits": 4, "layer": false}"#,
    ] {
        let error = file(config).unwrap_err().to_string();
        assert!(
            error.contains("`layer` is affine with 4 bits in groups of 32, and the config says"),
            "{error}"
        );
    }
}

/// The layout that GPT-OSS is published in: gate and up in turn, codes as bytes in blocks of 16.
#[test]
fn blocks_of_interleaved_experts_come_apart() {
    let blocks: Vec<u8> = (0..2 * 4 * 2 * 16).map(|i| i as u8).collect();
    let arrays = [("e.gate_up_proj_blocks".to_owned(), Array::from_slice(&blocks, &[2, 4, 2, 16]).unwrap())];
    let rules = Rules::new().view("*_blocks", Dtype::Uint32).reshape("*_blocks", &[0, 0, -1]).deal(
        "*.gate_up_proj_blocks",
        &["*.gate_proj.weight", "*.up_proj.weight"],
        -2,
    );
    let info = |(key, a): &(String, Array)| io::TensorInfo {
        key: key.clone(),
        shape: a.shape().into(),
        dtype: a.dtype(),
    };
    let map = rules.plan(&arrays.iter().map(info).collect::<Vec<_>>()).unwrap();
    let out = map.forwards(&|_| Ok(arrays[0].1.clone())).unwrap();
    let up = &out["e.up_proj.weight"];
    assert_eq!((up.shape(), up.dtype()), (&[2, 2, 8][..], Dtype::Uint32));
    let bytes = up.to_host().unwrap();
    assert_eq!(&bytes.bytes()[..32], &blocks[32..64]);
    assert_eq!(&bytes.bytes()[64..96], &blocks[4 * 32 + 32..4 * 32 + 64]);
    let back = map.backwards(&|key| Ok(out[key].clone())).unwrap();
    assert_eq!(back["e.gate_up_proj_blocks"].to_vec::<u8>().unwrap(), blocks);
    assert!(
        Rules::new()
            .deal("*", &["a", "b", "c"], -2)
            .plan(&arrays.iter().map(info).collect::<Vec<_>>())
            .is_err()
    );
    assert!(Rules::new().view("*", Dtype::Bool).plan(&arrays.iter().map(info).collect::<Vec<_>>()).is_err());
}

/// A rule is data, encodings included.
#[test]
fn decoding_rules_survive_json() {
    let rules =
        Rules::new().decode(&["*.w", "*.s"], &["*.weight"], Encoding::Gptq { bits: 3, zero_offset: 1 });
    let text = serde_json::to_string(&rules).unwrap();
    assert_eq!(serde_json::from_str::<Rules>(&text).unwrap(), rules, "{text}");
}
