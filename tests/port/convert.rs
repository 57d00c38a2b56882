//! Converting: the tensors that mlx-lm makes, and folders that appear whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mlxport::ops::{Quantization, QuantizationMode};
use mlxport::port::{Recipe, Rewrite, Rewritten, rewrite};
use mlxport::{Dtype, Error, Result, io, models};
use serde_json::Value;
use sha2::{Digest, Sha256};

const CHECKPOINT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny-qwen3");

fn options(source: &Path, out: &Path) -> Rewrite {
    let (source, out) = (source.to_path_buf(), out.to_path_buf());
    Rewrite { source, out, quantize: None, recipe: None, dequantize: false, dtype: None }
}

fn run(options: &Rewrite) -> Result<Rewritten> {
    rewrite(options, &mut |_, _| Ok(()))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tensors(dir: &Path) -> BTreeMap<String, String> {
    let (arrays, _) = io::load_safetensors(dir.join("model.safetensors")).unwrap();
    let digest = |(name, array): (String, mlxport::Array)| {
        (name, hex(array.to_host().unwrap().bytes())[..16].to_owned())
    };
    arrays.into_iter().map(digest).collect()
}

fn files(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), hex(&fs::read(e.path()).unwrap()))).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The ways of mlx-lm that were recorded.
fn ways(source: &Path, out: &Path) -> Vec<(&'static str, Rewrite)> {
    let affine = Some(Quantization::affine(32, 4));
    let plain = options(source, out);
    vec![
        ("q4", Rewrite { quantize: affine, ..plain.clone() }),
        ("mxfp4", Rewrite { quantize: Some(QuantizationMode::Mxfp4.into()), ..plain.clone() }),
        ("mixed_3_6", Rewrite { quantize: affine, recipe: Some(Recipe::Mixed3To6), ..plain.clone() }),
        ("mixed_2_6", Rewrite { quantize: affine, recipe: Some(Recipe::Mixed2To6), ..plain.clone() }),
        ("plain", plain),
    ]
}

#[test]
fn every_tensor_is_the_one_that_mlx_lm_writes() {
    let recorded = json(Path::new("tests/fixtures/convert.json"));
    for (way, _) in ways(Path::new(""), Path::new("")) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let (_, options) =
            ways(Path::new(CHECKPOINT), &out).into_iter().find(|(name, _)| *name == way).unwrap();
        let done = run(&options).unwrap();
        let expected: BTreeMap<String, String> =
            serde_json::from_value(recorded[way]["tensors"].clone()).unwrap();
        assert_eq!(tensors(&out), expected, "{way}");
        let config = json(&out.join("config.json"));
        assert_eq!(config["quantization"], recorded[way]["quantization"], "{way}");
        assert_eq!(config["quantization"], config["quantization_config"], "{way}");
        assert_eq!(config["quantization"], done.quantization.unwrap_or_default(), "{way}");
        assert_eq!(done.parameters, 918_912, "{way}");
        models::load(&out).unwrap();
        // Beside the weights: the index, what tokenizes, and nothing that was left behind.
        let index = json(&out.join("model.safetensors.index.json"));
        assert_eq!(index["metadata"]["total_size"], done.weight_bytes);
        assert_eq!(index["weight_map"].as_object().unwrap().len(), expected.len());
        assert!(out.join("tokenizer.json").is_file() && out.join("generation_config.json").is_file());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_second_run_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| {
        let out = dir.path().join(name);
        let quantize = Some(QuantizationMode::Affine.into());
        run(&Rewrite { quantize, ..options(Path::new(CHECKPOINT), &out) }).unwrap();
        files(&out)
    });
    assert_eq!(first, second);
}

/// Dense again, every value is within half a step of what it was, besides what bfloat16 rounds of scale
/// and bias; in another dtype.
#[test]
fn quantized_matrices_become_dense() {
    let dir = tempfile::tempdir().unwrap();
    let (packed, dense) = (dir.path().join("packed"), dir.path().join("dense"));
    let quantize = Some(Quantization::affine(32, 8));
    run(&Rewrite { quantize, ..options(Path::new(CHECKPOINT), &packed) }).unwrap();
    let back = Rewrite { dequantize: true, dtype: Some(Dtype::Float32), ..options(&packed, &dense) };
    let done = run(&back).unwrap();
    assert_eq!((done.quantization, done.bits_per_weight), (None, 32.0));
    assert!(json(&dense.join("config.json")).get("quantization_config").is_none());
    let load = |dir: &Path| io::load_safetensors(dir.join("model.safetensors")).unwrap().0;
    let (before, after) = (load(Path::new(CHECKPOINT)), load(&dense));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, array) in &after {
        assert_eq!(array.dtype(), Dtype::Float32, "{name}");
        let f32 =
            |a: &mlxport::Array| mlxport::ops::astype(a, Dtype::Float32).unwrap().to_vec::<f32>().unwrap();
        let (a, b) = (f32(&before[name]), f32(array));
        let span = a.iter().fold(0f32, |m, x| m.max(x.abs())) * 2.0;
        let error = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error <= span * (0.5 / 255.0 + 2.0 * 2f32.powi(-9)), "{name}: {error} of {span}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let plain = options(Path::new(CHECKPOINT), &out);
    let four = Some(Quantization::affine(64, 4));
    let refusal = |options: Rewrite| run(&options).unwrap_err().to_string();
    for (options, why) in [
        (Rewrite { quantize: Some(Quantization::affine(64, 7)), ..plain.clone() }, "7 bits"),
        (Rewrite { quantize: four, dequantize: true, ..plain.clone() }, "not both"),
        (
            Rewrite {
                quantize: Some(QuantizationMode::Mxfp8.into()),
                recipe: Some(Recipe::Mixed3To4),
                ..plain.clone()
            },
            "recipes are affine",
        ),
        (Rewrite { source: "/nowhere".into(), ..plain.clone() }, "/nowhere"),
    ] {
        let error = refusal(options);
        assert!(error.contains(why), "{error}");
    }
    // Stopped half way.
    let stop =
        |written, _| if written > 100_000 { Err(Error::argument("interrupted", "here")) } else { Ok(()) };
    assert!(rewrite(&plain, &mut { stop }).unwrap_err().to_string().contains("here"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    fs::create_dir(&out).unwrap();
    assert!(refusal(plain.clone()).contains("is there already"));
    fs::remove_dir(&out).unwrap();
    run(&Rewrite { quantize: four, ..plain.clone() }).unwrap();
    let again = Rewrite { source: out.clone(), out: dir.path().join("again"), quantize: four, ..plain };
    assert!(refusal(again).contains("no matrix is left to quantize"));
}

/// A GGUF file becomes a checkpoint with config and tokenizer, and computes the same.
#[test]
fn gguf_files_are_converted() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let source = Path::new("tests/fixtures/gguf/qwen3.gguf");
    let done = run(&options(source, &out)).unwrap();
    assert_eq!(done.quantization.unwrap()["bits"], 8);
    let ids = mlxport::Array::from_slice(&[5i32, 6, 7], &[1, 3]).unwrap();
    let logits = [source, &out].map(|path| {
        let model = models::load(path).unwrap();
        model.forward(&ids, &mut model.make_cache()).unwrap().to_host().unwrap()
    });
    assert_eq!(logits[0], logits[1]);
    let encode = |path: &Path| mlxport::text::Tokenizer::load(path).unwrap().encode("the fox", true).unwrap();
    assert_eq!(encode(source), encode(&out));
}
