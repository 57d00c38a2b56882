//! Checkpoints of random weights in the shapes of real models, to measure speed with.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::bf16;
use serde_json::{Value, json};

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::io::{self, atomic::PendingFolder};
use crate::ops::{self, Quantization};

/// The sizes of a language model.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What the command line calls it.
    pub name: &'static str,
    model_type: &'static str,
    hidden_size: i32,
    intermediate_size: i32,
    num_hidden_layers: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: i32,
    vocab_size: i32,
    max_position_embeddings: i32,
    rope_theta: f64,
    rms_norm_eps: f64,
    tied: bool,
}

const QWEN3: Shape = Shape {
    name: "qwen3-0.6b",
    model_type: "qwen3",
    hidden_size: 1024,
    intermediate_size: 3072,
    num_hidden_layers: 28,
    num_attention_heads: 16,
    num_key_value_heads: 8,
    head_dim: 128,
    vocab_size: 151_936,
    max_position_embeddings: 40_960,
    rope_theta: 1e6,
    rms_norm_eps: 1e-6,
    tied: true,
};

const LLAMA: Shape = Shape {
    name: "llama-1b",
    model_type: "llama",
    hidden_size: 2048,
    intermediate_size: 8192,
    num_hidden_layers: 16,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 64,
    vocab_size: 128_256,
    max_position_embeddings: 131_072,
    rope_theta: 5e5,
    rms_norm_eps: 1e-5,
    tied: true,
};

impl Shape {
    /// Every shape, `tiny` for tests first.
    pub const ALL: [Self; 6] = [
        Self {
            name: "tiny",
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
            vocab_size: 512,
            ..QWEN3
        },
        QWEN3,
        LLAMA,
        Self {
            name: "qwen3-4b",
            hidden_size: 2560,
            intermediate_size: 9728,
            num_hidden_layers: 36,
            num_attention_heads: 32,
            ..QWEN3
        },
        Self {
            name: "qwen3-8b",
            hidden_size: 4096,
            intermediate_size: 12_288,
            num_hidden_layers: 36,
            num_attention_heads: 32,
            tied: false,
            ..QWEN3
        },
        Self {
            name: "llama-8b",
            hidden_size: 4096,
            intermediate_size: 14_336,
            num_hidden_layers: 32,
            head_dim: 128,
            tied: false,
            ..LLAMA
        },
    ];

    /// The shape of this name.
    pub fn named(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|shape| shape.name == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|shape| shape.name).collect();
            Error::argument("shape", format!("unknown shape `{name}`; there are {}", names.join(", ")))
        })
    }

    fn config(&self, how: Option<Quantization>) -> Value {
        let mut config = json!({
            "model_type": self.model_type,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        });
        if let Some(how) = how {
            config["quantization"] =
                json!({ "group_size": how.group_size, "bits": how.bits, "mode": how.mode });
        }
        config
    }

    /// The matrices, `[rows, columns]` by name, and the sizes of the norms.
    fn weights(&self) -> (Vec<(String, [i32; 2])>, Vec<(String, i32)>) {
        let (dims, hidden) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) =
            (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut matrices = vec![("model.embed_tokens".to_owned(), [self.vocab_size, dims])];
        let mut norms = vec![("model.norm".to_owned(), dims)];
        if !self.tied {
            matrices.push(("lm_head".to_owned(), [self.vocab_size, dims]));
        }
        for layer in 0..self.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            matrices.extend([
                (name("self_attn.q_proj"), [queries, dims]),
                (name("self_attn.k_proj"), [keys, dims]),
                (name("self_attn.v_proj"), [keys, dims]),
                (name("self_attn.o_proj"), [dims, queries]),
                (name("mlp.gate_proj"), [hidden, dims]),
                (name("mlp.up_proj"), [hidden, dims]),
                (name("mlp.down_proj"), [dims, hidden]),
            ]);
            norms.extend([(name("input_layernorm"), dims), (name("post_attention_layernorm"), dims)]);
            if self.model_type == "qwen3" {
                norms.extend(["q_norm", "k_norm"].map(|n| (name(&format!("self_attn.{n}")), self.head_dim)));
            }
        }
        (matrices, norms)
    }
}

/// Writes a checkpoint of `shape` into `out`, a directory that is not there yet: quantized as `how` says, else
/// in `bfloat16`. Weights are as large as those of a model before training, so that nothing overflows. Its
/// tokenizer knows bytes only.
pub fn write(shape: Shape, how: Option<Quantization>, out: &Path) -> Result<()> {
    if let Some(how) = how {
        how.check("synth")?;
    }
    let mut random = Bits(0);
    let mut arrays: Vec<(String, Array)> = Vec::new();
    let (matrices, norms) = shape.weights();
    for (name, [rows, columns]) in matrices {
        match how {
            Some(how) => {
                if columns % how.group_size != 0 {
                    let message = format!("rows of {columns} in groups of {}", how.group_size);
                    return Err(Error::argument("synth", message));
                }
                let words = columns * how.bits / 32;
                let codes: Vec<u32> = (0..rows as usize * words as usize).map(|_| random.next()).collect();
                // The codes are uniform, so their deviation is the range over the square root of 12.
                let scale = (12.0 / columns as f32).sqrt() / (1 << how.bits) as f32;
                let middle = ((1 << how.bits) - 1) as f32 / 2.0;
                let full = |value: f32| ops::full(&[rows, columns / how.group_size], value, Dtype::Bfloat16);
                arrays.push((format!("{name}.weight"), Array::from_slice(&codes, &[rows, words])?));
                arrays.push((format!("{name}.scales"), full(scale)?));
                arrays.push((format!("{name}.biases"), full(-middle * scale)?));
            }
            None => {
                let scale = (12.0 / columns as f32).sqrt();
                let value = |bits: u32| bf16::from_f32(scale * (bits as f32 / 2f32.powi(32) - 0.5));
                let count = rows as usize * columns as usize;
                let values: Vec<bf16> = (0..count).map(|_| value(random.next())).collect();
                arrays.push((format!("{name}.weight"), Array::from_slice(&values, &[rows, columns])?));
            }
        }
    }
    for (name, size) in norms {
        arrays.push((format!("{name}.weight"), ops::ones(&[size], Dtype::Bfloat16)?));
    }

    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    let staging = PendingFolder::new(out)?;
    let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
    let named = arrays.iter().map(|(name, array)| (name.as_str(), array));
    io::save_sharded(staging.temporary(), named, 5 << 30, &metadata)?;
    for (name, value) in [
        ("config.json", shape.config(how)),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", json!({ "tokenizer_class": "PreTrainedTokenizerFast" })),
    ] {
        let path = staging.temporary().join(name);
        fs::write(&path, format!("{value:#}\n")).map_err(|e| Error::io(&path, e))?;
    }
    staging.place()
}

/// Byte-level, without merges: each byte is the token of its own number.
fn tokenizer() -> Value {
    let mut hidden = 256;
    let mut name = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        // Bytes that can't be shown are shown as the characters after those that are bytes.
        _ => {
            hidden += 1;
            char::from_u32(hidden - 1).unwrap_or('?')
        }
    };
    let vocab: BTreeMap<String, u8> = (0..=255).map(|byte| (name(byte).to_string(), byte)).collect();
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": bytes,
        "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

/// A repeatable stream of bits (Marsaglia, "Xorshift RNGs", 2003).
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u32 {
        if self.0 == 0 {
            self.0 = 0x9e37_79b9_7f4a_7c15;
        }
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}
