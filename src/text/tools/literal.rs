//! Literals and calls of Python, which some models write.

use serde_json::{Map, Number, Value};

/// Lists within lists.
const MAX_DEPTH: usize = 100;

/// The value of a literal, as `json.dumps` would write it: a tuple is a list. Bytes, sets and complex
/// numbers have no such value.
pub(super) fn literal(text: &str) -> Option<Value> {
    let mut parser = Parser { rest: text, json_names: false };
    let value = parser.tuple_or_one(0)?;
    parser.space();
    parser.rest.is_empty().then_some(value)
}

/// `[name(key=literal, ...), ...]`, where `true`, `false` and `null` are literals too.
pub(super) fn calls(text: &str) -> Option<Vec<(String, Map<String, Value>)>> {
    let mut parser = Parser { rest: text, json_names: true };
    let mut all = Vec::new();
    parser.expect('[')?;
    while !parser.take(']') {
        all.push(parser.call()?);
        if !parser.take(',') {
            parser.expect(']')?;
            break;
        }
    }
    parser.space();
    (parser.rest.is_empty() && !all.is_empty()).then_some(all)
}

struct Parser<'a> {
    rest: &'a str,
    json_names: bool,
}

impl<'a> Parser<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, c: char) -> bool {
        self.space();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Option<()> {
        self.take(c).then_some(())
    }

    fn name(&mut self) -> Option<&'a str> {
        self.space();
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() || name.starts_with(|c: char| c.is_numeric()) {
            return None;
        }
        self.rest = rest;
        Some(name)
    }

    fn call(&mut self) -> Option<(String, Map<String, Value>)> {
        let mut name = self.name()?.to_owned();
        while self.take('.') {
            name = format!("{name}.{}", self.name()?);
        }
        self.expect('(')?;
        let mut arguments = Map::new();
        while !self.take(')') {
            let key = self.name()?.to_owned();
            self.expect('=')?;
            let value = self.value(0)?;
            // Python allows no argument twice.
            if arguments.insert(key, value).is_some() {
                return None;
            }
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Some((name, arguments))
    }

    /// `1, 2` is a tuple.
    fn tuple_or_one(&mut self, depth: usize) -> Option<Value> {
        let first = self.value(depth)?;
        if !self.take(',') {
            return Some(first);
        }
        let mut items = vec![first];
        loop {
            self.space();
            if self.rest.is_empty() || self.rest.starts_with(')') {
                return Some(items.into());
            }
            items.push(self.value(depth)?);
            if !self.take(',') {
                return Some(items.into());
            }
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.space();
        match self.rest.chars().next()? {
            '[' => self.list(depth),
            '(' => {
                self.expect('(')?;
                if self.take(')') {
                    return Some(Value::Array(Vec::new()));
                }
                let value = self.tuple_or_one(depth + 1)?;
                self.expect(')')?;
                Some(value)
            }
            '{' => self.dict(depth),
            '-' | '+' => {
                let negative = self.rest.starts_with('-');
                self.rest = &self.rest[1..];
                self.space();
                let value = match self.rest.chars().next()? {
                    '-' | '+' => self.value(depth + 1)?,
                    _ => self.number()?,
                };
                if negative { negated(&value) } else { value.is_number().then_some(value) }
            }
            '0'..='9' | '.' => self.number(),
            '"' | '\'' => self.texts(),
            _ => {
                let before = self.rest;
                let name = self.name()?;
                match name {
                    "True" => Some(Value::Bool(true)),
                    "False" => Some(Value::Bool(false)),
                    "None" => Some(Value::Null),
                    "true" if self.json_names => Some(Value::Bool(true)),
                    "false" if self.json_names => Some(Value::Bool(false)),
                    "null" if self.json_names => Some(Value::Null),
                    "r" | "R" | "u" | "U" if self.rest.starts_with(['"', '\'']) => {
                        self.rest = before;
                        self.texts()
                    }
                    _ => None,
                }
            }
        }
    }

    fn list(&mut self, depth: usize) -> Option<Value> {
        self.expect('[')?;
        let mut items = Vec::new();
        while !self.take(']') {
            items.push(self.value(depth + 1)?);
            if !self.take(',') {
                self.expect(']')?;
                break;
            }
        }
        Some(items.into())
    }

    fn dict(&mut self, depth: usize) -> Option<Value> {
        self.expect('{')?;
        let mut items = Map::new();
        while !self.take('}') {
            let key = match self.value(depth + 1)? {
                Value::String(text) => text,
                key @ (Value::Null | Value::Bool(_) | Value::Number(_)) => key.to_string(),
                _ => return None,
            };
            self.expect(':')?;
            let value = self.value(depth + 1)?;
            items.insert(key, value);
            if !self.take(',') {
                self.expect('}')?;
                break;
            }
        }
        Some(items.into())
    }

    fn number(&mut self) -> Option<Value> {
        let radix = match self.rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0x") => Some(16),
            Some("0o") => Some(8),
            Some("0b") => Some(2),
            _ => None,
        };
        let mut end = 0;
        let bytes = self.rest.as_bytes();
        while let Some(&byte) = bytes.get(end) {
            let sign = matches!(byte, b'+' | b'-') && radix.is_none();
            let exponent = sign && end > 0 && matches!(bytes[end - 1], b'e' | b'E');
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_') || exponent) {
                break;
            }
            end += 1;
        }
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        if text.ends_with('_') || text.contains("__") || text.starts_with('_') {
            return None;
        }
        let digits = text.replace('_', "");
        if let Some(radix) = radix {
            return i64::from_str_radix(digits.get(2..)?, radix).ok().map(Value::from);
        }
        if digits.bytes().all(|byte| byte.is_ascii_digit()) {
            // Python takes no zeros before a number.
            let zeros = digits.starts_with('0') && digits.bytes().any(|byte| byte != b'0');
            return if zeros { None } else { integer(&digits) };
        }
        let known = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-');
        if !digits.bytes().all(known) {
            return None;
        }
        Number::from_f64(digits.parse().ok()?).map(Value::Number)
    }

    /// Texts that follow each other are one.
    fn texts(&mut self) -> Option<Value> {
        let mut all = String::new();
        loop {
            self.space();
            let raw = self.rest.starts_with(['r', 'R']);
            let quoted = self.rest.trim_start_matches(['r', 'R', 'u', 'U']);
            if self.rest.len() - quoted.len() > 1 || !quoted.starts_with(['"', '\'']) {
                return Some(Value::String(all));
            }
            self.rest = quoted;
            self.text(raw, &mut all)?;
        }
    }

    fn text(&mut self, raw: bool, out: &mut String) -> Option<()> {
        let quote = &self.rest[..1];
        let long = quote.repeat(3);
        let end: &str = if self.rest.starts_with(&long) { &long } else { quote };
        let mut rest = &self.rest[end.len()..];
        loop {
            if let Some(after) = rest.strip_prefix(end) {
                self.rest = after;
                return Some(());
            }
            let c = rest.chars().next()?;
            rest = &rest[c.len_utf8()..];
            match c {
                '\n' if end.len() == 1 => return None,
                '\\' if raw => {
                    out.push('\\');
                    let next = rest.chars().next()?;
                    out.push(next);
                    rest = &rest[next.len_utf8()..];
                }
                '\\' => rest = escape(rest, out)?,
                c => out.push(c),
            }
        }
    }
}

/// Writes what follows a backslash, and returns what comes after it.
fn escape<'a>(text: &'a str, out: &mut String) -> Option<&'a str> {
    let c = text.chars().next()?;
    let rest = &text[c.len_utf8()..];
    let hexadecimal = |digits: usize| {
        let code = u32::from_str_radix(rest.get(..digits)?, 16).ok()?;
        Some((char::from_u32(code)?, &rest[digits..]))
    };
    let (written, rest) = match c {
        '\n' => return Some(rest),
        'n' => ('\n', rest),
        't' => ('\t', rest),
        'r' => ('\r', rest),
        'a' => ('\u{7}', rest),
        'b' => ('\u{8}', rest),
        'f' => ('\u{c}', rest),
        'v' => ('\u{b}', rest),
        '\\' | '\'' | '"' => (c, rest),
        'x' => hexadecimal(2)?,
        'u' => hexadecimal(4)?,
        'U' => hexadecimal(8)?,
        '0'..='7' => {
            let digits = text.bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
            (char::from_u32(u32::from_str_radix(&text[..digits], 8).ok()?)?, &text[digits..])
        }
        'N' => return None,
        other => {
            out.push('\\');
            (other, rest)
        }
    };
    out.push(written);
    Some(rest)
}

/// A whole number; as a float if it is larger than 64 bits.
pub(super) fn integer(digits: &str) -> Option<Value> {
    if let Ok(number) = digits.parse::<i64>() {
        return Some(number.into());
    }
    match digits.parse::<u64>() {
        Ok(number) => Some(number.into()),
        Err(_) => Number::from_f64(digits.parse().ok()?).map(Value::Number),
    }
}

fn negated(value: &Value) -> Option<Value> {
    match (value.as_i64(), value.as_f64()) {
        (Some(number), _) => number.checked_neg().map(Value::from),
        (None, Some(number)) => Number::from_f64(-number).map(Value::Number),
        _ => None,
    }
}
