//! How well each model agrees with its source.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What the last parity sweep has found for a `model_type`: one object of `assets/models.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// The `model_type` of the config.
    pub model_type: String,
    /// Cases that agree.
    pub passed: u32,
    /// Cases that were run.
    pub total: u32,
    /// The largest difference of logits in any case of float32, over their standard deviation.
    pub worst_error: f64,
}

/// Other names of what is measured, which neither mlx-lm nor transformers runs.
const NO_REFERENCE: &[&str] = &["minimax_m3", "minimax_text_01", "muse_glimmer_text"];

/// Whether neither mlx-lm nor transformers runs models of this `model_type`, so that no sweep can.
pub fn has_no_reference(model_type: &str) -> bool {
    NO_REFERENCE.contains(&model_type)
}

/// What the sweep has found, for every `model_type` that it has run.
pub fn model_statuses() -> Result<Vec<ModelStatus>> {
    let text = include_str!("../../assets/models.json");
    serde_json::from_str(text).map_err(|e| Error::invalid("assets/models.json", e))
}
