//! Text to token ids and back, and chat templates.

mod bounds;
mod bytes;
mod chat;
mod detokenizer;
mod python;
mod sentencepiece;
mod template;
mod tiktoken;
mod tokenizer;
mod vocabulary;

pub use chat::Chat;
pub use detokenizer::Detokenizer;
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
