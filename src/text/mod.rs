//! Text to token ids and back, chat templates, and what models answer.

mod bounds;
mod bytes;
mod chat;
mod detokenizer;
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
