//! Conversations, and the templates that write them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{ChatTemplate, deepseek_v32};
use crate::error::{Error, Result};
use crate::io::read;

/// The longest file with templates, in bytes.
const MAX_FILE: u64 = 16 << 20;
const DEFAULT: &str = "default";
/// Marks where the final message ends. The space at the end tells whether the template trims.
const END: &str = "<final message ends here> ";
/// Names that templates have for what a model thinks.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A conversation, and how it is to be written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Chat {
    /// Objects with `role` and `content`, and what else the template knows.
    pub messages: Vec<Value>,
    /// Tools as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// Documents with `title` and `text`.
    pub documents: Option<Vec<Value>>,
    /// Which template, for checkpoints with several. Without, `tool_use` if there are tools, or `default`.
    pub template: Option<String>,
    /// End where the model answers.
    pub add_generation_prompt: bool,
    /// End within the last message, for the model to go on.
    pub continue_final_message: bool,
    /// Other variables of the template, such as `enable_thinking`.
    pub kwargs: Map<String, Value>,
}

impl Chat {
    /// These messages, up to where the model answers.
    pub fn new(messages: Vec<Value>) -> Self {
        Self { messages, add_generation_prompt: true, ..Self::default() }
    }

    /// A question, up to where the model answers.
    pub fn user(text: &str) -> Self {
        Self::new(vec![json!({ "role": "user", "content": text })])
    }

    /// The messages, if the settings do not contradict each other.
    fn checked(&self) -> Result<Vec<Value>> {
        if self.continue_final_message && self.add_generation_prompt {
            let message = "a final message is continued or answered, not both";
            return Err(Error::argument("continue_final_message", message));
        }
        self.messages.iter().map(with_reasoning).collect()
    }

    /// The text, with `special` tokens such as `bos_token` by name.
    fn write(&self, template: &ChatTemplate, special: &Map<String, Value>) -> Result<String> {
        let mut messages = self.checked()?;
        let last = match self.continue_final_message {
            true => Some(mark_end(template, &mut messages)?),
            false => None,
        };
        let mut context = special.clone();
        context.extend(self.kwargs.clone());
        context.insert("messages".into(), messages.into());
        context.insert("tools".into(), json!(self.tools));
        context.insert("documents".into(), json!(self.documents));
        context.insert("add_generation_prompt".into(), self.add_generation_prompt.into());
        let mut text = template.render(context)?;
        if let Some(last) = last {
            let end = text.rfind(END.trim_end()).filter(|_| text.contains(last.trim()));
            let end = end.ok_or_else(|| {
                let message = "the template does not write the final message as it is";
                Error::argument("continue_final_message", message)
            })?;
            let trimmed = !text[end..].starts_with(END);
            text.truncate(end);
            if trimmed {
                text.truncate(text.trim_end().len());
            }
        }
        Ok(text)
    }
}

/// A message whose thoughts have every name that templates read.
fn with_reasoning(message: &Value) -> Result<Value> {
    let Some(message) = message.as_object() else {
        return Err(Error::argument("messages", format!("{message} is not an object")));
    };
    let mut copy = message.clone();
    if let Some(reasoning) = REASONING.iter().find_map(|name| message.get(*name).filter(|v| !v.is_null())) {
        copy.entry("thinking").or_insert_with(|| reasoning.clone());
        copy.insert("reasoning_content".into(), reasoning.clone());
    }
    Ok(copy.into())
}

/// Marks the end of the last message's text, and returns that text.
fn mark_end(template: &ChatTemplate, messages: &mut [Value]) -> Result<String> {
    let invalid = |message: &str| Error::argument("continue_final_message", message);
    if !template.mentions("content") {
        return Err(invalid("the template does not read `content`"));
    }
    let content = messages.last_mut().and_then(|message| message.get_mut("content"));
    let text = match content {
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        other => other,
    };
    match text {
        Some(Value::String(text)) => {
            let before = text.clone();
            text.push_str(END);
            Ok(before)
        }
        _ => Err(invalid("the final message has no text")),
    }
}

/// The chat templates of a checkpoint.
#[derive(Debug, Clone)]
pub(super) struct ChatTemplates {
    named: BTreeMap<String, ChatTemplate>,
    /// The `chat_template_type`, which comes before those that have a name.
    format: Option<Format>,
}

/// What mlx-lm writes without Jinja.
#[derive(Debug, Clone)]
enum Format {
    DeepSeekV32,
    Unknown(String),
}

impl Format {
    fn read(name: &Value) -> Option<Self> {
        match name {
            Value::Null => None,
            // The name says how Muse Spark answers; its prompts are Jinja's.
            Value::String(name) if name.is_empty() || name == "muse_spark" => None,
            Value::String(name) if name == "deepseek_v32" => Some(Self::DeepSeekV32),
            other => Some(Self::Unknown(other.to_string())),
        }
    }
}

impl ChatTemplates {
    /// The one that `chat_template_type` names, and those of `chat_template.jinja` and
    /// `additional_chat_templates/*.jinja`, or if there are none those
    /// of `tokenizer_config`, or else the one of `chat_template.json`.
    pub(super) fn load(dir: &Path, tokenizer_config: &Value) -> Result<Self> {
        let mut sources = BTreeMap::new();
        let file = dir.join("chat_template.jinja");
        if read::is_there(&file) {
            sources.insert(DEFAULT.to_owned(), read::text(&file, MAX_FILE)?);
        }
        let more = dir.join("additional_chat_templates");
        if more.is_dir() {
            for entry in std::fs::read_dir(&more).map_err(|e| Error::io(&more, e))? {
                let path = entry.map_err(|e| Error::io(&more, e))?.path();
                if path.extension().is_some_and(|extension| extension == "jinja")
                    && let Some(name) = path.file_stem().and_then(|name| name.to_str())
                {
                    sources.insert(name.to_owned(), read::text(&path, MAX_FILE)?);
                }
            }
        }
        if sources.is_empty() {
            sources = named(&tokenizer_config["chat_template"]);
        }
        let json = dir.join("chat_template.json");
        if sources.is_empty() && read::is_there(&json) {
            let value: Value =
                serde_json::from_str(&read::text(&json, MAX_FILE)?).map_err(|e| Error::invalid(&json, e))?;
            sources = named(&value["chat_template"]);
        }
        let templates = sources.into_iter().map(|(name, source)| Ok((name, ChatTemplate::new(&source)?)));
        let named = templates.collect::<Result<_>>()?;
        Ok(Self { named, format: Format::read(&tokenizer_config["chat_template_type"]) })
    }

    /// The template that `chat` names or that is meant for it.
    fn find(&self, chat: &Chat) -> Option<&ChatTemplate> {
        match &chat.template {
            Some(name) => self.named.get(name),
            None => self.default(chat.tools.is_some()),
        }
    }

    pub(super) fn default(&self, tools: bool) -> Option<&ChatTemplate> {
        self.named.get("tool_use").filter(|_| tools).or_else(|| self.named.get(DEFAULT))
    }

    /// Whether there is one for chats. Fails if nobody here knows its type.
    pub(super) fn exist(&self) -> Result<bool> {
        match &self.format {
            Some(Format::DeepSeekV32) => Ok(true),
            Some(Format::Unknown(name)) => {
                let why = "only `deepseek_v32` and `muse_spark` are known here; \
                           a prompt can be given as it is (`--raw`)";
                Err(Error::unsupported(format!("`chat_template_type` {name}"), why))
            }
            None => Ok(self.default(false).is_some()),
        }
    }

    /// Writes a chat; `thinks` tells whether the tokenizer has marks of thoughts.
    pub(super) fn write(
        &self,
        chat: &Chat,
        special: &Map<String, Value>,
        thinks: impl FnOnce() -> bool,
    ) -> Result<String> {
        if chat.template.is_none() && self.exist()? && self.format.is_some() {
            return deepseek_v32::write(chat, &chat.checked()?, thinks());
        }
        let template = self.find(chat).ok_or_else(|| {
            let names = self.named.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let message = match (&chat.template, self.named.is_empty()) {
                (_, true) => "the checkpoint has none".to_owned(),
                (Some(name), _) => format!("`{name}` is not among {names}"),
                (None, _) => format!("none is the default; choose among {names}"),
            };
            Error::argument("chat_template", message)
        })?;
        chat.write(template, special)
    }

    /// Whether a template for tools has this text.
    pub(super) fn mention(&self, text: &str) -> bool {
        self.default(true).is_some_and(|template| template.mentions(text))
    }
}

/// One template, or a list of those with names, or an object of them.
fn named(value: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Value::String(source) => BTreeMap::from([(DEFAULT.to_owned(), source.clone())]),
        Value::Array(all) => {
            all.iter().filter_map(|one| Some((text(&one["name"])?, text(&one["template"])?))).collect()
        }
        Value::Object(all) => all.iter().filter_map(|(name, one)| Some((name.clone(), text(one)?))).collect(),
        _ => BTreeMap::new(),
    }
}
