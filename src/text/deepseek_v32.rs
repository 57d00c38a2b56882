//! The prompts of DeepSeek V3.2, which come without a Jinja template: mlx-lm has them as the
//! `chat_template_type` `deepseek_v32`.

use minijinja::value::Kwargs;
use serde_json::{Map, Value};

use super::Chat;
use super::bounds::Budget;
use super::python::to_json;
use crate::error::{Error, Result};

const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";
const USER: &str = "<｜User｜>";
const ASSISTANT: &str = "<｜Assistant｜>";
const THINK: &str = "<think>";
const END_THINK: &str = "</think>";

/// What stands before the schemas of tools, one to a line.
const TOOLS: &str = r#"## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
"#;
const END_TOOLS: &str = "\n</functions>\n";
const SCHEMA: &str = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

/// The text of a conversation. It may set `enable_thinking` or `thinking_mode` (`thinking` or `chat`), else
/// `thinking` decides; `add_default_bos_token`; `drop_thinking`; and `context`, messages before that are
/// not written again.
///
/// `messages` are those of `chat`, checked to be objects.
pub(super) fn write(chat: &Chat, messages: &[Value], thinking: bool) -> Result<String> {
    let settings = Settings::read(chat, thinking)?;
    let all: Vec<&Value> = settings.context.iter().chain(messages).collect();
    let last_question = all.iter().rposition(|message| is_question(message));
    let mut writer = Writer {
        out: String::new(),
        budget: Budget::new(),
        tools: chat.tools.as_deref().unwrap_or_default(),
        thinking: settings.thinking,
        calls: 0,
        results: 0,
    };
    if settings.bos && settings.context.is_empty() {
        writer.out += BOS;
    }
    for (at, message) in all.iter().enumerate() {
        if at < settings.context.len() {
            writer.count(message);
            continue;
        }
        let now = last_question.is_none_or(|last| at >= last);
        let written = match message["role"].as_str() {
            Some("developer") if !now && settings.thinking && settings.drop_thinking => {
                Err("a `developer` before the last question is dropped where the model thinks; \
                 `drop_thinking: false` keeps it"
                    .to_owned())
            }
            _ => writer.message(message, now),
        };
        written.map_err(|message| invalid(format!("message {at}: {message}")))?;
        writer.count(message);
    }
    let mut text = writer.out;
    let mut cut = |end: &str| text.truncate(text.strip_suffix(end).map_or(text.len(), str::len));
    match messages.last() {
        Some(last) if !chat.add_generation_prompt && last["role"] == "user" => {
            cut(&format!("{ASSISTANT}{THINK}"));
        }
        Some(last) if chat.continue_final_message && last["role"] == "assistant" => cut(EOS),
        None if !chat.add_generation_prompt => return Err(invalid("there are no messages")),
        _ => {}
    }
    Ok(text)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::argument("chat_template", format!("deepseek_v32: {}", message.into()))
}

fn is_question(message: &Value) -> bool {
    message["role"] == "user" || message["role"] == "developer"
}

/// What Python takes for true.
fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
    }
}

/// The variables of a conversation.
struct Settings<'a> {
    thinking: bool,
    drop_thinking: bool,
    bos: bool,
    context: &'a [Value],
}

impl<'a> Settings<'a> {
    fn read(chat: &'a Chat, thinking: bool) -> Result<Self> {
        let mut settings = Self { thinking, drop_thinking: true, bos: true, context: &[] };
        for (name, value) in &chat.kwargs {
            match (name.as_str(), value) {
                ("enable_thinking", value) => settings.thinking = truthy(value),
                // The name that other templates have counts for more.
                ("thinking_mode", _) if chat.kwargs.contains_key("enable_thinking") => {}
                ("thinking_mode", Value::String(mode)) if mode == "thinking" => settings.thinking = true,
                ("thinking_mode", Value::String(mode)) if mode == "chat" => settings.thinking = false,
                ("thinking_mode", other) => {
                    return Err(invalid(format!("`thinking_mode` is `thinking` or `chat`, not {other}")));
                }
                ("drop_thinking", value) => settings.drop_thinking = truthy(value),
                ("add_default_bos_token", value) => settings.bos = truthy(value),
                ("context", Value::Null) => {}
                ("context", Value::Array(messages)) if messages.iter().all(Value::is_object) => {
                    settings.context = messages;
                }
                ("context", _) => return Err(invalid("`context` is not a list of messages")),
                (other, _) => return Err(invalid(format!("there is no variable `{other}`"))),
            }
        }
        if chat.documents.as_ref().is_some_and(|documents| !documents.is_empty()) {
            return Err(invalid("the format has no place for documents"));
        }
        Ok(settings)
    }
}

type Written<T = ()> = std::result::Result<T, String>;

struct Writer<'a> {
    out: String,
    budget: Budget,
    tools: &'a [Value],
    thinking: bool,
    /// Calls of the last assistant, as long as nothing but results follows.
    calls: usize,
    /// Results of them so far.
    results: usize,
}

impl Writer<'_> {
    /// Counts the calls and results of a message that was written.
    fn count(&mut self, message: &Value) {
        match message["role"].as_str() {
            Some("tool") => self.results += 1,
            Some("assistant") => {
                (self.calls, self.results) = (message["tool_calls"].as_array().map_or(0, Vec::len), 0);
            }
            _ => (self.calls, self.results) = (0, 0),
        }
    }

    /// Writes a message; `now` if it is the last question or comes after it.
    fn message(&mut self, message: &Value, now: bool) -> Written {
        let content = self.content(&message["content"])?;
        let thinks = self.thinking && now;
        let begin = if thinks { THINK } else { END_THINK };
        match message["role"].as_str() {
            Some("system") => {
                self.out += &content;
                self.instructions(message)
            }
            Some("developer") if content.is_empty() => Err("a `developer` says nothing".into()),
            Some("developer") => {
                self.out += USER;
                self.instructions(message)?;
                self.out.extend(["\n\n# The user's message is: ", &content, ASSISTANT, begin]);
                Ok(())
            }
            Some("user") => {
                self.out.extend([USER, &content, ASSISTANT, begin]);
                Ok(())
            }
            Some("tool") if self.results >= self.calls => {
                Err(format!("a result of a tool, but {} calls come before", self.calls))
            }
            Some("tool") => {
                if self.results == 0 {
                    self.out += "\n\n<function_results>";
                }
                self.out.extend(["\n<result>", &content, "</result>"]);
                if self.results + 1 == self.calls {
                    self.out.extend(["\n</function_results>\n\n", begin]);
                }
                Ok(())
            }
            Some("assistant") => self.answer(message, &content, thinks),
            _ => Err(format!(
                "the role {} is none of `system`, `developer`, `user`, `assistant` and `tool`",
                message["role"]
            )),
        }
    }

    /// The text of a message: its parts together.
    fn content(&self, content: &Value) -> Written<String> {
        let text = match content {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Array(parts) => {
                let part = |part: &Value| {
                    part["text"].as_str().filter(|_| part["type"] == "text").map(str::to_owned)
                };
                parts
                    .iter()
                    .map(part)
                    .collect::<Option<String>>()
                    .ok_or("`content` has parts that are not text")?
            }
            _ => return Err("`content` is neither text nor a list of texts".into()),
        };
        let checked = self.budget.checked(text.as_str().into());
        checked.map(|_| text).map_err(|e| e.to_string())
    }

    fn json(&self, value: &Value) -> Written<String> {
        let value = minijinja::Value::from_serialize(value);
        let written = self.budget.text(|out| to_json(out, &value, Kwargs::from_iter::<[(String, _); 0]>([])));
        written.map_err(|e| e.to_string())
    }

    /// Tools and the format of answers, which a message brings along.
    fn instructions(&mut self, message: &Value) -> Written {
        let own = message["tools"].as_array().map_or(&[][..], Vec::as_slice);
        let tools = if self.tools.is_empty() { own } else { self.tools };
        if !tools.is_empty() {
            self.out.extend(["\n\n", TOOLS]);
            for (at, tool) in tools.iter().enumerate() {
                let function = tool.get("function").ok_or("a tool without `function`")?;
                let schema = self.json(function)?;
                self.out.extend([if at > 0 { "\n" } else { "" }, &schema]);
            }
            self.out += END_TOOLS;
        }
        let format = &message["response_format"];
        if truthy(format) {
            let schema = self.json(format)?;
            self.out.extend(["\n\n", SCHEMA, &schema]);
        }
        Ok(())
    }

    fn answer(&mut self, message: &Value, content: &str, thinks: bool) -> Written {
        let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
        if thinks {
            let thoughts = &message["reasoning_content"];
            if !truthy(thoughts) && calls.is_empty() {
                let message = "an answer to the last question has neither `reasoning_content` nor \
                               `tool_calls`, which a model that thinks has written; `enable_thinking: false`";
                return Err(message.into());
            }
            let thoughts =
                self.content(thoughts).map_err(|m| m.replace("`content`", "`reasoning_content`"))?;
            self.out.extend([&thoughts, END_THINK]);
        }
        self.out += content;
        if !calls.is_empty() {
            self.out += "\n\n<｜DSML｜function_calls>\n";
            for call in calls {
                self.call(&call["function"])?;
            }
            self.out += "</｜DSML｜function_calls>";
        }
        self.out += EOS;
        Ok(())
    }

    fn call(&mut self, function: &Value) -> Written {
        let name = function["name"].as_str().ok_or("a call without the name of its function")?;
        let parsed;
        let arguments: &Map<String, Value> = match &function["arguments"] {
            Value::Object(arguments) => arguments,
            Value::String(text) => {
                let read = serde_json::from_str(text);
                parsed = read.map_err(|e| format!("the arguments of `{name}` are not a JSON object: {e}"))?;
                &parsed
            }
            _ => return Err(format!("the arguments of `{name}` are not a JSON object")),
        };
        self.out.extend(["<｜DSML｜invoke name=\"", name, "\">\n"]);
        for (at, (key, value)) in arguments.iter().enumerate() {
            let (kind, text) = match value {
                Value::String(text) => ("true", text.clone()),
                other => ("false", self.json(other)?),
            };
            let start =
                if at > 0 { "\n<｜DSML｜parameter name=\"" } else { "<｜DSML｜parameter name=\"" };
            self.out.extend([start, key, "\" string=\"", kind, "\">", &text, "</｜DSML｜parameter>"]);
        }
        self.out += "\n</｜DSML｜invoke>\n";
        Ok(())
    }
}
