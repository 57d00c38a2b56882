//! Flags that several commands have: how tokens are chosen, what is kept of the tokens before.

use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::checkpoint::Config;
use crate::error::{Error, Result};
use crate::generate::{KvQuantization, Options, Penalties, Sampling, context_length};
use crate::models::{LanguageModel, takes_limit};
use crate::ops::{Quantization, QuantizationMode};
use crate::text::Tokenizer;

#[derive(clap::Args, Clone)]
#[command(next_help_heading = "How tokens are chosen", allow_negative_numbers = true)]
pub(super) struct SamplingArgs {
    /// Temperature; at 0 the likeliest token is taken
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temp: f32,
    /// Keep the likeliest tokens that make up this much of the probability; 0 or 1 keeps all
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: i32,
    /// Keep tokens at least this much as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Tokens that min-p keeps at least
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_tokens_to_keep: i32,
    /// XTC: the probability that it is applied
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    xtc_probability: f32,
    /// XTC: of the tokens above this probability keep only the least likely
    #[arg(long, value_name = "P", default_value_t = 0.1)]
    xtc_threshold: f32,
    /// Divide the logits of tokens that have occurred; 0 or 1 does nothing
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    repetition_penalty: f32,
    /// Tokens before that the repetition penalty counts; 0 for all
    #[arg(long, value_name = "N", default_value_t = 20)]
    repetition_context_size: usize,
    /// Take this from the logits of tokens that have occurred
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    presence_penalty: f32,
    /// Tokens before that the presence penalty counts; 0 for all
    #[arg(long, value_name = "N", default_value_t = 20)]
    presence_context_size: usize,
    /// Take this from the logit of a token for every time that it has occurred
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    frequency_penalty: f32,
    /// Tokens before that the frequency penalty counts; 0 for all
    #[arg(long, value_name = "N", default_value_t = 20)]
    frequency_context_size: usize,
    /// Add to the logit of a token
    #[arg(long, value_name = "ID:X,..", value_delimiter = ',', value_parser = bias)]
    logit_bias: Vec<(i32, f32)>,
    /// The same seed gives the same tokens
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

/// A count of things that are needed.
pub(super) fn one_or_more(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("`{text}` is not 1 or more"))
}

fn bias(text: &str) -> Result<(i32, f32), String> {
    let wrong = || format!("`{text}` is not a token id and a number, with a colon between them");
    let (id, value) = text.split_once(':').ok_or_else(wrong)?;
    Ok((id.trim().parse().map_err(|_| wrong())?, value.trim().parse().map_err(|_| wrong())?))
}

impl SamplingArgs {
    /// XTC spares line breaks and the tokens that end a text.
    pub(super) fn sampling(&self, tokenizer: Option<&Tokenizer>, stop: &[i32]) -> Result<Sampling> {
        let mut spared = stop.to_vec();
        if let Some(tokenizer) = tokenizer {
            spared.extend(tokenizer.encode("\n", false)?);
        }
        Ok(Sampling {
            temperature: self.temp,
            top_p: self.top_p,
            min_p: self.min_p,
            min_tokens_to_keep: self.min_tokens_to_keep,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
            xtc_special_tokens: spared,
            top_k: self.top_k,
            seed: self.seed,
        })
    }

    pub(super) fn penalties(&self) -> Penalties {
        Penalties {
            logit_bias: self.logit_bias.iter().copied().collect(),
            repetition: self.repetition_penalty,
            repetition_context: self.repetition_context_size,
            presence: self.presence_penalty,
            presence_context: self.presence_context_size,
            frequency: self.frequency_penalty,
            frequency_context: self.frequency_context_size,
        }
    }
}

#[derive(clap::Args, Clone)]
#[command(next_help_heading = "What is kept of the tokens before", allow_negative_numbers = true)]
pub(super) struct CacheArgs {
    /// Quantize keys and values to so many bits
    #[arg(long, value_name = "BITS")]
    kv_bits: Option<i32>,
    /// Keys and values that share a scale, with --kv-bits
    #[arg(long, value_name = "N", default_value_t = 64)]
    kv_group_size: i32,
    /// Quantize them once there are so many tokens
    #[arg(long, value_name = "N", default_value_t = 5000)]
    quantized_kv_start: usize,
    /// Keep so many positions at most: the first four and the last ones. As in mlx-lm, this is for models
    /// whose layers keep all, and nothing to those that decide for themselves what they remember, such as llama
    #[arg(long, value_name = "N", conflicts_with = "kv_bits")]
    max_kv_size: Option<i32>,
    /// Tokens of the prompt that go through the model at a time
    #[arg(long, value_name = "N", default_value_t = Options::default().prefill_step, value_parser = one_or_more)]
    prefill_step_size: usize,
}

impl CacheArgs {
    pub(super) fn prefill_step(&self) -> usize {
        self.prefill_step_size
    }

    pub(super) fn kv_quantization(&self) -> Option<KvQuantization> {
        let (group_size, start) = (self.kv_group_size, self.quantized_kv_start);
        let how = |bits| Quantization { group_size, bits, mode: QuantizationMode::Affine };
        self.kv_bits.map(|bits| KvQuantization { how: how(bits), start })
    }

    /// Fails if so many tokens are more than the model in `dir` was made for, unless only a window is kept.
    pub(super) fn check_length(&self, dir: &Path, tokens: usize) -> Result<()> {
        let Some(most) = context_length(dir)?.filter(|most| tokens > *most) else { return Ok(()) };
        let limits = takes_limit(Config::load(dir)?.model_type()?);
        if limits && self.max_kv_size.is_some() {
            return Ok(());
        }
        let message = format!("{tokens} tokens, and the model was made for {most} (its config says)");
        let advice =
            if limits { ": shorten it, or keep a window with --max-kv-size" } else { ": shorten it" };
        Err(Error::argument("prompt", message + advice))
    }

    /// An empty cache of the model, which is that in `dir`.
    pub(super) fn make_cache(&self, model: &dyn LanguageModel, dir: &Path) -> Result<Cache> {
        let cache = model.make_cache();
        match self.max_kv_size {
            Some(size) if takes_limit(Config::load(dir)?.model_type()?) => cache.limited(size),
            _ => Ok(cache),
        }
    }
}

#[derive(clap::Args)]
#[group(multiple = false)]
#[command(next_help_heading = "What the text must look like")]
pub(super) struct GrammarArgs {
    /// JSON of this schema: the schema itself, or a file with it. Parts stand together, a space apart, or
    /// on lines of their own, indented
    #[arg(long, value_name = "SCHEMA")]
    json_schema: Option<String>,
    /// A text that this regular expression matches
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// A text of this grammar, in Lark: the grammar itself, or a file with it
    #[arg(long, value_name = "GRAMMAR")]
    grammar: Option<String>,
}

impl GrammarArgs {
    #[cfg(not(feature = "structured"))]
    pub(super) fn is_some(&self) -> bool {
        self.json_schema.is_some() || self.regex.is_some() || self.grammar.is_some()
    }

    #[cfg(feature = "structured")]
    pub(super) fn grammar(&self) -> Result<Option<crate::generate::Grammar>> {
        use crate::generate::Grammar;
        if let Some(schema) = &self.json_schema {
            let text = text_or_file(schema)?;
            let schema = serde_json::from_str(&text);
            let fail = |e| Error::argument("json schema", format!("not JSON, nor a file with it: {e}"));
            let schema = schema.map_err(fail)?;
            return Ok(Some(Grammar::JsonSchema(schema)));
        }
        let regex = self.regex.clone().map(Grammar::Regex);
        let lark = self.grammar.as_deref().map(text_or_file).transpose()?.map(Grammar::Lark);
        Ok(regex.or(lark))
    }
}

/// The content of the file of this name, if there is one, else the text itself.
pub(super) fn text_or_file(text: &str) -> Result<String> {
    let path = std::path::Path::new(text);
    match path.is_file() {
        true => std::fs::read_to_string(path).map_err(|e| Error::io(path, e)),
        false => Ok(text.to_owned()),
    }
}

/// A prompt cache from a file, for this model.
pub(super) fn load_cache(path: &PathBuf, model: &dyn LanguageModel) -> Result<Cache> {
    let (cache, _) = Cache::load(path)?;
    cache.check_of(&model.make_cache()).map_err(|e| Error::invalid(path, e))?;
    Ok(cache)
}
