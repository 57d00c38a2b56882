//! `str` and `json.dumps` of Python, which templates were written against.

use std::fmt::{self, Write};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

use super::bounds::{Bounded, Budget, MAX_DEPTH, invalid};

/// The deepest indentation, in spaces for each level.
const MAX_INDENT: usize = 64;

/// The filter `tojson`, with the arguments that transformers gives it.
pub(super) fn to_json(out: &mut Bounded, value: &Value, options: Kwargs) -> Result<(), Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent: Option<usize> = options.get("indent")?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        return Err(invalid(format!("an indent of more than {MAX_INDENT}")));
    }
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
    json.write(out, value, 0)
}

struct Json {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<usize>,
    item: String,
    key: String,
}

impl Json {
    fn write(&self, out: &mut Bounded, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("tojson of a value more than {MAX_DEPTH} deep")));
        }
        match value.kind() {
            ValueKind::None => out.write_str("null")?,
            ValueKind::Bool => out.write_str(if value.is_true() { "true" } else { "false" })?,
            ValueKind::Number => write!(out, "{}", number(value))?,
            ValueKind::String => self.write_text(out, value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                out.write_char('[')?;
                let mut empty = true;
                for item in value.try_iter()? {
                    self.begin_item(out, empty, depth)?;
                    empty = false;
                    self.write(out, &item, depth + 1)?;
                }
                self.end(out, empty, depth, ']')?;
            }
            ValueKind::Map => {
                out.write_char('{')?;
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                for (i, key) in keys.iter().enumerate() {
                    self.begin_item(out, i == 0, depth)?;
                    match key.kind() {
                        ValueKind::String => self.write_text(out, key.as_str().unwrap_or_default())?,
                        _ => {
                            out.write_char('"')?;
                            self.write(out, key, depth + 1)?;
                            out.write_char('"')?;
                        }
                    }
                    out.write_str(&self.key)?;
                    self.write(out, &value.get_item(key)?, depth + 1)?;
                }
                self.end(out, keys.is_empty(), depth, '}')?;
            }
            kind => return Err(invalid(format!("tojson of a value that is {kind}"))),
        }
        Ok(())
    }

    fn begin_item(&self, out: &mut Bounded, first: bool, depth: usize) -> fmt::Result {
        if !first {
            out.write_str(&self.item)?;
        }
        self.new_line(out, depth + 1)
    }

    fn end(&self, out: &mut Bounded, empty: bool, depth: usize, bracket: char) -> fmt::Result {
        if !empty {
            self.new_line(out, depth)?;
        }
        out.write_char(bracket)
    }

    fn new_line(&self, out: &mut Bounded, depth: usize) -> fmt::Result {
        match self.indent {
            Some(indent) => write!(out, "\n{:1$}", "", indent * depth),
            None => Ok(()),
        }
    }

    fn write_text(&self, out: &mut Bounded, text: &str) -> fmt::Result {
        out.write_char('"')?;
        for c in text.chars() {
            match c {
                '"' => out.write_str("\\\"")?,
                '\\' => out.write_str("\\\\")?,
                '\n' => out.write_str("\\n")?,
                '\r' => out.write_str("\\r")?,
                '\t' => out.write_str("\\t")?,
                '\u{8}' => out.write_str("\\b")?,
                '\u{c}' => out.write_str("\\f")?,
                '\0'..'\u{20}' => write!(out, "\\u{:04x}", u32::from(c))?,
                c if self.ensure_ascii && (!c.is_ascii() || c == '\u{7f}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(out, "\\u{unit:04x}")?;
                    }
                }
                c => out.write_char(c)?,
            }
        }
        out.write_char('"')
    }
}

/// `str(value)`; empty if it is too long or too deep.
pub(super) fn python_text(value: &impl serde::Serialize) -> String {
    let value = Value::from_serialize(value);
    Budget::new().text(|out| write_str(out, &value)).unwrap_or_default()
}

/// Writes `str(value)`.
pub(super) fn write_str(out: &mut Bounded, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String => Ok(out.write_str(value.as_str().unwrap_or_default())?),
        _ => write_repr(out, value, 0),
    }
}

fn write_repr(out: &mut Bounded, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("a value more than {MAX_DEPTH} deep")));
    }
    match value.kind() {
        ValueKind::Number => {
            write!(out, "{}", number(value).replace("Infinity", "inf").replace("NaN", "nan"))?
        }
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default())?,
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => {
            out.write_char('[')?;
            for (i, item) in value.try_iter()?.enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &item, depth + 1)?;
            }
            out.write_char(']')?;
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (i, key) in value.try_iter()?.enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &key, depth + 1)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.write_char('}')?;
        }
        _ => write!(out, "{value}")?,
    }
    Ok(())
}

/// A text in single quotes, or in double ones if only those are not in it.
fn write_quoted(out: &mut Bounded, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            '\0'..'\u{20}' | '\u{7f}'..='\u{a0}' | '\u{ad}' => write!(out, "\\x{:02x}", u32::from(c))?,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{feff}' | '\u{3000}' => {
                write!(out, "\\u{:04x}", u32::from(c))?;
            }
            c => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

/// A number as Python writes it: a float whose exponent is below -4 or above 15 has one.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(x) => float(x),
        Err(_) => value.to_string(),
    }
}

fn float(x: f64) -> String {
    if !x.is_finite() {
        let name = if x.is_nan() { "NaN" } else { "Infinity" };
        return if x < 0.0 { format!("-{name}") } else { name.to_owned() };
    }
    let scientific = format!("{x:e}");
    match scientific.split_once('e') {
        Some((digits, exponent)) => match exponent.parse::<i32>() {
            Ok(e) if x != 0.0 && !(-4..16).contains(&e) => {
                format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
            }
            _ => format!("{x:?}"),
        },
        None => scientific,
    }
}
