//! How much a tokenizer may make of a text: its file can ask for more than any memory has.

use base64::Engine;
use serde::Deserialize;
use serde_json::Value;

/// The most that texts grow in normalizers and pre-tokenizers, or in decoders: each grows what the one before it made.
/// Published ones stay below a thousand, all at their worst.
const MAX_GROWTH: usize = 1 << 16;
/// The most special tokens around a text.
const MAX_AROUND: usize = 1 << 16;
/// The longest word that WordPiece takes apart, which takes as many steps as the square of it.
const MAX_WORD: u64 = 1 << 12;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    post_processor: Value,
    model: Model,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Model {
    max_input_chars_per_word: Option<u64>,
}

/// Says what of a `tokenizer.json` could go beyond all bounds.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let parts: Parts = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let before = growth(&parts.normalizer).saturating_mul(growth(&parts.pre_tokenizer));
    if before.max(growth(&parts.decoder)) > MAX_GROWTH {
        return Err(format!("texts may grow more than {MAX_GROWTH} times"));
    }
    if parts.model.max_input_chars_per_word.is_some_and(|most| most > MAX_WORD) {
        return Err(format!("`max_input_chars_per_word` is more than {MAX_WORD}"));
    }
    check_template(&parts.post_processor)
}

/// How many times as long a text can become, in bytes of UTF-8. Old files don't name the types of steps.
fn growth(step: &Value) -> usize {
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    let steps = ["normalizers", "pretokenizers", "decoders"].iter().find_map(|key| step[*key].as_array());
    if let Some(steps) = steps {
        return steps.iter().map(growth).fold(1, usize::saturating_mul);
    }
    if let (pattern @ Value::Object(_), Value::String(content)) = (&step["pattern"], &step["content"]) {
        return match text(&pattern["String"]) {
            // A regular expression may match nothing, everywhere.
            0 => content.len() + 1,
            pattern => content.len().div_ceil(pattern).max(1),
        };
    }
    if let Some(map) = step["precompiled_charsmap"].as_str() {
        return longest_image(map);
    }
    match step["type"].as_str().unwrap_or_default() {
        "Metaspace" => text(&step["replacement"]).max(1),
        "NFC" | "NFD" => 3,
        "NFKC" | "NFKD" => 11,
        "BertNormalizer" => 12,
        "ByteLevel" | "Lowercase" | "BPEDecoder" | "WordPiece" | "CTC" => 2,
        _ => 1,
    }
}

/// The longest text that a character becomes: the size of a trie, the trie, and texts that end with zeros.
fn longest_image(map: &str) -> usize {
    let map = base64::engine::general_purpose::STANDARD.decode(map).unwrap_or_default();
    let trie = map.first_chunk().map_or(0, |size| u32::from_le_bytes(*size) as usize);
    let texts = map.get(trie.saturating_add(4)..).unwrap_or_default();
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1)
}

/// A text stands in what it is put into once.
fn check_template(step: &Value) -> Result<(), String> {
    for step in step["processors"].as_array().into_iter().flatten() {
        check_template(step)?;
    }
    let pieces = step["single"].as_array().map_or(&[][..], Vec::as_slice);
    let texts = pieces.iter().filter(|piece| !piece["Sequence"].is_null()).count();
    let ids = |piece: &Value| {
        let token = piece["SpecialToken"]["id"].as_str()?;
        step["special_tokens"][token]["ids"].as_array().map(Vec::len)
    };
    let around: usize = pieces.iter().filter_map(ids).sum();
    if texts > 1 || around > MAX_AROUND {
        return Err(format!(
            "the post-processor writes a text {texts} times, with {around} tokens around it"
        ));
    }
    Ok(())
}
