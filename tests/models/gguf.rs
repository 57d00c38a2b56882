//! GGUF files as models: names, the order of rows, tokenizers.

use std::path::{Path, PathBuf};

use mlxport::models::LanguageModel;
use mlxport::port::{Rewrite, rewrite};
use mlxport::text::Tokenizer;
use mlxport::{Array, Dtype, io, models};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new("tests/fixtures/gguf").join(format!("{name}.gguf"))
}

/// The largest error of logits, over their deviation.
fn error(model: &dyn LanguageModel, name: &str) -> f32 {
    let expected = io::load_npz(file(name).with_extension("npz")).unwrap();
    let ids = Array::from_host(&expected["input_ids"]).unwrap();
    let logits = model.forward(&ids, &mut model.make_cache()).unwrap().to_vec::<f32>().unwrap();
    let expected = expected["logits"].to_vec::<f32>().unwrap();
    let error = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    error / (expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32).sqrt()
}

/// Against mlx-lm with the weights that llama.cpp's package reads from the same file.
#[test]
fn logits_are_those_of_the_model_behind_the_file() {
    for name in ["llama", "qwen3", "k_quants"] {
        let error = error(&*models::load_as(&file(name), Dtype::Float32).unwrap(), name);
        assert!(error <= 2e-5, "{name}: {error}");
    }
}

/// What K quants mean has more digits than the `float16` that they become by default.
#[test]
fn converting_to_float32_loses_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let convert = |dtype: Option<Dtype>| {
        let out = tmp.path().join(dtype.map_or("default", |_| "float32"));
        let (source, quantize, recipe) = (file("k_quants"), None, None);
        let options = Rewrite { source, out: out.clone(), quantize, recipe, dequantize: false, dtype };
        rewrite(&options, &mut |_, _| Ok(())).unwrap();
        error(&*models::load_as(&out, Dtype::Float32).unwrap(), "k_quants")
    };
    let (exact, rounded) = (convert(Some(Dtype::Float32)), convert(None));
    assert!(exact <= 2e-5 && rounded > 1e-4, "{exact} {rounded}");
}

/// Against what transformers makes of the tokenizers that the files were made of.
#[test]
fn tokens_are_those_of_the_original_tokenizer() {
    for (name, source) in [("llama", "byte_fallback"), ("qwen3", "bytelevel")] {
        let tokenizer = Tokenizer::load(&file(name)).unwrap();
        let expected = std::fs::read_to_string(format!("tests/fixtures/text/{source}/expect.json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        for case in expected["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(serde_json::json!(ids), case["ids"], "{name} {text:?}");
            for (what, skip) in [("decoded", false), ("decoded_skip_special", true)] {
                assert_eq!(
                    tokenizer.decode(&ids, skip).unwrap(),
                    case[what].as_str().unwrap(),
                    "{name} {what}"
                );
            }
        }
        assert_eq!(tokenizer.eos_id(), tokenizer.token_id("<|end|>"));
    }
    assert!(Tokenizer::load(&file("qwen3")).unwrap().chat_template().is_some());
}
