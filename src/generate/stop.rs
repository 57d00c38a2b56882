//! Which tokens end a generation.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::Config;
use crate::error::{Error, Result};
use crate::io::read::is_there;

/// What ends the texts of Muse Spark, where its configs name nothing.
const MUSE_SPARK: [i32; 2] = [200_001, 200_008];

/// The tokens that end a text of the model in `dir`: `eos_token_id` of `generation_config.json`, else of
/// `config.json`, a number or a list; and `eos`, the tokenizer's own, which configs of fine-tuned models often
/// don't know. Empty if there is none.
pub fn stop_tokens(dir: &Path, eos: Option<i32>) -> Result<Vec<i32>> {
    let generation = dir.join("generation_config.json");
    let mut ids = match is_there(&generation) {
        true => eos_ids(&Config::read(generation)?)?,
        false => Vec::new(),
    };
    if ids.is_empty() {
        let config = Config::load(dir)?;
        ids = eos_ids(&config)?;
        if ids.is_empty() && config.model_type().is_ok_and(|name| name == "muse_spark") {
            ids.extend(MUSE_SPARK);
        }
    }
    ids.extend(eos.filter(|eos| !ids.contains(eos)));
    Ok(ids)
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
