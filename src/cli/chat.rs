//! `mlxport chat`

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use rustyline::error::ReadlineError;
use serde_json::{Value, json};

use super::generate::summarise;
use super::prompt::{TemplateArgs, chat_ids};
use super::settings::{CacheArgs, SamplingArgs};
use super::{Outcome, Stop, print, take_interrupt};
use crate::error::{Error, Result};
use crate::generate::{Options, Remembered, Text, Tokens, stop_tokens};
use crate::io::read;
use crate::models::{self, LanguageModel};
use crate::text::{Part, Response, ResponseFormat, Tokenizer};

/// Positions between states that a model without a past remembers.
const BOUNDARY: usize = 256;
/// The longest conversation that is read from a file, in bytes.
const MAX_FILE: u64 = 64 << 20;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The checkpoint: a directory, a GGUF file or a Hugging Face id
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// End an answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Keep the lines that were typed in this file
    #[arg(long, value_name = "FILE")]
    history_file: Option<PathBuf>,
    /// Say after each answer how fast it was
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

const HELP: &str = "\
/help           this
/reset          forget the conversation
/system TEXT    tell the model something before a new conversation; without TEXT, nothing
/undo           forget the last question and its answer
/save FILE      write the conversation as JSON
/load FILE      go on with a conversation that was saved
/exit           leave, as does the end of the input
";

/// A conversation with a model.
struct Chat<'a> {
    args: &'a Args,
    model: &'a dyn LanguageModel,
    tokenizer: &'a Tokenizer,
    options: Options,
    /// What the template is given, with the system prompt as it is now.
    template: TemplateArgs,
    /// Objects with `role` and `content`, without the system's.
    messages: Vec<Value>,
    /// The last text that the model has read.
    read: Option<Remembered>,
    answers: u64,
}

pub(super) fn run(args: &Args) -> Outcome {
    let tokenizer = Tokenizer::load(&args.model)?;
    if !tokenizer.has_chat_template()? {
        let message = "the checkpoint has no chat template; `mlxport generate` continues texts";
        return Err(Error::invalid(&args.model, message).into());
    }
    let model = models::load(&args.model)?;
    let stop = stop_tokens(&args.model, tokenizer.eos_id())?;
    let options = Options {
        max_tokens: args.max_tokens,
        sampling: args.sampling.sampling(Some(&tokenizer), &stop)?,
        penalties: args.sampling.penalties(),
        stop,
        prefill_step: args.cache.prefill_step(),
        kv_quantization: args.cache.kv_quantization(),
    };
    let mut chat = Chat {
        args,
        model: &*model,
        tokenizer: &tokenizer,
        options,
        template: args.template.clone(),
        messages: Vec::new(),
        read: None,
        answers: 0,
    };
    let mut lines = Lines::open(args.history_file.as_deref())?;
    while let Some(line) = lines.next()? {
        let line = line.trim();
        let done = match line.strip_prefix('/') {
            _ if line.is_empty() => continue,
            Some(command) => chat.command(command),
            None => chat.answer(line).map(|()| true),
        };
        match done {
            Ok(true) => {}
            Ok(false) => break,
            // What went wrong with one line does not end the conversation of a person.
            Err(Stop::Failed(error)) if lines.is_terminal() => {
                let _ = writeln!(std::io::stderr(), "error: {error}");
            }
            Err(stop) => return Err(stop),
        }
    }
    lines.close(args.history_file.as_deref())
}

impl Chat<'_> {
    /// Runs a command without its slash; false ends the conversation.
    fn command(&mut self, command: &str) -> Result<bool, Stop> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let file = |rest: &str| match rest.is_empty() {
            true => Err(Error::argument("chat", format!("/{name} needs a file"))),
            false => Ok(PathBuf::from(rest)),
        };
        match name {
            "help" | "h" | "?" => print(HELP)?,
            "exit" | "quit" | "q" => return Ok(false),
            "reset" | "r" => self.messages.clear(),
            "undo" => self.messages.truncate(self.messages.len().saturating_sub(2)),
            "system" => {
                self.template.system_prompt = (!rest.is_empty()).then(|| rest.to_owned());
                self.messages.clear();
            }
            "save" => self.save(&file(rest)?)?,
            "load" => self.load(&file(rest)?)?,
            other => {
                return Err(Error::argument("chat", format!("no command /{other}; /help lists them")).into());
            }
        }
        Ok(true)
    }

    /// Prints the answer to `text` as it comes. An interrupt ends it, and it stays as far as it came.
    fn answer(&mut self, text: &str) -> Outcome {
        self.messages.push(json!({ "role": "user", "content": text }));
        match self.generate() {
            Ok(Answer { text, thinking }) => {
                let mut message = json!({ "role": "assistant", "content": text });
                if !thinking.is_empty() {
                    message["reasoning_content"] = thinking.into();
                }
                self.messages.push(message);
                Ok(())
            }
            Err(stop) => {
                self.messages.pop();
                Err(stop)
            }
        }
    }

    fn generate(&mut self) -> Result<Answer, Stop> {
        let prompt = chat_ids(self.tokenizer, &self.template.chat(self.messages.clone(), None)?)?;
        self.args.cache.check_length(&self.args.model, prompt.len())?;
        let known = self.read.as_ref().map(|read| read.begin(&prompt)).transpose()?.flatten();
        let (mut cache, reused) = match known {
            Some(known) => known,
            None => (self.args.cache.make_cache(self.model, &self.args.model)?, 0),
        };
        let mut options = self.options.clone();
        options.sampling.seed = options.sampling.seed.wrapping_add(self.answers);
        self.answers += 1;
        let tokens = Tokens::new(self.model, &mut cache, &prompt[reused..], options)?;
        let tokens = tokens.with_boundaries(BOUNDARY).on_prefill(|_, _| match super::interrupted() {
            true => Err(Error::argument("chat", "interrupted")),
            false => Ok(()),
        });
        let text = Text::new(tokens, self.tokenizer).marked(self.tokenizer);
        let mut responses = text.stop_at(self.args.stop.iter().cloned());
        // Nobody here runs tools: calls of them stay as they were written.
        let format = ResponseFormat { tools: None, ..self.tokenizer.response_format() };
        let mut parts = Response::new(format, &self.tokenizer.decode(&prompt, false)?, Vec::new());
        let (mut answer, mut said) = (Answer::default(), prompt.clone());
        for response in responses.by_ref() {
            let response = match response {
                Ok(response) => response,
                Err(_) if take_interrupt() => break,
                Err(error) => return Err(error.into()),
            };
            parts.push(&response.text).into_iter().try_for_each(|part| answer.show(part))?;
            said.push(response.token);
            if take_interrupt() {
                break;
            }
        }
        parts.finish().into_iter().try_for_each(|part| answer.show(part))?;
        answer.end()?;
        let (stats, boundaries) = (responses.stats(), responses.take_boundaries());
        drop(responses);
        if self.args.stats {
            summarise(&stats);
        }
        self.read = Some(Remembered::new(said, cache, boundaries));
        Ok(answer)
    }

    fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.template.chat(self.messages.clone(), None)?.messages);
        let text = text.map_err(|e| Error::argument("chat", e.to_string()))? + "\n";
        crate::io::atomic::write_bytes(path, text.as_bytes())
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let bytes = read::whole(path, MAX_FILE)?;
        let mut messages: Vec<Value> = serde_json::from_slice(&bytes).map_err(|e| Error::invalid(path, e))?;
        let is = |message: &Value| message["role"].is_string() && message["content"].is_string();
        if !messages.iter().all(is) {
            return Err(Error::invalid(
                path,
                "a conversation is a list of objects with `role` and `content`",
            ));
        }
        let has_system = messages.first().is_some_and(|first| first["role"] == "system");
        let system = has_system.then(|| messages.remove(0));
        self.template.system_prompt =
            system.and_then(|message| message["content"].as_str().map(str::to_owned));
        self.messages = messages;
        Ok(())
    }
}

/// An answer as far as it came.
#[derive(Default)]
struct Answer {
    text: String,
    thinking: String,
}

impl Answer {
    /// Shows the next part: thoughts pale where a person watches, else on standard error, so that a program
    /// reads the answer alone.
    fn show(&mut self, part: Part) -> Outcome {
        let terminal = std::io::stdout().is_terminal();
        match part {
            Part::Thinking(piece) => {
                self.thinking += &piece;
                match terminal {
                    true => print(format_args!("\x1b[2m{piece}\x1b[22m")),
                    false => {
                        let _ = write!(std::io::stderr(), "{piece}");
                        Ok(())
                    }
                }
            }
            Part::Text(piece) => {
                let first = self.text.is_empty() && !self.thinking.is_empty();
                let piece = if first { piece.trim_start_matches('\n') } else { &piece };
                if first && !piece.is_empty() {
                    self.end_thoughts(terminal)?;
                }
                self.text += piece;
                print(piece)
            }
            Part::ToolCall(_) | Part::BadToolCall { .. } => Ok(()),
        }
    }

    fn end_thoughts(&self, terminal: bool) -> Outcome {
        match (terminal, self.thinking.ends_with('\n')) {
            (true, false) => print("\n\n"),
            (true, true) => print("\n"),
            (false, _) => {
                let _ = writeln!(std::io::stderr());
                Ok(())
            }
        }
    }

    fn end(&self) -> Outcome {
        if self.text.is_empty() && !self.thinking.is_empty() {
            self.end_thoughts(std::io::stdout().is_terminal())?;
        }
        print("\n")
    }
}

/// What a person types, with editing and a history, or what comes through a pipe.
enum Lines {
    Terminal(Box<rustyline::DefaultEditor>),
    Pipe(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Lines {
    fn open(history: Option<&Path>) -> Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Lines::Pipe(std::io::stdin().lock().lines()));
        }
        let mut editor = rustyline::DefaultEditor::new().map_err(|e| Error::io("the terminal", e))?;
        if let Some(path) = history.filter(|path| path.exists()) {
            editor.load_history(path).map_err(|e| Error::io(path, e))?;
        }
        Ok(Lines::Terminal(Box::new(editor)))
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Lines::Terminal(_))
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Lines::Pipe(lines) => lines.next().transpose().map_err(|e| Error::io("standard input", e)),
            Lines::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(Error::io("the terminal", error)),
            },
        }
    }

    fn close(self, history: Option<&Path>) -> Outcome {
        if let (Lines::Terminal(mut editor), Some(path)) = (self, history) {
            editor.save_history(path).map_err(|e| Error::io(path, e))?;
        }
        Ok(())
    }
}
