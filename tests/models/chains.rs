//! Layers whose kernels run as one operation give the same bits as kernel by kernel.

use std::collections::BTreeSet;

use mlxport::cache::Cache;
use mlxport::kernels::{self, Path};
use mlxport::models::{self, LanguageModel, probe};
use mlxport::ops::Quantization;
use mlxport::port::{Rewrite, rewrite};
use mlxport::{Array, Dtype, ops, transforms};

use serde_json::Value;

use super::zoo::Fixture;

/// Architectures of which some layers are chains: with a gated feed-forward layer, and with others.
const CHAINED: [&str; 9] =
    ["exaone", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "smollm3"];

/// The logits of `tokens`, and whether a chain is in their graph. Whoever watches gets no chains.
fn forward(model: &dyn LanguageModel, tokens: &Array, cache: &mut Cache, watched: bool) -> (Vec<f32>, bool) {
    let forward = |cache: &mut Cache| model.forward(tokens, cache).unwrap();
    let logits = if watched { probe::record(|| forward(cache)).0 } else { forward(cache) };
    let graph = transforms::graph_to_dot([&logits], []).unwrap();
    (ops::astype(&logits, Dtype::Float32).unwrap().to_vec().unwrap(), graph.contains("\"chain"))
}

/// Whether the model has chains. Panics if what they give these sequences differs.
fn compare(model: &dyn LanguageModel, rows: &[Vec<i32>], what: &str) -> bool {
    let mut chains = false;
    let mut caches = [model.make_cache(), model.make_cache()];
    // Memories have room for a while, and none at first.
    for (start, stop) in [(0, 1), (1, 5), (5, 6), (6, 7), (7, 9), (9, 10)] {
        let tokens: Vec<i32> = rows.iter().flat_map(|row| &row[start..stop]).copied().collect();
        let tokens = Array::from_slice(&tokens, &[rows.len() as i32, (stop - start) as i32]).unwrap();
        let [chained, single] = &mut caches;
        let (found, chain) = forward(model, &tokens, chained, false);
        let (expected, none) = forward(model, &tokens, single, true);
        assert_eq!((found == expected, none), (true, false), "{what}, {start}..{stop}");
        assert!(!chain || stop - start == 1, "{what}, {start}..{stop}");
        chains |= chain;
    }
    chains
}

#[test]
fn layers_as_chains_give_the_same_bits() {
    if kernels::active() == Path::Reference {
        return;
    }
    let mut with_chains = BTreeSet::new();
    let mut types = BTreeSet::new();
    for fixture in Fixture::all() {
        let (ids, case) = (&fixture.ids, &fixture.case);
        // One of each architecture, and all of two of them, in every quantization.
        let several = case.starts_with("qwen3__") || case.starts_with("llama__");
        let model_type = serde_json::from_str::<Value>(&fixture.config).unwrap()["model_type"].to_string();
        if ids[0].len() < 10 || !types.insert(model_type) && !several {
            continue;
        }
        let tmp = fixture.checkpoint(&fixture.config);
        let out = tmp.path().join("quantized");
        let options = Rewrite {
            source: tmp.path().to_path_buf(),
            out: out.clone(),
            quantize: Some(Quantization::affine(32, 4)),
            recipe: None,
            dequantize: false,
            dtype: Some(Dtype::Bfloat16),
        };
        // What is quantized already is as it is.
        let dir = if rewrite(&options, &mut |_, _| Ok(())).is_ok() { &out } else { tmp.path() };
        let model = models::load(dir).unwrap();
        if compare(&*model, ids, case) {
            with_chains.insert(case.clone());
        }
        if several {
            compare(&*model, &ids[..1], case);
        }
    }
    let missing: Vec<_> = CHAINED.iter().filter(|name| !with_chains.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:?} are not among {with_chains:?}");
}
