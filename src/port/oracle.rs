//! Frozen outputs of the source framework.
//!
//! A folder with `expect.npz`. What a port is compared with goes by name:
//!
//! | array | type and shape | meaning |
//! | --- | --- | --- |
//! | `input_ids` | int32 `[1, length]` | the prompt |
//! | `embeddings`, `layers.0.self_attn`, `layers.0.mlp`, `layers.0`, ..., `norm` | float32 `[1, length, width]` | stages, by the names of the model's probes |
//! | `hidden.0` ... `hidden.N` | float32 `[1, length, width]` | instead of stages: transformers' hidden states (embedding, blocks, and the last after the final norm) |
//! | `logits` | float32 `[1, length, vocabulary]` | |
//! | `greedy` | int32 `[1, count]` or `[count]` | tokens that greedy decoding adds to the prompt |
//! | `batch_input_ids`, `batch_logits` | int32 `[n, length]`, float32 `[n, length, vocabulary]` | two or more prompts at once |

use std::path::{Path, PathBuf};

use crate::array::{Dtype, HostTensor};
use crate::error::{Error, Result};

/// The outputs of the source framework on one checkpoint.
#[derive(Debug)]
pub struct Oracle {
    /// Where it was read.
    pub path: PathBuf,
    /// `[batch][length]`; one prompt.
    pub input_ids: Ids,
    /// Stages in the order of the computation: probe name and values `[1, length, width]`.
    pub stages: Vec<(String, HostTensor)>,
    /// `[1, length, vocabulary]`.
    pub logits: HostTensor,
    /// Tokens after the prompt by greedy decoding; empty if none were recorded.
    pub greedy: Vec<i32>,
    /// Several prompts at once, and their logits.
    pub batch: Option<(Ids, HostTensor)>,
}

/// Token ids with their shape `[batch, length]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// Row-major.
    pub values: Vec<i32>,
    /// `[batch, length]`.
    pub shape: [i32; 2],
}

impl Oracle {
    /// Reads `expect.npz` of a folder, or the file itself.
    pub fn load(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("expect.npz") } else { path.to_path_buf() };
        let mut arrays = crate::io::load_npz(&file)?;
        let missing = |name: &str| {
            Error::invalid(&file, format!("has no array `{name}`; an oracle needs `input_ids` and `logits`"))
        };
        let input_ids =
            ids(&file, "input_ids", arrays.remove("input_ids").ok_or_else(|| missing("input_ids"))?)?;
        if input_ids.shape[0] != 1 {
            return Err(Error::invalid(&file, "`input_ids` must hold one prompt, [1, length]"));
        }
        let logits = arrays.remove("logits").ok_or_else(|| missing("logits"))?;
        float(&file, "logits", &logits)?;
        if logits.shape().len() != 3 || logits.shape()[..2] != input_ids.shape {
            return Err(Error::invalid(
                &file,
                format!("`logits` {:?} do not belong to `input_ids` {:?}", logits.shape(), input_ids.shape),
            ));
        }
        let greedy = match arrays.remove("greedy") {
            Some(tensor) => {
                tensor.to_vec::<i32>().map_err(|e| Error::invalid(&file, format!("`greedy`: {e}")))?
            }
            None => Vec::new(),
        };
        let batch = match (arrays.remove("batch_input_ids"), arrays.remove("batch_logits")) {
            (Some(batch_ids), Some(batch_logits)) => {
                float(&file, "batch_logits", &batch_logits)?;
                Some((ids(&file, "batch_input_ids", batch_ids)?, batch_logits))
            }
            _ => None,
        };
        let mut stages = Vec::new();
        for (name, tensor) in arrays {
            let is_stage = tensor.shape().len() == 3 && tensor.shape()[..2] == input_ids.shape;
            if is_stage && tensor.dtype() == Dtype::Float32 {
                stages.push((name, tensor));
            }
        }
        let stages = in_order(stages);
        Ok(Self { path: file, input_ids, stages, logits, greedy, batch })
    }
}

fn ids(file: &Path, name: &str, tensor: HostTensor) -> Result<Ids> {
    let values = tensor.to_vec::<i32>().map_err(|e| Error::invalid(file, format!("`{name}`: {e}")))?;
    match *tensor.shape() {
        [batch, length] if batch > 0 && length > 0 => Ok(Ids { values, shape: [batch, length] }),
        ref other => Err(Error::invalid(file, format!("`{name}` has shape {other:?}, not [batch, length]"))),
    }
}

fn float(file: &Path, name: &str, tensor: &HostTensor) -> Result<()> {
    if tensor.dtype() == Dtype::Float32 {
        return Ok(());
    }
    Err(Error::invalid(file, format!("`{name}` is {}; record the oracle in float32", tensor.dtype())))
}

/// Stages by their place in the model, and transformers' hidden states by the names of ours.
fn in_order(stages: Vec<(String, HostTensor)>) -> Vec<(String, HostTensor)> {
    let last_hidden = stages.iter().filter_map(|(name, _)| hidden_index(name)).max();
    let mut named: Vec<_> = stages
        .into_iter()
        .filter_map(|(name, tensor)| match hidden_index(&name) {
            Some(0) => Some(("embeddings".to_owned(), tensor)),
            Some(i) if Some(i) == last_hidden => Some(("norm".to_owned(), tensor)),
            Some(i) => Some((format!("layers.{}", i - 1), tensor)),
            None => place(&name).map(|_| (name, tensor)),
        })
        .collect();
    named.sort_by_key(|(name, _)| place(name));
    named
}

fn hidden_index(name: &str) -> Option<usize> {
    name.strip_prefix("hidden.")?.parse().ok()
}

/// Where a stage stands: (part of the model, layer, part of the layer). `None` for other arrays.
fn place(name: &str) -> Option<(usize, usize, usize)> {
    match name {
        "embeddings" => return Some((0, 0, 0)),
        "norm" => return Some((2, 0, 0)),
        _ => {}
    }
    let (layer, part) = match name.strip_prefix("layers.")?.split_once('.') {
        Some((layer, part)) => (layer, part),
        None => (name.strip_prefix("layers.")?, ""),
    };
    let part = match part {
        "self_attn" => 0,
        "mlp" => 1,
        "" => 3,
        _ => 2,
    };
    Some((1, layer.parse().ok()?, part))
}
