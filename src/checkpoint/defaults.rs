//! What the keys mean that a config leaves out.

use serde_json::{Map, Value};

/// The values of the sources' config classes, by `model_type`, of the keys that a model cannot do without.
const DEFAULTS: &str = include_str!("../../assets/config-defaults.json");

/// Puts `key` into `config` and its `text_config`, where it is missing and their `model_type`s have a value
/// for it. False where nothing was put.
pub(super) fn fill(config: &mut Value, key: &str) -> bool {
    let Ok(defaults) = serde_json::from_str::<Map<String, Value>>(DEFAULTS) else { return false };
    let text = config.get("text_config").and_then(|text| text.get("model_type")).cloned();
    let put = |config: Option<&mut Value>, model_type: Option<Value>| {
        let value = model_type.as_ref().and_then(Value::as_str).and_then(|t| defaults.get(t)?.get(key));
        match (config.and_then(Value::as_object_mut), value) {
            (Some(config), Some(value)) if !config.contains_key(key) => {
                config.insert(key.to_owned(), value.clone());
                true
            }
            _ => false,
        }
    };
    let whole = config.get("model_type").cloned();
    let inner = put(config.get_mut("text_config"), text.or_else(|| whole.clone()));
    put(Some(config), whole) || inner
}
