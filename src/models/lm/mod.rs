//! Language models, one file for each architecture, named after its `model_type`.

pub mod bitnet;
pub mod gpt2;
pub mod gpt_bigcode;
pub mod gpt_neox;
pub mod gptj;
pub mod hunyuan_v1_dense;
pub mod internlm2;
pub mod iquestloopcoder;
pub mod lille_130m;
pub mod llama;
pub mod minicpm;
pub mod nanbeige;
pub mod nanochat;
pub mod nemotron;
pub mod phi;
pub mod phixtral;
pub mod qwen3;
pub mod stablelm;
pub mod starcoder2;
pub mod talkie;
