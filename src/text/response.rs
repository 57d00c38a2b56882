//! What a model answers, in parts: text, thoughts and tool calls.

use serde_json::Value;

use super::{Tokenizer, ToolCall, ToolFormat};

/// How a model marks its thoughts and its tool calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseFormat {
    /// What stands before thoughts, and after them.
    pub thinking: Option<(String, String)>,
    /// How tool calls are written.
    pub tools: Option<ToolFormat>,
    /// Marks without a meaning of their own.
    pub markers: Vec<String>,
    /// Whether each part has a header that says whom it is for, as Muse Spark writes it.
    pub headers: bool,
}

/// Whether a vocabulary has the marks of Kimi K3.
pub(super) fn is_xtml(vocabulary: impl Fn(&str) -> bool) -> bool {
    ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"].into_iter().all(vocabulary)
}

impl ResponseFormat {
    /// The format that a vocabulary and a template speak for, unless `config` names one.
    pub(super) fn infer(
        config: &Value,
        template: impl Fn(&str) -> bool,
        vocabulary: impl Fn(&str) -> bool,
    ) -> Self {
        let pairs = [
            ("<think>", "</think>"),
            ("<longcat_think>", "</longcat_think>"),
            ("<|think:start|>", "<|think:end|>"),
        ];
        let pair = pairs.into_iter().find(|(start, end)| vocabulary(start) && vocabulary(end));
        let pair = if pair.is_some() {
            pair
        } else if vocabulary("<|channel>") && vocabulary("<channel|>") {
            Some(("<|channel>thought", "<channel|>"))
        } else if is_xtml(&vocabulary) {
            Some(("<|open|>think<|sep|>", "<|close|>think<|sep|>"))
        } else {
            None
        };
        let markers = ["<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"];
        Self {
            thinking: pair.map(|(start, end)| (start.to_owned(), end.to_owned())),
            tools: match config["tool_parser_type"].as_str() {
                Some(name) => ToolFormat::named(name),
                None => ToolFormat::infer(template, &vocabulary),
            },
            markers: if is_xtml(&vocabulary) { markers.map(str::to_owned).to_vec() } else { Vec::new() },
            headers: config["chat_template_type"] == "muse_spark",
        }
    }

    /// Whether a token is one of the marks, or stands in one.
    pub fn knows(&self, token: &str) -> bool {
        let states = [State::Text, State::Thinking, State::Tool, State::Header];
        states.into_iter().flat_map(|state| self.marks(state)).any(|(mark, _)| mark.contains(token))
    }

    /// Whether a model goes on thinking after this prompt.
    pub fn starts_thinking(&self, prompt: &str) -> bool {
        self.thinking.as_ref().is_some_and(|(start, end)| prompt.rfind(start) > prompt.rfind(end))
    }

    /// Marks that end what is being read, and what they begin.
    fn marks(&self, state: State) -> Vec<(&str, State)> {
        let mut marks = Vec::new();
        let tools = self.tools.map(|tools| (tools.start(), State::Tool));
        match state {
            State::Text => {
                marks.extend(self.thinking.iter().map(|(start, _)| (start.as_str(), State::Thinking)));
                marks.extend(tools.filter(|_| !self.headers));
                marks.extend(self.markers.iter().map(|mark| (mark.as_str(), State::Text)));
                if self.headers {
                    marks.extend([("<|eom|>", State::Header), ("<|eot|>", State::Text)]);
                }
            }
            State::Thinking => {
                if let Some((_, end)) = &self.thinking {
                    marks.push((end.as_str(), State::Text));
                    marks.extend(tools);
                }
                if self.headers {
                    marks.push(("<|eom|>", State::Header));
                }
            }
            State::Tool => marks.extend(
                self.tools.map(|tools| (tools.end(), State::Text)).filter(|(end, _)| !end.is_empty()),
            ),
            State::Header => marks.extend([
                ("to=self<|message|>", State::Thinking),
                ("to=user<|message|>", State::Text),
                ("to=commentary<|message|>", State::Text),
                ("<atem:function_calls>", State::Tool),
            ]),
        }
        marks
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    Thinking,
    Tool,
    Header,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text for the user.
    Text(String),
    /// What the model thinks.
    Thinking(String),
    /// A call of a tool.
    ToolCall(ToolCall),
    /// What stood for a tool call but is none, and why.
    BadToolCall {
        /// The text between the marks.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Takes an answer apart as it comes. Marks may be spread over pieces: what could be the beginning of one
/// is held back until it is known.
///
/// Most marks are special tokens: detokenise with them.
#[derive(Debug)]
pub struct Response {
    format: ResponseFormat,
    tools: Vec<Value>,
    state: State,
    held: String,
    call: String,
}

impl Response {
    /// Begins an answer to `prompt` by a model that knows these tools.
    pub fn new(format: ResponseFormat, prompt: &str, tools: Vec<Value>) -> Self {
        let state = match (format.headers, format.starts_thinking(prompt)) {
            (true, _) => State::Header,
            (false, true) => State::Thinking,
            (false, false) => State::Text,
        };
        Self { format, tools, state, held: String::new(), call: String::new() }
    }

    /// The parts that a piece of text completes.
    pub fn push(&mut self, piece: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        self.held.push_str(piece);
        loop {
            let marks = self.format.marks(self.state);
            // The mark that ends first; of those the longest.
            let found = marks.iter().filter_map(|(mark, next)| {
                let at = self.held.find(mark)?;
                Some((at + mark.len(), at, *next))
            });
            match found.min_by_key(|(end, at, _)| (*end, *at)) {
                Some((end, at, next)) => {
                    let rest = self.held.split_off(end);
                    self.held.truncate(at);
                    let before = std::mem::replace(&mut self.held, rest);
                    self.emit(before, &mut parts);
                    if self.state == State::Tool && next != State::Tool {
                        self.finish_call(&mut parts);
                    }
                    self.state = next;
                }
                None => {
                    let open = |at: &usize| {
                        let rest = &self.held[*at..];
                        marks.iter().any(|(mark, _)| mark.starts_with(rest))
                    };
                    let longest = marks.iter().map(|(mark, _)| mark.len()).max().unwrap_or(0);
                    let from = self.held.len().saturating_sub(longest);
                    let places = (from..self.held.len()).filter(|at| self.held.is_char_boundary(*at));
                    let keep = places.into_iter().find(open).unwrap_or(self.held.len());
                    let rest = self.held.split_off(keep);
                    let before = std::mem::replace(&mut self.held, rest);
                    self.emit(before, &mut parts);
                    return parts;
                }
            }
        }
    }

    /// What is left at the end.
    pub fn finish(mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let held = std::mem::take(&mut self.held);
        self.emit(held, &mut parts);
        self.finish_call(&mut parts);
        parts
    }

    fn emit(&mut self, text: String, parts: &mut Vec<Part>) {
        if text.is_empty() {
            return;
        }
        match self.state {
            State::Text => parts.push(Part::Text(text)),
            State::Thinking => parts.push(Part::Thinking(text)),
            State::Tool => self.call.push_str(&text),
            State::Header => {}
        }
    }

    fn finish_call(&mut self, parts: &mut Vec<Part>) {
        let text = std::mem::take(&mut self.call);
        let Some(format) = self.format.tools.filter(|_| !text.is_empty()) else {
            return;
        };
        match format.parse(&text, &self.tools) {
            Ok(calls) => parts.extend(calls.into_iter().map(Part::ToolCall)),
            Err(error) => parts.push(Part::BadToolCall { text, reason: error.to_string() }),
        }
    }
}

impl Tokenizer {
    /// How answers of this model are marked.
    pub fn response_format(&self) -> ResponseFormat {
        ResponseFormat::infer(
            &self.config,
            |text| self.templates.mention(text),
            |token| self.token_id(token).is_some(),
        )
    }
}
