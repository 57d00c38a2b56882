//! Generation: prompts in, tokens out, one at a time.
//!
//! ```no_run
//! use mlxport::generate::{Options, Text, Tokens, stop_tokens};
//!
//! # fn main() -> mlxport::Result<()> {
//! let dir = "Qwen3-0.6B".as_ref();
//! let model = mlxport::models::load(dir)?;
//! let tokenizer = mlxport::text::Tokenizer::load(dir)?;
//! let prompt = tokenizer.encode_prompt("Once upon a time")?;
//! let stop = stop_tokens(dir, tokenizer.eos_id())?;
//! let options = Options { max_tokens: 100, stop, ..Options::default() };
//! let mut cache = model.make_cache();
//! for response in Text::new(Tokens::new(&*model, &mut cache, &prompt, options)?, &tokenizer) {
//!     print!("{}", response?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Tokens`] alone needs no tokenizer; [`Text`] comes with the feature `text`.

mod batch;
mod choose;
mod constraint;
mod context;
mod forward;
mod options;
mod penalty;
mod perplexity;
mod prefix;
mod sample;
mod speculate;
mod speed;
mod stats;
mod stop;
#[cfg(feature = "structured")]
mod structured;
#[cfg(feature = "text")]
mod text;
mod tokens;

pub use batch::{Batch, Output, Request};
pub use choose::{FinishReason, Token};
pub use constraint::{Allowed, Constraint};
pub use context::context_length;
pub use options::{Cancel, KvQuantization, Options};
pub use penalty::{Penalizer, Penalties};
pub use perplexity::{Perplexity, PerplexitySettings, perplexity};
pub use prefix::{PrefixCache, Remembered};
pub use sample::{Sampler, Sampling};
pub use speculate::Draft;
pub use speed::{Speed, SpeedSettings, Spread, speed};
pub use stats::Stats;
pub use stop::stop_tokens;
#[cfg(feature = "structured")]
pub use structured::{Grammar, Structure};
#[cfg(feature = "text")]
pub use text::{Response, Text};
pub use tokens::Tokens;
