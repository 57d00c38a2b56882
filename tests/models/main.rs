//! Models, caches, generation and text.

mod batches;
mod bundled;
mod caches;
mod chains;
#[cfg(feature = "cli")]
mod cli;
mod forward;
mod generation;
#[cfg(feature = "text")]
mod gguf;
#[cfg(feature = "hub")]
mod hub;
mod perplexity;
mod prompt_caches;
mod properties;
mod recipe;
mod recurrences;
mod sampling;
#[cfg(feature = "structured")]
mod structured;
#[cfg(feature = "text")]
mod text;
#[cfg(feature = "text")]
mod tools;
mod zoo;

use std::path::PathBuf;

use mlxport::models::LanguageModel;
use mlxport::{Array, ops};

/// The largest error of logits, over their standard deviation.
const LOGITS: f64 = 1e-4;

/// A frozen checkpoint with what transformers or mlx-lm made of it (`tests/oracle/lm.py`).
struct Fixture {
    dir: PathBuf,
    model: Box<dyn LanguageModel>,
    /// `[2, 20]`.
    ids: Array,
    /// `[2, 20, 40]`.
    logits: Vec<f32>,
    greedy: Vec<i32>,
}

impl Fixture {
    const ALL: [&str; 15] = [
        "llama",
        "mistral",
        "mxfp4",
        "q4",
        "qwen3",
        "qwen3_sliding",
        "rope_dynamic",
        "rope_linear",
        "rope_llama3",
        "rope_longrope",
        "rope_proportional",
        "rope_yarn",
        "rope_yarn_factor",
        "rope_yarn_mscale",
        "sliding",
    ];

    fn load(name: &str) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lm").join(name);
        let expect = mlxport::io::SafeTensors::open(dir.join("expect.safetensors")).unwrap();
        Self {
            model: mlxport::models::load(&dir).unwrap(),
            ids: expect.array("input_ids").unwrap(),
            logits: expect.array("logits").unwrap().to_vec().unwrap(),
            greedy: expect.array("greedy").unwrap().to_vec().unwrap(),
            dir,
        }
    }

    /// The ids of the first sequence.
    fn prompt(&self) -> Vec<i32> {
        self.ids.to_vec::<i32>().unwrap()[..20].to_vec()
    }

    /// Ids and expected logits of the first `rows` sequences.
    fn rows(&self, rows: i32) -> (Array, &[f32]) {
        let ids = ops::slice(&self.ids, &[0, 0], &[rows, 20], &[1, 1]).unwrap();
        (ids, &self.logits[..rows as usize * 800])
    }
}

/// `ids[:, start..stop]`.
fn columns(ids: &Array, start: i32, stop: i32) -> Array {
    ops::slice(ids, &[0, start], &[ids.shape()[0], stop], &[1, 1]).unwrap()
}

/// The largest difference over the standard deviation of what is expected.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let values = || expected.iter().map(|&x| f64::from(x));
    let mean = values().sum::<f64>() / expected.len() as f64;
    let variance = values().map(|x| (x - mean).powi(2)).sum::<f64>() / expected.len() as f64;
    let worst = found.iter().zip(values()).map(|(&x, y)| (f64::from(x) - y).abs());
    worst.fold(0.0, f64::max) / variance.sqrt()
}
