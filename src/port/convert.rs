//! Steps 2 and 3: which of our architectures a checkpoint is, and the checkpoint under its names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::inspect::{FileInfo, file_infos};
use crate::array::Array;
use crate::checkpoint::{Config, Rules, WeightMap, Weights};
use crate::error::{Error, Result};
use crate::{io, models};

/// Files beside the weights that a converted checkpoint keeps as they are.
const KEPT: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "README.md",
];

/// The largest file of converted weights, in bytes; what is larger is written in shards.
const MAX_SHARD: usize = 5 << 30;

/// What will be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Our architecture: the file of `src/models/` that implements it.
    pub architecture: String,
    /// How the names of the checkpoint become the model's.
    pub rules: Rules,
    /// Weights by dtype: how many tensors of each.
    pub dtypes: BTreeMap<String, usize>,
    /// The quantization of `config.json`, if there is one.
    pub quantization: Option<serde_json::Value>,
}

/// Finds the architecture and its rules.
pub(super) fn plan(source: &Path, tensors: &[io::TensorInfo]) -> Result<Plan> {
    let config = Config::load(source)?;
    let mut dtypes = BTreeMap::new();
    for tensor in tensors {
        *dtypes.entry(tensor.dtype.to_string()).or_default() += 1;
    }
    let (architecture, rules) = models::architecture(&config)?;
    let quantization =
        ["quantization", "quantization_config"].iter().find_map(|key| config.json().get(key).cloned());
    // `stringify!` puts spaces around `::`.
    Ok(Plan { architecture: architecture.replace(' ', ""), rules, dtypes, quantization })
}

/// What was converted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conversion {
    /// The weight map: which tensor became which weight, and how.
    pub map: serde_json::Value,
    /// The same as a table, one line for each weight.
    pub table: Vec<String>,
    /// The files of the converted checkpoint.
    pub files: Vec<FileInfo>,
}

impl Conversion {
    /// Whether the converted files are still there, with their sizes.
    pub(super) fn is_whole(&self, model: &Path) -> bool {
        self.files.iter().all(|f| fs::metadata(model.join(&f.name)).is_ok_and(|meta| meta.len() == f.bytes))
    }
}

/// Writes the checkpoint under the model's names into `model`, a folder that appears whole or not
/// at all.
pub(super) fn convert(source: &Path, plan: &Plan, model: &Path) -> Result<Conversion> {
    let weights = Weights::of(&Config::load(source)?, source, &plan.rules)?;
    let map: &WeightMap = weights.map();
    let names: Vec<String> = map.targets().map(|tensor| tensor.key.clone()).collect();
    let arrays = names.into_iter().map(|name| Ok((name.clone(), weights.get(&name)?)));
    let arrays: Vec<(String, Array)> = arrays.collect::<Result<_>>()?;

    let parent = model.parent().unwrap_or(Path::new("."));
    let staging = tempfile::Builder::new().prefix(".model-").tempdir_in(parent);
    let staging = staging.map_err(|e| Error::io(parent, e))?;
    let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
    let named = arrays.iter().map(|(name, array)| (name.as_str(), array));
    io::save_sharded(staging.path(), named, MAX_SHARD, &metadata)?;
    for name in KEPT {
        let from = source.join(name);
        if from.is_file() {
            fs::copy(&from, staging.path().join(name)).map_err(|e| Error::io(&from, e))?;
        }
    }
    let files = file_infos(staging.path())?;
    if model.exists() {
        fs::remove_dir_all(model).map_err(|e| Error::io(model, e))?;
    }
    let staged = staging.keep();
    fs::rename(&staged, model).map_err(|e| {
        let _ = fs::remove_dir_all(&staged);
        Error::io(model, e)
    })?;
    let table = map.to_string().lines().map(str::to_owned).collect();
    let map = serde_json::to_value(map).map_err(|e| Error::invalid(model, e))?;
    Ok(Conversion { map, table, files })
}
