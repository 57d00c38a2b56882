//! `config.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::gguf::{self, Gguf};
use super::{defaults, nearest, python_json};
use crate::array::Dtype;
use crate::error::{Error, Result};
use crate::io::read;
use crate::ops::{Quantization, QuantizationMode};

/// The longest config that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// A model's `config.json`, as it was written; a model reads it with [`args`](Self::args).
///
/// Infinities are accepted in Python's spelling and in that of transformers 5. `NaN` is accepted
/// where nothing reads it as a number.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    json: Value,
}

impl Config {
    /// Reads `config.json` in `dir`; for a GGUF file, or a folder that has one and no config, what the
    /// file says in place of it. Fails if there is none, or if it is not one JSON object.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        if let Some(path) = gguf::find(dir.as_ref())? {
            let json = Gguf::open(&path)?.config()?;
            return Ok(Self { path, json });
        }
        Self::read(dir.as_ref().join("config.json"))
    }

    /// Reads a config file of any name, for instance `generation_config.json`.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path, &read::text(path, MAX_CONFIG)?)
    }

    /// The config in `text`; `path` names it in errors.
    pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let json = python_json::parse(text).map_err(|e| Error::invalid(&path, e))?;
        if !json.is_object() {
            return Err(Error::invalid(&path, "not a JSON object"));
        }
        Ok(Self { path, json })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole config. An infinity is `{"__float__": "Infinity"}`, `NaN` a string.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// Which architecture the config is for.
    pub fn model_type(&self) -> Result<&str> {
        let model_type = self.json.get("model_type").and_then(Value::as_str);
        model_type.ok_or_else(|| self.invalid("`model_type` is missing, which says how the model is built"))
    }

    /// The error for a `model_type` that is none of `known`.
    pub fn unknown_model_type(&self, known: &[&str]) -> Error {
        let model_type = self.model_type().unwrap_or_default();
        let near = nearest(model_type, known.iter().copied(), 3);
        let near = match near.is_empty() {
            true => "`mlxport models` lists those that are".to_owned(),
            false => format!("the nearest: {}", near.join(", ")),
        };
        let what = format!("model_type `{model_type}` ({})", self.path.display());
        Error::unsupported(what, format!("there is no such model here; {near}"))
    }

    /// The config as a model's own type; a key that it leaves out has the value that it has in the source, and a
    /// flag that is `null` is false.
    /// Fails with the key that is missing even so, or is not what it should be: another type, a number out
    /// of range, `NaN`.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T> {
        let mut json = self.json.clone();
        defaults::complete(&mut json);
        loop {
            let (key, cause) = match python_json::read(&json) {
                Ok(args) => return Ok(args),
                Err(error) => error,
            };
            let cause = cause.to_string();
            let missing = cause.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
            let filled = missing.is_some_and(|missing| defaults::fill(&mut json, missing));
            if !filled && !defaults::allow_null(&mut json, key.as_deref(), &cause) {
                // Where the key is not known, the cause names it: it is missing.
                return Err(self.invalid(key.map_or(cause.clone(), |key| format!("`{key}`: {cause}"))));
            }
        }
    }

    /// The dtype of the weights: `dtype`, or `torch_dtype` in older files.
    pub fn dtype(&self) -> Result<Option<Dtype>> {
        let value =
            ["dtype", "torch_dtype"].iter().find_map(|key| self.json.get(key)).filter(|v| !v.is_null());
        let Some(value) = value else { return Ok(None) };
        let name = value.as_str().map(|name| name.strip_prefix("torch.").unwrap_or(name));
        let dtype = name.and_then(|name| name.parse().ok());
        dtype.map(Some).ok_or_else(|| self.invalid(format!("`dtype` is {value}, which MLX does not have")))
    }

    /// The same for weights in `dtype`.
    pub fn with_dtype(mut self, dtype: Dtype) -> Self {
        self.json["dtype"] = dtype.to_string().into();
        self
    }

    /// How the weights were quantized for MLX, if they were: `quantization`, or `quantization_config`
    /// unless it names another program's method. Fails for bits and groups that MLX does not have.
    pub fn quantization(&self) -> Result<Option<QuantizationConfig>> {
        let block = ["quantization", "quantization_config"].into_iter().find_map(|key| {
            let value = self.json.get(key).filter(|value| !value.is_null())?;
            Some((key, value))
        });
        let Some((key, block)) = block else { return Ok(None) };
        let Some(object) = block.as_object() else {
            return Err(self.invalid(format!("`{key}` is not an object")));
        };
        if object.contains_key("quant_method") && key != "quantization" {
            return Ok(None);
        }
        let default = self.one_quantization(key, block)?;
        let mut layers = BTreeMap::new();
        for (layer, value) in object {
            let path = format!("{key}.{layer}");
            match value {
                Value::Object(_) => {
                    _ = layers.insert(layer.clone(), Some(self.one_quantization(&path, value)?))
                }
                Value::Bool(false) => _ = layers.insert(layer.clone(), None),
                Value::Bool(true) => _ = layers.insert(layer.clone(), Some(default)),
                _ => {}
            }
        }
        Ok(Some(QuantizationConfig { default, layers }))
    }

    /// How another program quantized the weights, if one did: a block with `quant_method`, in the config,
    /// in its `text_config`, or in `hf_quant_config.json` beside it.
    pub fn foreign_quantization(&self) -> Result<Option<Value>> {
        if self.json.get("quantization").is_some_and(|block| !block.is_null()) {
            return Ok(None);
        }
        let own = [&self.json["quantization_config"], &self.json["text_config"]["quantization_config"]];
        if let Some(block) = own.into_iter().find(|block| !block.is_null()) {
            return Ok(block.get("quant_method").map(|_| block.clone()));
        }
        let beside = self.path.with_file_name("hf_quant_config.json");
        if !beside.is_file() {
            return Ok(None);
        }
        let mut block = Self::read(&beside)?.json;
        block["quant_method"] = "modelopt".into();
        Ok(Some(block))
    }

    fn one_quantization(&self, at: &str, block: &Value) -> Result<Quantization> {
        let mode = match block.get("mode") {
            None | Some(Value::Null) => QuantizationMode::Affine,
            Some(mode) => mode
                .as_str()
                .and_then(|mode| mode.parse().ok())
                .ok_or_else(|| self.invalid(format!("`{at}.mode` is {mode}, which MLX does not have")))?,
        };
        let usual = Quantization::from(mode);
        let number = |name, usual| match block.get(name) {
            None | Some(Value::Null) => Ok(usual),
            Some(value) => value
                .as_i64()
                .and_then(|n| i32::try_from(n).ok())
                .ok_or_else(|| self.invalid(format!("`{at}.{name}` is {value}, not a number of its size"))),
        };
        let how = Quantization {
            mode,
            group_size: number("group_size", usual.group_size)?,
            bits: number("bits", usual.bits)?,
        };
        how.check("quantization").map_err(|e| self.invalid(format!("`{at}`: {e}")))?;
        Ok(how)
    }

    fn invalid(&self, message: impl std::fmt::Display) -> Error {
        Error::invalid(&self.path, message)
    }
}

/// The `quantization` of a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// For every layer that is not named.
    pub default: Quantization,
    /// By the layer's path; `None` for one that is not quantized.
    pub layers: BTreeMap<String, Option<Quantization>>,
}

impl QuantizationConfig {
    /// How the layer at `path` is quantized, if the config has it so.
    pub fn of(&self, path: &str) -> Option<Quantization> {
        self.layers.get(path).copied().unwrap_or(Some(self.default))
    }
}
