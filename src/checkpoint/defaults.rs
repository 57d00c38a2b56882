//! What the keys mean that a config leaves out.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// What the sources' config classes say, by `model_type`.
const DEFAULTS: &str = include_str!("../../assets/config-defaults.json");

#[derive(Deserialize)]
struct Row {
    /// Of keys with their other names (`a|b`), whether or not a model can do without them.
    always: BTreeMap<String, Value>,
    /// Of keys that a model cannot do without.
    needed: BTreeMap<String, Value>,
}

fn row(model_type: Option<&Value>) -> Option<Row> {
    let mut rows: BTreeMap<String, Row> = serde_json::from_str(DEFAULTS).ok()?;
    rows.remove(model_type?.as_str()?)
}

/// What decides of the defaults of a `text_config`: its own `model_type`, or that of the whole. The language model of
/// Kimi K3 goes by the name of another.
fn text_type(whole: Option<&Value>, text: Option<&Value>) -> Option<Value> {
    let own = text.filter(|_| whole.is_none_or(|name| name != "kimi_k3"));
    own.or(whole).cloned()
}

/// Makes the head of a config with a `text_config` tied, or not, where both say so. Else the checkpoint decides
/// (`null`): transformers goes by the whole, which its classes have a default for, and mlx-lm by the part.
fn settle_head(config: &mut Value) {
    const KEY: &str = "tie_word_embeddings";
    let whole = config.get(KEY).cloned();
    if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut)
        && (whole.is_none() || whole.as_ref() != text.get(KEY))
    {
        text.insert(KEY.to_owned(), Value::Null);
    }
}

/// Takes `rope_parameters` away where there is a `rope_scaling`, as transformers does, unless they are those of
/// kinds of layers.
fn settle_rope(config: &mut Map<String, Value>) {
    let scaling = config.get("rope_scaling").and_then(Value::as_object).filter(|scaling| !scaling.is_empty());
    let plain = config.get("rope_parameters").and_then(Value::as_object);
    let plain = plain.is_some_and(|parameters| !parameters.values().any(Value::is_object));
    let Some(theta) = scaling.filter(|_| plain).map(|scaling| scaling.get("rope_theta").cloned()) else {
        return;
    };
    config.remove("rope_parameters");
    config.extend(theta.map(|theta| ("rope_theta".to_owned(), theta)));
}

/// Puts what the source's class says into `config`, or into its `text_config` where it has one.
pub(super) fn complete(config: &mut Value) {
    settle_head(config);
    let whole = config.get("model_type").cloned();
    let text = config.get("text_config").is_some_and(Value::is_object);
    let Some(config) = (if text { config.get_mut("text_config") } else { Some(config) }) else { return };
    let row = row(text_type(whole.as_ref(), config.get("model_type")).as_ref());
    let Some(config) = config.as_object_mut() else { return };
    settle_rope(config);
    let Some(row) = row else { return };
    for (names, value) in row.always {
        let mut names = names.split('|');
        if !names.clone().any(|name| config.contains_key(name)) {
            config.extend(names.next().map(|name| (name.to_owned(), value)));
        }
    }
}

/// Puts `key` into `config` and its `text_config`, where it is missing and their `model_type`s have a value
/// for it. False where nothing was put.
pub(super) fn fill(config: &mut Value, key: &str) -> bool {
    let whole = config.get("model_type").cloned();
    let text = config.get("text_config").and_then(|text| text.get("model_type"));
    let text = text_type(whole.as_ref(), text);
    let inner = put(config.get_mut("text_config"), text, key);
    put(Some(config), whole, key) || inner
}

fn put(config: Option<&mut Value>, model_type: Option<Value>, key: &str) -> bool {
    let value = row(model_type.as_ref()).and_then(|mut row| {
        let always = row.always.into_iter().find(|(names, _)| names.split('|').any(|name| name == key));
        row.needed.remove(key).or(always.map(|(_, value)| value))
    });
    match (config.and_then(Value::as_object_mut), value) {
        (Some(config), Some(value)) if !config.contains_key(key) => {
            config.insert(key.to_owned(), value).is_none()
        }
        _ => false,
    }
}

/// Makes `null` at `path` false, as Python takes it, if that is what `cause` complains of. False if it is not.
pub(super) fn allow_null(config: &mut Value, path: Option<&str>, cause: &str) -> bool {
    let null = cause.starts_with("invalid type: null, expected a boolean");
    let value =
        path.filter(|_| null).and_then(|path| config.pointer_mut(&format!("/{}", path.replace('.', "/"))));
    match value {
        Some(value) if value.is_null() => {
            *value = Value::Bool(false);
            true
        }
        _ => false,
    }
}
