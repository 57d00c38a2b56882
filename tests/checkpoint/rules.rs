//! Weight rules: what each does, what they refuse, and that they run backwards.

use std::collections::BTreeMap;

use mlxport::checkpoint::{Rule, Rules, WeightMap};
use mlxport::io::TensorInfo;
use mlxport::{Array, Dtype, HostTensor, Result};
use proptest::prelude::*;

type Arrays = BTreeMap<String, Array>;

/// Arrays of these shapes that count on from 0.
fn counting(tensors: &[(&str, &[i32])]) -> Arrays {
    let mut next = 0.0;
    let array = |(name, shape): &(&str, &[i32])| {
        let size = shape.iter().product::<i32>();
        let values: Vec<f32> = (0..size).map(|i| next + i as f32).collect();
        next += size as f32;
        (name.to_string(), Array::from_slice(&values, shape).unwrap())
    };
    tensors.iter().map(array).collect()
}

fn infos(arrays: &Arrays) -> Vec<TensorInfo> {
    let info = |(key, a): (&String, &Array)| TensorInfo {
        key: key.clone(),
        shape: a.shape().to_vec(),
        dtype: a.dtype(),
    };
    arrays.iter().map(info).collect()
}

fn from(arrays: &Arrays) -> impl Fn(&str) -> Result<Array> {
    |key| Ok(arrays[key].clone())
}

fn host(arrays: &Arrays) -> BTreeMap<String, HostTensor> {
    arrays.iter().map(|(key, a)| (key.clone(), a.to_host().unwrap())).collect()
}

/// The weights that `rules` make, which are planned with the shapes and dtypes they turn out to have.
fn apply(rules: &Rules, arrays: &Arrays) -> (WeightMap, Arrays) {
    let map = rules.plan(&infos(arrays)).unwrap();
    let weights = map.forwards(&from(arrays)).unwrap();
    assert_eq!(map.targets().cloned().collect::<Vec<_>>(), infos(&weights));
    (map, weights)
}

/// As [`apply`]; the map must also bring back every tensor, byte for byte.
fn round_trip(rules: &Rules, arrays: &Arrays) -> (WeightMap, Arrays) {
    let (map, weights) = apply(rules, arrays);
    let back = map.backwards(&from(&weights)).unwrap();
    assert_eq!(host(&back), host(arrays));
    (map, weights)
}

fn values(array: &Array) -> Vec<f32> {
    array.to_vec().unwrap()
}

#[test]
fn rules_under_a_prefix_do_the_same_there() {
    let rules = || {
        Rules::new()
            .drop("dropped", "for the test")
            .rename("a.{}", "b.{}")
            .split("both", &["left", "right"], 0, &[])
            .merge(&["left", "b.1"], "merged", 0)
            .stack("e.{#}", "e")
            .transpose("t", &[1, 0])
            .reshape("r", &[-1])
            .add("n", 1.0)
            .tie("n", "m")
    };
    let tensors: [(&str, &[i32]); 9] = [
        ("a.1", &[2, 2]),
        ("both", &[4, 2]),
        ("dropped", &[1]),
        ("e.0", &[3]),
        ("e.1", &[3]),
        ("n", &[2]),
        ("other", &[2]),
        ("r", &[2, 2]),
        ("t", &[2, 3]),
    ];
    let (_, expected) = apply(&rules(), &counting(&tensors));
    let prefixed: Vec<(String, &[i32])> =
        tensors.iter().map(|(key, shape)| (format!("x.y.{key}"), *shape)).collect();
    let prefixed: Vec<(&str, &[i32])> = prefixed.iter().map(|(key, shape)| (key.as_str(), *shape)).collect();
    let (_, found) = apply(&rules().under("x.y."), &counting(&prefixed));
    let expected: Arrays = expected.into_iter().map(|(key, array)| (format!("x.y.{key}"), array)).collect();
    assert_eq!(host(&found), host(&expected));
    assert_eq!(expected.len(), 8);
}

#[test]
fn names_are_exchanged_by_one_rule() {
    let arrays = counting(&[("a.x", &[1]), ("x.a", &[1]), ("b", &[1])]);
    let (_, weights) =
        round_trip(&Rules::new().rename("a.x", "c").rename("x.a", "a.x").rename("c", "x.a"), &arrays);
    assert_eq!((values(&weights["x.a"]), values(&weights["a.x"])), (vec![0.], vec![1.]));
    let arrays = counting(&[("1.2", &[1]), ("2.1", &[1])]);
    let (_, weights) = round_trip(&Rules::new().rename("{}.{}", "x.{}.{}").rename("x.*", "*"), &arrays);
    assert_eq!(values(&weights["1.2"]), [0.]);
}

#[test]
fn experts_are_stacked_in_the_order_of_their_numbers() {
    let names: Vec<String> = (0..11).map(|e| format!("layers.3.experts.{e}.w1.weight")).collect();
    let tensors: Vec<(&str, &[i32])> = names.iter().map(|name| (name.as_str(), &[1, 2][..])).collect();
    let rules = Rules::new().stack("layers.{}.experts.{#}.w1.*", "layers.{}.switch.gate.*");
    let arrays = counting(&tensors);
    let (map, weights) = round_trip(&rules, &arrays);
    let stacked = &weights["layers.3.switch.gate.weight"];
    assert_eq!(stacked.shape(), [11, 1, 2]);
    assert_eq!(values(stacked)[20..], [20., 21.]);
    assert!(map.to_string().contains("stack along 0"), "{map}");
    assert!(map.to_string().contains("experts.0.w1.weight [1, 2] float32 and 10 more"), "{map}");
}

#[test]
fn parts_are_split_and_merged() {
    let arrays = counting(&[("l.0.qkv", &[4, 2]), ("l.1.qkv", &[4, 2])]);
    let rules = Rules::new().split("l.{}.qkv", &["l.{}.q", "l.{}.k", "l.{}.v"], 0, &[2, 1, 1]);
    let (_, weights) = round_trip(&rules, &arrays);
    assert_eq!(values(&weights["l.1.k"]), [12., 13.]);
    let rules = rules.merge(&["l.{}.v", "l.{}.k"], "l.{}.vk", -1);
    let (_, weights) = round_trip(&rules, &arrays);
    assert_eq!(values(&weights["l.0.vk"]), [6., 7., 4., 5.]);
    assert_eq!(weights["l.0.vk"].shape(), [1, 4]);
    let (_, weights) = round_trip(&Rules::new().split("l.{}.qkv", &["a{}", "b{}"], 1, &[]), &arrays);
    assert_eq!(values(&weights["b1"]), [9., 11., 13., 15.]);
}

/// The layout of interleaved gate and up projections: rows 0, 2, ... are the gate's.
#[test]
fn interleaved_rows_come_apart() {
    let arrays = counting(&[("gate_up", &[6, 1])]);
    let rules = Rules::new()
        .reshape("gate_up", &[-1, 2, 1])
        .split("gate_up", &["gate", "up"], 1, &[])
        .reshape("gate", &[0, -1])
        .reshape("up", &[0, -1]);
    let (_, weights) = round_trip(&rules, &arrays);
    assert_eq!(values(&weights["gate"]), [0., 2., 4.]);
    assert_eq!(values(&weights["up"]), [1., 3., 5.]);
}

#[test]
fn a_shape_decides_what_is_transposed() {
    let arrays = counting(&[("a.conv1d.weight", &[2, 1, 3]), ("b.conv1d.weight", &[2, 3, 1])]);
    let (_, weights) = round_trip(&Rules::new().transpose("*.conv1d.weight [_, 1, _]", &[0, 2, 1]), &arrays);
    assert_eq!(weights["a.conv1d.weight"].shape(), [2, 3, 1]);
    assert_eq!(weights["b.conv1d.weight"].shape(), [2, 3, 1]);
}

#[test]
fn a_sum_and_a_cast_keep_the_name() {
    let arrays = counting(&[("norm.weight", &[3])]);
    let rules = Rules::new().add("*norm.weight [_]", 1.0).cast("*norm.weight", Dtype::Float64);
    let (map, weights) = round_trip(&rules, &arrays);
    assert_eq!(weights["norm.weight"].to_vec::<f64>().unwrap(), [1., 2., 3.]);
    assert_eq!(map.rows().next().unwrap().transforms, ["add 1", "cast to float64"]);
}

#[test]
fn a_factor_is_taken_back() {
    let arrays = counting(&[("a.weight", &[3])]);
    let (map, weights) = round_trip(&Rules::new().scale("a.weight", 0.5), &arrays);
    assert_eq!(values(&weights["a.weight"]), [0., 0.5, 1.]);
    assert_eq!(map.rows().next().unwrap().transforms, ["scale by 0.5"]);
}

#[test]
fn a_gate_becomes_the_factors_it_stands_for() {
    let gates = [-60.0f32, -0.9, 0.0, 0.3, 2.4];
    let arrays = Arrays::from([("0.gate".to_owned(), Array::from_slice(&gates, &[5]).unwrap())]);
    let names = ["{}.alpha".to_owned(), "{}.beta".to_owned()];
    let (map, weights) = apply(&Rules::new().residual_gate("{}.gate", names, 0.3), &arrays);
    for (at, gate) in gates.iter().enumerate() {
        let beta = 1.0 / (1.0 + (-f64::from(*gate) / 0.3).exp());
        let alpha = (1.0 - beta * beta).max(1e-3).sqrt();
        for (name, expected) in [("0.alpha", alpha), ("0.beta", beta)] {
            let found = f64::from(values(&weights[name])[at]);
            // `float32` has no number as small as the least.
            let allowed = 1e-6 * expected + f64::from(f32::MIN_POSITIVE);
            assert!((found - expected).abs() <= allowed, "{name} of {gate}: {found}, not {expected}");
        }
    }
    let back = values(&map.backwards(&from(&weights)).unwrap()["0.gate"]);
    for (gate, back) in gates.iter().zip(&back).filter(|(gate, _)| gate.abs() < 3.0) {
        assert!((gate - back).abs() < 1e-3, "{gate} came back as {back}");
    }
}

#[test]
fn rules_for_a_layout_wait_for_its_mark() {
    let rules = Rules::new().when("*.conv1d.weight [_, 1, _]", Rules::new().add("norm.weight", 1.0));
    let norm_beside = |conv: &[i32]| {
        let arrays = counting(&[("norm.weight", &[1]), ("a.conv1d.weight", conv)]);
        values(&round_trip(&rules, &arrays).1["norm.weight"])
    };
    assert_eq!(norm_beside(&[2, 1, 3]), [1.]);
    assert_eq!(norm_beside(&[2, 3, 1]), [0.]);
}

#[test]
fn columns_are_divided_by_their_norms() {
    let weight = Array::from_slice(&[3f32, 0., 4., 5.], &[2, 2]).unwrap();
    let arrays = Arrays::from([("head.weight".to_owned(), weight)]);
    let rules = Rules::new().normalize("head.weight [_, 2]", 0);
    let (map, weights) = apply(&rules, &arrays);
    for (found, expected) in values(&weights["head.weight"]).iter().zip([0.6, 0., 0.8, 1.]) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    assert_eq!(map.rows().next().unwrap().transforms, ["normalize along 0"]);
    let back = map.backwards(&from(&weights)).unwrap();
    assert_eq!(host(&back), host(&weights));
    let codes = Arrays::from([("head.weight".to_owned(), Array::from_slice(&[1u32, 2], &[1, 2]).unwrap())]);
    let error = rules.plan(&infos(&codes)).unwrap_err().to_string();
    assert!(error.contains("normalised, not uint32"), "{error}");
}

#[test]
fn what_is_tied_has_two_names() {
    let arrays = counting(&[("embed.weight", &[2])]);
    let (map, weights) = round_trip(&Rules::new().tie("embed.weight", "head.weight"), &arrays);
    assert_eq!(values(&weights["head.weight"]), [0., 1.]);
    assert_eq!(map.rows().nth(1).unwrap().transforms, ["tie"]);
}

#[test]
fn of_a_tied_head_only_the_bias_is_left() {
    let parts = ["weight", "scales", "biases", "qweight", "qzeros", "g_idx", "weight_packed", "weight_scale"];
    let more =
        ["weight_shape", "weight_scale_inv", "weight_zero_point", "weight.absmax", "input_scale", "bias"];
    let names = [&parts[..], &more].concat().into_iter().map(|part| format!("lm_head.{part}"));
    let names: Vec<String> = names.chain(["embed.weight".to_owned()]).collect();
    let arrays = counting(&names.iter().map(|name| (name.as_str(), &[2][..])).collect::<Vec<_>>());
    let (_, weights) = apply(&Rules::new().tied_head(true), &arrays);
    assert_eq!(weights.keys().collect::<Vec<_>>(), ["embed.weight", "lm_head.bias"]);
}

#[test]
fn what_is_dropped_does_not_come_back() {
    let arrays = counting(&[("a", &[2]), ("b", &[2]), ("c", &[1])]);
    let rules = Rules::new().drop("a", "unused").split("b", &["b1", "b2"], 0, &[]).drop("b2", "unused");
    let (map, weights) = apply(&rules, &arrays);
    assert_eq!(weights.keys().collect::<Vec<_>>(), ["b1", "c"]);
    assert_eq!(map.backwards(&from(&weights)).unwrap().keys().collect::<Vec<_>>(), ["c"]);
}

#[test]
fn rules_that_do_not_fit_say_where() {
    let arrays = counting(&[("a", &[4, 2]), ("b", &[3]), ("e.0", &[1]), ("e.2", &[1])]);
    let refused = |rules: Rules, because: &str| {
        let error = rules.plan(&infos(&arrays)).unwrap_err().to_string();
        assert!(error.contains(because), "{error}");
    };
    let new = Rules::new;
    refused(new().rename("a", "b"), "`a` and `b` would both be `b`");
    refused(new().rename("*", "x"), "would both be `x`");
    refused(new().tie("a", "b"), "would both be `b`");
    refused(new().split("a", &["x", "x"], 0, &[]), "two parts of `a` would be `x`");
    refused(new().split("a", &["x", "y"], 0, &[2, 3]), "`a`: weight_rules: 4 elements along axis 0");
    refused(new().split("a", &["x", "y"], 0, &[6, -2]), "4 elements along axis 0");
    refused(new().split("a", &["x", "y"], 0, &[4]), "1 sizes for 2 parts");
    refused(new().split("a", &[], 0, &[]), "into 0 parts");
    refused(new().split("a", &["x", "y", "z"], 0, &[]), "into 3 parts");
    refused(new().split("a", &["x"], 2, &[]), "no axis 2 among 2");
    refused(new().merge(&["a", "c"], "x", 0), "`c` is missing");
    refused(new().merge(&["a", "b"], "x", 0), "shapes [4, 2] and [3]");
    refused(new().stack("e.{#}", "x"), "number 1 of `e.{#}` is missing");
    refused(new().stack("e.{}", "x"), "would both be `x`");
    refused(new().rename("e.2", "e.00").stack("e.{#}", "x"), "matches number 0 twice");
    refused(new().cast("b", Dtype::Int32).add("b", 1.0), "not int32");
    refused(new().transpose("a", &[0, 0]), "axes [0, 0]");
    refused(new().transpose("b", &[0, 1]), "no axis 1 among 1");
    refused(new().reshape("a", &[3, -1]), "[4, 2] does not reshape to [3, -1]");
    refused(new().reshape("a", &[0, 0, 0]), "does not reshape");
    refused(new().reshape("a", &[-1, -1]), "does not reshape");
    refused(new().cast("b", Dtype::Int32).merge(&["b", "e.0"], "x", 0), "dtype");
}

#[test]
fn rules_are_data() {
    let rules = Rules::new()
        .rename("a.{}", "b.{}")
        .split("x", &["y", "z"], 0, &[])
        .cast("w", Dtype::Bfloat16)
        .and(Rule::Stack { from: "e.{#}".into(), to: "e".into(), axis: 1 });
    let text = serde_json::to_string(&rules).unwrap();
    assert!(text.contains(r#"{"rule":"cast","key":"w","dtype":"bfloat16"}"#), "{text}");
    assert_eq!(serde_json::from_str::<Rules>(&text).unwrap(), rules);
}

#[test]
fn the_map_serialises_by_weight() {
    let arrays = counting(&[("a", &[4, 2]), ("f", &[1])]);
    let rules = Rules::new().split("a", &["x", "y"], 0, &[1, 3]).drop("f", "computed");
    let map = serde_json::to_value(rules.plan(&infos(&arrays)).unwrap()).unwrap();
    let expected = serde_json::json!({
        "weights": [
            {
                "weight": {"key": "x", "shape": [1, 2], "dtype": "float32"},
                "transforms": ["part 1 of split [1, 3] along 0"],
                "sources": [{"key": "a", "shape": [4, 2], "dtype": "float32"}],
            },
            {
                "weight": {"key": "y", "shape": [3, 2], "dtype": "float32"},
                "transforms": ["part 2 of split [1, 3] along 0"],
                "sources": [{"key": "a", "shape": [4, 2], "dtype": "float32"}],
            },
        ],
        "dropped": [{"key": "f", "reason": "computed"}],
    });
    assert_eq!(map, expected);
}

/// A rule that fits any set of tensors with a name `t.N` and one or more dimensions.
fn a_rule() -> impl Strategy<Value = Rule> {
    let (key, axis) = (|| "t.*".to_owned(), || prop_oneof![Just(0), Just(-1)]);
    prop_oneof![
        Just(Rule::Rename { from: key(), to: "t.r*".into() }),
        Just(Rule::Tie { from: "t.{}".into(), to: "tied.{}".into() }),
        axis().prop_map(move |axis| Rule::Split {
            from: key(),
            to: vec!["t.a*".into(), "t.b*".into()],
            axis,
            sizes: vec![]
        }),
        axis().prop_map(|axis| Rule::Merge {
            from: vec!["t.a*".into(), "t.b*".into()],
            to: "t.m*".into(),
            axis
        }),
        axis().prop_map(|axis| Rule::Stack { from: "t.{#}".into(), to: "t.s".into(), axis }),
        Just(Rule::Transpose { key: "t.* [_, _]".into(), axes: vec![1, 0] }),
        Just(Rule::Transpose { key: "t.* [_, _, _]".into(), axes: vec![2, 0, 1] }),
        Just(Rule::Reshape { key: key(), shape: vec![-1] }),
        Just(Rule::Reshape { key: key(), shape: vec![0, 1, -1] }),
        Just(Rule::Add { key: key(), value: 1.0 }),
        Just(Rule::Cast { key: key(), dtype: Dtype::Float64 }),
        Just(Rule::When { key: "t.a*".into(), rules: Rules::new().add("t.*", 1.0) }),
    ]
}

proptest! {
    #[test]
    fn backwards_undoes_forwards(
        shape in prop::collection::vec(1..5i32, 1..4),
        count in 1..4usize,
        rules in prop::collection::vec(a_rule(), 0..6),
    ) {
        let names: Vec<String> = (0..count).map(|i| format!("t.{i}")).collect();
        let tensors: Vec<(&str, &[i32])> = names.iter().map(|name| (name.as_str(), shape.as_slice())).collect();
        let arrays = counting(&tensors);
        // Rules that do not fit what the ones before have made are left out.
        let fits = |rules: Rules, rule| {
            let more = rules.clone().and(rule);
            if more.plan(&infos(&arrays)).is_ok() { more } else { rules }
        };
        round_trip(&rules.into_iter().fold(Rules::new(), fits), &arrays);
    }
}
