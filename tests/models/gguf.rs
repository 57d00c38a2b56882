//! GGUF files as models: names, the order of rows, tokenizers.

use std::path::{Path, PathBuf};

use mlxport::nn::Module;
use mlxport::text::Tokenizer;
use mlxport::{Array, Dtype, io, models};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new("tests/fixtures/gguf").join(format!("{name}.gguf"))
}

/// Against mlx-lm with the weights that llama.cpp's package reads from the same file.
#[test]
fn logits_are_those_of_the_model_behind_the_file() {
    for name in ["llama", "qwen3"] {
        let mut model = models::load(&file(name)).unwrap();
        model.set_dtype(Dtype::Float32).unwrap();
        let expected = io::load_npz(file(name).with_extension("npz")).unwrap();
        let ids = Array::from_host(&expected["input_ids"]).unwrap();
        let logits = model.forward(&ids, &mut model.make_cache()).unwrap().to_vec::<f32>().unwrap();
        let expected = expected["logits"].to_vec::<f32>().unwrap();
        let error = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let deviation = (expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32).sqrt();
        assert!(error <= 1e-4 * deviation, "{name}: {error} of {deviation}");
    }
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
