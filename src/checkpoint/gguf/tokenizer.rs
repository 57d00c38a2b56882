//! What would be in `tokenizer.json` and `tokenizer_config.json`.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::{Gguf, Value};
use crate::error::{Error, Result};

/// The longest token that merges lead to, in bytes.
const LONGEST: usize = 1024;

/// Where GPT-2, Llama 3, Qwen 2 and Mistral's Tekken cut a text before they merge bytes.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a token is, by its number in the file.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

impl Gguf {
    /// The tokenizer as `tokenizer.json` and `tokenizer_config.json`: byte-pair merges over bytes
    /// (`gpt2`), or by the scores of the tokens (`llama`, as SentencePiece).
    pub fn tokenizer(&self) -> Result<(Json, Json)> {
        let tokens = self.texts("tokens")?.ok_or_else(|| self.invalid("no `tokenizer.ggml.tokens`"))?;
        let kinds = match self.metadata.get("tokenizer.ggml.token_type") {
            None => vec![1; tokens.len()],
            Some(Value::Ints(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
            Some(_) => {
                return Err(self.invalid("`tokenizer.ggml.token_type` is not one number for each token"));
            }
        };
        let model = self.text("tokenizer.ggml.model").unwrap_or_default();
        let (mut tokenizer, adds_bos) = match model {
            "gpt2" => self.bytes(tokens)?,
            "llama" => self.scored(tokens, &kinds)?,
            _ => {
                let what = format!("a tokenizer `{model}` in a GGUF file ({})", self.path.display());
                return Err(Error::unsupported(what, "`gpt2` and `llama` are read"));
            }
        };
        let special = |kind: i64| matches!(kind, UNKNOWN | CONTROL);
        let added = tokens
            .iter()
            .zip(&kinds)
            .enumerate()
            .filter(|(_, (_, kind))| special(**kind) || **kind == USER_DEFINED);
        let added = added.map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "special": special(*kind),
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        });
        tokenizer["added_tokens"] = added.collect();
        let mut config = Map::new();
        for name in ["bos", "eos", "unknown", "padding"] {
            let id = self.int(&format!("tokenizer.ggml.{name}_token_id"));
            let Some(token) = id.and_then(|id| tokens.get(usize::try_from(id).ok()?)) else { continue };
            let name = match name {
                "unknown" => "unk",
                "padding" => "pad",
                same => same,
            };
            config.insert(format!("{name}_token"), json!(token));
        }
        let (bos, eos) = (config.get("bos_token").cloned(), config.get("eos_token").cloned());
        let bos = bos.filter(|_| self.bool("tokenizer.ggml.add_bos_token").unwrap_or(adds_bos));
        let eos = eos.filter(|_| self.bool("tokenizer.ggml.add_eos_token").unwrap_or(false));
        tokenizer["post_processor"] = around(tokens, bos.as_ref(), eos.as_ref());
        config.insert("add_bos_token".into(), bos.is_some().into());
        config.insert("add_eos_token".into(), eos.is_some().into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        if let Some(template) = self.text("tokenizer.chat_template") {
            config.insert("chat_template".into(), template.into());
        }
        Ok((tokenizer, config.into()))
    }

    /// Merges of bytes, and whether the first token is added where the file does not say.
    fn bytes(&self, tokens: &[String]) -> Result<(Json, bool)> {
        let pre = self.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
        let (regex, whole_words, adds_bos) = match pre {
            "gpt-2" | "phi-2" | "olmo" => (None, false, false),
            "llama-bpe" | "llama-v3" | "llama3" | "smaug-bpe" => (Some(LLAMA3), true, true),
            "qwen2" | "deepseek-r1-qwen" => (Some(QWEN2), false, false),
            "tekken" => (Some(TEKKEN), true, true),
            _ => {
                let what = format!("the pre-tokenizer `{pre}` in a GGUF file ({})", self.path.display());
                return Err(Error::unsupported(what, "gpt-2, llama-bpe, qwen2 and tekken are read"));
            }
        };
        let merges = self.texts("merges")?.ok_or_else(|| self.invalid("no `tokenizer.ggml.merges`"))?;
        let pair = |merge: &String| {
            let pair = merge.split_once(' ').map(|(left, right)| json!([left, right]));
            pair.ok_or_else(|| self.invalid(format!("the merge `{merge:.40}` is not of two tokens")))
        };
        let merges: Vec<Json> = merges.iter().map(pair).collect::<Result<_>>()?;
        let bytes = |own_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": own_regex });
        let cut = match regex {
            None => bytes(true),
            Some(regex) => json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
                bytes(false),
            ]}),
        };
        let normalizer = if regex == Some(QWEN2) { json!({ "type": "NFC" }) } else { Json::Null };
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer,
            "pre_tokenizer": cut, "decoder": bytes(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": whole_words, "vocab": self.vocabulary(tokens)?, "merges": merges,
            },
        });
        Ok((tokenizer, adds_bos))
    }

    /// Merges in the order of the scores of what they make.
    fn scored(&self, tokens: &[String], kinds: &[i64]) -> Result<(Json, bool)> {
        let scores = match self.metadata.get("tokenizer.ggml.scores") {
            Some(Value::Floats(scores)) if scores.len() == tokens.len() => scores,
            _ => return Err(self.invalid("`tokenizer.ggml.scores` is not one number for each token")),
        };
        let ids: HashMap<&str, usize> =
            tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let mut merges: Vec<(f32, usize, usize)> = Vec::new();
        for (id, token) in tokens.iter().enumerate() {
            if matches!(kinds[id], UNKNOWN | CONTROL | BYTE) {
                continue;
            }
            if token.len() > LONGEST {
                return Err(self.invalid(format!("a token of {} bytes", token.len())));
            }
            let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            let mut of_token: Vec<(f32, usize, usize)> = cuts
                .filter_map(|(left, right)| Some((scores[id], *ids.get(left)?, *ids.get(right)?)))
                .collect();
            of_token.sort_by_key(|&(_, left, right)| (left, right));
            merges.extend(of_token);
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0));
        let merges: Vec<Json> =
            merges.iter().map(|&(_, left, right)| json!([tokens[left], tokens[right]])).collect();
        let unknown = self.int("tokenizer.ggml.unknown_token_id").unwrap_or(0);
        let unknown = usize::try_from(unknown).ok().and_then(|id| tokens.get(id));
        let space = self.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        let mut normalizers = vec![replace];
        if space {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": self.vocabulary(tokens)?, "merges": merges,
            },
        });
        Ok((tokenizer, true))
    }

    /// Tokens and their ids. Special ones are among them, or else they would get other ids.
    fn vocabulary(&self, tokens: &[String]) -> Result<Json> {
        let mut vocabulary = Map::new();
        for (id, token) in tokens.iter().enumerate() {
            if vocabulary.insert(token.clone(), id.into()).is_some() {
                return Err(self.invalid(format!("the token `{token:.40}` occurs twice")));
            }
        }
        Ok(vocabulary.into())
    }

    fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        match self.metadata.get(&format!("tokenizer.ggml.{key}")) {
            None => Ok(None),
            Some(Value::Texts(texts)) => Ok(Some(texts)),
            Some(_) => Err(self.invalid(format!("`tokenizer.ggml.{key}` is not a list of texts"))),
        }
    }
}

/// Special tokens before and after every text.
fn around(tokens: &[String], bos: Option<&Json>, eos: Option<&Json>) -> Json {
    let part = |token: &Json| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let with = |ids: &[&str]| -> Vec<Json> {
        ids.iter().flat_map(|id| bos.map(part).into_iter().chain([text(id)]).chain(eos.map(part))).collect()
    };
    let id = |token: &Json| tokens.iter().position(|t| Some(t.as_str()) == token.as_str());
    let special: Map<String, Json> = [bos, eos]
        .into_iter()
        .flatten()
        .filter_map(|token| {
            let entry = json!({ "id": token, "ids": [id(token)?], "tokens": [token] });
            Some((token.as_str()?.to_owned(), entry))
        })
        .collect();
    if special.is_empty() {
        return Json::Null;
    }
    json!({ "type": "TemplateProcessing", "single": with(&["A"]), "pair": with(&["A", "B"]), "special_tokens": special })
}
