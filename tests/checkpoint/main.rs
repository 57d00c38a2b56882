//! Checkpoints: files that are as they should be, and files that are not.

mod config;
mod foreign;
mod gguf;
mod mutations;
mod numpy;
mod raw;
mod rules;
mod safetensors;
mod saving;
mod shards;
mod weights;
