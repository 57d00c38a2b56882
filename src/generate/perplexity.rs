//! How surprised a model is by a text.

use std::time::Instant;

use serde::Serialize;

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::models::{LanguageModel, check_tokens};
use crate::{fast, memory, ops};

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PerplexitySettings {
    /// Tokens of a sample, of which each but the first is predicted from those before it; at least 2.
    pub sequence_length: usize,
    /// Samples at a time; at least 1.
    pub batch_size: usize,
    /// Samples at most, from the beginning of the text; `None` for all.
    pub num_samples: Option<usize>,
}

impl Default for PerplexitySettings {
    /// Those of mlx-lm.
    fn default() -> Self {
        Self { sequence_length: 512, batch_size: 8, num_samples: Some(256) }
    }
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp` of the mean cross entropy of the predicted tokens.
    pub perplexity: f64,
    /// Its standard error, by the delta method.
    pub standard_error: f64,
    /// Samples.
    pub samples: usize,
    /// Predicted tokens.
    pub tokens: usize,
    /// Predicted tokens per second.
    pub tokens_per_second: f64,
    /// The most memory that was active at once, in bytes.
    pub peak_memory_bytes: usize,
}

/// The perplexity of a text in token ids, as mlx-lm computes it: in samples of the same length without
/// memory between them; tokens that do not fill a sample are left out.
///
/// Fails for a text that does not fill one. `check` runs after every batch; its error ends it.
pub fn perplexity(
    model: &dyn LanguageModel,
    tokens: &[i32],
    settings: PerplexitySettings,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Perplexity> {
    let PerplexitySettings { sequence_length: length, batch_size, num_samples } = settings;
    if length < 2 || batch_size == 0 || num_samples == Some(0) {
        let message =
            "it takes samples of two tokens or more, one or more of them, and one or more at a time";
        return Err(Error::argument("perplexity", message));
    }
    check_tokens(model, tokens)?;
    let samples = (tokens.len() / length).min(num_samples.unwrap_or(usize::MAX));
    if samples == 0 {
        let message = format!("a text of {} tokens holds no sample of {length}", tokens.len());
        return Err(Error::argument("perplexity", message));
    }
    memory::reset_peak_memory()?;
    let start = Instant::now();
    let mut losses: Vec<f32> = Vec::new();
    for batch in tokens[..samples * length].chunks(batch_size.saturating_mul(length)) {
        let (rows, columns) = ((batch.len() / length) as i32, length as i32);
        let batch = Array::from_slice(batch, &[rows, columns])?;
        let part = |from, to| ops::slice(&batch, &[0, from], &[rows, to], &[1, 1]);
        let logits = model.forward(&part(0, columns - 1)?, &mut model.make_cache())?;
        let loss = fast::cross_entropy(&ops::astype(&logits, Dtype::Float32)?, &part(1, columns)?)?;
        losses.extend(loss.to_vec::<f32>()?);
        memory::clear_cache()?;
        check()?;
    }
    let count = losses.len() as f64;
    let mean = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / count;
    let squares = losses.iter().map(|&loss| (f64::from(loss) - mean).powi(2)).sum::<f64>();
    let deviation = if losses.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 };
    let perplexity = mean.exp();
    Ok(Perplexity {
        perplexity,
        standard_error: perplexity * deviation / count.sqrt(),
        samples,
        tokens: losses.len(),
        tokens_per_second: count / start.elapsed().as_secs_f64().max(1e-9),
        peak_memory_bytes: memory::peak_memory()?,
    })
}
