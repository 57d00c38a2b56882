//! Tokenizers of checkpoints.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value};
use tokenizers::ModelWrapper;
use tokenizers::models::unigram::Unigram;

use super::chat::ChatTemplates;
use super::{Chat, ChatTemplate, Detokenizer, limits, sentencepiece, tiktoken};
use crate::checkpoint::{Config, Gguf, gguf};
use crate::error::{Error, Result};
use crate::io::read;

/// The longest file, in bytes.
const MAX_FILE: u64 = 512 << 20;
/// What stands for a line break in the vocabularies that have none.
pub(super) const NEWLINE: &str = "<n>";
/// The special tokens that have a name, which templates see.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The tokenizer of a checkpoint, with its special tokens and chat template.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pub(super) inner: tokenizers::Tokenizer,
    /// The same without special tokens, once it was used.
    ordinary: OnceLock<Box<tokenizers::Tokenizer>>,
    /// `bos_token` and the like.
    special: Map<String, Value>,
    pub(super) templates: ChatTemplates,
    /// `tokenizer_config.json`, or null.
    pub(super) config: Value,
    /// Line breaks are `<n>` to the vocabulary: the `NewlineTokenizer` of mlx-lm.
    pub(super) newline: bool,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or else a SentencePiece model (`tokenizer.model`, `spiece.model`) or a
    /// tiktoken file (`*.tiktoken`, `tiktoken.model`, `tokenizer.model`); and of `tokenizer_config.json`
    /// and the files of chat templates what is there. Of a GGUF file, all of it.
    pub fn load(dir: &Path) -> Result<Self> {
        let gguf = gguf_with_tokenizer(dir)?;
        let path = gguf.clone().map_or_else(|| file(dir), Ok)?;
        let in_gguf = gguf.map(|path| Gguf::open(path)?.tokenizer()).transpose()?;
        let (json, in_file) = in_gguf.unzip();
        let bytes = match &json {
            Some(json) => json.to_string().into_bytes(),
            None => read::whole(&path, MAX_FILE)?,
        };
        let config_path = dir.join("tokenizer_config.json");
        let mut config = match in_file {
            Some(config) => config,
            None if read::is_there(&config_path) => Config::read(&config_path)?.json().clone(),
            None => Value::Null,
        };
        // How Muse Spark answers, its tokenizer does not say.
        if Config::load(dir).is_ok_and(|config| config.model_type().is_ok_and(|name| name == "muse_spark")) {
            for key in ["chat_template_type", "tool_parser_type"] {
                if config[key].is_null() {
                    config[key] = "muse_spark".into();
                }
            }
        }
        let (bytes, mut special) = match path.extension() {
            _ if json.is_some() => (bytes, Map::new()),
            Some(extension) if extension == "json" => (bytes, Map::new()),
            _ if tiktoken::is_tiktoken(&bytes) => {
                (tiktoken::convert(&path, &bytes, &config)?.to_string().into_bytes(), Map::new())
            }
            _ => {
                let (json, special) = sentencepiece::convert(&path, &bytes, &config)?;
                (json.to_string().into_bytes(), special)
            }
        };
        limits::check(&bytes).map_err(|message| Error::invalid(&path, message))?;
        let inner = caught(|| tokenizers::Tokenizer::from_bytes(bytes));
        let mut inner = inner.map_err(|message| Error::invalid(&path, message))?;
        // A checkpoint says how its training data were cut and filled; prompts are neither.
        inner.with_padding(None);
        let truncated = inner.with_truncation(None);
        truncated.map_err(|e| Error::invalid(&path, e))?;
        special
            .extend(NAMED.iter().filter_map(|name| Some(((*name).to_owned(), token(&config[name])?.into()))));
        let templates = ChatTemplates::load(dir, &config)?;
        let newline = config["tokenizer_class"] == "NewlineTokenizer";
        Ok(Self { inner, ordinary: OnceLock::new(), special, templates, config, newline, path })
    }

    /// Whether a checkpoint has files of a tokenizer.
    pub fn exists(dir: &Path) -> bool {
        file(dir).is_ok() || gguf_with_tokenizer(dir).is_ok_and(|path| path.is_some())
    }

    /// The ids of `text`. Special tokens that are written in it are recognised; `add_special_tokens` adds
    /// those that the tokenizer puts around every text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<i32>> {
        self.ids(|| self.inner.encode_fast(self.as_read(text), add_special_tokens))
    }

    /// A text as the vocabulary writes it.
    fn as_read<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.newline { text.replace('\n', NEWLINE).into() } else { text.into() }
    }

    fn ids(&self, encode: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>) -> Result<Vec<i32>> {
        let encoding = caught(encode).map_err(|message| Error::argument("encode", message))?;
        encoding.get_ids().iter().map(|&id| i32::try_from(id).map_err(|_| self.too_large(id))).collect()
    }

    /// The ids of `text` where nothing in it is a special token: for text that others wrote.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<i32>> {
        let inner = self.ordinary.get_or_init(|| {
            let mut inner = self.inner.clone();
            inner.set_encode_special_tokens(true);
            if let Some(model) = self.without_special() {
                inner.with_model(model);
            }
            Box::new(inner)
        });
        self.ids(|| inner.encode_fast(self.as_read(text), false))
    }

    /// The ids of a prompt that is not a chat: with the special tokens around it, unless it begins with
    /// the first of them already.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<i32>> {
        let begun = self.special("bos_token").is_some_and(|bos| text.starts_with(bos));
        self.encode(text, !begun)
    }

    /// The text of `ids`, without special tokens if those are to be left out.
    pub fn decode(&self, ids: &[i32], skip_special_tokens: bool) -> Result<String> {
        let ids = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(|_| Error::argument("decode", "a negative id"))?;
        let text = caught(|| self.inner.decode(&ids, skip_special_tokens));
        let text = text.map_err(|message| Error::argument("decode", message))?;
        Ok(if self.newline { text.replace(NEWLINE, "\n") } else { text })
    }

    /// Turns ids into text as they come.
    pub fn detokenizer(&self) -> Detokenizer<'_> {
        Detokenizer::new(self)
    }

    /// Whether chats can be written: by a chat template, or in the format that mlx-lm's
    /// `chat_template_type` names, which comes before templates. Fails if that is unknown.
    pub fn has_chat_template(&self) -> Result<bool> {
        self.templates.exist()
    }

    /// The chat template in Jinja, if the checkpoint has one. Of several this is the one for chats without tools.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.templates.default(false)
    }

    /// A conversation as the text that the model was trained on. [`encode`](Self::encode) it without
    /// more special tokens.
    ///
    /// Fails without a template, and where the template does.
    pub fn apply_chat_template(&self, chat: &Chat) -> Result<String> {
        self.templates.write(chat, &self.special, || self.response_format().thinking.is_some())
    }

    /// Tokens of the vocabulary, without those that were added to it.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// The id of a token, written as in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<i32> {
        self.inner.token_to_id(token).and_then(|id| i32::try_from(id).ok())
    }

    /// The token with this id, written as in the vocabulary.
    pub fn token_of(&self, id: i32) -> Option<String> {
        self.inner.id_to_token(u32::try_from(id).ok()?)
    }

    /// The id of the token that ends a text, if the checkpoint names one.
    pub fn eos_id(&self) -> Option<i32> {
        self.token_id(self.special("eos_token")?)
    }

    /// The ids that are left out of a text without special tokens.
    pub fn special_ids(&self) -> BTreeSet<i32> {
        let all = self.inner.get_added_tokens_decoder().into_iter();
        all.filter(|(_, token)| token.special).filter_map(|(id, _)| i32::try_from(id).ok()).collect()
    }

    /// The text of `bos_token`, `eos_token` and the like.
    pub fn special(&self, name: &str) -> Option<&str> {
        self.special.get(name).and_then(Value::as_str)
    }

    /// A Unigram model that does not know special tokens: SentencePiece finds none in a text.
    fn without_special(&self) -> Option<Unigram> {
        let ModelWrapper::Unigram(model) = self.inner.get_model() else {
            return None;
        };
        let added = self.inner.get_added_tokens_decoder();
        let pieces = model.iter().enumerate().map(|(id, (piece, score))| {
            let special =
                u32::try_from(id).ok().and_then(|id| added.get(&id)).is_some_and(|token| token.special);
            (if special { format!("\u{10ffff}{id}\u{10ffff}") } else { piece.clone() }, *score)
        });
        let unknown = self.special("unk_token").and_then(|token| self.inner.token_to_id(token));
        Unigram::from(pieces.collect(), unknown.map(|id| id as usize), model.byte_fallback()).ok()
    }

    fn too_large(&self, id: u32) -> Error {
        Error::invalid(&self.path, format!("token id {id} is too large"))
    }
}

/// The GGUF file that has the tokenizer, unless there are files that do.
fn gguf_with_tokenizer(dir: &Path) -> Result<Option<PathBuf>> {
    if file(dir).is_ok() { Ok(None) } else { gguf::find(dir) }
}

/// A special token: its text, or an object with it.
pub(super) fn token(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value["content"].as_str());
    text.map(str::to_owned)
}

/// The file of a directory that holds its tokenizer.
fn file(dir: &Path) -> Result<PathBuf> {
    let named = ["tokenizer.json", "tokenizer.model", "spiece.model", "tiktoken.model"];
    if let Some(path) = named.iter().map(|name| dir.join(name)).find(|path| read::is_there(path)) {
        return Ok(path);
    }
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?.flatten().map(|entry| entry.path());
    let path = entries.filter(|path| path.extension().is_some_and(|e| e == "tiktoken")).min();
    path.ok_or_else(|| Error::invalid(dir, "has no tokenizer.json, tokenizer.model or .tiktoken file"))
}

/// The result of a function of `tokenizers`, which may panic on hostile files.
fn caught<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizer's file contradicts itself".to_owned()),
    }
}
