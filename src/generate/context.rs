//! How long a text a model was made for.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::Config;
use crate::error::Result;

/// The positions that the model in `dir` was made for, as its config has them, stretched if it says so;
/// `None` where it sets no limit.
pub fn context_length(dir: &Path) -> Result<Option<usize>> {
    const NAMES: [&str; 5] =
        ["max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length"];
    let config = Config::load(dir)?;
    let json = config.json();
    let parts = [json, &json["text_config"], &json["llm_config"], &json["language_config"]];
    let found = parts.into_iter().find_map(|part| {
        let length = NAMES.iter().find_map(|name| part[name].as_f64().filter(|n| *n >= 1.0))?;
        Some((part, length))
    });
    Ok(found.map(|(part, length)| {
        let scaling = [&part["rope_scaling"], &part["rope_parameters"]].into_iter().find(|s| s.is_object());
        let number = |key: &str| scaling.and_then(|scaling: &Value| scaling[key].as_f64());
        let original = number("original_max_position_embeddings").unwrap_or(length);
        length.max(original * number("factor").unwrap_or(1.0)) as usize
    }))
}
