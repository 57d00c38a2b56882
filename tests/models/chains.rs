//! Layers whose kernels run as one operation give the same bits as kernel by kernel.

use std::collections::BTreeSet;

use mlxport::cache::Cache;
use mlxport::kernels::{self, Path};
use mlxport::models::{self, LanguageModel, probe};
use mlxport::ops::Quantization;
use mlxport::port::{Rewrite, rewrite};
use mlxport::{Array, Dtype, ops, transforms};

use serde_json::{Value, json};

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

/// The model of a checkpoint, quantized to 4 bits unless it is quantized already.
fn quantized(checkpoint: &tempfile::TempDir) -> Box<dyn LanguageModel> {
    let (dir, out) = (checkpoint.path(), checkpoint.path().join("quantized"));
    let options = Rewrite {
        source: dir.to_path_buf(),
        out: out.clone(),
        quantize: Some(Quantization::affine(32, 4)),
        recipe: None,
        dequantize: false,
        dtype: Some(Dtype::Bfloat16),
    };
    let is_new = rewrite(&options, &mut |_, _| Ok(())).is_ok();
    models::load(if is_new { &out } else { dir }).unwrap()
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
        let model = quantized(&fixture.checkpoint(&fixture.config));
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

/// Several layers in a chain, with others between them.
#[test]
fn many_layers_as_chains_give_the_same_bits() {
    if kernels::active() == Path::Reference {
        return;
    }
    let fixtures = Fixture::all();
    let full_and_sliding = |layers: &[usize]| {
        let types = ["full_attention", "sliding_attention"];
        json!({"layer_types": layers.iter().map(|layer| types[*layer]).collect::<Vec<_>>()})
    };
    let sliding = [0, 0, 0, 1, 0, 0, 1, 1, 0, 0];
    let cases = [
        // Eight in a chain, eight, and two.
        ("qwen3", vec![0; 18], json!({})),
        // Layers with a memory of a window do not go into chains.
        ("llama__sliding", sliding.to_vec(), full_and_sliding(&sliding)),
        // Experts end a chain, which has three layers before them.
        ("dots1", vec![0, 0, 0, 1, 1, 1, 1, 1], json!({"first_k_dense_replace": 3})),
        // Convolutions and attention.
        ("lfm2", vec![0, 1, 1, 1, 0, 1, 1, 1, 1], json!({"full_attn_idxs": [1, 2, 3, 5, 6, 7, 8]})),
    ];
    for (case, layers, changes) in cases {
        let fixture = fixtures.iter().find(|fixture| fixture.case == case).unwrap();
        let mut config: Value = serde_json::from_str(&fixture.config).unwrap();
        config["num_hidden_layers"] = layers.len().into();
        config.as_object_mut().unwrap().remove("layer_types");
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let model = quantized(&fixture.with_layers(&config.to_string(), &layers));
        assert_eq!(model.num_layers(), layers.len());
        assert!(compare(&*model, &fixture.ids, case), "{case} has no chains");
    }
}
