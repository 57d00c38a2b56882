//! JSON as Python writes it: with `NaN`, `Infinity` and `-Infinity`, or, from transformers 5 on, with
//! `{"__float__": "Infinity"}` in their place.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde_json::{Error, Value};

const FLOAT: &str = "__float__";

/// Parses a text. An infinity becomes `{"__float__": "Infinity"}`, and `NaN` a string, which is no
/// number to whoever reads it as one.
pub(super) fn parse(text: &str) -> Result<Value, Error> {
    let plain = without_literals(text);
    let mut value = serde_json::from_str(&plain)?;
    plain_nan(&mut value);
    Ok(value)
}

/// A `T` from a parsed value, or the key that is wrong, as far as it is known, and why.
pub(super) fn read<T: DeserializeOwned>(value: &Value) -> Result<T, (Option<String>, Error)> {
    serde_path_to_error::deserialize(Python(value)).map_err(|e| {
        let key = Some(e.path().to_string()).filter(|path| path != ".");
        let cause = e.into_inner();
        (key.or_else(|| flattened::<T>(value, &cause.to_string())), cause)
    })
}

/// The only key with a value as the error tells of and without which there is another error, or none:
/// the path to a field of a flattened struct is lost on the way.
fn flattened<T: DeserializeOwned>(value: &Value, error: &str) -> Option<String> {
    let mut object = value.as_object()?.clone();
    let keys = value.as_object()?.iter().filter(|(_, value)| error.contains(&told(value)));
    let mut wrong = keys.filter_map(|(key, _)| {
        let removed = object.remove(key)?;
        let without = serde_path_to_error::deserialize::<_, T>(Python(&Value::Object(object.clone())));
        object.insert(key.clone(), removed);
        (without.err().map(|e| e.into_inner().to_string()).as_deref() != Some(error)).then(|| key.clone())
    });
    wrong.next().filter(|_| wrong.next().is_none())
}

/// A value as errors tell of it.
fn told(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => format!("boolean `{value}`"),
        Value::Number(number) if number.is_f64() => "floating point".to_owned(),
        Value::Number(_) => format!("integer `{value}`"),
        Value::String(value) => format!("string {value:?}"),
        Value::Array(_) => "sequence".to_owned(),
        Value::Object(_) => "map".to_owned(),
    }
}

/// The text with literals that JSON lacks written as objects.
fn without_literals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(at) = rest.find(if in_string { &['"', '\\'][..] } else { &['"', 'N', 'I', '-'][..] }) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let literal =
            ["NaN", "Infinity", "-Infinity"].into_iter().find(|l| !in_string && rest.starts_with(l));
        if let Some(literal) = literal {
            out.push_str(&format!(r#"{{"{FLOAT}":"{literal}"}}"#));
            rest = &rest[literal.len()..];
            continue;
        }
        // A backslash takes the character after it along.
        let after = rest.strip_prefix('\\').and_then(|rest| rest.chars().next());
        let escaped = after.map_or(0, char::len_utf8);
        in_string ^= rest.starts_with('"');
        out.push_str(&rest[..1 + escaped]);
        rest = &rest[1 + escaped..];
    }
    out + rest
}

/// The number that `{"__float__": ...}` stands for, as text.
fn float(value: &Value) -> Option<&str> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    object.get(FLOAT)?.as_str()
}

fn plain_nan(value: &mut Value) {
    if float(value) == Some("NaN") {
        *value = "NaN".into();
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(plain_nan),
        Value::Object(items) => items.values_mut().for_each(plain_nan),
        _ => {}
    }
}

/// Reads a value, infinities included.
#[derive(Clone, Copy)]
struct Python<'a>(&'a Value);

impl<'de> Deserializer<'de> for Python<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match (self.0, float(self.0)) {
            (_, Some("Infinity")) => visitor.visit_f64(f64::INFINITY),
            (_, Some("-Infinity")) => visitor.visit_f64(f64::NEG_INFINITY),
            (Value::Array(items), _) => visitor.visit_seq(SeqDeserializer::new(items.iter().map(Python))),
            (Value::Object(items), _) => {
                let items = items.iter().map(|(key, value)| (key.as_str(), Python(value)));
                visitor.visit_map(MapDeserializer::new(items))
            }
            (Value::Null, _) => visitor.visit_unit(),
            (Value::Bool(value), _) => visitor.visit_bool(*value),
            (Value::Number(value), _) => value.deserialize_any(visitor),
            (Value::String(value), _) => visitor.visit_borrowed_str(value),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Python<'de> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}
