//! Checkpoints: files that are as they should be, and files that are not.

mod config;
mod raw;
mod rules;
mod safetensors;
mod shards;
mod weights;
