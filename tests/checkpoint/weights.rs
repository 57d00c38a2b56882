//! Weights by path, and the account of what was asked for.

use mlxport::checkpoint::{Rules, Weights};
use mlxport::{Array, Dtype, Error};

use crate::raw;

fn named(names: &[&str]) -> Weights {
    let array = |(i, name): (usize, &&str)| (name.to_string(), Array::from(i as f32));
    Weights::from_arrays(names.iter().enumerate().map(array))
}

#[test]
fn a_path_grows_by_segments() {
    let w = named(&["model.layers.3.q_proj.weight", "norm"]);
    let layer = w.pp("model.layers").pp(3);
    assert_eq!(layer.path(), "model.layers.3");
    assert_eq!(layer.pp("q_proj").get("weight").unwrap().item::<f32>().unwrap(), 0.0);
    assert_eq!(layer.get("q_proj.weight").unwrap().dtype(), Dtype::Float32);
    assert!(layer.try_get("q_proj.bias").unwrap().is_none());
    assert_eq!(w.get("norm").unwrap().item::<f32>().unwrap(), 1.0);
}

#[test]
fn a_missing_weight_is_named_with_its_path() {
    let error = named(&["a.b"]).pp("a").get("c").unwrap_err();
    assert!(matches!(&error, Error::MissingWeight { path, .. } if path == "a.c"), "{error}");
}

#[test]
fn a_wrong_shape_names_both() {
    let error = named(&["a.b"]).pp("a").get_shaped("b", &[2, 3]).unwrap_err().to_string();
    assert!(error.contains("`a.b`: expected shape [2, 3], found []"), "{error}");
}

#[test]
fn finish_lists_what_nothing_asked_for() {
    let w = named(&["a.weight", "a.biass", "b.weight"]);
    w.get("a.weight").unwrap();
    w.clone().try_get("a.bias").unwrap();
    let error = w.finish().unwrap_err().to_string();
    assert!(error.contains("2 weights"), "{error}");
    assert!(error.contains("a.biass [] float32 (the model asked for `a.bias`)"), "{error}");
    assert!(error.contains("b.weight"), "{error}");
    assert!(!w.pp("b").finish().unwrap_err().to_string().contains("a.biass"));
    w.get("a.biass").unwrap();
    w.pp("a").finish().unwrap();
    w.pp("b").get("weight").unwrap();
    w.finish().unwrap();
}

#[test]
fn a_prefix_is_whole_segments() {
    let w = named(&["layers.1.w", "layers.10.w"]);
    w.pp("layers").pp(1).get("w").unwrap();
    w.pp("layers.1").finish().unwrap();
    assert_eq!(w.pp("layers.1").tensors().count(), 1);
}

#[test]
fn rules_account_for_what_the_model_does_not_need() {
    let dir = raw::dir();
    let tensors: &[(&str, &[i32], &[f32])] = &[
        ("model.embed_tokens.weight", &[1, 2], &[1., 2.]),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", &[1], &[3.]),
        ("lm_head.weight", &[1, 2], &[1., 2.]),
    ];
    raw::write_f32(dir.path(), "model.safetensors", tensors);
    let rules = Rules::new()
        .drop("*.self_attn.rotary_emb.inv_freq", "computed from the config")
        .drop("lm_head.weight", "tied to the embeddings")
        .rename("model.{}.weight", "{}.weight");
    let w = Weights::open(dir.path(), &rules).unwrap();
    let embedding = w.pp("embed_tokens").get_shaped("weight", &[1, 2]).unwrap();
    assert_eq!(embedding.to_vec::<f32>().unwrap(), [1., 2.]);
    w.finish().unwrap();
    let map = w.map().to_string();
    assert!(
        map.contains("embed_tokens.weight [1, 2] float32  rename  model.embed_tokens.weight [1, 2] float32"),
        "{map}"
    );
    assert!(map.contains("dropped lm_head.weight: tied to the embeddings"), "{map}");
}
