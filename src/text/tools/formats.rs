//! Calls whose arguments are JSON or look like it.

use regex::Regex;
use serde_json::{Map, Value};

use super::literal::{calls, literal};
use super::values::{deserialize, json, json_or_text};
use super::{Calls, NONE, ToolCall, call};

pub(super) fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of ours")
}

macro_rules! pattern {
    ($name:ident $pattern:expr) => {
        static $name: std::sync::LazyLock<regex::Regex> =
            std::sync::LazyLock::new(|| $crate::text::tools::formats::regex($pattern));
    };
}
pub(super) use pattern;

/// A call from an object with `name` and `arguments`, or from a list of them.
pub(super) fn objects(value: Value) -> Calls {
    let one = |value: Value| match value {
        Value::Object(mut object) => match object.remove("name") {
            Some(Value::String(name)) => {
                let arguments = object.remove("arguments").unwrap_or_else(|| Map::new().into());
                let id = object.remove("id").and_then(|id| id.as_str().map(str::to_owned));
                Ok(ToolCall { id, name, arguments })
            }
            _ => Err("the call has no name".to_owned()),
        },
        _ => Err("the call is no object".to_owned()),
    };
    match value {
        Value::Array(all) => all.into_iter().map(one).collect(),
        value => one(value).map(|call| vec![call]),
    }
}

pub(super) fn json_tools(text: &str, _: &[Value]) -> Calls {
    objects(serde_json::from_str(text.trim()).map_err(|e| e.to_string())?)
}

pub(super) fn function_gemma(text: &str, _: &[Value]) -> Calls {
    const ESCAPE: &str = "<escape>";
    pattern!(CALL r"(?s)call:(\w+)\{(.*?)\}");
    let found = CALL.captures(text).ok_or(NONE)?;
    let (name, mut rest) = (&found[1], found.get(2).map_or("", |m| m.as_str()));
    // One character separates the arguments.
    let after = |text: &'_ str, at: usize| text[at..].chars().next().map_or(at, |c| at + c.len_utf8());
    let mut arguments = Map::new();
    while !rest.is_empty() {
        let (key, value) = rest.split_once(':').ok_or("an argument without a name")?;
        rest = match value.strip_prefix(ESCAPE) {
            Some(quoted) => {
                let end = quoted.find(ESCAPE).ok_or("a text without an end")?;
                arguments.insert(key.to_owned(), Value::from(&quoted[..end]));
                &quoted[after(quoted, end + ESCAPE.len())..]
            }
            None => {
                let end = value.find(',').unwrap_or(value.len());
                arguments.insert(key.to_owned(), json_or_text(&value[..end]));
                &value[after(value, end)..]
            }
        };
    }
    Ok(vec![call(name, arguments)])
}

/// Calls without an end that are looked at.
const MAX_OPEN: usize = 16;
const QUOTE: &str = "<|\"|>";

pub(super) fn gemma4(text: &str, _: &[Value]) -> Calls {
    pattern!(HEAD r"call:([\w-]+)\{");
    let (mut found, mut at, mut failures) = (Vec::new(), 0, 0);
    while let Some(head) = HEAD.captures_at(text, at) {
        let start = head.get(0).map_or(text.len(), |m| m.end()) - 1;
        match balanced(&text[start..]) {
            Some(length) => {
                let arguments = quoted_keys(&text[start..start + length]);
                let arguments: Value = serde_json::from_str(&arguments).map_err(|e| e.to_string())?;
                found.push(call(&head[1], arguments));
                at = start + length;
            }
            None if failures < MAX_OPEN => (at, failures) = (start, failures + 1),
            None => break,
        }
    }
    if found.is_empty() { Err(NONE.to_owned()) } else { Ok(found) }
}

/// The length of the braces that `text` begins with.
fn balanced(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let rest = &text[at..];
        if let Some(quoted) = rest.strip_prefix(QUOTE) {
            at += 2 * QUOTE.len() + quoted.find(QUOTE)?;
            continue;
        }
        let c = rest.chars().next()?;
        at += c.len_utf8();
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
}

/// JSON from objects whose keys are bare and whose texts are in Gemma's quotes.
fn quoted_keys(text: &str) -> String {
    pattern!(KEY r"([{,])(\w+):");
    let mut out = String::new();
    for (i, part) in text.split(QUOTE).enumerate() {
        match i % 2 {
            0 => out.push_str(&KEY.replace_all(part, "$1\"$2\":")),
            _ => out.push_str(&Value::from(part).to_string()),
        }
    }
    out
}

pub(super) fn kimi_k2(text: &str, _: &[Value]) -> Calls {
    pattern!(CALL r"(?s)<\|tool_call_begin\|>(.*?)<\|tool_call_end\|>");
    pattern!(PARTS r"(?s)^\s*((?:functions\.)?(.+?):\d+)\s*<\|tool_call_argument_begin\|>\s*(.*)");
    let one = |text: &str| {
        let parts = PARTS.captures(text).ok_or(NONE)?;
        let id = Some(parts[1].to_owned());
        Ok(ToolCall { id, name: parts[2].to_owned(), arguments: deserialize(&parts[3]) })
    };
    if !CALL.is_match(text) {
        return one(text).map(|call| vec![call]);
    }
    CALL.captures_iter(text).map(|found| one(&found[1])).collect()
}

pub(super) fn mistral(text: &str, _: &[Value]) -> Calls {
    pattern!(HEAD r"([\w-]+)\s*\[ARGS\]\s*");
    if let Some(Value::Array(all)) = json(text)
        && !all.is_empty()
    {
        let mut calls = objects(all.into())?;
        for call in &mut calls {
            if let Value::String(text) = &call.arguments {
                call.arguments = json(text).ok_or("the arguments are no JSON")?;
            }
            if !call.arguments.is_object() {
                return Err("the arguments are no object".to_owned());
            }
        }
        return Ok(calls);
    }
    let (mut calls, mut at) = (Vec::new(), 0);
    while let Some(head) = HEAD.captures_at(text, at) {
        let start = head.get(0).map_or(text.len(), |m| m.end());
        let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        let arguments = values.next().ok_or("a call without arguments")?.map_err(|e| e.to_string())?;
        at = start + values.byte_offset();
        calls.push(call(&head[1], arguments));
    }
    if calls.is_empty() { Err(NONE.to_owned()) } else { Ok(calls) }
}

pub(super) fn pythonic(text: &str, _: &[Value]) -> Calls {
    if let (Some(start), Some(end)) = (text.find('['), text.rfind(']'))
        && start < end
        && let Some(calls) = calls(&text[start..=end])
    {
        return Ok(calls.into_iter().map(|(name, arguments)| call(name, arguments)).collect());
    }
    // What is not quite Python.
    pattern!(CALL r"(?s)\[([\w.]+)\((.*?)\)\]");
    pattern!(ARGUMENT r#"(?s)(\w+)=(?:"([^"]*)"|'([^']*)'|([^,]+))(?:,\s*|\n?\z)"#);
    let found = CALL.captures(text).ok_or(NONE)?;
    let arguments = ARGUMENT.captures_iter(&found[2]).map(|argument| {
        let quoted = argument.get(2).or_else(|| argument.get(3)).map(|m| m.as_str());
        let value = quoted.unwrap_or_else(|| argument.get(4).map_or("", |m| m.as_str().trim()));
        (argument[1].to_owned(), literal(value).unwrap_or_else(|| Value::from(value)))
    });
    Ok(vec![call(&found[1], arguments.collect::<Map<_, _>>())])
}
