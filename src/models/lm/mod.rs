//! Language models, one file for each architecture, named after its `model_type`.

pub mod llama;
pub mod qwen3;
