//! What tokens stand for, byte by byte.

use serde_json::Value;

use super::Tokenizer;
use super::tokenizer::NEWLINE;
use crate::error::{Error, Result};

/// How the decoder of a tokenizer turns the names of tokens into bytes.
#[derive(Default)]
struct Decoding {
    /// Each byte is a printable character (GPT-2).
    byte_level: bool,
    /// `<0xE9>` is a byte.
    byte_fallback: bool,
    /// Characters that stand for others, usually for a space.
    replaced: Vec<(String, String)>,
}

impl Tokenizer {
    /// The bytes of each token by its id, inside a text; empty for special tokens and for ids without a
    /// token.
    pub fn token_bytes(&self) -> Result<Vec<Vec<u8>>> {
        let mut decoding = Decoding::default();
        if let Some(decoder) = self.inner.get_decoder() {
            let decoder = serde_json::to_value(decoder);
            decoding.read(&decoder.map_err(|e| Error::argument("tokenizer", e.to_string()))?);
        }
        let vocabulary = self.inner.get_vocab(true);
        let added = self.inner.get_added_tokens_decoder();
        // Ids beyond this are no vocabulary, but a file that wants memory.
        let most = vocabulary.len().saturating_mul(4) as u32;
        let count =
            vocabulary.values().copied().filter(|&id| id < most).max().map_or(0, |id| id as usize + 1);
        let mut bytes = vec![Vec::new(); count];
        for (name, id) in vocabulary {
            if let Some(slot) = bytes.get_mut(id as usize) {
                *slot = match added.get(&id) {
                    Some(token) if token.special => Vec::new(),
                    Some(_) => name.into_bytes(),
                    None => decoding.bytes(name),
                };
                if self.newline && slot.as_slice() == NEWLINE.as_bytes() {
                    *slot = b"\n".to_vec();
                }
            }
        }
        Ok(bytes)
    }
}

impl Decoding {
    fn read(&mut self, decoder: &Value) {
        match decoder["type"].as_str() {
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Metaspace") => {
                let space = decoder["replacement"].as_str().unwrap_or("\u{2581}");
                self.replaced.push((space.to_owned(), " ".to_owned()));
            }
            Some("Replace") => {
                if let (Some(from), Some(to)) =
                    (decoder["pattern"]["String"].as_str(), decoder["content"].as_str())
                {
                    self.replaced.push((from.to_owned(), to.to_owned()));
                }
            }
            Some("Sequence") => {
                decoder["decoders"].as_array().into_iter().flatten().for_each(|part| self.read(part));
            }
            _ => {}
        }
    }

    fn bytes(&self, name: String) -> Vec<u8> {
        if self.byte_level {
            let bytes: Option<Vec<u8>> = name.chars().map(byte_of).collect();
            return bytes.unwrap_or_else(|| name.into_bytes());
        }
        if self.byte_fallback
            && let Some(hex) = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'))
            && hex.len() == 2
            && let Ok(byte) = u8::from_str_radix(hex, 16)
        {
            return vec![byte];
        }
        let replace = |name: String, (from, to): &(String, String)| name.replace(from.as_str(), to);
        self.replaced.iter().fold(name, replace).into_bytes()
    }
}

/// The byte that a character of GPT-2's vocabulary stands for: printable ones of Latin-1 for themselves,
/// the others, in order, from U+0100 on.
fn byte_of(char: char) -> Option<u8> {
    let itself = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(char) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(itself),
        code => (0..=255u8).filter(|byte| !itself(byte)).nth(code as usize - 0x100),
    }
}
