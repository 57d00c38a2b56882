//! Any text as a chat template, with conversations that have what templates look at:
//! `scripts/fuzz chat_template`.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mlxport::text::{Chat, ChatTemplate, Tokenizer};
use serde_json::json;

const TOKENIZER: &str = r#"{"model": {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1}, "unk_token": "a"}}"#;
const CONFIG: &str = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#;

static CHATS: LazyLock<Vec<Chat>> = LazyLock::new(|| {
    let call = json!({ "id": "c1", "type": "function", "function": { "name": "f", "arguments": {"x": [1, 2.5, null]} } });
    let text = json!({ "type": "text", "text": "a picture of \u{65e5}" });
    let tools = json!({ "type": "function", "function": {
        "name": "f", "description": "Does.",
        "parameters": { "type": "object", "properties": { "x": { "type": "array" } }, "required": ["x"] },
    } });
    let with_tools = Chat {
        tools: Some(vec![tools]),
        documents: Some(vec![json!({ "title": "A", "text": "B" })]),
        ..Chat::new(vec![
            json!({ "role": "system", "content": "Be brief." }),
            json!({ "role": "user", "content": [text, { "type": "image" }] }),
            json!({ "role": "assistant", "content": null, "reasoning": "hm", "tool_calls": [call] }),
            json!({ "role": "tool", "tool_call_id": "c1", "name": "f", "content": "3" }),
        ])
    };
    let mut continued = Chat::user("Go on.");
    continued.messages.push(json!({ "role": "assistant", "content": "One, " }));
    (continued.add_generation_prompt, continued.continue_final_message) = (false, true);
    vec![Chat::user("x <s> y"), with_tools, continued, Chat::default()]
});

fuzz_target!(|text: &str| {
    let Ok(template) = ChatTemplate::new(text) else { return };
    let _ = template.render(json!({ "messages": [[[1]], {"a": {"b": "c"}}], "n": 3, "x": 0.1 }));
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, content) in
        [("tokenizer.json", TOKENIZER), ("tokenizer_config.json", CONFIG), ("chat_template.jinja", text)]
    {
        std::fs::write(dir.path().join(name), content).expect("room for it");
    }
    let tokenizer = Tokenizer::load(dir.path()).expect("its files are right");
    for chat in CHATS.iter() {
        let _ = tokenizer.apply_chat_template(chat);
    }
});
