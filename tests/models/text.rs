//! Tokenizers, streaming and chat templates against transformers.

use std::path::PathBuf;

use mlxport::text::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};

/// A small trained tokenizer with what transformers makes of texts (`tests/oracle/text.py`).
fn fixture(name: &str) -> (Tokenizer, Value) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text").join(name);
    let expect = std::fs::read_to_string(dir.join("expect.json")).unwrap();
    (Tokenizer::load(&dir).unwrap(), serde_json::from_str(&expect).unwrap())
}

const ALL: [&str; 2] = ["bytelevel", "byte_fallback"];

fn ids(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
}

#[test]
fn texts_have_the_ids_of_the_source_and_come_back() {
    for name in ALL {
        let (tokenizer, expect) = fixture(name);
        for row in expect["texts"].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&row["ids"]), "{name}: {text:?}");
            let decoded = tokenizer.decode(&ids(&row["ids"]), true).unwrap();
            assert_eq!(decoded, row["decoded"].as_str().unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn streamed_text_is_the_whole_text_in_whole_characters() {
    for name in ALL {
        let (tokenizer, expect) = fixture(name);
        for row in expect["texts"].as_array().unwrap() {
            let (mut detokenizer, mut streamed) = (tokenizer.detokenizer(), String::new());
            for id in ids(&row["ids"]) {
                let piece = detokenizer.push(id).unwrap();
                assert!(!piece.contains('\u{fffd}'), "{name}: {row}");
                streamed += &piece;
            }
            streamed += &detokenizer.finish().unwrap();
            assert_eq!(streamed, row["decoded"].as_str().unwrap(), "{name}");
        }
    }
}

#[test]
fn characters_that_are_never_completed_come_at_the_end() {
    let (tokenizer, expect) = fixture("bytelevel");
    let emoji = expect["texts"].as_array().unwrap().iter().find(|row| row["text"] == "🦀").unwrap();
    let mut emoji = ids(&emoji["ids"]);
    assert!(emoji.len() > 1, "one token each would test nothing");
    emoji.pop();
    let mut detokenizer = tokenizer.detokenizer();
    for id in &emoji {
        assert_eq!(detokenizer.push(*id).unwrap(), "");
    }
    assert!(detokenizer.finish().unwrap().contains('\u{fffd}'));
}

#[test]
fn chats_read_as_the_source_writes_them() {
    let (tokenizer, expect) = fixture("bytelevel");
    for chat in expect["chats"].as_array().unwrap() {
        let text = tokenizer.apply_chat_template(&chat["messages"]).unwrap();
        assert_eq!(text, chat["rendered"].as_str().unwrap());
        assert_eq!(tokenizer.encode(&text, false).unwrap(), ids(&chat["ids"]));
    }
    assert!(fixture("byte_fallback").0.apply_chat_template(json!([])).is_err(), "it has no template");
}

fn render(source: &str, context: Value) -> mlxport::Result<String> {
    ChatTemplate::new(source)?.render(context)
}

#[test]
fn templates_have_the_functions_of_transformers() {
    let text =
        |source: &str| render(source, json!({ "x": {"b": [1, 2.0, "é\"<"], "a": null, "c": {}} })).unwrap();
    assert_eq!(text("{{ x.b | tojson }}"), r#"[1, 2.0, "é\"<"]"#);
    assert_eq!(text("{{ x | tojson(sort_keys=true) }}"), r#"{"a": null, "b": [1, 2.0, "é\"<"], "c": {}}"#);
    assert_eq!(
        text("{{ [1, [], {'k': true}] | tojson(indent=2) }}"),
        "[\n  1,\n  [],\n  {\n    \"k\": true\n  }\n]"
    );
    assert_eq!(text("{{ x.b[2] | tojson(ensure_ascii=true) }}"), r#""\u00e9\"<""#);
    assert_eq!(text("{{ [1, 2] | tojson(separators=(',', ':')) }}"), "[1,2]");
    assert_eq!(text("{{ ' a-b '.strip().split('-')[1].upper() }}"), "B");
    assert_eq!(text("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"), "01");
    assert_eq!(text("a\n  {%- generation -%} b {% endgeneration %}\nc"), "ab c");
    assert_eq!(text("  {% if true %}\nx\n  {% endif %}\ny"), "x\ny", "blocks leave no lines");
    assert_eq!(text("{{ strftime_now('%Y') | int > 2000 }}").to_lowercase(), "true");
    assert!(render("{{ strftime_now('%!') }}", json!({})).is_err());
    let error = render("\n{{ raise_exception('no tools here') }}", json!({})).unwrap_err().to_string();
    assert!(error.contains("no tools here") && error.contains("line 2"), "{error}");
}

#[test]
fn templates_that_are_broken_or_endless_are_errors() {
    assert!(ChatTemplate::new("{% if %}").is_err());
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
    assert!(render(endless, json!({})).is_err());
}
