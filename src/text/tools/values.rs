//! Values of arguments, from what a model wrote and the schema of its tool.

use serde_json::{Map, Number, Value};

use super::literal::{integer, literal};

/// JSON, or a literal of Python, or else the text.
pub(super) fn deserialize(text: &str) -> Value {
    json(text).or_else(|| literal(text)).unwrap_or_else(|| Value::from(text))
}

pub(super) fn json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

/// JSON, or else the text.
pub(super) fn json_or_text(text: &str) -> Value {
    json(text).unwrap_or_else(|| Value::from(text))
}

/// JSON whose texts may have line breaks and other control characters.
pub(super) fn lenient_json(text: &str) -> Option<Value> {
    let (mut escaped, mut quoted, mut backslash) = (String::with_capacity(text.len()), false, false);
    for c in text.chars() {
        if quoted && c < ' ' && !backslash {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
        quoted ^= c == '"' && !backslash;
        backslash = quoted && c == '\\' && !backslash;
    }
    json(&escaped)
}

/// The properties of a tool's parameters.
pub(super) fn properties<'a>(tools: &'a [Value], name: &str) -> Option<&'a Map<String, Value>> {
    let tool = tools.iter().find(|tool| tool["function"]["name"] == name)?;
    tool["function"]["parameters"]["properties"].as_object()
}

/// Whether a tool's schema says that an argument is a text.
pub(super) fn is_text(tools: &[Value], tool: &str, argument: &str) -> bool {
    properties(tools, tool).and_then(|all| all.get(argument)).is_some_and(|schema| schema["type"] == "string")
}

/// `float` of Python.
pub(super) fn float(text: &str) -> Option<f64> {
    let text = text.trim();
    if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// A number without a fraction as a whole one.
pub(super) fn whole(number: f64) -> Option<Value> {
    if number.fract() == 0.0 && number.abs() < 9.2e18 {
        return Some(Value::from(number as i64));
    }
    Number::from_f64(number).map(Value::Number)
}

/// The value of the first of these types that `text` has.
pub(super) fn of_types(text: &str, types: &[String]) -> Value {
    let lower = text.to_lowercase();
    let types: Vec<String> = types.iter().map(|name| name.to_lowercase()).collect();
    let has = |names: &[&str]| types.iter().any(|name| names.contains(&name.as_str()));
    if lower == "null" || has(&["null"]) && matches!(lower.as_str(), "none" | "nil") {
        return Value::Null;
    }
    let digits = text.trim().trim_start_matches('+');
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let plain = digits.replace('_', "");
    let is_integer = plain.bytes().all(|byte| byte.is_ascii_digit()) && float(digits).is_some();
    if has(&["integer", "int"])
        && is_integer
        && let Some(value) = integer(&format!("{sign}{plain}"))
    {
        return value;
    }
    if has(&["number", "float"])
        && let Some(value) = float(text).and_then(whole)
    {
        return value;
    }
    if has(&["boolean", "bool"]) {
        match lower.trim() {
            "true" | "1" | "yes" | "on" => return Value::Bool(true),
            "false" | "0" | "no" | "off" => return Value::Bool(false),
            _ => {}
        }
    }
    if has(&["object", "array"])
        && let Some(value) = lenient_json(text).or_else(|| literal(text))
    {
        return value;
    }
    if has(&["string", "str", "text"]) { Value::from(text) } else { json_or_text(text) }
}

/// The types that a schema allows; text if it does not say.
pub(super) fn types(schema: Option<&Value>) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(schema) = schema {
        collect(schema, &mut found, 0);
    }
    if found.is_empty() {
        found.push("string".to_owned());
    }
    found
}

fn collect(schema: &Value, found: &mut Vec<String>, depth: usize) {
    let before = found.len();
    match &schema["type"] {
        Value::String(name) => found.push(name.clone()),
        Value::Array(names) => found.extend(names.iter().filter_map(Value::as_str).map(str::to_owned)),
        _ => {}
    }
    for value in schema["enum"].as_array().into_iter().flatten() {
        let name = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        found.push(name.to_owned());
    }
    for choices in ["anyOf", "oneOf", "allOf"] {
        for choice in schema[choices].as_array().into_iter().flatten().filter(|_| depth < 100) {
            collect(choice, found, depth + 1);
        }
    }
    if depth > 0 && found.len() == before {
        found.push("string".to_owned());
    }
}
