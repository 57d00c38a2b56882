//! Which tokens end a generation.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::Config;
use crate::error::{Error, Result};
use crate::io::read::is_there;

/// The tokens that end a text of the model in `dir`: `eos_token_id` of `generation_config.json`, else of
/// `config.json`; a number or a list. Empty if neither has one.
pub fn stop_tokens(dir: &Path) -> Result<Vec<i32>> {
    let generation = dir.join("generation_config.json");
    if is_there(&generation) {
        let ids = eos_ids(&Config::read(generation)?)?;
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    eos_ids(&Config::load(dir)?)
}

fn eos_ids(config: &Config) -> Result<Vec<i32>> {
    let id = |value: &Value| value.as_i64().and_then(|id| i32::try_from(id).ok());
    let ids = match &config.json()["eos_token_id"] {
        Value::Null => Some(Vec::new()),
        Value::Array(ids) => ids.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    };
    ids.ok_or_else(|| Error::invalid(config.path(), "`eos_token_id` is neither an id nor a list of ids"))
}
