//! Steps 2 and 3: which of our architectures a checkpoint is, and the checkpoint under its names.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::inspect::{FileInfo, file_infos};
use super::quantize::{self, Choice, Recipe, is_cast};
use crate::array::{Array, Dtype};
use crate::checkpoint::{Config, Gguf, Rules, WeightMap, Weights, gguf};
use crate::error::{Error, Result};
use crate::io::TensorInfo;
use crate::io::atomic::PendingFolder;
use crate::ops::{Quantization, QuantizationMode};
use crate::{io, models, ops, transforms};

/// Files beside weights and config that a converted checkpoint keeps as they are; those of tiktoken and
/// chat templates under any name besides.
const KEPT: &[&str] = &[
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
    let config = Config::load(source)?;
    let weights = Weights::of(&config, source, &plan.rules)?;
    let changes = Changes::none(&weights);
    let staging = PendingFolder::new(model)?;
    changes.write(&weights, staging.temporary(), None, &mut |_, _| Ok(()))?;
    // What another program has quantized is MLX's now; the loaded model knows how.
    let foreign = config.foreign_quantization()?.is_some();
    let matrices =
        if foreign { models::load_weights(&config, source)?.1.matrices() } else { BTreeMap::new() };
    write_config(
        &config,
        &staging.temporary().join("config.json"),
        foreign.then(|| quantization(&matrices, None)),
    )?;
    copy_kept(source, staging.temporary())?;
    let files = file_infos(staging.temporary())?;
    if model.exists() {
        fs::remove_dir_all(model).map_err(|e| Error::io(model, e))?;
    }
    staging.place()?;
    let map: &WeightMap = weights.map();
    let table = map.to_string().lines().map(str::to_owned).collect();
    let map = serde_json::to_value(map).map_err(|e| Error::invalid(model, e))?;
    Ok(Conversion { map, table, files })
}

/// What [`rewrite`] does to a checkpoint.
#[derive(Debug, Clone)]
pub struct Rewrite {
    /// The source checkpoint.
    pub source: PathBuf,
    /// The folder to make; it must not be there.
    pub out: PathBuf,
    /// How dense matrices are to be quantized, if they are.
    pub quantize: Option<Quantization>,
    /// A mix of bits in place of those of `quantize`.
    pub recipe: Option<Recipe>,
    /// Whether quantized matrices are to be dense.
    pub dequantize: bool,
    /// The dtype of what is not quantized; by default the config's.
    pub dtype: Option<Dtype>,
}

/// What [`rewrite`] has written.
#[derive(Debug, Clone, Serialize)]
pub struct Rewritten {
    /// Our architecture: the file of `src/models/` that implements it.
    pub architecture: String,
    /// Numbers that the model has learned.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Bits for each parameter, scales and biases included.
    pub bits_per_weight: f64,
    /// The quantization that the config has now.
    pub quantization: Option<Value>,
    /// The files.
    pub files: Vec<String>,
}

/// Converts a checkpoint to MLX's layout, with mlx-lm's names: sharded safetensors with an index, the
/// config with its quantization, tokenizer files as they are. The same source gives the same bytes.
///
/// Tensors are read, changed and written one at a time: in memory there is what one of them needs, and
/// the scales and biases of one shard. `progress` hears how many of all bytes are written, and may
/// fail to stop. The folder appears when it is whole. Fails if it is there.
pub fn rewrite(options: &Rewrite, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Rewritten> {
    let Rewrite { source, out, recipe, .. } = options;
    if fs::symlink_metadata(out).is_ok() {
        let message = format!("{} is there already: remove it, or choose another name", out.display());
        return Err(Error::argument("convert", message));
    }
    let config = Config::load(source)?;
    let (module, model_type) = (architecture_of(&config)?, config.model_type()?);
    let wanted = match options.dtype {
        Some(dtype) => config.clone().with_dtype(dtype),
        None => config.clone(),
    };
    let (model, mut weights) = models::load_weights(&wanted, source)?;
    let num_layers = model.num_layers();
    drop(model);
    let all = weights.matrices();
    // mlx-lm has BitNet's weights as they are published; affine ones are for running it. What the config says of
    // their scales is lost with a new `quantization`, and mlx-lm always multiplies.
    let foreign = config.foreign_quantization()?;
    let divided = foreign.is_some_and(|block| block["linear_class"].as_str() != Some("autobitlinear"));
    let packed = module == "bitnet" && !options.dequantize && !(options.quantize.is_some() && divided);
    if packed {
        weights = Weights::open(source, &models::lm::bitnet::packed_rules(&config.args()?))?;
    }
    let is_ternary = |path: &String| packed && weights.contains(&format!("{path}.weight_scale"));
    let old: BTreeMap<_, _> = all.clone().into_iter().filter(|(path, _)| !is_ternary(path)).collect();
    let mut changes = Changes::none(&weights);
    let dtype = options.dtype.or(config.dtype()?.filter(|dtype| dtype.is_floating()));
    if let Some(dtype) = dtype {
        changes.cast(dtype, |path| is_cast(model_type, path));
    }
    let mut choices = BTreeMap::new();
    let new = match (options.quantize, options.dequantize) {
        (Some(_), true) => return Err(Error::argument("convert", "quantize or dequantize: not both")),
        (Some(default), false) => {
            default.check("quantize")?;
            let dense = changes.dense_matrices(&old);
            choices = quantize::choices(model_type, num_layers, &all, &dense, default, *recipe)?;
            changes.quantize(&choices, default)?;
            let how = |(path, old): (&String, &Option<Quantization>)| {
                let chosen = match choices.get(path) {
                    Some(Choice::Default) => Some(default),
                    Some(Choice::Named(how)) => Some(*how),
                    Some(Choice::Dense) | None => None,
                };
                (path.clone(), old.or(chosen))
            };
            let new: BTreeMap<_, _> = old.iter().map(how).collect();
            if new == old {
                let message = "no matrix is left to quantize; --dequantize makes quantized ones dense";
                return Err(Error::argument("convert", message));
            }
            new
        }
        (None, true) => {
            changes.dequantize(&old, dtype);
            BTreeMap::new()
        }
        (None, false) => old.clone(),
    };
    let was_quantized = old.values().any(Option::is_some);
    let default = options.quantize.filter(|_| !was_quantized);
    let mut quantization = new.values().any(Option::is_some).then(|| quantization(&new, default));
    // Layers that an architecture or a recipe names are named, also where they are as the others.
    for (path, choice) in &choices {
        if let (Choice::Named(how), Some(block)) = (choice, &mut quantization) {
            block[path.as_str()] = block_of(*how);
        }
    }

    let staging = PendingFolder::new(out)?;
    let parameters = parameters(&weights, &old);
    let weight_bytes = changes.write(&weights, staging.temporary(), Some(parameters), progress)?;
    write_config(
        &config,
        &staging.temporary().join("config.json"),
        (!packed || options.quantize.is_some()).then(|| quantization.clone().unwrap_or_default()),
    )?;
    copy_kept(source, staging.temporary())?;
    let files = file_names(staging.temporary())?;
    staging.place()?;
    let bits_per_weight = weight_bytes as f64 * 8.0 / parameters.max(1) as f64;
    Ok(Rewritten { architecture: module, parameters, weight_bytes, bits_per_weight, quantization, files })
}

/// What becomes of each tensor: its name, and what it is made of.
struct Changes {
    out: BTreeMap<String, (TensorInfo, Made)>,
}

#[derive(Debug, Clone)]
enum Made {
    /// The weight of the same name, in the dtype.
    Kept,
    /// A part of the quantized matrix of the layer.
    Quantized { layer: String, part: usize, how: Quantization, dtype: Dtype },
    /// The matrix of the layer, dense.
    Dense { layer: String, how: Quantization },
}

/// The tensors of a quantized matrix.
const PARTS: [&str; 3] = ["weight", "scales", "biases"];

impl Changes {
    fn none(weights: &Weights) -> Self {
        let kept = |tensor: &TensorInfo| (tensor.key.clone(), (tensor.clone(), Made::Kept));
        Self { out: weights.tensors().map(kept).collect() }
    }

    fn cast(&mut self, dtype: Dtype, which: impl Fn(&str) -> bool) {
        for (path, (info, _)) in &mut self.out {
            if info.dtype.is_floating() && which(path) {
                info.dtype = dtype;
            }
        }
    }

    /// The dense matrices and their numbers of columns.
    fn dense_matrices(&self, matrices: &BTreeMap<String, Option<Quantization>>) -> BTreeMap<String, i32> {
        let dense = matrices.iter().filter(|(_, how)| how.is_none());
        let columns = |path: &String| self.out.get(&format!("{path}.weight"))?.0.shape.last().copied();
        dense.filter_map(|(path, _)| Some((path.clone(), columns(path)?))).collect()
    }

    fn quantize(&mut self, choices: &BTreeMap<String, Choice>, default: Quantization) -> Result<()> {
        for (layer, choice) in choices {
            let how = match choice {
                Choice::Dense => continue,
                Choice::Default => default,
                Choice::Named(how) => *how,
            };
            let Some((info, _)) = self.out.remove(&format!("{layer}.weight")) else { continue };
            let affine = how.mode == QuantizationMode::Affine;
            for (part, name) in PARTS.iter().enumerate().take(if affine { 3 } else { 2 }) {
                let mut shape = info.shape.clone();
                let last = shape.last_mut().ok_or_else(|| Error::argument("quantize", "a scalar"))?;
                *last = if part == 0 { *last / 16 * how.bits / 2 } else { *last / how.group_size };
                let dtype = match part {
                    0 => Dtype::Uint32,
                    _ if affine => info.dtype,
                    _ => Dtype::Uint8,
                };
                let key = format!("{layer}.{name}");
                let made = Made::Quantized { layer: layer.clone(), part, how, dtype: info.dtype };
                self.out.insert(key.clone(), (TensorInfo { key, shape, dtype }, made));
            }
        }
        Ok(())
    }

    fn dequantize(&mut self, matrices: &BTreeMap<String, Option<Quantization>>, dtype: Option<Dtype>) {
        for (layer, how) in matrices.iter().filter_map(|(layer, how)| Some((layer, (*how)?))) {
            let parts = PARTS.map(|name| self.out.remove(&format!("{layer}.{name}")));
            let [Some((mut info, _)), Some((scales, _)), _] = parts else { continue };
            if let (Some(last), Some(groups)) = (info.shape.last_mut(), scales.shape.last()) {
                *last = groups * how.group_size;
            }
            let own = if scales.dtype.is_floating() { scales.dtype } else { Dtype::Bfloat16 };
            info.dtype = dtype.unwrap_or(own);
            self.out.insert(info.key.clone(), (info, Made::Dense { layer: layer.clone(), how }));
        }
    }

    /// Writes every tensor; gives the number of bytes.
    fn write(
        &self,
        weights: &Weights,
        folder: &Path,
        parameters: Option<u64>,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<u64> {
        let infos: Vec<TensorInfo> = self.out.values().map(|(info, _)| info.clone()).collect();
        let bytes = |info: &TensorInfo| elements(info) * info.dtype.size() as u64;
        let (mut written, all) = (0, infos.iter().map(bytes).sum());
        // Parts of quantized matrices whose turn comes later; the codes come first.
        let mut later: HashMap<String, Array> = HashMap::new();
        let mut read: Vec<String> = Vec::new();
        let mut give = |name: &str| {
            // What came before is written: its pages can go.
            read.drain(..).for_each(|path| weights.release(&path));
            let (info, made) = &self.out[name];
            progress(written, all)?;
            written += bytes(info);
            let array = match made {
                Made::Kept => ops::astype(&weights.fresh(name)?, info.dtype)?,
                Made::Dense { layer, how } => {
                    let part = |part: &str| weights.fresh(&format!("{layer}.{part}"));
                    // The product is computed in the new dtype.
                    let cast = |a: Array| match a.dtype().is_floating() {
                        true => ops::astype(&a, info.dtype),
                        false => Ok(a),
                    };
                    let biased = weights.contains(&format!("{layer}.biases"));
                    let biases = biased.then(|| part("biases").and_then(cast)).transpose()?;
                    let (w, scales) = (part("weight")?, cast(part("scales")?)?);
                    ops::dequantize(&w, &scales, biases.as_ref(), *how, None, Some(info.dtype))?
                }
                Made::Quantized { layer, part, how, dtype } => match later.remove(name) {
                    Some(array) => array,
                    None => {
                        let dense = ops::astype(&weights.fresh(&format!("{layer}.weight"))?, *dtype)?;
                        let made = ops::quantize(&dense, *how, None)?;
                        drop(dense);
                        let parts = [Some(made.weight), Some(made.scales), made.biases];
                        transforms::eval(parts.iter().flatten())?;
                        let mut asked = None;
                        for (at, array) in parts.into_iter().enumerate() {
                            match array {
                                Some(array) if at == *part => asked = Some(array),
                                Some(array) => _ = later.insert(format!("{layer}.{}", PARTS[at]), array),
                                None => {}
                            }
                        }
                        asked.ok_or_else(|| Error::argument("quantize", "MLX returned too few arrays"))?
                    }
                },
            };
            array.eval()?;
            match made {
                Made::Kept => read.push(name.to_owned()),
                Made::Quantized { layer, .. } => read.push(format!("{layer}.weight")),
                Made::Dense { layer, .. } => read.extend(PARTS.map(|part| format!("{layer}.{part}"))),
            }
            Ok(array)
        };
        let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
        let index = io::Index { always: parameters.is_some(), parameters };
        io::save_sharded_with(folder, &infos, MAX_SHARD, &metadata, index, &mut give)?;
        Ok(all)
    }
}

fn elements(info: &TensorInfo) -> u64 {
    info.shape.iter().map(|&dim| dim.max(0) as u64).product()
}

/// What the model has learned: codes count, scales and biases of groups do not.
fn parameters(weights: &Weights, matrices: &BTreeMap<String, Option<Quantization>>) -> u64 {
    let count = |tensor: &TensorInfo| {
        let layer = tensor.key.rsplit_once('.');
        match layer.and_then(|(layer, part)| Some((part, (*matrices.get(layer)?)?))) {
            Some(("weight", how)) => elements(tensor) * 32 / how.bits as u64,
            Some(("scales" | "biases", _)) => 0,
            _ => elements(tensor),
        }
    };
    weights.tensors().map(count).sum()
}

/// The `quantization` of a config: the default, by default what most matrices have, and every layer that
/// differs.
fn quantization(matrices: &BTreeMap<String, Option<Quantization>>, default: Option<Quantization>) -> Value {
    let mut counts: Vec<(usize, Quantization)> = Vec::new();
    for how in matrices.values().flatten() {
        match counts.iter_mut().find(|(_, found)| found == how) {
            Some((count, _)) => *count += 1,
            None => counts.push((1, *how)),
        }
    }
    // The first of the most frequent.
    let most = counts.iter().rev().max_by_key(|(count, _)| *count).map(|(_, how)| *how);
    let default = default.or(most).unwrap_or(QuantizationMode::Affine.into());
    let mut block = block_of(default);
    for (layer, how) in matrices {
        if let Some(how) = how.filter(|how| *how != default) {
            block[layer.as_str()] = block_of(how);
        }
    }
    block
}

fn block_of(how: Quantization) -> Value {
    json!({ "group_size": how.group_size, "bits": how.bits, "mode": how.mode.name() })
}

/// Writes a config as mlx-lm does: sorted, without what is not read, `quantization` under both of its
/// names. `quantization` of `Null` takes it out.
fn write_config(config: &Config, path: &Path, quantization: Option<Value>) -> Result<()> {
    let keys = config.json().as_object().into_iter().flatten();
    let mut sorted: BTreeMap<&str, &Value> = keys.map(|(key, value)| (key.as_str(), value)).collect();
    for unread in ["_name_or_path", "vision_config"] {
        sorted.remove(unread);
    }
    if quantization.is_some() {
        sorted.remove("quantization_config");
        sorted.remove("quantization");
    }
    let mut text_config;
    if let Some(old) = sorted.get("text_config").filter(|old| old.get("quantization_config").is_some()) {
        text_config = (*old).clone();
        text_config.as_object_mut().map(|object| object.remove("quantization_config"));
        sorted.insert("text_config", &text_config);
    }
    if let Some(block) = quantization.as_ref().filter(|block| !block.is_null()) {
        sorted.extend([("quantization", block), ("quantization_config", block)]);
    }
    let mut text = Vec::new();
    let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, indented);
    sorted.serialize(&mut serializer).map_err(|e| Error::invalid(path, e))?;
    fs::write(path, text).map_err(|e| Error::io(path, e))
}

/// Copies what belongs to a checkpoint beside its weights and its config; of a GGUF file, writes it.
fn copy_kept(source: &Path, to: &Path) -> Result<()> {
    if let Some(path) = gguf::find(source)? {
        let (tokenizer, config) = Gguf::open(&path)?.tokenizer()?;
        for (name, json) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)] {
            let to = to.join(name);
            fs::write(&to, format!("{json:#}\n")).map_err(|e| Error::io(&to, e))?;
        }
        if source.is_file() {
            return Ok(());
        }
    }
    for name in file_names(source)? {
        let extra = [".tiktoken", ".jinja"].iter().any(|end| name.ends_with(end));
        if KEPT.contains(&name.as_str()) || extra {
            let from = source.join(&name);
            fs::copy(&from, to.join(&name)).map_err(|e| Error::io(&from, e))?;
        }
    }
    Ok(())
}

/// The names of a folder's files, sorted.
fn file_names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let files = entries.filter_map(|e| e.ok()).filter(|e| e.path().is_file());
    let mut names: Vec<String> = files.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// The name of the file of `src/models/` for a config.
fn architecture_of(config: &Config) -> Result<String> {
    let (module, _) = models::architecture(config)?;
    Ok(module.rsplit("::").next().unwrap_or(module).trim().to_owned())
}
