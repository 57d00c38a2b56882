//! Tokenizers, streaming and chat templates against transformers.

use std::path::{Path, PathBuf};

use mlxport::text::{Chat, ChatTemplate, Tokenizer};
use serde_json::{Value, json};

/// A small trained tokenizer with what transformers makes of texts (`tests/oracle/text.py`).
fn fixture(name: &str) -> (Tokenizer, Value) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text").join(name);
    let expect = std::fs::read_to_string(dir.join("expect.json")).unwrap();
    (Tokenizer::load(&dir).unwrap(), serde_json::from_str(&expect).unwrap())
}

const ALL: [&str; 5] =
    ["bytelevel", "byte_fallback", "sentencepiece_bpe", "sentencepiece_unigram", "tiktoken"];

fn ids(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Where we differ from what a directory's `expect.json` says of texts and chats.
fn differences(dir: &Path) -> Vec<String> {
    let expect = std::fs::read_to_string(dir.join("expect.json")).unwrap();
    let expect: Value = serde_json::from_str(&expect).unwrap();
    let tokenizer = match Tokenizer::load(dir) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return vec![error.to_string()],
    };
    let mut found = Vec::new();
    for row in rows(&expect["texts"]) {
        // SentencePiece and tiktoken find no special tokens in a text.
        texts(&tokenizer, row, !dir.join("tokenizer.json").exists(), &mut found);
        prefixes(&tokenizer, row, &mut found);
    }
    for row in rows(&expect["chats"]) {
        let mut chat: Chat = serde_json::from_value(row.clone()).unwrap();
        for (name, field) in [("tools", &mut chat.tools), ("documents", &mut chat.documents)] {
            if let Some(all) = chat.kwargs.remove(name) {
                *field = Some(all.as_array().unwrap().clone());
            }
        }
        match (tokenizer.apply_chat_template(&chat), row["rendered"].as_str()) {
            (Ok(text), Some(expected)) => {
                let tokens = tokenizer.encode(&text, false).unwrap();
                if text != expected || tokens != ids(&row["ids"]) {
                    found.push(format!("chat {row}\n   {text:?} {tokens:?}"));
                }
            }
            (Err(error), Some(_)) => found.push(format!("chat {row}\n   {error}")),
            (Ok(text), None) => found.push(format!("chat {row}\n   no error but {text:?}")),
            (Err(error), None) => {
                let expected = row["error"].as_str().unwrap().split_once(": ").unwrap();
                let raised = expected.0 == "TemplateError";
                if raised && !error.to_string().ends_with(expected.1) {
                    found.push(format!("chat {row}\n   {error}"));
                }
            }
        }
    }
    found
}

fn texts(tokenizer: &Tokenizer, row: &Value, plain: bool, found: &mut Vec<String>) {
    let ids = ids(&row["ids"]);
    if let Some(text) = row["text"].as_str() {
        let mut check = |what: &str, tokens: Vec<i32>| {
            let expected = &row[what];
            if !expected.is_null() && tokens != self::ids(expected) {
                found.push(format!("{what} of {text:?}: {tokens:?}, not {expected}"));
            }
        };
        let ordinary = tokenizer.encode_ordinary(text).unwrap();
        let special = tokenizer.special_ids();
        if !plain || !tokenizer.encode(text, false).unwrap().iter().any(|id| special.contains(id)) {
            check("ids", tokenizer.encode(text, true).unwrap());
            check("ids_without_special", tokenizer.encode(text, false).unwrap());
        }
        if plain {
            check("ids_without_special", ordinary);
        }
    }
    for (what, skip) in [("decoded", false), ("decoded_skip_special", true)] {
        let text = tokenizer.decode(&ids, skip).unwrap();
        if row[what].as_str().is_some_and(|expected| expected != text) {
            found.push(format!("{what} of {ids:?}: {text:?}, not {}", row[what]));
        }
    }
}

/// What is streamed is what is decoded so far, up to a character that is not complete.
fn prefixes(tokenizer: &Tokenizer, row: &Value, found: &mut Vec<String>) {
    let tokens = ids(if row["text"].is_null() { &row["ids"] } else { &row["ids_without_special"] });
    let (mut detokenizer, mut streamed) = (tokenizer.detokenizer().with_special_tokens(), String::new());
    for (at, (id, expected)) in tokens.iter().zip(rows(&row["decoded_prefixes"])).enumerate() {
        let expected = expected.as_str().unwrap();
        streamed += &detokenizer.push(*id).unwrap();
        let right = expected.ends_with('\u{fffd}') || streamed == expected;
        if !right {
            found.push(format!("prefix {at} of {tokens:?}: {streamed:?}, not {expected:?}"));
            return;
        }
    }
    if let Some(whole) = rows(&row["decoded_prefixes"]).last() {
        streamed += &detokenizer.finish().unwrap();
        if streamed != whole.as_str().unwrap() {
            found.push(format!("the end of {tokens:?}: {streamed:?}, not {whole}"));
        }
    }
}

#[test]
fn texts_and_chats_are_those_of_the_source() {
    for name in ALL {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text").join(name);
        assert_eq!(differences(&dir), [""; 0], "{name}");
    }
}

/// `MLXPORT_TEXT_CASES=DIR cargo test --test models text_sweep -- --ignored --nocapture`: every folder of
/// `DIR` that has an `expect.json` as `tests/oracle/text.py` writes it.
#[test]
#[ignore = "reads cases from a directory that the environment names"]
fn text_sweep() {
    let dir = std::env::var_os("MLXPORT_TEXT_CASES").expect("MLXPORT_TEXT_CASES names no directory");
    let mut cases: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let mut total = 0;
    for case in cases.iter().filter(|case| case.join("expect.json").exists()) {
        let found = differences(case);
        println!("{}: {} differences", case.file_name().unwrap().display(), found.len());
        found.iter().for_each(|difference| println!("  {difference}"));
        total += found.len();
    }
    assert_eq!(total, 0);
}

#[test]
fn characters_that_are_never_completed_come_at_the_end() {
    let (tokenizer, _) = fixture("bytelevel");
    let mut emoji = tokenizer.encode("🦀", false).unwrap();
    assert!(emoji.len() > 1, "one token each would test nothing");
    emoji.pop();
    let mut detokenizer = tokenizer.detokenizer();
    for id in &emoji {
        assert_eq!(detokenizer.push(*id).unwrap(), "");
    }
    assert!(detokenizer.finish().unwrap().contains('\u{fffd}'));
}

/// What loading says of a tokenizer of `bytelevel` with this part.
fn refusal_with(part: &str, value: Value) -> String {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text/bytelevel/tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(dir).unwrap()).unwrap();
    *json.pointer_mut(part).unwrap() = value;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::load(folder.path()).map(drop).unwrap_err().to_string()
}

#[test]
fn tokenizers_that_write_without_end_are_errors() {
    let replace =
        |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let twice = vec![replace("a", "aa"); 50];
    let part = json!({ "type": "Sequence", "normalizers": twice });
    // Added tokens are normalized while the file is read.
    assert!(refusal_with("/normalizer", part).contains("grow"));
    let part = json!({ "type": "Sequence", "decoders": vec![replace("", "a"); 50] });
    assert!(refusal_with("/decoder", part).contains("grow"));
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let part = json!({ "type": "Sequence", "pretokenizers": vec![bytes; 50] });
    assert!(refusal_with("/pre_tokenizer", part).contains("grow"));
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let pair = [text.clone(), json!({ "Sequence": { "id": "B", "type_id": 0 } })];
    let part =
        json!({ "type": "TemplateProcessing", "single": vec![text; 9], "pair": pair, "special_tokens": {} });
    assert!(refusal_with("/post_processor", part).contains("9 times"));
    let part = json!({ "type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "",
        "max_input_chars_per_word": 1_000_000_000, "vocab": { "a": 0 } });
    assert!(refusal_with("/model", part).contains("max_input_chars_per_word"));
}

/// A field of a protocol buffer: bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    [out, bytes.to_vec()].concat()
}

#[test]
fn many_added_tokens_take_no_longer_than_their_file() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text/tiktoken/tiny.tiktoken");
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(dir, folder.path().join("tiny.tiktoken")).unwrap();
    let token = |id: u32| (id.to_string(), json!({ "content": format!("<{id}>"), "special": true }));
    let tokens: serde_json::Map<String, Value> = (1000..51_000).map(token).collect();
    let config = json!({ "added_tokens_decoder": tokens }).to_string();
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let start = std::time::Instant::now();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("<50999><1000>", false).unwrap(), [50_999, 1000]);
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn a_piece_of_a_million_characters_takes_no_longer_than_its_file() {
    let piece = |text: &str, kind: u8| field(1, &[field(1, text.as_bytes()), vec![3 << 3, kind]].concat());
    let pieces = [piece("<unk>", 2), piece("a", 1), piece("aa", 1), piece(&"a".repeat(1_000_000), 1)];
    let bpe = field(2, &[3 << 3, 2]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.model"), [pieces.concat(), bpe].concat()).unwrap();
    let start = std::time::Instant::now();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("aaaa", false).unwrap(), [0, 2, 2]);
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

/// The tokenizer of `bytelevel` in `dir`, with marks of thoughts and these entries in its config.
fn adapted(dir: &Path, marks: bool, entries: Value) -> Tokenizer {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text/bytelevel");
    let read = |name: &str| std::fs::read(source.join(name)).unwrap();
    let mut json: Value = serde_json::from_slice(&read("tokenizer.json")).unwrap();
    let first = json["model"]["vocab"].as_object().unwrap().len();
    for (at, mark) in ["<think>", "</think>"].into_iter().enumerate().filter(|_| marks) {
        let mut token = json["added_tokens"][0].clone();
        (token["id"], token["content"], token["special"]) = ((first + at).into(), mark.into(), false.into());
        json["added_tokens"].as_array_mut().unwrap().push(token);
    }
    let mut config: Value = serde_json::from_slice(&read("tokenizer_config.json")).unwrap();
    config.as_object_mut().unwrap().extend(entries.as_object().unwrap().clone());
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::load(dir).unwrap()
}

/// `tests/oracle/chat_formats.py`
#[test]
fn chats_of_deepseek_v32_are_those_of_mlx_lm() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../fixtures/text/deepseek_v32.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let entries = json!({ "chat_template_type": "deepseek_v32", "chat_template": "unused" });
    let mut wrong = Vec::new();
    for marks in [false, true] {
        let tokenizer = adapted(dir.path(), marks, entries.clone());
        assert!(tokenizer.has_chat_template().unwrap());
        for case in cases.iter().filter(|case| case["marks"] == marks) {
            let chat: Chat = serde_json::from_value(case.clone()).unwrap();
            match (tokenizer.apply_chat_template(&chat), case["rendered"].as_str()) {
                (Ok(text), Some(expected)) if text == expected => {}
                (Err(error), None) if error.to_string().len() > 40 => {}
                (found, _) => wrong.push(format!("{case}\n  {found:?}")),
            }
        }
    }
    assert!(cases.len() > 60);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let tokenizer = adapted(dir.path(), true, entries);
    let told = |message: Value, kwargs: Value| {
        let messages = vec![json!({ "role": "user", "content": "x" }), message];
        let chat = Chat { kwargs: kwargs.as_object().unwrap().clone(), ..Chat::new(messages) };
        tokenizer.apply_chat_template(&chat).unwrap_err().to_string()
    };
    let call = |arguments: Value| json!({ "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": arguments } }] });
    for (message, kwargs, expected) in [
        (json!({ "role": "tool" }), json!({}), "message 1: a result of a tool, but 0 calls"),
        (json!({ "role": "critic" }), json!({}), "message 1: the role \"critic\" is none of"),
        (json!({ "role": "user" }), json!({ "level": 7 }), "no variable `level`"),
        (json!({ "role": "user" }), json!({ "thinking_mode": 1 }), "`thinking` or `chat`, not 1"),
        (json!({ "role": "user", "content": 7 }), json!({}), "neither text nor"),
        (json!({ "role": "assistant", "content": "y" }), json!({}), "neither `reasoning_content` nor"),
        (call(json!("[1]")), json!({}), "arguments of `f` are not a JSON object"),
        (call(json!(null)), json!({}), "arguments of `f` are not a JSON object"),
    ] {
        let error = told(message, kwargs);
        assert!(error.contains(expected), "{error}");
    }
    // Arguments that were read already are the same as their text.
    let [read, text] = [call(json!({ "a": 1 })), call(json!("{\"a\": 1}"))]
        .map(|message| tokenizer.apply_chat_template(&Chat::new(vec![message])).unwrap());
    assert_eq!(read, text);
    // A template that is asked for by name is used.
    let named = Chat { template: Some("default".into()), ..Chat::user("x") };
    assert_eq!(tokenizer.apply_chat_template(&named).unwrap(), "unused");
}

#[test]
fn types_of_chat_templates_that_nobody_knows_are_told() {
    let dir = tempfile::tempdir().unwrap();
    for name in [json!("deepseek_v99"), json!(7)] {
        let entries =
            json!({ "chat_template_type": name, "chat_template": "used {{ messages[0].content }}" });
        let tokenizer = adapted(dir.path(), false, entries);
        let error = tokenizer.apply_chat_template(&Chat::user("x")).unwrap_err().to_string();
        assert!(error.contains(&format!("`chat_template_type` {name} is not supported")), "{error}");
        assert_eq!(tokenizer.has_chat_template().unwrap_err().to_string(), error);
    }
    for name in [json!(null), json!(""), json!("muse_spark")] {
        let entries =
            json!({ "chat_template_type": name, "chat_template": "used {{ messages[0].content }}" });
        let tokenizer = adapted(dir.path(), false, entries);
        assert_eq!(tokenizer.apply_chat_template(&Chat::user("x")).unwrap(), "used x");
    }
}

/// `tests/oracle/chat_formats.py`
#[test]
fn line_breaks_are_written_as_mlx_lm_writes_them() {
    let rows: Vec<Value> = serde_json::from_str(include_str!("../fixtures/text/newline.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    for (token, name) in [(true, "NewlineTokenizer"), (false, "NewlineTokenizer"), (false, "Other")] {
        adapted(dir.path(), false, json!({ "tokenizer_class": name }));
        if token {
            let path = dir.path().join("tokenizer.json");
            let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let id = json["model"]["vocab"].as_object().unwrap().len();
            let mut added = json["added_tokens"][0].clone();
            (added["id"], added["content"], added["special"]) = (id.into(), "<n>".into(), false.into());
            json["added_tokens"].as_array_mut().unwrap().push(added);
            std::fs::write(&path, json.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        for row in rows.iter().filter(|row| row["token"] == token && row["class"] == name) {
            let text = row["text"].as_str().unwrap();
            let found = tokenizer.encode(text, false).unwrap();
            assert_eq!(found, ids(&row["ids"]), "{row}");
            assert_eq!(tokenizer.encode_ordinary(text).unwrap(), found, "{row}");
            assert_eq!(tokenizer.decode(&found, false).unwrap(), row["decoded"].as_str().unwrap());
            let (mut detokenizer, mut streamed) = (tokenizer.detokenizer(), String::new());
            for id in &found {
                streamed += &detokenizer.push(*id).unwrap();
            }
            assert_eq!(streamed + &detokenizer.finish().unwrap(), row["decoded"].as_str().unwrap());
            count += 1;
        }
        let bytes = tokenizer.token_bytes().unwrap();
        let breaks: Vec<&[u8]> =
            tokenizer.encode("\n", false).unwrap().iter().map(|&id| bytes[id as usize].as_slice()).collect();
        assert_eq!(breaks.concat(), if token || name == "Other" { b"\n".as_slice() } else { b"<n>" });
    }
    assert_eq!(count, rows.len());
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
    let start = std::time::Instant::now();
    let twice = "{% set n = namespace(x=['0123456789']) %}{% for i in range(99) %}";
    let long = "{% set s = 'a' * 9000000 %}";
    for (template, message) in [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}", ""),
        (&format!("{twice}{{% set n.x = n.x ~ n.x %}}{{% endfor %}}"), "MiB"),
        (&format!("{twice}{{% set n.x = n.x|string + n.x|string %}}{{% endfor %}}"), "MiB"),
        (&format!("{twice}{{% set n.x = n.x + n.x %}}{{% endfor %}}"), ""),
        (&format!("{twice}{{% set n.x %}}{{{{ n.x }}}}{{{{ n.x }}}}{{% endset %}}{{% endfor %}}"), "MiB"),
        ("{% set s = 'a' * 9000000 %}{{ s.replace('a', s) }}", ""),
        ("{% set s = 'a' * 9000000 %}{{ s | list | join(s) }}", ""),
        ("{{ 'a' * 999999999999 }}", ""),
        ("{{ ([1, 2] * 999999999999) | length }}", "too large"),
        ("{{ 'a\\nb' | indent(999999999999) }}", "too large"),
        ("{{ '%999999999d' | format(1) }}", "four digits"),
        ("{{ '%999999999d' % 1 }}", "four digits"),
        ("{{ '{:999999999}'.format(1) }}", "four digits"),
        ("{{ [1] | tojson(indent=99999) }}", "indent"),
        ("{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}", "deep"),
        (
            "{% set n = namespace(x={}) %}{% for i in range(99999) %}{% set n.x = {'a': n.x} %}{% endfor %}",
            "deep",
        ),
        ("{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('abc') }}", ""),
        // Values that hold themselves, or would be endless as a text.
        ("{% set n = namespace() %}{% set n.x = n %}{{ n.x }}", "within a namespace"),
        ("{% set n = namespace() %}{% set n.x, n.y = 1, [{'a': n}] %}", "within a namespace"),
        (
            "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = dict(a=n.x) %}{% endfor %}",
            "deep",
        ),
        (
            "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = [n.x]|batch(1)|list %}{% endfor %}",
            "deep",
        ),
        (
            "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = [range(2000), [n.x][0:]] %}{% endfor %}",
            "",
        ),
        (&format!("{long}{{{{ ([s] * 9999) | pprint }}}}"), "lists of more than"),
        (&format!("{long}{{% set l = [s, s, s] %}}{{{{ ('%s' * 9) | format(l) }}}}"), "MiB"),
        (&format!("{long}{{{{ '%(x)s' * 9999 % {{'x': s}} }}}}"), "MiB"),
        (&format!("{long}{{{{ ('{{0}}' * 9999).format(s) }}}}"), "MiB"),
        ("{{ debug() }}", "debug"),
        ("{% include 'chat' %}", "other templates"),
        (&format!("{{{{ {} }}}}", vec!["1"; 400_000].join("+")), "deep"),
        (&format!("{{{{ {}1{} }}}}", "(".repeat(9999), ")".repeat(9999)), ""),
    ] {
        let error = render(template, json!({})).unwrap_err().to_string();
        assert!(error.contains(message), "{}: {error}", &template[..template.len().min(80)]);
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
