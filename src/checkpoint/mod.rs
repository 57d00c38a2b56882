//! Checkpoints: what a directory of model files holds, under the names the model asks for.
//!
//! ```no_run
//! use mlxport::checkpoint::{Rules, Weights};
//!
//! # fn main() -> mlxport::Result<()> {
//! let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
//! let weights = Weights::open("Qwen3-0.6B".as_ref(), &rules)?;
//! let attention = weights.pp("model.layers").pp(0).pp("self_attn");
//! let q_proj = attention.get("q_proj.weight")?; // lazy: read from the file when it is used
//! weights.finish()?; // fails here: most of the checkpoint was not asked for
//! # Ok(())
//! # }
//! ```

mod config;
mod defaults;
mod files;
pub mod foreign;
pub mod gguf;
mod map;
mod pattern;
mod python_json;
mod rules;
mod suggest;
mod transform;
mod weights;

pub use config::{Config, QuantizationConfig};
pub use files::Files;
pub use foreign::Encoding;
pub use gguf::Gguf;
pub use map::{Dropped, Row, WeightMap};
pub use rules::{Rule, Rules};
pub use weights::Weights;

pub(crate) use suggest::nearest;
