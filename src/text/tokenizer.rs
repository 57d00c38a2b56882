//! Tokenizers, from `tokenizer.json`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{ChatTemplate, Detokenizer};
use crate::checkpoint::Config;
use crate::error::{Error, Result};

/// The tokenizer of a checkpoint, with its special tokens and chat template.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pub(super) inner: tokenizers::Tokenizer,
    bos: Option<String>,
    eos: Option<String>,
    template: Option<ChatTemplate>,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and of `tokenizer_config.json` and `chat_template.jinja` what is there.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| Error::invalid(&path, e))?;
        // A checkpoint says how its training data were cut and filled; prompts are neither.
        inner.with_padding(None);
        let truncated = inner.with_truncation(None);
        truncated.map_err(|e| Error::invalid(&path, e))?;
        let config_path = dir.join("tokenizer_config.json");
        let config = match config_path.exists() {
            true => Config::read(&config_path)?.json().clone(),
            false => Value::Null,
        };
        let (bos, eos) = (token(&config["bos_token"]), token(&config["eos_token"]));
        let template = ChatTemplate::load(dir, &config)?;
        Ok(Self { inner, bos, eos, template, path })
    }

    /// The ids of `text`. Special tokens that are written in it are recognised; `add_special_tokens` adds
    /// those that the tokenizer puts around every text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<i32>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        let encoding = encoding.map_err(|e| Error::argument("encode", e.to_string()))?;
        encoding.get_ids().iter().map(|&id| i32::try_from(id).map_err(|_| self.too_large(id))).collect()
    }

    /// The ids of a prompt that is not a chat: with the special tokens around it, unless it begins with
    /// the first of them already.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<i32>> {
        let begun = self.bos.as_ref().is_some_and(|bos| text.starts_with(bos.as_str()));
        self.encode(text, !begun)
    }

    /// The text of `ids`, without special tokens if those are to be left out.
    pub fn decode(&self, ids: &[i32], skip_special_tokens: bool) -> Result<String> {
        let ids = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(|_| Error::argument("decode", "a negative id"))?;
        self.inner.decode(&ids, skip_special_tokens).map_err(|e| Error::argument("decode", e.to_string()))
    }

    /// Turns ids into text as they come.
    pub fn detokenizer(&self) -> Detokenizer<'_> {
        Detokenizer::new(self)
    }

    /// The chat template, if the checkpoint has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// A conversation as the text that the model was trained on, up to where it answers.
    ///
    /// `messages` is a list of objects with `role` and `content`. Fails without a template.
    pub fn apply_chat_template(&self, messages: impl Serialize) -> Result<String> {
        let Some(template) = &self.template else {
            return Err(Error::invalid(&self.path, "the checkpoint has no chat template"));
        };
        let context = minijinja::context! {
            messages => messages,
            add_generation_prompt => true,
            bos_token => self.bos.as_deref().unwrap_or(""),
            eos_token => self.eos.as_deref().unwrap_or(""),
        };
        template.render(context)
    }

    /// The id of a token, written as in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<i32> {
        self.inner.token_to_id(token).and_then(|id| i32::try_from(id).ok())
    }

    /// The id of the token that ends a text, if the checkpoint names one.
    pub fn eos_id(&self) -> Option<i32> {
        self.token_id(self.eos.as_deref()?)
    }

    fn too_large(&self, id: u32) -> Error {
        Error::invalid(&self.path, format!("token id {id} is too large"))
    }
}

/// A special token: its text, or an object with it.
fn token(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value["content"].as_str());
    text.map(str::to_owned)
}
