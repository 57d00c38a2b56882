//! Prompts of the command line, in token ids.

use std::path::Path;

use serde_json::{Value, json};

use super::Stop;
use crate::error::{Error, Result};
use crate::text::{Chat, Tokenizer};

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Prompt {
    /// Text to continue, or with a chat template to answer; `-` reads it from standard input
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to continue, with commas between them
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    prompt_ids: Option<Vec<i32>>,
}

/// How a text becomes a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Template {
    /// As it is.
    Raw,
    /// As the message of a user, if the checkpoint has a chat template.
    Chat,
    /// As such a message, up to where the text ends: something follows later.
    Begin,
    /// As such a message, from where the template has its text: what is before was read already.
    Rest,
}

impl Prompt {
    /// The tokenizer, unless there is none and none is needed, and the ids of the prompt.
    pub(super) fn read(
        &self,
        dir: &Path,
        template: Template,
        system: Option<&str>,
    ) -> Result<(Option<Tokenizer>, Vec<i32>), Stop> {
        if let Some(ids) = &self.prompt_ids {
            let has_tokenizer = Tokenizer::exists(dir);
            return Ok((if has_tokenizer { Some(Tokenizer::load(dir)?) } else { None }, ids.clone()));
        }
        let tokenizer = Tokenizer::load(dir)?;
        let mut text = self.prompt.clone().unwrap_or_default();
        if text == "-" {
            let read = std::io::read_to_string(std::io::stdin());
            text = read.map_err(|e| Error::io("standard input", e))?;
        }
        let template = if tokenizer.chat_template().is_none() { Template::Raw } else { template };
        let messages = |text: &str| {
            let system = system.map(|text| json!({ "role": "system", "content": text }));
            let user = json!({ "role": "user", "content": text });
            system.into_iter().chain([user]).collect::<Vec<Value>>()
        };
        let ids = match template {
            Template::Raw => tokenizer.encode_prompt(&text)?,
            Template::Chat => chat_ids(&tokenizer, messages(&text))?,
            Template::Begin => {
                let (before, _) = around(&tokenizer, messages)?;
                tokenizer.encode(&(before + &text), false)?
            }
            Template::Rest => {
                let (_, after) = around(&tokenizer, messages)?;
                tokenizer.encode(&(text + &after), false)?
            }
        };
        Ok((Some(tokenizer), ids))
    }
}

/// What a chat template writes before and after the text of a message.
fn around(tokenizer: &Tokenizer, messages: impl Fn(&str) -> Vec<Value>) -> Result<(String, String)> {
    const PLACE: &str = "[the text of the prompt]";
    let written = write_chat(tokenizer, messages(PLACE))?;
    let hidden =
        || Error::argument("prompt", "the chat template does not show the prompt as it is; use --raw");
    let (before, after) = written.split_once(PLACE).ok_or_else(hidden)?;
    Ok((before.to_owned(), after.to_owned()))
}

/// A conversation as the model reads it.
pub(super) fn write_chat(tokenizer: &Tokenizer, messages: Vec<Value>) -> Result<String> {
    tokenizer.apply_chat_template(&Chat::new(messages))
}

/// The ids of a conversation.
pub(super) fn chat_ids(tokenizer: &Tokenizer, messages: Vec<Value>) -> Result<Vec<i32>> {
    tokenizer.encode(&write_chat(tokenizer, messages)?, false)
}
