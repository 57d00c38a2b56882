//! Which file implements which `model_type`.

use std::path::Path;

use super::{LanguageModel, lm};
use crate::array::Dtype;
use crate::checkpoint::{Config, Rules, Weights};
use crate::error::{Error, Result};

macro_rules! models {
    ($($($name:literal)|+ => $($module:ident)::+;)*) => {
        /// Every `model_type` that can be loaded.
        pub const MODEL_TYPES: &[&str] = &[$($($name,)+)*];

        /// The module that implements a `model_type`, such as `lm::llama`.
        pub fn module_of(model_type: &str) -> Option<&'static str> {
            match model_type {
                $($($name)|+ => Some(stringify!($($module)::+)),)*
                _ => None,
            }
        }

        /// The module that implements a checkpoint's `model_type`, and the rules for its weights.
        pub fn architecture(config: &Config) -> Result<(&'static str, Rules)> {
            match config.model_type()? {
                $($($name)|+ => {
                    let args: $($module)::+::Args = config.args()?;
                    args.check().map_err(|e| Error::invalid(config.path(), e))?;
                    Ok((stringify!($($module)::+), $($module)::+::rules(&args)))
                })*
                _ => Err(config.unknown_model_type(MODEL_TYPES)),
            }
        }

        /// The model of a checkpoint directory. Its weights are read when they are first used.
        ///
        /// Fails for a `model_type` that is not here, for a config whose sizes no model has, and for
        /// weights that are missing, have another shape, or are of no use to the model.
        pub fn load(dir: &Path) -> Result<Box<dyn LanguageModel>> {
            Ok(load_weights(&Config::load(dir)?, dir)?.0)
        }

        /// As [`load`], in this floating-point dtype. What a GGUF file has packed and becomes dense has it
        /// from the beginning.
        pub fn load_as(dir: &Path, dtype: Dtype) -> Result<Box<dyn LanguageModel>> {
            let (mut model, _) = load_weights(&Config::load(dir)?.with_dtype(dtype), dir)?;
            model.set_dtype(dtype)?;
            Ok(model)
        }

        /// As [`load`], for a checkpoint of this config; with the weights that the model was made of.
        pub fn load_weights(config: &Config, dir: &Path) -> Result<(Box<dyn LanguageModel>, Weights)> {
            match config.model_type()? {
                $($($name)|+ => {
                    let args: $($module)::+::Args = config.args()?;
                    args.check().map_err(|e| Error::invalid(config.path(), e))?;
                    let weights = Weights::to_make(config, dir, &$($module)::+::rules(&args))?;
                    let model = weights.make(|weights| $($module)::+::model(&args, weights))?;
                    Ok((Box::new(model), weights))
                })*
                _ => Err(config.unknown_model_type(MODEL_TYPES)),
            }
        }
    };
}

models! {
    "afm7" => lm::afm7;
    "afmoe" => lm::afmoe;
    "apertus" => lm::apertus;
    "baichuan_m1" => lm::baichuan_m1;
    "bailing_hybrid" | "bailing_moe_v3" => lm::bailing_hybrid;
    "bailing_moe" => lm::bailing_moe;
    "bailing_moe_linear" => lm::bailing_moe_linear;
    "bitnet" => lm::bitnet;
    "cohere" | "cohere2" => lm::cohere;
    "dbrx" => lm::dbrx;
    "deepseek_v2" => lm::deepseek_v2;
    "deepseek_v3" | "glm4_moe_lite" | "joyai_llm_flash" | "kimi_k2" => lm::deepseek_v3;
    "deepseek_v32" | "glm_moe_dsa" => lm::deepseek_v32;
    "deepseek_v41" | "deepseek_v41_text" => lm::deepseek_v41;
    "ernie4_5_moe" => lm::ernie4_5_moe;
    "exaone" => lm::exaone;
    "exaone4" => lm::exaone4;
    "exaone_moe" => lm::exaone_moe;
    "falcon_h1" => lm::falcon_h1;
    "gear" => lm::gear;
    "gemma" => lm::gemma;
    "gemma2" => lm::gemma2;
    "gemma3" => lm::gemma3;
    "gemma3_text" => lm::gemma3_text;
    "gemma3n" | "gemma3n_text" => lm::gemma3n;
    "gemma4" | "gemma4_unified" => lm::gemma4;
    "gemma4_text" => lm::gemma4_text;
    "glm" | "glm4" => lm::glm;
    "glm4_moe" | "deepseek" | "dots1" | "solar_open" => lm::glm4_moe;
    "gpt2" => lm::gpt2;
    "gpt_bigcode" => lm::gpt_bigcode;
    "gpt_neox" => lm::gpt_neox;
    "gpt_oss" => lm::gpt_oss;
    "gptj" => lm::gptj;
    "granitemoe" => lm::granitemoe;
    "granitemoehybrid" => lm::granitemoehybrid;
    "hunyuan" => lm::hunyuan;
    "hunyuan_v1_dense" => lm::hunyuan_v1_dense;
    "internlm2" => lm::internlm2;
    "iquestloopcoder" => lm::iquestloopcoder;
    "jamba" => lm::jamba;
    "kimi_k25" | "kimi_vl" => lm::kimi_k25;
    "kimi_k3" => lm::kimi_k3;
    "kimi_linear" => lm::kimi_linear;
    "Klear" => lm::klear;
    "laguna" => lm::laguna;
    "lfm2" | "lfm2_moe" => lm::lfm2;
    "lfm2-vl" | "lfm2_vl" => lm::lfm2_vl;
    "lille-130m" => lm::lille_130m;
    "llama" | "ernie4_5" | "granite" | "helium" | "internlm3" | "iquestcoder" | "mimo" | "ministral3" | "mistral" | "seed_oss" | "smollm3" | "telechat3" | "xverse" => lm::llama;
    "llama4" => lm::llama4;
    "llama4_text" => lm::llama4_text;
    "longcat_flash" => lm::longcat_flash;
    "longcat_flash_ngram" => lm::longcat_flash_ngram;
    "mamba" | "falcon_mamba" => lm::mamba;
    "mamba2" => lm::mamba2;
    "mimo_v2_flash" => lm::mimo_v2_flash;
    "minicpm" => lm::minicpm;
    "minicpm3" => lm::minicpm3;
    "minimax" | "minimax_m2" | "minimax_text_01" => lm::minimax;
    "minimax_m3" | "minimax_m3_vl_text" => lm::minimax_m3;
    "minimax_m3_vl" => lm::minimax_m3_vl;
    "mistral3" | "llava" | "pixtral" => lm::mistral3;
    "mistral4" => lm::mistral4;
    "mixtral" => lm::mixtral;
    "muse_glimmer" | "muse_glimmer_text" => lm::muse_glimmer;
    "muse_spark" => lm::muse_spark;
    "nanbeige" => lm::nanbeige;
    "nanochat" => lm::nanochat;
    "nemotron" => lm::nemotron;
    "nemotron_h" => lm::nemotron_h;
    "nemotron-nas" => lm::nemotron_nas;
    "olmo" => lm::olmo;
    "olmo2" | "olmo3" => lm::olmo2;
    "olmo_hybrid" => lm::olmo_hybrid;
    "openelm" => lm::openelm;
    "phi" => lm::phi;
    "phi3" => lm::phi3;
    "phi3small" => lm::phi3small;
    "phimoe" => lm::phimoe;
    "phixtral" | "phi-msft" => lm::phixtral;
    "plamo" => lm::plamo;
    "plamo2" => lm::plamo2;
    "plamo3" => lm::plamo3;
    "prism_hadamard_qwen35" => lm::prism_hadamard_qwen35;
    "qwen" => lm::qwen;
    "qwen2" | "qwen3" => lm::qwen3;
    "qwen3_5" | "qwen3_5_moe" | "qwen3_5_moe_text" | "qwen3_5_text" => lm::qwen3_5;
    "qwen3_moe" | "mellum" | "olmoe" | "qwen2_moe" => lm::qwen3_moe;
    "qwen3_next" => lm::qwen3_next;
    "qwen2_5_vl" | "qwen2_vl" | "qwen3_vl" => lm::qwen3_vl;
    "qwen3_vl_moe" => lm::qwen3_vl_moe;
    "recurrent_gemma" => lm::recurrent_gemma;
    "rwkv7" => lm::rwkv7;
    "spark2_5" => lm::spark2_5;
    "stablelm" => lm::stablelm;
    "starcoder2" => lm::starcoder2;
    "step3p5" => lm::step3p5;
    "talkie" => lm::talkie;
    "youtu_llm" | "youtu" => lm::youtu_llm;
}

/// The `model_type`s whose memory is their own affair, in mlx-lm too: `make_cache` of the model decides.
#[rustfmt::skip]
const OWN_CACHES: &[&str] = &[
    "afm7", "afmoe", "baichuan_m1", "bailing_hybrid", "bailing_moe_linear", "bailing_moe_v3", "cohere2",
    "deepseek_v32", "deepseek_v41", "deepseek_v41_text", "exaone4", "exaone_moe", "falcon_h1",
    "falcon_mamba", "gear", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text",
    "gemma4_unified", "glm_moe_dsa", "gpt_oss", "granitemoehybrid", "iquestcoder", "iquestloopcoder",
    "jamba", "kimi_k3", "kimi_linear", "laguna", "lfm2", "lfm2-vl", "lfm2_moe", "lfm2_vl", "llama",
    "llama4", "longcat_flash", "longcat_flash_ngram", "mamba", "mamba2", "mellum", "mimo_v2_flash",
    "minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text", "minimax_text_01", "ministral3", "mistral",
    "muse_glimmer", "muse_glimmer_text", "muse_spark", "nanbeige", "nemotron-nas", "nemotron_h",
    "olmo3", "olmo_hybrid", "plamo2", "plamo3", "prism_hadamard_qwen35", "qwen3_5", "qwen3_5_moe",
    "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv7", "spark2_5", "step3p5",
    "xverse",
];

/// Whether the cache of models of this `model_type` takes a limit ([`Cache::limited`](crate::cache::Cache::limited)),
/// as in mlx-lm: not where the model decides for itself what it remembers.
pub fn takes_limit(model_type: &str) -> bool {
    !OWN_CACHES.contains(&model_type)
}
