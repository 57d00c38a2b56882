//! Tool calls and answers against mlx-lm.

use mlxport::text::{Part, Response, ResponseFormat, ToolFormat};
use serde_json::{Value, json};

/// What mlx-lm makes of them (`tests/oracle/tools.py`).
fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/text/tools.json")).unwrap()
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

#[test]
fn calls_are_those_of_mlx_lm() {
    let fixture = fixture();
    let tools = rows(&fixture["tools"]);
    let (mut count, mut wrong) = (0, Vec::new());
    for (name, cases) in fixture["calls"].as_object().unwrap() {
        let format = ToolFormat::named(name).unwrap();
        for case in rows(cases) {
            let (text, expected) = (case[0].as_str().unwrap(), &case[1]);
            let found = format.parse(text, tools).map_or(Value::Null, |calls| json!(calls));
            count += 1;
            // What mlx-lm can't write is a text here.
            if found != *expected && expected["unwritable"] != json!(true) {
                wrong.push(format!("{name} {text:?}: {found}, not {expected}"));
            }
        }
    }
    assert!(count > 1000);
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

/// mlx-lm knows how Muse Spark answers by its `model_type`, unless the tokenizer says otherwise.
#[test]
fn muse_spark_answers_with_headers() {
    let dir = tempfile::tempdir().unwrap();
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny-qwen3/tokenizer.json");
    std::fs::copy(bundled, dir.path().join("tokenizer.json")).unwrap();
    let found = |model_type: &str| {
        let config = json!({ "model_type": model_type }).to_string();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let format = mlxport::text::Tokenizer::load(dir.path()).unwrap().response_format();
        (format.headers, format.tools, mlxport::generate::stop_tokens(dir.path(), Some(7)).unwrap())
    };
    assert_eq!(found("muse_spark"), (true, Some(ToolFormat::MuseSpark), vec![200_001, 200_008, 7]));
    assert_eq!(found("llama"), (false, None, vec![7]));
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"tool_parser_type": "json_tools"}"#)
        .unwrap();
    assert_eq!(found("muse_spark").1, Some(ToolFormat::JsonTools));
}

#[test]
fn a_format_is_found_as_mlx_lm_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    for row in rows(&fixture()["inferred"]) {
        let vocabulary = rows(&row[1]).iter().enumerate();
        let added = vocabulary.map(|(id, token)| {
            json!({ "id": id, "content": token, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false })
        });
        let vocab: serde_json::Map<_, _> = rows(&row[1])
            .iter()
            .enumerate()
            .map(|(id, t)| (t.as_str().unwrap().to_owned(), json!(id)))
            .collect();
        let tokenizer = json!({ "version": "1.0", "added_tokens": added.collect::<Vec<_>>(),
            "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        std::fs::write(
            dir.path().join("tokenizer_config.json"),
            json!({ "chat_template": format!("{{# {} #}}", row[0].as_str().unwrap()) }).to_string(),
        )
        .unwrap();
        let tokenizer = mlxport::text::Tokenizer::load(dir.path()).unwrap();
        let found = tokenizer.response_format().tools.map(ToolFormat::name);
        assert_eq!(found, row[2].as_str(), "{row}");
    }
}

/// Parts as the fixture has them, with neighbours of a kind joined.
fn parts(all: Vec<Part>) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    for part in all {
        let (kind, value) = match part {
            Part::Text(text) => ("normal", json!(text)),
            Part::Thinking(text) => ("reasoning", json!(text)),
            Part::ToolCall(call) => ("call", json!(call)),
            Part::BadToolCall { text, .. } => ("bad", json!(text)),
        };
        match found.last_mut() {
            Some(last) if last[0] == kind && matches!(kind, "normal" | "reasoning") => {
                last[1] = json!(format!("{}{}", last[1].as_str().unwrap(), value.as_str().unwrap()));
            }
            _ => found.push(json!([kind, value])),
        }
    }
    found
}

#[test]
fn answers_are_taken_apart_whatever_their_pieces() {
    for row in rows(&fixture()["answers"]) {
        let think = row["think"].as_array().map(|pair| [0, 1].map(|i| pair[i].as_str().unwrap().to_owned()));
        let kimi = row["format"] == "kimi_k3";
        let markers = ["<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"];
        let format = ResponseFormat {
            thinking: think.map(|[start, end]| (start, end)),
            tools: ToolFormat::named(row["format"].as_str().unwrap()),
            markers: markers.iter().filter(|_| kimi).map(|mark| (*mark).to_owned()).collect(),
            headers: row["format"] == "muse_spark",
        };
        let thinks = row["state"] == "reasoning";
        let prompt = format.thinking.as_ref().filter(|_| thinks).map_or("", |(start, _)| start.as_str());
        let text: Vec<char> = row["text"].as_str().unwrap().chars().collect();
        for size in [1, 2, 3, 7, text.len()] {
            let mut response = Response::new(format.clone(), prompt, Vec::new());
            let pieces = text.chunks(size).map(|piece| piece.iter().collect::<String>());
            let mut all: Vec<Part> = pieces.flat_map(|piece| response.push(&piece)).collect();
            all.extend(response.finish());
            assert_eq!(json!(parts(all)), row["parts"], "{row} in pieces of {size}");
        }
    }
}

#[test]
fn hostile_calls_take_no_time() {
    let start = std::time::Instant::now();
    for format in ToolFormat::ALL {
        for text in ["[", "{", "call:f{a:", "f(", "-", "<invoke name=a>", "<function=", "<|open|>call<|sep|>"]
        {
            let text = text.repeat(4000);
            for wrapped in [
                format!("[f(a={text})]"),
                format!("f<arg_key>a</arg_key><arg_value>{text}</arg_value>"),
                text,
            ] {
                let before = std::time::Instant::now();
                let _ = format.parse(&wrapped, &[]);
                if before.elapsed().as_millis() > 500 {
                    println!("{format:?} {:?} {:?}", &wrapped[..20], before.elapsed());
                }
            }
        }
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
