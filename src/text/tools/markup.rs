//! Calls whose arguments are elements of markup.

use serde_json::{Map, Value};

use super::formats::{objects, pattern};
use super::literal::literal;
use super::values::{
    deserialize, float, is_text, json, json_or_text, lenient_json, of_types, properties, types, whole,
};
use super::{Calls, NONE, ToolCall, call};
use crate::text::python::python_text;

/// What stands between `open` and the next `close`, for each of them.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(open)?;
        let (inner, after) = after.split_once(close)?;
        rest = after;
        Some(inner)
    })
}

/// Without one line break at each end.
fn unwrapped(text: &str) -> &str {
    let text = text.strip_prefix('\n').unwrap_or(text);
    text.strip_suffix('\n').unwrap_or(text)
}

/// Without the quotes around it.
fn unquoted(name: &str) -> &str {
    let name = name.trim();
    let inner = |quote| name.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(name)
}

pub(super) fn glm47(text: &str, tools: &[Value]) -> Calls {
    if text.contains("<arg_key>") {
        return Ok(vec![elements(text, "", tools)]);
    }
    let parsed = json(text.trim()).and_then(|value| glm_json(value, tools));
    let parsed = parsed.or_else(|| glm_text(text.trim(), tools));
    Ok(vec![parsed.unwrap_or_else(|| raw("unknown", text.trim()))])
}

pub(super) fn longcat(text: &str, tools: &[Value]) -> Calls {
    let text = text.trim();
    if text.starts_with('{')
        && let Some(value) = json(text)
    {
        return objects(value);
    }
    if !text.contains("<longcat_arg_key>") {
        return Err(NONE.to_owned());
    }
    Ok(vec![elements(text, "longcat_", tools)])
}

/// A name, and arguments as pairs of elements.
fn elements(text: &str, prefix: &str, tools: &[Value]) -> ToolCall {
    pattern!(GLM r"(?s)<arg_key>(.*?)</arg_key>(?:\\n|\s)*<arg_value>(.*?)</arg_value>");
    pattern!(LONGCAT
        r"(?s)<longcat_arg_key>(.*?)</longcat_arg_key>(?:\\n|\s)*<longcat_arg_value>(.*?)</longcat_arg_value>");
    let pairs = if prefix.is_empty() { &*GLM } else { &*LONGCAT };
    let name = text.split(&format!("<{prefix}arg_key>")).next().unwrap_or_default().trim();
    let arguments = pairs.captures_iter(text).map(|pair| {
        let (key, value) = (pair[1].trim(), pair[2].trim());
        let value = if is_text(tools, name, key) { Value::from(value) } else { deserialize(value) };
        (key.to_owned(), value)
    });
    call(name, arguments.collect::<Map<_, _>>())
}

fn raw(name: &str, text: &str) -> ToolCall {
    call(name, Map::from_iter([("raw".to_owned(), Value::from(text))]))
}

/// The texts among the arguments as what they say, unless the schema says that they are texts.
fn normalized(name: &str, arguments: Map<String, Value>, tools: &[Value]) -> ToolCall {
    let arguments = arguments.into_iter().map(|(key, value)| {
        let value = match (is_text(tools, name, &key), value) {
            (true, Value::String(text)) => Value::String(text),
            (true, other) => Value::String(python_text(&other)),
            (false, Value::String(text)) => deserialize(&text),
            (false, other) => other,
        };
        (key, value)
    });
    call(name, arguments.collect::<Map<_, _>>())
}

fn glm_json(value: Value, tools: &[Value]) -> Option<ToolCall> {
    let object = match value {
        Value::Array(all) => all.into_iter().next()?,
        value => value,
    };
    let has = |key: &str| object.get(key).is_some();
    let (mut name, mut arguments) = if has("name") && has("arguments") {
        (object["name"].clone(), object["arguments"].clone())
    } else if has("function") && has("arguments") {
        (object["function"].clone(), object["arguments"].clone())
    } else if object["tool"].is_object() {
        (object["tool"]["name"].clone(), object["tool"]["arguments"].clone())
    } else {
        return None;
    };
    if name.is_object() {
        let empty = match &arguments {
            Value::Null => true,
            Value::Object(all) => all.is_empty(),
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        if empty {
            arguments = name["arguments"].clone();
        }
        name = name["name"].clone();
    }
    if let Value::String(text) = &arguments {
        arguments = deserialize(text);
    }
    match (name, arguments) {
        (Value::String(name), Value::Null) => Some(call(name, Map::new())),
        (Value::String(name), Value::Object(all)) => Some(normalized(&name, all, tools)),
        _ => None,
    }
}

fn glm_text(text: &str, tools: &[Value]) -> Option<ToolCall> {
    if let Some((name, rest)) = text.split_once('\n')
        && let (name, rest) = (name.trim(), rest.trim())
        && !name.is_empty()
        && !rest.is_empty()
        && let Value::Object(all) = deserialize(rest)
    {
        return Some(normalized(name, all, tools));
    }
    let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
    let rest = rest.trim();
    if name.is_empty() {
        return None;
    }
    if rest.is_empty() {
        return Some(call(name, Map::new()));
    }
    if let Value::Object(all) = deserialize(rest) {
        return Some(normalized(name, all, tools));
    }
    let Some(words) = words(rest).filter(|words| rest.contains('=') && !words.is_empty()) else {
        return Some(raw(name, rest));
    };
    let mut arguments = Map::new();
    for word in words {
        let Some((key, value)) = word.split_once('=').map(|(key, value)| (key.trim(), value)) else {
            return Some(raw(name, rest));
        };
        if key.is_empty() {
            return Some(raw(name, rest));
        }
        let value = if is_text(tools, name, key) { Value::from(value) } else { deserialize(value) };
        arguments.insert(key.to_owned(), value);
    }
    Some(call(name, arguments))
}

/// The words of a shell's line, without comments. Fails where a quote does not end.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().push(chars.next()?),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

pub(super) fn kimi_k3(text: &str, _: &[Value]) -> Calls {
    const SEPARATOR: &str = "<|sep|>";
    /// The attributes and the content of each element.
    fn all<'a>(text: &'a str, name: &str) -> Vec<(&'a str, &'a str)> {
        let (open, close) = (format!("<|open|>{name}"), format!("<|close|>{name}{SEPARATOR}"));
        let (mut found, mut rest) = (Vec::new(), text);
        while let Some((_, after)) = rest.split_once(&open) {
            let inner = after.split_once(SEPARATOR);
            let inner = inner.and_then(|(attributes, body)| Some((attributes, body.split_once(&close)?)));
            rest = match inner {
                Some((attributes, (body, after))) => {
                    found.push((attributes, body));
                    after
                }
                None => after,
            };
        }
        found
    }
    fn attribute(text: &str, name: &str) -> Option<String> {
        pattern!(ATTRIBUTE r#"(\w+)="([^"]*)""#);
        let value = ATTRIBUTE.captures_iter(text).filter(|found| &found[1] == name).last()?;
        Some(value[2].replace("&quot;", "\"").replace("&amp;", "&"))
    }
    fn one(attributes: &str, body: &str) -> Option<ToolCall> {
        let name = attribute(attributes, "tool").filter(|name| !name.is_empty())?;
        if let Some((_, block)) = all(body, "json").first() {
            return Some(call(name, json(block).filter(Value::is_object)?));
        }
        let arguments = all(body, "argument").into_iter().map(|(attributes, value)| {
            let kind = attribute(attributes, "type");
            let is_text = kind.is_none_or(|kind| kind == "string");
            let value = if is_text { Value::from(value) } else { json_or_text(value) };
            Some((attribute(attributes, "key")?, value))
        });
        Some(call(name, arguments.collect::<Option<Map<_, _>>>()?))
    }
    let calls: Vec<_> =
        all(text, "call").into_iter().filter_map(|(attributes, body)| one(attributes, body)).collect();
    if calls.is_empty() { Err(NONE.to_owned()) } else { Ok(calls) }
}

pub(super) fn minicpm5(text: &str, tools: &[Value]) -> Calls {
    pattern!(CALL concat!(
        r#"(?s)(?:<function\s+)?(?:name\s*=\s*)?("[^"]*"|'[^']*'|[^\s"'<>]+)\s*>"#,
        r"(.*?)(?:</function>|\n?\z)"
    ));
    pattern!(PARAMETER r#"(?s)<param\s+name\s*=\s*("[^"]*"|'[^']*'|[^\s"'<>]+)\s*>(.*?)</param>"#);
    pattern!(CDATA r"(?s)^\s*<!\[CDATA\[(.*?)\]\]>\s*$");
    let calls = CALL.captures_iter(text).map(|found| {
        let name = unquoted(&found[1]);
        let schemas = properties(tools, name);
        let arguments = PARAMETER.captures_iter(&found[2]).map(|parameter| {
            let key = unquoted(&parameter[1]);
            let value = match CDATA.captures(&parameter[2]) {
                Some(data) => data[1].to_owned(),
                None => parameter[2].trim().to_owned(),
            };
            (key.to_owned(), of_types(&value, &types(schemas.and_then(|all| all.get(key)))))
        });
        call(name, arguments.collect::<Map<_, _>>())
    });
    let calls: Vec<_> = calls.collect();
    if calls.is_empty() { Err(NONE.to_owned()) } else { Ok(calls) }
}

pub(super) fn minimax_m2(text: &str, tools: &[Value]) -> Calls {
    let mut invokes = between(text, "<invoke name=", "</invoke>").peekable();
    if invokes.peek().is_none() {
        return Err(NONE.to_owned());
    }
    let calls = invokes.filter_map(|invoke| {
        let name = invoke.split('>').next().filter(|name| !name.is_empty()).map(unquoted)?;
        let schemas = properties(tools, name);
        let arguments = between(invoke, "<parameter name=", "</parameter>").filter_map(|parameter| {
            let (key, value) = parameter.split_once('>').filter(|(key, _)| !key.is_empty())?;
            let key = unquoted(key);
            Some((key.to_owned(), of_types(value.trim(), &types(schemas.and_then(|all| all.get(key))))))
        });
        Some(call(name, arguments.collect::<Map<_, _>>()))
    });
    Ok(calls.collect())
}

pub(super) fn muse_spark(text: &str, _: &[Value]) -> Calls {
    pattern!(CALL concat!(
        r#"(?s)<atem:invoke\b[^>]*?\bname="([^"]+)">"#,
        r"((?:<atem:parameter\b.*?</atem:parameter>|.)*?)(?:</atem:invoke>|\n?\z)"
    ));
    pattern!(PARAMETER r#"(?s)<atem:parameter\b[^>]*?\bname="([^"]+)"[^>]*?>(.*?)</atem:parameter>"#);
    let calls = CALL.captures_iter(text).map(|found| {
        let arguments = PARAMETER.captures_iter(&found[2]).map(|parameter| {
            let value = json(&parameter[2]).unwrap_or_else(|| Value::from(parameter[2].trim()));
            (parameter[1].to_owned(), value)
        });
        call(&found[1], arguments.collect::<Map<_, _>>())
    });
    let calls: Vec<_> = calls.collect();
    if calls.is_empty() { Err(NONE.to_owned()) } else { Ok(calls) }
}

pub(super) fn qwen3_coder(text: &str, tools: &[Value]) -> Calls {
    pattern!(CALL r"(?s)<function=(.*?)</function>\n?\z");
    pattern!(NAME r"^\s*([^\s<>]+)>?");
    let found = CALL.captures(text).ok_or(NONE)?;
    let body = found.get(1).map_or("", |m| m.as_str());
    let head = NAME.captures(body).ok_or("a call without a name")?;
    let name = &head[1];
    let schemas = properties(tools, name);
    let mut arguments = Map::new();
    for parameter in between(&body[head[0].len()..], "<parameter=", "</parameter>") {
        if let Some(head) = NAME.captures(parameter) {
            let value = unwrapped(&parameter[head[0].len()..]);
            let value = of_schema(value, schemas.and_then(|all| all.get(&head[1])))?;
            arguments.insert(head[1].to_owned(), value);
        }
    }
    Ok(vec![call(name, arguments)])
}

/// The value as its schema has it, which may be a type of another language.
fn of_schema(text: &str, schema: Option<&Value>) -> Result<Value, String> {
    if text.to_lowercase() == "null" {
        return Ok(Value::Null);
    }
    let Some(schema) = schema.and_then(Value::as_object).filter(|schema| !schema.is_empty()) else {
        return Ok(Value::from(text));
    };
    let Some(kind) = schema.get("type") else {
        let value = json(text).filter(|value| value.is_object() || value.is_array());
        return Ok(value.unwrap_or_else(|| Value::from(text)));
    };
    let kind = kind.as_str().map(|kind| kind.trim().to_lowercase()).unwrap_or_default();
    let starts = |names: &[&str]| names.iter().any(|name| kind.starts_with(name));
    let number = || float(text).filter(|x| x.is_finite()).ok_or_else(|| format!("{text:?} is no number"));
    if matches!(kind.as_str(), "string" | "str" | "text" | "varchar" | "char" | "enum") {
        return Ok(Value::from(text));
    }
    if starts(&["int", "uint", "long", "short", "unsigned"]) {
        let number = number()?;
        return match number.fract() == 0.0 {
            true => whole(number).ok_or_else(|| format!("{text:?} is no number")),
            false => Err(format!("{text:?} is no whole number")),
        };
    }
    if starts(&["num", "float"]) {
        return whole(number()?).ok_or_else(|| format!("{text:?} is no number"));
    }
    if matches!(kind.as_str(), "boolean" | "bool" | "binary") {
        return Ok(Value::Bool(text.to_lowercase() == "true"));
    }
    let nested = matches!(kind.as_str(), "object" | "array" | "arr") || starts(&["dict", "list"]);
    let value = if nested { lenient_json(text) } else { None };
    Ok(value.or_else(|| literal(text)).unwrap_or_else(|| Value::from(text)))
}
