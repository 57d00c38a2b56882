//! How Hugging Face names the weight files of a checkpoint directory.

/// The file of a checkpoint that has one.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Which shard has which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// `model-00002-of-00005.safetensors` for `(2, 5)`.
pub(crate) fn shard_name(number: usize, of: usize) -> String {
    format!("model-{number:05}-of-{of:05}.safetensors")
}

/// `(2, 5)` for `model-00002-of-00005.safetensors`.
pub(crate) fn shard_number(name: &str) -> Option<(u64, u64)> {
    let (number, of) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let parse = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some((parse(number)?, parse(of)?))
}
