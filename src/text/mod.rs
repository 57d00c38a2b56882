//! Text to token ids and back, and chat templates.

mod bytes;
mod chat;
mod detokenizer;
mod tokenizer;

pub use chat::ChatTemplate;
pub use detokenizer::Detokenizer;
pub use tokenizer::Tokenizer;
