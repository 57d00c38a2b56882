//! Which matrices are quantized, and how: mlx-lm's mixed recipes, and what its architectures keep in
//! more bits.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::ops::{Quantization, QuantizationMode};

/// One of mlx-lm's mixed recipes: more bits for the head, and in the first and last eighth of the layers
/// and every third between for values and down projections, as llama.cpp's `Q4_K_M` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[expect(missing_docs, reason = "these are the recipes' names: low bits, high bits")]
pub enum Recipe {
    #[cfg_attr(feature = "cli", value(name = "mixed_2_6"))]
    Mixed2To6,
    #[cfg_attr(feature = "cli", value(name = "mixed_3_4"))]
    Mixed3To4,
    #[cfg_attr(feature = "cli", value(name = "mixed_3_6"))]
    Mixed3To6,
    #[cfg_attr(feature = "cli", value(name = "mixed_4_6"))]
    Mixed4To6,
}

impl Recipe {
    fn bits(self) -> (i32, i32) {
        match self {
            Self::Mixed2To6 => (2, 6),
            Self::Mixed3To4 => (3, 4),
            Self::Mixed3To6 => (3, 6),
            Self::Mixed4To6 => (4, 6),
        }
    }
}

/// What is done with a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Dense,
    Default,
    /// The config names the layer.
    Named(Quantization),
}

/// Kept in 8 bits, or not quantized at all.
const EIGHT: Option<Quantization> = Some(Quantization::affine(64, 8));
const NONE: Option<Quantization> = None;

/// What mlx-lm's architectures (`quant_predicate`) except from the default: each `model_type`; the end of a path,
/// or with `*` in front a part of it; and how.
const EXCEPTIONS: &[(&[&str], &[&str], Option<Quantization>)] = &[
    (&["Klear", "kimi_k3", "kimi_linear", "mellum", "qwen3_moe", "qwen3_vl_moe"], &["mlp.gate"], EIGHT),
    (
        &[
            "prism_hadamard_qwen35",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
            "qwen3_5_text",
            "qwen3_next",
        ],
        &["mlp.gate", "shared_expert_gate"],
        EIGHT,
    ),
    (&["afmoe"], &["*router.gate"], EIGHT),
    (&["bailing_hybrid", "bailing_moe", "bailing_moe_linear"], &["mlp.gate.gate_proj"], EIGHT),
    (&["bailing_hybrid", "bailing_moe_v3"], &["attention.embed_q", "attention.unembed_out"], NONE),
    (
        &["bailing_moe_v3"],
        &[
            "model.word_embeddings",
            "lm_head",
            "attention.q_a_proj",
            "attention.q_b_proj",
            "attention.kv_a_proj_with_mqa",
            "attention.b_proj",
        ],
        NONE,
    ),
    (&["gemma4", "gemma4_text", "gemma4_unified"], &["router.proj"], EIGHT),
    (&["gpt_oss", "jamba"], &["router"], EIGHT),
    (&["granite", "granitemoe"], &["self_attn.o_proj", "mlp.down_proj", "lm_head"], EIGHT),
    (&["granitemoe"], &["block_sparse_moe.router.layer"], EIGHT),
    (&["granitemoehybrid"], &["router.layer"], EIGHT),
    (&["kimi_k3"], &["res_proj"], NONE),
    (&["laguna"], &["mlp.gate.proj"], EIGHT),
    (&["lfm2_moe"], &["feed_forward.gate"], EIGHT),
    (&["longcat_flash", "longcat_flash_ngram"], &["classifier"], EIGHT),
    (
        &["minimax", "minimax_m2", "minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text", "minimax_text_01"],
        &["block_sparse_moe.gate"],
        EIGHT,
    ),
    (&["rwkv7"], &["*lora.2", "*embeddings"], EIGHT),
    (&["spark2_5"], &["self_attn.g_proj"], NONE),
    (&["step3p5"], &["*mlp.gate.gate"], EIGHT),
];

/// Matrices that are no layers of their own in mlx-lm's architectures, mostly routers: it quantizes them by no
/// predicate and no recipe, and loads no checkpoint that has them quantized. Each `model_type`, and the end of a path.
const PLAIN: &[(&[&str], &str)] = &[
    (
        &[
            "bailing_moe_v3",
            "deepseek",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "deepseek_v41",
            "deepseek_v41_text",
            "dots1",
            "exaone_moe",
            "glm4_moe",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "joyai_llm_flash",
            "kimi_k2",
            "kimi_k25",
            "kimi_vl",
            "mimo_v2_flash",
            "muse_spark",
            "solar_open",
        ],
        "mlp.gate",
    ),
    (&["nemotron_h"], "mixer.gate"),
];

/// What mlx-lm's architectures (`cast_predicate`) leave in their dtype: a part of the name, everywhere
/// or for each of these `model_type`s.
const UNCAST: &[(&str, &[&str])] = &[
    ("e_score_correction_bias", &[]),
    ("expert_bias", &[]),
    ("router_bias", &["step3p5"]),
    (
        "A_log",
        &[
            "kimi_k3",
            "kimi_linear",
            "nemotron_h",
            "prism_hadamard_qwen35",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
            "qwen3_5_text",
        ],
    ),
    ("dt_bias", &["kimi_k3", "kimi_linear"]),
    ("_hc.", &["deepseek_v41", "deepseek_v41_text"]),
    ("sinks", &["deepseek_v41", "deepseek_v41_text"]),
    ("compressor.", &["deepseek_v41", "deepseek_v41_text"]),
];

/// Whether a parameter of a model takes another dtype.
pub(super) fn is_cast(model_type: &str, path: &str) -> bool {
    !UNCAST
        .iter()
        .any(|(part, types)| path.contains(part) && (types.is_empty() || types.contains(&model_type)))
}

/// How each dense matrix of a model is to be quantized: `matrices` are paths and numbers of columns, `all` has those
/// too that are quantized already.
pub(super) fn choices(
    model_type: &str,
    num_layers: usize,
    all: &BTreeMap<String, Option<Quantization>>,
    matrices: &BTreeMap<String, i32>,
    default: Quantization,
    recipe: Option<Recipe>,
) -> Result<BTreeMap<String, Choice>> {
    if recipe.is_some() && default.mode != QuantizationMode::Affine {
        return Err(Error::argument(
            "quantize",
            format!("recipes are affine, and the mode is {}", default.mode),
        ));
    }
    // Ling 3, with its delta attention, is a module of its own there.
    let model_type = match model_type {
        "bailing_hybrid" if all.keys().any(|path| path.ends_with("attention.b_proj")) => "bailing_moe_v3",
        other => other,
    };
    let plain =
        |path: &str| PLAIN.iter().any(|(types, end)| types.contains(&model_type) && path.ends_with(end));
    let mixed = recipe.map(|recipe| Mixed::new(recipe, num_layers, all, default.group_size)).transpose()?;
    let choice = |(path, &columns): (&String, &i32)| {
        let fits = |how: Quantization| columns % how.group_size == 0;
        let choice = match (&mixed, excepted(model_type, all, path)) {
            _ if !fits(default) || plain(path) => Choice::Dense,
            (Some(mixed), _) => Choice::Named(mixed.of(path)?),
            (None, Some(None)) => Choice::Dense,
            (None, Some(Some(how))) if fits(how) && how != default => Choice::Named(how),
            _ => Choice::Default,
        };
        Ok((path.clone(), choice))
    };
    matrices.iter().map(choice).collect()
}

/// What the architecture excepts, if it does.
fn excepted(
    model_type: &str,
    all: &BTreeMap<String, Option<Quantization>>,
    path: &str,
) -> Option<Option<Quantization>> {
    let names = |pattern: &&str| match pattern.strip_prefix('*') {
        Some(part) => path.contains(part),
        None => path.ends_with(*pattern),
    };
    let found =
        EXCEPTIONS.iter().find(|(types, paths, _)| types.contains(&model_type) && paths.iter().any(&names));
    match model_type {
        // Latent attention is not quantized, linear attention is.
        "bailing_moe_v3" if path.ends_with("attention.q_proj") || path.ends_with("attention.g_proj") => {
            let latent = path.rsplit_once('.').map(|(layer, _)| format!("{layer}.kv_a_proj_with_mqa"));
            latent.is_some_and(|latent| all.contains_key(&latent)).then_some(NONE)
        }
        "muse_spark" => {
            let layers: Vec<usize> = all.keys().filter_map(|path| layer_of(path)).collect();
            let (first, last) = (Some(0), layers.into_iter().max());
            let inner = layer_of(path).is_some() && ![first, last].contains(&layer_of(path));
            (!(inner && path.contains(".mlp.experts."))).then_some(NONE)
        }
        _ => found.map(|(_, _, how)| *how),
    }
}

fn layer_of(path: &str) -> Option<usize> {
    path.split('.').find_map(|part| part.parse().ok())
}

/// A recipe for one model.
struct Mixed {
    low: Quantization,
    high: Quantization,
    layers: usize,
    /// Which segment of a path is the layer's number.
    segment: usize,
}

impl Mixed {
    fn new(
        recipe: Recipe,
        layers: usize,
        all: &BTreeMap<String, Option<Quantization>>,
        group_size: i32,
    ) -> Result<Self> {
        let down = all.keys().find(|path| path.contains("down_proj"));
        let down =
            down.ok_or_else(|| Error::argument("quantize", "recipes need layers with a `down_proj`"))?;
        let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty();
        let segment = down.split('.').position(number).unwrap_or(down.split('.').count() - 1);
        let (low, high) = recipe.bits();
        let [low, high] = [low, high].map(|bits| Quantization::affine(group_size, bits));
        Ok(Self { low, high, layers, segment })
    }

    fn of(&self, path: &str) -> Result<Quantization> {
        let layer: usize = match path.split('.').nth(self.segment) {
            Some(part) => part.parse().map_err(|_| {
                Error::argument("quantize", format!("recipes need the number of the layer in `{path}`"))
            })?,
            None => 0,
        };
        let eighth = self.layers / 8;
        let important = layer < eighth || layer >= 7 * self.layers / 8 || layer.wrapping_sub(eighth) % 3 == 2;
        let precise = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"].iter().any(|name| path.contains(name));
        Ok(if precise && important || path.contains("lm_head") { self.high } else { self.low })
    }
}
