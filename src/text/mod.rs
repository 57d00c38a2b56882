//! Text to token ids and back, chat templates, and what models answer.
//!
//! ```no_run
//! use mlxport::text::{Chat, Tokenizer};
//!
//! # fn main() -> mlxport::Result<()> {
//! let tokenizer = Tokenizer::load("Qwen3-0.6B".as_ref())?;
//! let written = tokenizer.apply_chat_template(&Chat::user("What is a kernel?"))?;
//! let prompt = tokenizer.encode(&written, false)?; // for `generate::Tokens`
//! # Ok(())
//! # }
//! ```

mod bounds;
mod bytes;
mod chat;
mod deepseek_v32;
mod detokenizer;
mod limits;
mod python;
mod response;
mod sentencepiece;
mod template;
mod tiktoken;
mod tokenizer;
mod tools;
mod vocabulary;

pub use chat::Chat;
pub use detokenizer::Detokenizer;
pub use response::{Part, Response, ResponseFormat};
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
pub use tools::{ToolCall, ToolFormat};
