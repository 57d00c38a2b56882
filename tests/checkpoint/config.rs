//! `config.json` in its spellings, and configs that are not as they should be.

use std::collections::BTreeMap;

use mlxport::checkpoint::Config;
use mlxport::ops::{Quantization, QuantizationMode};
use mlxport::{Dtype, Error};
use serde::Deserialize;

use crate::raw;

fn parse(text: &str) -> Config {
    Config::parse("config.json", text).unwrap()
}

#[derive(Debug, Deserialize, PartialEq)]
struct Args {
    vocab_size: i32,
    num_hidden_layers: Option<usize>,
    limits: Option<(f64, f64)>,
    eps: Option<f32>,
    #[serde(flatten)]
    nested: Nested,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
struct Nested {
    rope_parameters: Option<BTreeMap<String, f64>>,
}

/// What reading `Args` from this text fails with.
fn refusal(text: &str) -> String {
    let error = Config::parse("dir/config.json", text).and_then(|c| c.args::<Args>()).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    let error = error.to_string();
    assert!(error.starts_with("dir/config.json: "), "{error}");
    error
}

#[test]
fn infinities_are_read_in_both_spellings() {
    for text in [
        r#"{"vocab_size": 5, "limits": [-Infinity, Infinity], "rope_parameters": {"a": Infinity}, "x": NaN}"#,
        r#"{"vocab_size": 5, "limits": [{"__float__": "-Infinity"}, {"__float__": "Infinity"}],
            "rope_parameters": {"a": {"__float__": "Infinity"}}, "x": {"__float__": "NaN"}}"#,
    ] {
        let args: Args = parse(text).args().unwrap();
        assert_eq!(args.limits, Some((f64::NEG_INFINITY, f64::INFINITY)));
        assert_eq!(args.nested.rope_parameters.unwrap()["a"], f64::INFINITY);
        assert_eq!((args.num_hidden_layers, args.eps), (None, None));
    }
}

#[test]
fn literals_inside_strings_are_text() {
    let config = parse(r#"{"a": "NaN \" Infinity \\", "b": NaN, "é\u00e9\\\"": "-Infinity"}"#);
    assert_eq!(config.json()["a"], r#"NaN " Infinity \"#);
    assert_eq!(config.json()["b"], "NaN");
    assert_eq!(config.json()["éé\\\""], "-Infinity");
}

#[test]
fn a_number_that_is_nan_is_refused_by_name() {
    assert!(refusal(r#"{"vocab_size": NaN}"#).contains("`vocab_size`: invalid type: string \"NaN\""));
    assert!(refusal(r#"{"vocab_size": 1, "eps": NaN}"#).contains("`eps`"));
    assert!(refusal(r#"{"vocab_size": 1, "rope_parameters": {"b": NaN}}"#).contains("NaN"));
    assert!(refusal(r#"{"vocab_size": Infinity}"#).contains("`vocab_size`: invalid type: floating point"));
}

#[test]
fn absurd_numbers_are_refused_by_name() {
    for value in ["1099511627776", "-1099511627776", "1e300", "1.5", "\"7\"", "null", "[]", "{}"] {
        assert!(refusal(&format!(r#"{{"vocab_size": {value}}}"#)).contains("`vocab_size`"), "{value}");
    }
    assert!(refusal(r#"{"vocab_size": 1, "num_hidden_layers": -1}"#).contains("`num_hidden_layers`"));
    assert!(refusal("{}").contains("missing field `vocab_size`"));
}

#[test]
fn what_a_config_leaves_out_is_as_in_its_source() {
    #[derive(Debug, Deserialize)]
    struct Sizes {
        hidden_size: i32,
        rms_norm_eps: f32,
    }
    #[derive(Debug, Deserialize)]
    struct Wrapper {
        text_config: Sizes,
    }
    let sizes: Sizes = parse(r#"{"model_type": "llama", "rms_norm_eps": 0.5}"#).args().unwrap();
    assert_eq!((sizes.hidden_size, sizes.rms_norm_eps), (4096, 0.5));
    // As LLaVA 1.5 is published.
    let wrapper = r#"{"model_type": "llava", "text_config": {"model_type": "llama", "rms_norm_eps": 1e-5}}"#;
    let wrapper: Wrapper = parse(wrapper).args().unwrap();
    assert_eq!((wrapper.text_config.hidden_size, wrapper.text_config.rms_norm_eps), (4096, 1e-5));
    for unknown in [r#"{"model_type": "parrot"}"#, r#"{"text_config": {"model_type": 1}}"#] {
        let error = parse(unknown).args::<Sizes>().unwrap_err().to_string();
        assert!(error.contains("missing field `hidden_size`"), "{error}");
    }
}

#[test]
fn a_wrong_field_of_a_flattened_part_is_refused_by_name() {
    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)] // only read
    struct Whole {
        layers: u8,
        #[serde(flatten)]
        first: First,
        #[serde(flatten)]
        second: Second,
    }
    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)]
    struct First {
        dims: i32,
        heads: Option<i32>,
    }
    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)]
    struct Second {
        theta: Option<f64>,
        window: u8,
    }
    let good = [("layers", "1"), ("dims", "2"), ("heads", "3"), ("theta", "4.5"), ("window", "6")];
    for value in ["1099511627776", "-7", "2.5e300", "\"x\"", "true", "[1]", "{\"a\": 1}", "null"] {
        for (at, (wrong, _)) in good.iter().enumerate().filter(|(_, (key, _))| *key != "layers") {
            let entry = |(i, (key, good)): (usize, &(&str, &str))| {
                format!("\"{key}\": {}", if i == at { value } else { good })
            };
            let text = good.iter().enumerate().map(entry).collect::<Vec<_>>().join(", ");
            let Err(error) = parse(&format!("{{{text}}}")).args::<Whole>() else { continue };
            assert!(error.to_string().contains(&format!("`{wrong}`: ")), "{wrong} {value}: {error}");
        }
    }
}

#[test]
fn what_is_not_an_object_is_refused() {
    for text in ["", "[]", "1", "null", "NaN", "{", "{\"a\":}", "{\"a\": NaNa}", "{NaN: 1}", "\u{feff}{}"] {
        assert!(Config::parse("config.json", text).is_err(), "{text}");
    }
    let deep = format!("{}{}", "{\"a\":".repeat(100_000), "1");
    assert!(refusal(&deep).contains("recursion limit"));
}

#[test]
fn files_that_are_no_config_are_refused() {
    let dir = raw::dir();
    let load = || Config::load(dir.path()).unwrap_err().to_string();
    assert!(load().contains("config.json"), "{}", load());
    std::fs::write(dir.path().join("config.json"), [0xff, 0xfe]).unwrap();
    assert!(load().contains("utf-8"), "{}", load());
    std::fs::File::create(dir.path().join("config.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(load().contains("longer than 16777216 bytes"), "{}", load());
}

#[test]
fn a_model_type_that_is_unknown_names_the_nearest() {
    let error =
        parse(r#"{"model_type": "qwen_3"}"#).unknown_model_type(&["llama", "qwen3", "qwen3_moe"]).to_string();
    assert!(error.contains("`qwen_3`") && error.contains("nearest: qwen3, "), "{error}");
    assert!(parse("{}").model_type().unwrap_err().to_string().contains("`model_type` is missing"));
}

#[test]
fn the_dtype_has_two_spellings() {
    let dtype = |text| parse(text).dtype();
    assert_eq!(dtype(r#"{"torch_dtype": "bfloat16"}"#).unwrap(), Some(Dtype::Bfloat16));
    assert_eq!(dtype(r#"{"dtype": "float16", "torch_dtype": "bfloat16"}"#).unwrap(), Some(Dtype::Float16));
    assert_eq!(dtype(r#"{"torch_dtype": "torch.float32"}"#).unwrap(), Some(Dtype::Float32));
    assert_eq!(dtype(r#"{"torch_dtype": null}"#).unwrap(), None);
    assert!(dtype(r#"{"dtype": "float8"}"#).is_err());
    assert!(dtype(r#"{"dtype": 5}"#).is_err());
}

#[test]
fn quantization_is_read_with_its_exceptions() {
    let text = r#"{"quantization": {"group_size": 32, "bits": 8, "mode": "affine",
        "model.layers.0.gate": {"group_size": 64, "bits": 4}, "lm_head": false, "a": true, "b": {"mode": "mxfp4"}}}"#;
    let config = parse(text).quantization().unwrap().unwrap();
    assert_eq!(config.of("anything"), Some(Quantization::affine(32, 8)));
    assert_eq!(config.of("model.layers.0.gate"), Some(Quantization::affine(64, 4)));
    assert_eq!(config.of("lm_head"), None);
    assert_eq!(config.of("a"), Some(Quantization::affine(32, 8)));
    assert_eq!(config.of("b"), Some(QuantizationMode::Mxfp4.into()));
    assert_eq!(parse("{}").quantization().unwrap(), None);
    assert_eq!(parse(r#"{"quantization_config": null}"#).quantization().unwrap(), None);
}

#[test]
fn quantization_that_mlx_lacks_is_refused() {
    let refusal = |block| {
        parse(&format!(r#"{{"quantization_config": {block}}}"#)).quantization().unwrap_err().to_string()
    };
    let foreign = parse(r#"{"quantization_config": {"quant_method": "gptq", "bits": 7}}"#);
    assert_eq!(foreign.quantization().unwrap(), None);
    assert_eq!(foreign.foreign_quantization().unwrap().unwrap()["quant_method"], "gptq");
    assert!(refusal(r#"{"bits": 7}"#).contains("7 bits"));
    assert!(refusal(r#"{"bits": 4, "group_size": 0}"#).contains("groups of 0"));
    assert!(refusal(r#"{"bits": 4294967300}"#).contains("4294967300"));
    assert!(refusal(r#"{"bits": "4"}"#).contains("`quantization_config.bits`"));
    assert!(refusal(r#"{"mode": "nf4"}"#).contains("nf4"));
    assert!(refusal(r#"{"x.y": {"bits": 1}}"#).contains("`quantization_config.x.y`"));
    assert!(refusal("[]").contains("not an object"));
}

/// As GLM-4.7 Flash, which is built as DeepSeek-V3 is, and others that transformers or mlx-lm read without these keys.
#[test]
fn keys_that_may_be_missing_are_those_of_the_source_of_the_type() {
    #[derive(Debug, Deserialize)]
    struct Experts {
        #[serde(alias = "num_local_experts")]
        n_routed_experts: Option<i32>,
        num_key_value_heads: Option<i32>,
        first_k_dense_replace: Option<i32>,
        routed_scaling_factor: Option<f32>,
    }
    let of = |text: &str| {
        let experts: Experts = parse(text).args().unwrap();
        (
            experts.n_routed_experts,
            experts.num_key_value_heads,
            experts.first_k_dense_replace,
            experts.routed_scaling_factor,
        )
    };
    assert_eq!(of(r#"{"model_type": "glm4_moe_lite"}"#), (Some(64), Some(20), Some(1), Some(1.8)));
    assert_eq!(of(r#"{"model_type": "deepseek_v3"}"#), (None, Some(128), Some(3), Some(2.5)));
    assert_eq!(of(r#"{"model_type": "mixtral"}"#), (Some(8), Some(8), None, None));
    assert_eq!(of(r#"{"model_type": "phimoe"}"#), (Some(16), Some(8), None, None));
    assert_eq!(of(r#"{"model_type": "bitnet"}"#), (None, Some(5), None, None));
    // Under its other name it is not missing; and what is null is said.
    let said = r#"{"model_type": "glm4_moe_lite", "num_local_experts": 3, "mlp_layer_types": [], "num_key_value_heads": null}"#;
    assert_eq!(of(said), (Some(3), None, None, Some(1.8)));
}

#[test]
fn a_flag_that_is_null_is_false() {
    #[derive(Debug, Deserialize)]
    struct Flags {
        norm_topk_prob: bool,
        #[serde(flatten)]
        rest: Rest,
    }
    #[derive(Debug, Deserialize)]
    struct Rest {
        use_bias: bool,
    }
    let flags: Flags = parse(r#"{"norm_topk_prob": null, "use_bias": null}"#).args().unwrap();
    assert!(!flags.norm_topk_prob && !flags.rest.use_bias);
}
