//! What would be in `config.json`.

use serde_json::{Map, Value as Json, json};

use super::{Gguf, Value};
use crate::error::{Error, Result};

/// Architectures that are read, and their `model_type`.
const KNOWN: [(&str, &str); 7] = [
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("phi3", "phi3"),
];

impl Gguf {
    /// llama.cpp's name of the architecture.
    pub(super) fn architecture(&self) -> Result<&str> {
        let name = self.text("general.architecture").unwrap_or_default();
        if KNOWN.iter().any(|(known, _)| *known == name) {
            return Ok(name);
        }
        let known: Vec<&str> = KNOWN.iter().map(|(known, _)| *known).collect();
        let what = format!("the architecture `{name}` in a GGUF file ({})", self.path.display());
        Err(Error::unsupported(what, format!("{} are read", known.join(", "))))
    }

    /// The config that Hugging Face's checkpoint of the model would have.
    pub fn config(&self) -> Result<Json> {
        let name = self.architecture()?;
        let model_type = KNOWN.iter().find(|(known, _)| *known == name).map(|(_, model_type)| *model_type);
        let key = |key: &str| format!("{name}.{key}");
        let need = |k: &str| {
            self.int(&key(k)).ok_or_else(|| self.invalid(format!("`{}` is missing, or no integer", key(k))))
        };
        let (hidden, heads) = (need("embedding_length")?, self.per_layer(&key("attention.head_count"))?);
        let heads =
            heads.ok_or_else(|| self.invalid(format!("`{}` is missing", key("attention.head_count"))))?;
        let head_dim = match self.int(&key("attention.key_length")) {
            Some(head_dim) => head_dim,
            None => hidden.checked_div(heads).ok_or_else(|| self.invalid("no attention heads"))?,
        };
        if head_dim <= 0 {
            return Err(self.invalid(format!("attention heads of {head_dim}")));
        }
        let vocabulary = self.info("token_embd.weight")?.shape[0];
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| _ = config.insert(key.to_owned(), value);
        set("model_type", json!(model_type));
        set("hidden_size", json!(hidden));
        set("num_hidden_layers", json!(need("block_count")?));
        set("intermediate_size", json!(self.per_layer(&key("feed_forward_length"))?));
        set("num_attention_heads", json!(heads));
        set("num_key_value_heads", json!(self.per_layer(&key("attention.head_count_kv"))?.unwrap_or(heads)));
        set("head_dim", json!(head_dim));
        set("vocab_size", json!(vocabulary));
        set("max_position_embeddings", json!(need("context_length")?));
        set("rms_norm_eps", json!(self.number(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-6)));
        set("rope_theta", json!(self.number(&key("rope.freq_base"))?.unwrap_or(10_000.0)));
        set("tie_word_embeddings", json!(!self.tensors.contains_key("output.weight")));
        if let Some(dims) = self.int(&key("rope.dimension_count")).filter(|dims| *dims != head_dim) {
            set("partial_rotary_factor", json!(dims as f64 / head_dim as f64));
        }
        if let Some(scaling) = self.rope_scaling(name)? {
            set("rope_scaling", scaling);
        }
        for (from, to) in [("bos_token_id", "bos_token_id"), ("padding_token_id", "pad_token_id")] {
            if let Some(id) = self.int(&format!("tokenizer.ggml.{from}")) {
                set(to, json!(id));
            }
        }
        let ends = ["eos_token_id", "eot_token_id", "eom_token_id"];
        let mut ends: Vec<i64> =
            ends.iter().filter_map(|id| self.int(&format!("tokenizer.ggml.{id}"))).collect();
        ends.dedup();
        if !ends.is_empty() {
            set("eos_token_id", json!(ends));
        }
        let gemma = name.starts_with("gemma");
        let activation = if gemma { "gelu_pytorch_tanh" } else { "silu" };
        set("hidden_act", json!(activation));
        if gemma {
            set("hidden_activation", json!(activation));
        }
        if matches!(name, "gemma2" | "gemma3") {
            // The largest of each family scales queries by the width of a head without `key_length`.
            let layers = need("block_count")?;
            let largest = matches!((name, layers), ("gemma2", 46) | ("gemma3", 62));
            set("query_pre_attn_scalar", json!(if largest { hidden / heads.max(1) } else { head_dim }));
            let window = self.int(&key("attention.sliding_window"));
            set("sliding_window", json!(window.unwrap_or(4096)));
        }
        match name {
            "gemma2" => {
                for (from, to, usual) in [
                    ("attn_logit_softcapping", "attn_logit_softcapping", 50.0),
                    ("final_logit_softcapping", "final_logit_softcapping", 30.0),
                ] {
                    set(to, json!(self.number(&key(from))?.unwrap_or(usual)));
                }
            }
            "gemma3" => {
                set("rope_local_base_freq", json!(10_000.0));
                set("sliding_window_pattern", json!(6));
                if self.number(&key("rope.freq_base"))?.is_none() {
                    set("rope_theta", json!(1_000_000.0));
                }
            }
            "phi3" => {
                if let Some(window) = self.int(&key("attention.sliding_window")).filter(|window| *window > 0)
                {
                    set("sliding_window", json!(window));
                }
                let original = self.int(&key("rope.scaling.original_context_length"));
                set("original_max_position_embeddings", json!(original.map_or(need("context_length"), Ok)?));
            }
            _ => {}
        }
        Ok(Json::Object(config))
    }

    /// A number that all layers share, though the file may list it for each.
    fn per_layer(&self, key: &str) -> Result<Option<i64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Int(n)) => Ok(Some(*n)),
            Some(Value::Ints(each)) if !each.is_empty() && each.iter().all(|n| *n == each[0]) => {
                Ok(Some(each[0]))
            }
            Some(_) => {
                let what = format!("`{key}` that differs from layer to layer ({})", self.path.display());
                Err(Error::unsupported(what, "the model has one for all"))
            }
        }
    }

    /// A finite number.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.float(key) {
            Some(x) if !x.is_finite() => Err(self.invalid(format!("`{key}` is {x}"))),
            x => Ok(x),
        }
    }

    /// How positions are stretched: by factors that the file has as tensors, or by a rule.
    fn rope_scaling(&self, name: &str) -> Result<Option<Json>> {
        let key = |key: &str| format!("{name}.rope.scaling.{key}");
        let factors = |key: &str| self.tensors.contains_key(key).then(|| self.factors(key)).transpose();
        let context = self.int(&format!("{name}.context_length"));
        let original = self.int(&key("original_context_length"));
        if let Some(long) = factors("rope_factors_long.weight")? {
            let short = factors("rope_factors_short.weight")?.unwrap_or_else(|| long.clone());
            let mut scaling = json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long });
            scaling["original_max_position_embeddings"] = json!(original.or(context));
            if let Some(magnitude) = self.number(&key("attn_factor"))? {
                scaling["attention_factor"] = json!(magnitude);
            }
            return Ok(Some(scaling));
        }
        if let Some(each) = factors("rope_freqs.weight")? {
            // Frequencies divided one by one, and no change of magnitude: llama3's rule, worked out.
            return Ok(Some(json!({
                "rope_type": "longrope", "short_factor": each, "long_factor": each, "factor": 1.0,
                "attention_factor": 1.0, "original_max_position_embeddings": context,
            })));
        }
        let factor = self.number(&key("factor"))?.or(self.number(&format!("{name}.rope.scale_linear"))?);
        let kind = self.text(&key("type")).unwrap_or(if factor.is_some() { "linear" } else { "none" });
        match (kind, factor) {
            ("none", _) | (_, None) => Ok(None),
            ("linear", Some(factor)) => {
                Ok((factor != 1.0).then(|| json!({ "rope_type": "linear", "factor": factor })))
            }
            ("yarn", Some(factor)) => Ok(Some(json!({
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original.or(context),
            }))),
            (kind, _) => {
                let what = format!("rope scaling `{kind}` in a GGUF file ({})", self.path.display());
                Err(Error::unsupported(what, "linear, yarn and lists of factors are read"))
            }
        }
    }

    fn factors(&self, key: &str) -> Result<Vec<f32>> {
        const MOST: usize = 1 << 16;
        let info = self.info(key)?;
        let array = self.array(key)?;
        if info.dtype != crate::array::Dtype::Float32 || array.size() > MOST {
            return Err(self.invalid(format!("tensor `{key}`: {:?} {}", info.shape, info.dtype)));
        }
        let values = array.to_vec::<f32>()?;
        match values.iter().find(|x| !x.is_finite()) {
            Some(x) => Err(self.invalid(format!("tensor `{key}` has {x}"))),
            None => Ok(values),
        }
    }
}
