//! Chat templates: Jinja, as transformers runs it.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Value};
use serde::Serialize;

use crate::error::{Error, Result};

/// Steps that a template may take. The largest published ones take a few thousand for each message.
const FUEL: u64 = 10_000_000;
const NAME: &str = "chat";

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
}

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(source: &str) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(template_error)?;
        Ok(Self { environment: Arc::new(environment) })
    }

    /// The template of a checkpoint: in `chat_template.jinja`, or in its `tokenizer_config`, where it is
    /// a text or a list of named ones, of which `default` is taken.
    pub(super) fn load(dir: &Path, tokenizer_config: &serde_json::Value) -> Result<Option<Self>> {
        let path = dir.join("chat_template.jinja");
        if path.exists() {
            let source = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
            return Self::new(&source).map(Some);
        }
        let source = match &tokenizer_config["chat_template"] {
            serde_json::Value::Array(named) => named
                .iter()
                .find(|t| t["name"] == "default")
                .map_or(&serde_json::Value::Null, |t| &t["template"]),
            one => one,
        };
        source.as_str().map(Self::new).transpose()
    }

    /// The text for these variables: `messages`, `add_generation_prompt`, `tools`, `bos_token`, ...
    pub fn render(&self, context: impl Serialize) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(template_error)?;
        template.render(context).map_err(template_error)
    }
}

fn template_error(error: minijinja::Error) -> Error {
    let message = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    Error::argument(
        "chat_template",
        match error.line() {
            Some(line) => format!("line {line}: {message}"),
            None => message,
        },
    )
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(format)) {
        Ok(()) => Ok(text),
        Err(_) => {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime format `{format}`")))
        }
    }
}

/// `json.dumps` of Python, which templates were written against.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent: Option<usize> = options.get("indent")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        _ => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let json = Json {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    json.write(&mut out, value, 0)?;
    Ok(Value::from_safe_string(out))
}

struct Json {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<usize>,
    item: String,
    key: String,
}

impl Json {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), minijinja::Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                let _ = write!(out, "{value}");
            }
            ValueKind::String => self.write_text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let items: Vec<Value> = value.try_iter()?.collect();
                for (i, item) in items.iter().enumerate() {
                    self.begin_item(out, i, depth);
                    self.write(out, item, depth + 1)?;
                }
                self.end(out, items.is_empty(), depth, ']');
            }
            ValueKind::Map => {
                out.push('{');
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                for (i, key) in keys.iter().enumerate() {
                    self.begin_item(out, i, depth);
                    self.write_text(out, &key.to_string());
                    out.push_str(&self.key);
                    self.write(out, &value.get_item(key)?, depth + 1)?;
                }
                self.end(out, keys.is_empty(), depth, '}');
            }
            kind => {
                let message = format!("tojson of a value that is {kind}");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn begin_item(&self, out: &mut String, at: usize, depth: usize) {
        if at > 0 {
            out.push_str(&self.item);
        }
        self.new_line(out, depth + 1);
    }

    fn end(&self, out: &mut String, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.new_line(out, depth);
        }
        out.push(bracket);
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn write_text(&self, out: &mut String, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ensure_ascii {
            return out.push_str(&quoted);
        }
        for c in quoted.chars() {
            match c.is_ascii() {
                true => out.push(c),
                false => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            }
        }
    }
}

/// `{% generation %}` as `{% if true %}`, and its end: transformers has this tag to find what an
/// assistant said, and it changes no text.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        out.push_str(before);
        out.push_str(&tag[..tag.len() - name.len()]);
        rest = name;
        for (tag, plain) in [("generation", "if true"), ("endgeneration", "endif")] {
            if let Some(after) = name.strip_prefix(tag)
                && after.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                out.push_str(plain);
                rest = after;
            }
        }
    }
    out + rest
}
