//! Prompts of the command line, in token ids.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Stop;
use super::settings::text_or_file;
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

/// What a chat template is given beside the prompt.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "What the chat template is given")]
pub(super) struct TemplateArgs {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    pub(super) system_prompt: Option<String>,
    /// Other variables of the template, such as {"enable_thinking": false}: a JSON object, or a file with it
    #[arg(long, value_name = "JSON")]
    chat_template_config: Option<String>,
}

impl TemplateArgs {
    fn is_some(&self) -> bool {
        self.system_prompt.is_some() || self.chat_template_config.is_some()
    }

    /// A conversation of the system prompt and these messages.
    pub(super) fn chat(&self, messages: Vec<Value>, tools: Option<Vec<Value>>) -> Result<Chat> {
        let system = self.system_prompt.as_ref().map(|text| json!({ "role": "system", "content": text }));
        let messages = system.into_iter().chain(messages).collect();
        let kwargs = match &self.chat_template_config {
            None => Map::new(),
            Some(text) => serde_json::from_str(&text_or_file(text)?)
                .map_err(|e| Error::argument("chat template config", format!("not a JSON object: {e}")))?,
        };
        Ok(Chat { kwargs, tools, ..Chat::new(messages) })
    }
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
        given: &TemplateArgs,
        tools: Option<&str>,
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
        let template = match template {
            Template::Raw => Template::Raw,
            _ if !tokenizer.has_chat_template()? => Template::Raw,
            chat => chat,
        };
        let tools = tools.map(parse_tools).transpose()?;
        let chat = |text: &str| given.chat(vec![json!({ "role": "user", "content": text })], tools.clone());
        let ids = match template {
            Template::Raw if given.is_some() || tools.is_some() => {
                let message = "a system prompt, tools and variables need a chat template, \
                               which the checkpoint lacks or --raw leaves out";
                return Err(Error::argument("prompt", message).into());
            }
            Template::Raw => tokenizer.encode_prompt(&text)?,
            Template::Chat => chat_ids(&tokenizer, &chat(&text)?)?,
            Template::Begin => {
                let (before, _) = around(&tokenizer, chat)?;
                tokenizer.encode(&(before + &text), false)?
            }
            Template::Rest => {
                let (_, after) = around(&tokenizer, chat)?;
                tokenizer.encode(&(text + &after), false)?
            }
        };
        Ok((Some(tokenizer), ids))
    }
}

/// What a chat template writes before and after the text of a message.
fn around(tokenizer: &Tokenizer, chat: impl Fn(&str) -> Result<Chat>) -> Result<(String, String)> {
    const PLACE: &str = "[the text of the prompt]";
    let written = tokenizer.apply_chat_template(&chat(PLACE)?)?;
    let hidden =
        || Error::argument("prompt", "the chat template does not show the prompt as it is; use --raw");
    let (before, after) = written.split_once(PLACE).ok_or_else(hidden)?;
    Ok((before.to_owned(), after.to_owned()))
}

/// The ids of a conversation.
pub(super) fn chat_ids(tokenizer: &Tokenizer, chat: &Chat) -> Result<Vec<i32>> {
    tokenizer.encode(&tokenizer.apply_chat_template(chat)?, false)
}

/// Tools, from a JSON list or a file with it.
pub(super) fn parse_tools(text: &str) -> Result<Vec<Value>> {
    let tools: Vec<Value> = serde_json::from_str(&text_or_file(text)?)
        .map_err(|e| Error::argument("tools", format!("not a JSON list, nor a file with one: {e}")))?;
    match tools.iter().find(|tool| !tool.is_object()) {
        Some(other) => Err(Error::argument("tools", format!("{other} is not an object"))),
        None => Ok(tools),
    }
}
