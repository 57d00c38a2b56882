//! Configs of models that have other parts than a language model.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};
use serde_json::Value;

/// The config of a language model: what is under `text_config`, or everything if nothing is.
#[derive(Debug, Clone)]
pub struct TextArgs<T>(pub T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for TextArgs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let text = value.get_mut("text_config").map(Value::take).filter(|text| !text.is_null());
        serde_json::from_value(text.unwrap_or(value)).map(Self).map_err(D::Error::custom)
    }
}
