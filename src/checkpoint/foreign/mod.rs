//! Quantized checkpoints of other programs: which rules turn their tensors into MLX's, before the
//! architecture's own rules name and arrange them.

mod bits;
mod encoding;
mod ggml;
mod transposed;

pub use encoding::Encoding;
pub use ggml::{Ggml, GgmlType};

use serde_json::Value;

use super::{Config, Files, Rules};
use crate::array::Dtype;
use crate::error::{Error, Result};
use crate::io::TensorInfo;

/// What becomes of a quantized matrix: codes, scales and biases, of which some may be left out.
const TO: [&str; 3] = ["*.weight", "*.scales", "*.biases"];

/// The rules for what a config's `quantization_config` says and the files hold. None for checkpoints
/// that are dense, or quantized for MLX.
///
/// Fails for formats that cannot be read, with the reason.
pub fn rules(config: &Config, files: &Files) -> Result<Rules> {
    if let Some(gguf) = files.gguf() {
        return gguf.rules(config.dtype()?.filter(|dtype| dtype.is_floating()));
    }
    let tensors = files.tensors()?;
    let block = config.foreign_quantization()?;
    let rules = match &block {
        None => Rules::new(),
        Some(block) => of_method(config, block, files, &tensors)?,
    };
    // 8-bit floats are told by their names, as mlx-lm tells them.
    if !tensors.iter().any(|t| t.key.ends_with("_scale_inv")) {
        return Ok(rules);
    }
    let block = block_size(config, block.as_ref().map(|block| &block["weight_block_size"]))?;
    let encoding = Encoding::Fp8 { block };
    let rules = rules.decode(&["*.weight", "*.weight_scale_inv"], &TO, encoding);
    Ok(rules.decode(&["*", "*_scale_inv"], &["*", "*_scales"], encoding))
}

fn of_method(config: &Config, block: &Value, files: &Files, tensors: &[TensorInfo]) -> Result<Rules> {
    let refuse = |what: String, why: &str| {
        Err(Error::unsupported(format!("{what} ({})", config.path().display()), why.to_owned()))
    };
    let method = block["quant_method"].as_str().unwrap_or_default();
    match method {
        "awq" => {
            let version = block["version"].as_str().unwrap_or("gemm").to_ascii_lowercase();
            if version != "gemm" || block["bits"].as_i64().is_some_and(|bits| bits != 4) {
                let what = format!("AWQ, version {version} with {} bits", block["bits"]);
                return refuse(what, "only the version `gemm` with 4 bits is read");
            }
            let rules = with_zeros(Rules::new(), ["*.qweight", "*.scales", "*.qzeros"], Encoding::Awq);
            Ok(same_floats(rules, tensors))
        }
        "gptq" => {
            let format = block["checkpoint_format"].as_str().unwrap_or("gptq");
            let zero_offset = match format {
                "gptq" => 1,
                "gptq_v2" => 0,
                _ => {
                    return refuse(format!("GPTQ in the layout `{format}`"), "`gptq` and `gptq_v2` are read");
                }
            };
            let bits = block["bits"].as_i64().filter(|bits| matches!(bits, 2 | 3 | 4 | 8));
            let Some(bits) = bits else {
                return refuse(format!("GPTQ with {} bits", block["bits"]), "codes have 2, 3, 4 or 8 bits");
            };
            let encoding = Encoding::Gptq { bits: bits as i32, zero_offset };
            let parts = ["*.qweight", "*.scales", "*.qzeros"];
            let rules = in_order(files, tensors, "g_idx", parts, |scales| scales[0], encoding)?;
            Ok(same_floats(with_zeros(rules, parts, encoding), tensors))
        }
        "compressed-tensors" => {
            compressed(block, files, tensors)?.map_or_else(|what| refuse(what, "dequantize it first"), Ok)
        }
        "bitnet" => {
            let divided = block["linear_class"].as_str() != Some("autobitlinear");
            Ok(Rules::new().decode(&["*.weight", "*.weight_scale"], &TO, Encoding::Ternary { divided }))
        }
        // Names and shapes say how, to the rule for 8-bit floats or to the architecture's own.
        "fp8" | "mxfp4" | "mxfp8" => Ok(without_activations(Rules::new())),
        "modelopt" => match block["quantization"]["quant_algo"].as_str().or(block["quant_algo"].as_str()) {
            Some("NVFP4") => {
                let parts = ["*.weight", "*.weight_scale", "*.weight_scale_2"];
                let rules = Rules::new().decode(&parts, &TO, Encoding::Fp4 { divided: false });
                Ok(without_activations(rules))
            }
            other => refuse(format!("modelopt's {}", other.unwrap_or("format")), "only NVFP4 is read"),
        },
        _ => refuse(
            format!("quantization by `{method}`"),
            "awq, gptq, compressed-tensors, fp8, mxfp4, mxfp8, bitnet and modelopt are read: dequantize it first",
        ),
    }
}

/// What a compressed-tensors checkpoint is made of, or the name of a format that is not read.
fn compressed(block: &Value, files: &Files, tensors: &[TensorInfo]) -> Result<Result<Rules, String>> {
    let format = block["format"].as_str().unwrap_or_default();
    let rules = match format {
        "pack-quantized" => {
            let parts = ["*.weight_packed", "*.weight_scale", "*.weight_zero_point"];
            // Codes of one width are told by the config; else each matrix has its shape beside it.
            let groups = block["config_groups"].as_object();
            let widths = groups.into_iter().flatten().map(|(_, group)| group["weights"]["num_bits"].as_i64());
            let mut widths: Vec<i64> = widths.map(|bits| bits.unwrap_or(4)).collect();
            widths.sort_unstable();
            widths.dedup();
            let bits = match widths[..] {
                [] => 4,
                [bits @ (4 | 8)] => bits as i32,
                _ => return Ok(Err(format!("compressed-tensors with codes of {widths:?} bits"))),
            };
            let encoding = Encoding::PackedInt { bits };
            let groups_of = |scales: &[i32]| scales.get(1).copied().unwrap_or(1);
            let rules = in_order(files, tensors, "weight_g_idx", parts, groups_of, encoding)?;
            let rules = with_zeros(rules, parts, encoding);
            rules.drop("*.weight_shape", "the codes have it")
        }
        "int-quantized" => Rules::new().decode(&["*.weight", "*.weight_scale"], &TO, Encoding::Int8),
        "float-quantized" => {
            let block = block_size_of(&block["config_groups"]["group_0"]["weights"]["block_structure"]);
            let encoding = Encoding::Fp8 { block: block.unwrap_or(BLOCK) };
            Rules::new().decode(&["*.weight", "*.weight_scale"], &TO, encoding)
        }
        "nvfp4-pack-quantized" | "mxfp4-pack-quantized" => {
            let encoding = Encoding::Fp4 { divided: true };
            let parts = ["*.weight_packed", "*.weight_scale", "*.weight_global_scale"];
            with_zeros(Rules::new(), parts, encoding)
        }
        _ => return Ok(Err(format!("compressed-tensors in the format `{format}`"))),
    };
    Ok(Ok(without_activations(rules)))
}

/// Decodes where all three parts are, and then where the last one is missing.
fn with_zeros(rules: Rules, parts: [&str; 3], encoding: Encoding) -> Rules {
    rules.decode(&parts, &TO, encoding).decode(&parts[..2], &TO, encoding)
}

/// Scales of activations: these are not quantized here.
fn without_activations(rules: Rules) -> Rules {
    let why = "activations are not quantized";
    rules.drop("*.input_scale", why).drop("*.input_global_scale", why).drop("*.activation_scale", why)
}

/// Every floating tensor in the dtype of the first scales, as mlx-lm has them.
fn same_floats(mut rules: Rules, tensors: &[TensorInfo]) -> Rules {
    let floats = || tensors.iter().filter(|t| t.dtype.is_floating());
    let Some(dtype) = floats().find(|t| t.key.ends_with(".scales")).map(|t| t.dtype) else { return rules };
    for other in floats().filter(|t| t.dtype != dtype && !t.key.ends_with(".scales")) {
        rules = rules.cast(&other.key, dtype);
    }
    rules
}

/// Looks at which group each column of a matrix is in, where `index` says so: one after another, as MLX
/// has them, or else in an order that makes the matrix dense. `groups` is their number, by the shape of
/// the scales.
fn in_order(
    files: &Files,
    tensors: &[TensorInfo],
    index: &str,
    parts: [&str; 3],
    groups: impl Fn(&[i32]) -> i32,
    encoding: Encoding,
) -> Result<Rules> {
    let suffix = format!(".{index}");
    let mut rules = Rules::new();
    let (mut plain, mut mixed) = (0, Vec::new());
    for tensor in tensors.iter().filter(|t| t.key.ends_with(&suffix)) {
        let layer = tensor.key.strip_suffix(&suffix).unwrap_or_default();
        let fail = |message: String| {
            Error::invalid(files.file_of(&tensor.key), format!("`{}`: {message}", tensor.key))
        };
        let key = parts[1].replacen('*', layer, 1);
        let scales = tensors.binary_search_by(|t| t.key.cmp(&key)).ok().map(|at| &tensors[at].shape);
        let groups = scales.filter(|shape| !shape.is_empty()).map_or(0, |shape| groups(shape));
        let (&[columns], Dtype::Int32) = (tensor.shape.as_slice(), tensor.dtype) else {
            return Err(fail(format!("{:?} {}: one int32 for each column", tensor.shape, tensor.dtype)));
        };
        let of = files.array(&tensor.key)?.to_vec::<i32>()?;
        if let Some(outside) = of.iter().find(|group| !(0..groups).contains(group)) {
            return Err(fail(format!("group {outside} of {groups}")));
        }
        let size = columns / groups.max(1);
        if size > 0 && columns % groups == 0 && of.iter().zip(0..).all(|(&group, at)| group == at / size) {
            plain += 1;
        } else {
            mixed.push(layer);
        }
    }
    let [codes, scales, zeros] = parts;
    let index = format!("*.{index}");
    let places: &[&str] = if plain == 0 && !mixed.is_empty() { &["*"] } else { &mixed };
    for layer in places {
        let [codes, scales, zeros, index, to] =
            [codes, scales, zeros, &index, TO[0]].map(|p| p.replacen('*', layer, 1));
        rules = rules.decode(&[&codes, &scales, &zeros, &index], &[&to], encoding);
        rules = rules.decode(&[&codes, &scales, &index], &[&to], encoding);
    }
    Ok(rules.drop(index, "the groups are one after another"))
}

/// Rows and columns for each scale of 8-bit floats, where the config does not say.
const BLOCK: [i32; 2] = [128, 128];

fn block_size(config: &Config, value: Option<&Value>) -> Result<[i32; 2]> {
    match value {
        None | Some(Value::Null) => Ok(BLOCK),
        Some(value) => block_size_of(value).ok_or_else(|| {
            Error::invalid(config.path(), format!("`weight_block_size` is {value}, not two sizes"))
        }),
    }
}

fn block_size_of(value: &Value) -> Option<[i32; 2]> {
    let sizes: [i32; 2] = serde_json::from_value(value.clone()).ok()?;
    sizes.iter().all(|size| (1..=1 << 20).contains(size)).then_some(sizes)
}
