//! The command: what it prints and writes, and how it fails.

mod signals;

use std::collections::BTreeMap;
use std::fs;
#[cfg(unix)]
use std::io::Write;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use mlxport::HostTensor;
use mlxport::io::{load_npz, save_npz};
use serde_json::Value;

use super::{Fixture, LOGITS, error};

fn mlxport(args: &[&str]) -> Output {
    Command::cargo_bin("mlxport").unwrap().args(args).output().unwrap()
}

fn succeed(args: &[&str]) -> String {
    let output = mlxport(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs what must fail with this exit code, and returns what it says.
fn fail(args: &[&str], code: i32) -> String {
    let output = mlxport(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.starts_with("error: "), "{message}");
    message
}

/// The path of a fixture.
fn dir(name: &str) -> String {
    format!("{}/tests/fixtures/lm/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_synthetic_checkpoint_is_a_model() {
    let folder = tempfile::tempdir().unwrap();
    for (bits, bytes) in [("4", 40_000), ("16", 120_000)] {
        let model = folder.path().join(bits);
        let args = ["bench", "synth", "--shape", "tiny", "--bits", bits, "--out", text(&model)];
        succeed(&args);
        assert!(fs::metadata(model.join("model.safetensors")).unwrap().len() > bytes);
        // mlx-lm loads no model without it.
        let config: Value =
            serde_json::from_str(&fs::read_to_string(model.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["max_position_embeddings"], 40_960);
        let args =
            ["generate", "--model", text(&model), "--prompt", "a b", "--raw", "--max-tokens", "3", "--json"];
        let report: Value = serde_json::from_str(&succeed(&args)).unwrap();
        assert_eq!(report["tokens"].as_array().unwrap().len(), 3);
    }
    let args =
        |shape, bits| ["bench", "synth", "--shape", shape, "--bits", bits, "--out", text(folder.path())];
    assert!(fail(&args("large", "4"), 1).contains("tiny, qwen3-0.6b"));
    assert!(fail(&args("tiny", "7"), 1).contains("7 bits"));
    fail(&args("tiny", "4"), 1);
}

#[test]
fn generate_reports_what_the_source_generates() {
    let fixture = Fixture::load("qwen3");
    let prompt: Vec<String> = fixture.prompt().iter().map(i32::to_string).collect();
    let (dir, prompt) = (dir("qwen3"), prompt.join(","));
    let args = ["generate", "--model", &dir, "--prompt-ids", &prompt, "--max-tokens", "12"];
    let report: Value = serde_json::from_str(&succeed(&[&args[..], &["--json"]].concat())).unwrap();
    let tokens: Vec<i32> = serde_json::from_value(report["tokens"].clone()).unwrap();
    assert_eq!(tokens, fixture.greedy);
    assert_eq!((&report["finish_reason"], &report["text"]), (&"length".into(), &Value::Null));
    for key in ["prompt_tps", "generation_tps", "peak_memory_bytes"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}");
    }
    let ids: Vec<String> = tokens.iter().map(i32::to_string).collect();
    assert_eq!(succeed(&args), ids.join(",") + "\n");
}

/// Configs of fine-tuned models keep what ended the texts of the base model, or nothing.
#[test]
fn the_end_that_the_tokenizer_knows_ends_texts() {
    let folder = copied();
    let model = folder.path();
    let ids = ["--prompt-ids", "5,6,7", "--max-tokens", "12"];
    let run = || -> (Vec<i32>, Value) {
        let report = generate(text(model), &ids);
        (serde_json::from_value(report["tokens"].clone()).unwrap(), report["finish_reason"].clone())
    };
    let (tokens, _) = run();
    let tokenizer = mlxport::text::Tokenizer::load(model).unwrap();
    let end = tokenizer.token_of(tokens[4]).unwrap();
    edit(model, "tokenizer_config.json", |json| json["eos_token"] = end.into());
    let at = tokens.iter().position(|id| *id == tokens[4]).unwrap();
    let ended = (tokens[..=at].to_vec(), Value::from("stop"));
    assert_eq!(run(), ended);
    for name in ["generation_config.json", "config.json"] {
        edit(model, name, |json| drop(json.as_object_mut().unwrap().remove("eos_token_id")));
    }
    assert_eq!(run(), ended);
}

/// A copy of the bundled checkpoint, to be changed.
fn copied() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(bundled()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn edit(model: &Path, name: &str, f: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(model.join(name)).unwrap()).unwrap();
    f(&mut json);
    fs::write(model.join(name), json.to_string()).unwrap();
}

#[cfg(feature = "structured")]
#[test]
fn generate_takes_answers_apart() {
    let folder = copied();
    let model = folder.path();
    edit(model, "tokenizer_config.json", |json| json["tool_parser_type"] = "json_tools".into());
    // Known, but beyond the tokens of the model: it must spell them.
    edit(model, "tokenizer.json", |json| {
        let added = json["added_tokens"].as_array_mut().unwrap();
        for (id, content) in [(1024, "<think>"), (1025, "</think>")] {
            let mut token = added[0].clone();
            (token["id"], token["content"], token["special"]) = (id.into(), content.into(), false.into());
            added.push(token);
        }
    });
    let answer = r#"<think>hm</think>yes<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call> so"#;
    let regex = answer.replace('{', r"\{").replace('}', r"\}");
    let args = ["generate", "--model", text(model), "--prompt", "x", "--regex", &regex, "--json"];
    let report: Value = serde_json::from_str(&succeed(&args)).unwrap();
    assert_eq!((&report["text"], &report["thinking"]), (&"yes so".into(), &"hm".into()), "{report}");
    assert_eq!(report["tool_calls"], serde_json::json!([{ "name": "f", "arguments": { "a": 1 } }]));
    assert_eq!((&report["finish_reason"], &report["bad_tool_calls"]), (&"stop".into(), &Value::Null));
    let raw: Value = serde_json::from_str(&succeed(&[&args[..], &["--raw"]].concat())).unwrap();
    assert_eq!((&raw["text"], &raw["thinking"]), (&answer.into(), &Value::Null));
    let guessed: Value = serde_json::from_str(&succeed(&[&args[..], &["--prompt-lookup"]].concat())).unwrap();
    assert_eq!((&guessed["tokens"], &guessed["text"]), (&report["tokens"], &report["text"]));
}

#[test]
fn forward_writes_logits_and_stages_in_one_piece_or_several() {
    let fixture = Fixture::load("llama");
    let tmp = tempfile::tempdir().unwrap();
    let (inputs, outputs) = (tmp.path().join("in.npz"), tmp.path().join("out.npz"));
    let ids = BTreeMap::from([("input_ids".to_owned(), fixture.ids.to_host().unwrap())]);
    save_npz(&inputs, &ids, false).unwrap();
    let dir = dir("llama");
    let args = ["forward", "--model", &dir, "--inputs", text(&inputs), "--outputs", text(&outputs)];
    for extra in [
        &[][..],
        &["--chunks", "5,7,1,3"],
        &["--chunks", "20", "--probes"],
        &["--chunks", "5,99", "--dtype", "float32"],
    ] {
        succeed(&[&args[..], extra].concat());
        let written = load_npz(&outputs).unwrap();
        let logits = &written["logits"];
        assert_eq!(logits.shape(), [2, 20, 40]);
        assert!(error(&logits.to_vec().unwrap(), &fixture.logits) < LOGITS, "{extra:?}");
        assert_eq!(written.len(), if extra.contains(&"--probes") { 6 } else { 1 });
    }
    succeed(&[&args[..], &["--probes"]].concat());
    assert_eq!(load_npz(&outputs).unwrap()["layers.0.mlp"].shape(), [2, 20, 32]);
    for (path, starts_kernels) in [("reference", false), ("portable", true)] {
        let args = [&args[..], &["--path", path]].concat();
        let output =
            Command::cargo_bin("mlxport").unwrap().args(args).env("RUST_LOG", "info").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr).contains("first use"), starts_kernels);
        let logits = load_npz(&outputs).unwrap()["logits"].to_vec().unwrap();
        assert!(error(&logits, &fixture.logits) < LOGITS, "{path}");
    }
    fail(&[&args[..], &["--path", "fastest"]].concat(), 2);
    fs::remove_file(&outputs).unwrap();
    fail(&[&args[..], &["--chunks", "5,0"]].concat(), 1);
    fail(&[&args[..], &["--dtype", "int32"]].concat(), 1);
    for wrong in [vec![40i32, 0], vec![-1, 0]] {
        let ids = HostTensor::from_slice(&wrong, &[1, 2]).unwrap();
        save_npz(&inputs, &BTreeMap::from([("input_ids".to_owned(), ids)]), false).unwrap();
        assert!(fail(&args, 1).contains("vocabulary"));
    }
    assert!(!outputs.exists(), "nothing is left of what failed");
}

#[test]
fn bench_reports_its_measures_and_what_they_were_taken_with() {
    let dir = dir("llama");
    let args =
        ["bench", "model", "--model", &dir, "--prompt-tokens", "8", "--generate-tokens", "4", "--runs", "2"];
    let report: Value = serde_json::from_str(&succeed(&[&args[..], &["--json"]].concat())).unwrap();
    for key in ["prompt_tps", "generation_tps"] {
        let [min, median, max] = ["min", "median", "max"].map(|part| report[key][part].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{key}");
    }
    for key in ["first_token_s", "load_s", "peak_memory_bytes", "weight_bytes"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}");
    }
    let table = succeed(&args);
    let version = report["machine"]["mlx"].as_str().unwrap();
    assert!(table.contains(version) && table.contains("cores") && table.contains("8 prompt tokens"));
    fail(&[&args[..args.len() - 1], &["0"]].concat(), 1);
    let several = succeed(&[&args[..], &["--batch-size", "3", "--json"]].concat());
    let several: Value = serde_json::from_str(&several).unwrap();
    assert!(several["generation_tps"]["median"].as_f64().unwrap() > 0.0);
    assert_eq!(several["batch_size"], 3);
    fail(&[&args[..], &["--batch-size", "0"]].concat(), 1);
}

#[test]
fn devices_names_versions_and_backends() {
    let machine: Value = serde_json::from_str(&succeed(&["devices", "--json"])).unwrap();
    assert!(machine["backends"].as_array().unwrap().contains(&"cpu".into()));
    assert_eq!(machine["mlxport"], env!("CARGO_PKG_VERSION"));
    assert!(machine["shaders"].as_array().unwrap().iter().all(|shader| shader["seen_on_gpu"] == false));
    let text = succeed(&["devices"]);
    assert!(
        text.contains("device     cpu:0")
            && text.contains("ternary_matvec")
            && text.contains("(not run on a GPU)")
    );
}

#[test]
fn usage_errors_are_told_apart() {
    let dir = dir("llama");
    fail(&["generate", "--model", &dir], 2);
    fail(&["generate", "--model", &dir, "--prompt", "a", "--prompt-ids", "1"], 2);
    fail(&["nothing"], 2);
    let args = ["generate", "--model", &dir, "--prompt-ids", "1", "--temp=-1"];
    assert!(fail(&args, 1).contains("temperature"));
    assert!(fail(&["generate", "--model", &dir, "--prompt", "a"], 1).contains("tokenizer.json"));
    assert!(fail(&["generate", "--model", &dir, "--prompt-ids", "1,40"], 1).contains("40"));
}

/// Copies a fixture and lets `spoil` change its config.
fn spoiled(spoil: impl FnOnce(&mut Value, &Path)) -> tempfile::TempDir {
    let tmp = tempfile::tempdir().unwrap();
    fs::copy(dir("llama") + "/model.safetensors", tmp.path().join("model.safetensors")).unwrap();
    let mut config =
        serde_json::from_str(&fs::read_to_string(dir("llama") + "/config.json").unwrap()).unwrap();
    spoil(&mut config, tmp.path());
    fs::write(tmp.path().join("config.json"), config.to_string()).unwrap();
    tmp
}

#[test]
fn a_bad_checkpoint_is_one_clear_error() {
    let set = |key: &'static str, value: Value| move |config: &mut Value, _: &Path| config[key] = value;
    let message_of = |tmp: tempfile::TempDir| {
        fail(&["generate", "--model", text(tmp.path()), "--prompt-ids", "1,2", "--max-tokens", "2"], 1)
    };
    let wrong: [(&'static str, Value, &str); 17] = [
        ("num_attention_heads", 0.into(), "num_attention_heads"),
        ("num_attention_heads", 3.into(), "heads"),
        ("num_key_value_heads", (-2).into(), "num_key_value_heads"),
        ("num_hidden_layers", 2.into(), "model.layers.1"),
        ("num_hidden_layers", 4_000_000_000u64.into(), "model.layers.1"),
        ("num_hidden_layers", 0.into(), "does not use"),
        ("num_hidden_layers", (-1).into(), "num_hidden_layers"),
        ("hidden_size", 64.into(), "[40, 64]"),
        ("head_dim", 6.into(), "q_proj"),
        ("head_dim", 7.into(), "q_proj"),
        ("head_dim", i32::MAX.into(), "head_dim"),
        ("vocab_size", 41.into(), "embed_tokens"),
        ("rms_norm_eps", "NaN".into(), "rms_norm_eps"),
        ("quantization", serde_json::json!({ "bits": 0, "group_size": 32 }), "0 bits"),
        ("model_type", "lama".into(), "llama"),
        ("rope_scaling", serde_json::json!({ "type": "yarn" }), "factor"),
        ("hidden_act", "nothing".into(), "nothing"),
    ];
    for (key, value, told) in wrong {
        let message = message_of(spoiled(set(key, value.clone())));
        assert!(message.contains(told), "{key} {value}: {message}");
    }
    let truncated = spoiled(|_, dir| {
        let path = dir.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    });
    assert!(message_of(truncated).contains("model.safetensors"));
    let empty = tempfile::tempdir().unwrap();
    assert!(message_of(empty).contains("config.json"));
}

/// Weights that are missing, have another shape or are of no use: all of them at once.
#[test]
fn all_that_does_not_fit_is_told() {
    let tmp = spoiled(|_, _| {});
    let (mut weights, metadata) =
        mlxport::io::load_safetensors(tmp.path().join("model.safetensors")).unwrap();
    let query = weights.remove("model.layers.0.self_attn.q_proj.weight").unwrap();
    weights.insert("model.layers.0.self_attn.qq_proj.weight".into(), query);
    weights.remove("model.norm.weight");
    let narrow = weights["model.layers.0.mlp.up_proj.weight"].index(1..).unwrap();
    weights.insert("model.layers.0.mlp.up_proj.weight".into(), narrow);
    let file = tmp.path().join("model.safetensors");
    let weights = weights.iter().map(|(name, array)| (name.as_str(), array));
    mlxport::io::save_safetensors(&file, weights, &metadata).unwrap();
    let message = fail(&["generate", "--model", text(tmp.path()), "--prompt-ids", "1"], 1);
    for told in [
        "missing weight `model.layers.0.self_attn.q_proj.weight`",
        "missing weight `model.norm.weight`",
        "`model.layers.0.mlp.up_proj.weight`: expected shape [",
        "model.layers.0.self_attn.qq_proj.weight [32, 32] float32 (the model asked for \
         `model.layers.0.self_attn.q_proj.weight`)",
    ] {
        assert!(message.contains(told), "{told}: {message}");
    }
}

/// The bundled checkpoint, which has a tokenizer.
fn bundled() -> String {
    format!("{}/assets/tiny-qwen3", env!("CARGO_MANIFEST_DIR"))
}

fn generate(dir: &str, extra: &[&str]) -> Value {
    serde_json::from_str(&succeed(&[&["generate", "--model", dir, "--json"], extra].concat())).unwrap()
}

#[test]
fn generate_takes_every_setting() {
    let dir = bundled();
    let prompt = ["--prompt", "Once upon", "--raw", "--ignore-eos", "--max-tokens", "24"];
    let run = |extra: &[&str]| generate(&dir, &[&prompt[..], extra].concat());
    let plain = run(&[]);
    let text = plain["text"].as_str().unwrap();
    for guesses in [&["--prompt-lookup"][..], &["--draft-model", &dir, "--num-draft-tokens", "4"]] {
        let report = run(guesses);
        assert_eq!(report["tokens"], plain["tokens"], "{guesses:?}");
        assert!(report["accepted_tokens"].as_u64() <= report["draft_tokens"].as_u64());
    }
    let hot = ["--temp", "1.2", "--top-p", "0.9", "--top-k", "30", "--min-p", "0.01", "--seed", "7"];
    let more = ["--repetition-penalty", "1.2", "--presence-penalty", "-0.1", "--frequency-penalty", "0.1"];
    let xtc = ["--xtc-probability", "0.5", "--xtc-threshold", "0.1", "--logit-bias", "5:-3.5,9:1"];
    let all = [&hot[..], &more, &xtc].concat();
    assert_eq!(run(&all)["tokens"], run(&all)["tokens"]);
    assert_ne!(run(&all)["tokens"], plain["tokens"]);
    let middle: Vec<char> = text.chars().collect();
    let stop: String = middle[middle.len() / 2..middle.len() / 2 + 3].iter().collect();
    let stopped = run(&["--stop", "nowhere in it", "--stop", &stop]);
    assert_eq!(stopped["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
    assert_eq!(stopped["finish_reason"], "stop");
    let quantized = run(&["--kv-bits", "8", "--kv-group-size", "32", "--quantized-kv-start", "0"]);
    assert_eq!(quantized["generation_tokens"], 24);
    assert_eq!(run(&["--max-kv-size", "9", "--prefill-step-size", "4"])["generation_tokens"], 24);
    let args = ["generate", "--model", &dir, "--prompt", "x", "--kv-bits"];
    fail(&[&args[..], &["7"]].concat(), 1);
    let args = ["generate", "--model", &dir, "--prompt", "x"];
    fail(&[&args[..], &["--logit-bias", "5"]].concat(), 2);
    fail(&[&args[..], &["--prefill-step-size", "0"]].concat(), 2);
    assert!(fail(&[&args[..], &["--temp", "-1"]].concat(), 1).contains("temperature"));
    let other = self::dir("llama");
    assert!(fail(&[&args[..], &["--draft-model", &other]].concat(), 1).contains("vocabulary has 40 tokens"));
}

#[test]
fn templates_get_what_they_are_given() {
    let model = copied();
    let model = model.path();
    let write = |template: &str| {
        edit(model, "tokenizer_config.json", |json| json["chat_template"] = template.into());
    };
    let args = ["generate", "--model", text(model), "--prompt", "x"];
    let told = |extra: &[&str]| fail(&[&args[..], extra].concat(), 1);
    write("{{ raise_exception(level ~ tools[0].name ~ messages[0].content) }}");
    let given = ["--chat-template-config", r#"{"level": 7}"#, "--system-prompt", "please"];
    assert!(told(&[&given[..], &["--tools", r#"[{"name": "look"}]"#]].concat()).contains("7lookplease"));
    assert!(told(&["--chat-template-config", "[]"]).contains("not a JSON object"));
    assert!(told(&["--tools", r#"{"name": "look"}"#]).contains("not a JSON list"));
    assert!(told(&["--raw", "--system-prompt", "please"]).contains("--raw"));
    let out = model.join("none/cache.safetensors");
    write("{{ messages[0].content }}");
    let made = fail(&["cache", "make", "--model", text(model), "--prompt", "x", "--out", text(&out)], 1);
    assert!(made.contains("there is no folder"), "{made}");
}

#[test]
fn types_of_chat_templates_are_known_or_told() {
    let model = copied();
    let model = model.path();
    let write =
        |name: &str| edit(model, "tokenizer_config.json", |json| json["chat_template_type"] = name.into());
    write("deepseek_v99");
    let generate = |prompt: &str, extra: &[&str]| {
        let args = ["generate", "--model", text(model), "--prompt", prompt, "--max-tokens", "2", "--json"];
        [&args[..], extra].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let prompt_tokens = |prompt: &str, extra: &[&str]| {
        let args = generate(prompt, extra);
        let report = succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
        serde_json::from_str::<Value>(&report).unwrap()["prompt_tokens"].clone()
    };
    let asked = generate("x", &[]);
    for args in [asked.iter().map(String::as_str).collect(), vec!["chat", "--model", text(model)]] {
        let error = fail(&args, 1);
        assert!(error.contains("deepseek_v99") && error.contains("not supported"), "{error}");
    }
    assert_eq!(prompt_tokens("x", &["--raw"]), 1);
    write("deepseek_v32");
    let written = |end: &str| format!("<｜begin▁of▁sentence｜><｜User｜>x<｜Assistant｜>{end}");
    // Without marks of thoughts in the vocabulary, the model is told not to think.
    assert_eq!(prompt_tokens("x", &[]), prompt_tokens(&written("</think>"), &["--raw"]));
    let thinks = ["--chat-template-config", r#"{"enable_thinking": true}"#];
    assert_eq!(prompt_tokens("x", &thinks), prompt_tokens(&written("<think>"), &["--raw"]));
}

#[test]
fn texts_longer_than_the_context_are_refused() {
    let model = copied();
    edit(model.path(), "config.json", |json| json["max_position_embeddings"] = 12.into());
    let long = ["--model", text(model.path()), "--prompt", "more than twelve tokens"];
    let generate = [&["generate", "--max-tokens", "2"], &long[..]].concat();
    assert!(fail(&generate, 1).contains("made for 12"));
    succeed(&[&generate[..], &["--max-kv-size", "12"]].concat());
    let out = model.path().join("cache.safetensors");
    assert!(fail(&[&["cache", "make", "--out", text(&out)], &long[..]].concat(), 1).contains("made for 12"));
    let bench = ["bench", "model", "--model", text(model.path()), "--prompt-tokens", "2000000000"];
    assert!(fail(&bench, 1).contains("made for 12"));
    edit(model.path(), "config.json", |json| {
        json["rope_scaling"] = serde_json::json!({ "rope_type": "linear", "factor": 4.0 })
    });
    succeed(&generate);
}

/// Links that lead nowhere, as caches with blobs that are gone have them, and pipes, which nobody fills.
#[cfg(unix)]
#[test]
fn files_that_are_none_are_told() {
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let model = copied();
        let (args, file) =
            (["generate", "--model", text(model.path()), "--prompt", "x"], model.path().join(name));
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("nowhere", &file).unwrap();
        let message = fail(&args, 1);
        assert!(message.contains("leads nowhere") && message.contains(name), "{message}");
        fs::remove_file(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        let message = fail(&args, 1);
        assert!(message.contains("not a regular file") && message.contains(name), "{message}");
    }
}

#[cfg(feature = "structured")]
#[test]
fn generate_holds_texts_to_grammars() {
    let dir = bundled();
    let tmp = tempfile::tempdir().unwrap();
    let schema = tmp.path().join("schema.json");
    fs::write(&schema, r#"{"type":"array","items":{"enum":[1,2]},"minItems":2,"maxItems":3}"#).unwrap();
    let run = |grammar: [&str; 2]| {
        let hot = ["--prompt", "x", "--raw", "--temp", "9", "--max-tokens", "60"];
        generate(&dir, &[&hot[..], &grammar].concat())["text"].as_str().unwrap().to_owned()
    };
    let numbers: Vec<i32> = serde_json::from_str(&run(["--json-schema", text(&schema)])).unwrap();
    assert!((2..=3).contains(&numbers.len()) && numbers.iter().all(|n| [1, 2].contains(n)));
    assert!(["ab", "abb"].contains(&run(["--regex", "ab{1,2}"]).as_str()));
    assert_eq!(run(["--grammar", "start: \"y\" \"es\""]), "yes");
    fail(&["generate", "--model", &dir, "--prompt", "x", "--regex", "("], 1);
}

#[test]
fn prompt_caches_are_made_and_used() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("prompt.safetensors");
    let fixture = Fixture::load("sliding");
    let prompt: Vec<String> = fixture.prompt().iter().map(i32::to_string).collect();
    let (dir, before, after) = (dir("sliding"), prompt[..13].join(","), prompt[13..].join(","));
    let make = ["cache", "make", "--model", &dir, "--prompt-ids", &before, "--json", "--out"];
    let made = succeed(&[&make[..], &[text(&file)]].concat());
    assert!(fail(&[&make[..], &["prompt.npz"]].concat(), 1).contains(".safetensors"));
    let info = succeed(&["cache", "info", text(&file), "--json"]);
    assert_eq!(made, info);
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!((&info["tokens"], info["layers"].as_array().unwrap().len()), (&13.into(), 2));
    assert!(succeed(&["cache", "info", text(&file)]).contains("RotatingKVCache at 13"));
    let from = ["--prompt-ids", &after, "--max-tokens", "12", "--prompt-cache-file", text(&file)];
    let report = generate(&dir, &from);
    let tokens: Vec<i32> = serde_json::from_value(report["tokens"].clone()).unwrap();
    assert_eq!(tokens, fixture.greedy);
    assert_eq!((&report["prompt_tokens"], &report["cached_tokens"]), (&7.into(), &13.into()));
    let other = ["generate", "--model", &bundled(), "--prompt-ids", "1", "--prompt-cache-file", text(&file)];
    assert!(fail(&other, 1).contains("layers"));
    fs::write(&file, "no").unwrap();
    fail(&["cache", "info", text(&file)], 1);

    // A text before the prompt, under a chat template: what is read is what would be read at once.
    let (dir, file) = (bundled(), tmp.path().join("chat.safetensors"));
    succeed(&["cache", "make", "--model", &dir, "--prompt", "One two. ", "--out", text(&file)]);
    let once = generate(&dir, &["--prompt", "One two. Three?", "--max-tokens", "6"]);
    let rest = ["--prompt", "Three?", "--max-tokens", "6", "--prompt-cache-file", text(&file)];
    let rest = generate(&dir, &rest);
    assert_eq!(rest["finish_reason"], once["finish_reason"]);
    assert!(rest["prompt_tokens"].as_u64() < once["prompt_tokens"].as_u64());
}

#[test]
fn perplexity_reads_a_file() {
    let (dir, tmp) = (bundled(), tempfile::tempdir().unwrap());
    let file = tmp.path().join("text.txt");
    fs::write(&file, "Once upon a time there was a kernel. ".repeat(9)).unwrap();
    let args = ["perplexity", "--model", &dir, "--file", text(&file), "--sequence-length", "16"];
    let report: Value = serde_json::from_str(&succeed(&[&args[..], &["--json"]].concat())).unwrap();
    assert!(report["perplexity"].as_f64().unwrap() > 1.0 && report["standard_error"].as_f64().unwrap() > 0.0);
    assert_eq!(report["tokens"].as_u64().unwrap(), report["samples"].as_u64().unwrap() * 15);
    assert!(succeed(&args).starts_with("perplexity "));
    fail(&["perplexity", "--model", &dir, "--file", text(&file)], 1);
}

#[test]
fn chat_works_through_a_pipe() {
    let (dir, tmp) = (bundled(), tempfile::tempdir().unwrap());
    let file = tmp.path().join("chat.json");
    let chat = |input: String| {
        let mut command = Command::cargo_bin("mlxport").unwrap();
        let output = command.args(["chat", "--model", &dir, "--max-tokens", "6"]).write_stdin(input);
        output.output().unwrap()
    };
    let input = format!(
        "/help\n\nhello\nand more\n/save {0}\n/reset\n/load {0}\n/undo\nand more\n/exit\nnot read\n",
        text(&file)
    );
    let output = chat(input);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("/system") && !said.contains("not read"));
    let saved: Vec<Value> = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let roles: Vec<&str> = saved.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    // The question that was undone is answered again, by a conversation that was partly read.
    let answer = saved[3]["content"].as_str().unwrap();
    assert_eq!(said.matches(&format!("{answer}\n")).count(), 2, "{said}");
    assert_eq!(chat("/nothing\n".to_owned()).status.code(), Some(1));
}

#[test]
fn chat_keeps_thoughts_apart() {
    let model = copied();
    // In the places of two bytes that no text has.
    edit(model.path(), "tokenizer.json", |json| {
        for (byte, content) in [("ÿ", "<think>"), ("þ", "</think>")] {
            let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
            let id = vocabulary.remove(byte).unwrap();
            vocabulary.insert(content.to_owned(), id.clone());
            let mut token = json["added_tokens"][0].clone();
            (token["id"], token["content"]) = (id, content.into());
            json["added_tokens"].as_array_mut().unwrap().push(token);
        }
    });
    let file = model.path().join("chat.json");
    let chat = |end: &str| {
        edit(model.path(), "tokenizer_config.json", |json| {
            json["chat_template"] = format!("{{{{ messages[-1].content }}}}\n{end}").into();
        });
        let mut command = Command::cargo_bin("mlxport").unwrap();
        command.args(["chat", "--model", text(model.path()), "--max-tokens", "6"]);
        let output = command.write_stdin(format!("x\n/save {}\n", text(&file))).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let saved: Vec<Value> = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let [said, thought] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (said, thought, saved[1].clone())
    };
    let (said, thought, saved) = chat("<think>");
    assert_eq!((said.as_str(), &saved["content"]), ("\n", &"".into()));
    assert!(thought.trim().len() > 3);
    assert_eq!(saved["reasoning_content"], thought[..thought.len() - 1]);
    let (said, thought, saved) = chat("<think></think>");
    assert_eq!((&saved["content"], thought.as_str()), (&said[..said.len() - 1].into(), ""));
    assert!(said.trim().len() > 3 && saved["reasoning_content"].is_null());
}
