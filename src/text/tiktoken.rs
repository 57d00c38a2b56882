//! tiktoken files (a token in base64 and its rank on each line), as tokenizers of the `tokenizers` crate.

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine;
use serde_json::{Map, Value, json};

use super::vocabulary::{added_tokens, merges, template};
use crate::error::{Error, Result};

/// How GPT-4 and Llama 3 split text.
const GPT4: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Digits one by one.
const QWEN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Chinese characters by themselves, and words that may begin with a capital.
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Whether a file is one of tiktoken's.
pub(super) fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    line.len() < 4096 && std::str::from_utf8(line).is_ok_and(|line| parse(line).is_some())
}

fn parse(line: &str) -> Option<(Vec<u8>, usize)> {
    let (token, rank) = line.trim_end_matches('\r').split_once(' ')?;
    Some((base64::engine::general_purpose::STANDARD.decode(token).ok()?, rank.parse().ok()?))
}

/// The `tokenizer.json` of a file. How text is split and which tokens are special is not in it: the first
/// follows from the class of the tokenizer, the latter are in its config.
pub(super) fn convert(path: &Path, bytes: &[u8], config: &Value) -> Result<Value> {
    let invalid = |line: usize, message: &str| Error::invalid(path, format!("line {}: {message}", line + 1));
    let text = std::str::from_utf8(bytes).map_err(|e| Error::invalid(path, e))?;
    let lines: Vec<&str> = text.lines().collect();
    let (mut pieces, mut ids) = (Vec::new(), BTreeSet::new());
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
        let (token, rank) = parse(line).ok_or_else(|| invalid(at, "not a token in base64 and a rank"))?;
        if token.is_empty() || rank > i32::MAX as usize || !ids.insert(rank) {
            return Err(invalid(
                at,
                "an empty token, or a rank that is too large or not the first of its kind",
            ));
        }
        pieces.push((token.iter().map(|&byte| character(byte)).collect::<String>(), rank));
    }
    pieces.sort_by_key(|piece| piece.1);
    let end = pieces.last().map_or(0, |piece| piece.1 + 1);
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    let (pattern, mut added) = match class {
        "QWenTokenizer" => (QWEN, qwen_specials(end)),
        "TikTokenTokenizer" => (KIMI, Vec::new()),
        _ => (GPT4, Vec::new()),
    };
    added_tokens(path, config, &mut added, usize::MAX)?;
    let all = pieces.iter().map(|(piece, rank)| (piece.as_str(), *rank)).collect::<Vec<_>>();
    let mut vocab: Map<String, Value> = pieces.iter().map(|(piece, id)| (piece.clone(), json!(id))).collect();
    for token in &added {
        vocab.insert(token["content"].as_str().unwrap_or_default().to_owned(), token["id"].clone());
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
        ]},
        "post_processor": template(config, &Map::new(), &added, (false, false)),
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
        "model": { "type": "BPE", "ignore_merges": true, "merges": merges(&all), "vocab": vocab },
    }))
}

/// What the first Qwen has after its ranks.
fn qwen_specials(first: usize) -> Vec<Value> {
    let named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
    let all = named.into_iter().chain((0..205).map(|i| format!("<|extra_{i}|>")));
    let token = |(i, content)| {
        json!({
            "id": first + i, "content": content, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    all.enumerate().map(token).collect()
}

/// How byte-level vocabularies write a byte: visible ones as they are, the others from U+0100 on.
fn character(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match visible(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|byte| !visible(*byte)).count() as u32;
            char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    }
}
