//! The rules that turn the tensors of a GGUF file into those of Hugging Face's checkpoint.

use super::Gguf;
use crate::array::Dtype;
use crate::checkpoint::foreign::Ggml;
use crate::checkpoint::{Encoding, Rules};
use crate::error::Result;

/// Within a layer: llama.cpp's name, and ours.
const LAYER: [(&str, &str); 12] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

impl Gguf {
    /// From the tensors of the file to the names and layouts of Hugging Face. Matrices stay packed where
    /// MLX has the format; what is dense gets this dtype, or [`dense_dtype`](Self::dense_dtype). Packed
    /// matrices that become dense are exact in `float32` alone.
    pub fn rules(&self, dtype: Option<Dtype>) -> Result<Rules> {
        let name = self.architecture()?;
        let dtype = dtype.map_or_else(|| self.dense_dtype(), Ok)?;
        let mut rules = Rules::new();
        for factors in ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"] {
            rules = rules.drop(factors, "in the config");
        }
        if name == "llama" {
            rules = self.turned_back(rules)?;
        }
        if name.starts_with("gemma") {
            // The file has 1 + weight.
            rules = rules.add("*norm.weight", -1.0);
        }
        for key in self.keys() {
            let plain = self.info(key)?.dtype;
            match (self.packed(key), key.strip_suffix(".weight")) {
                (Some(kind), Some(layer)) => {
                    let to = ["weight", "scales", "biases"].map(|part| format!("{layer}.{part}"));
                    let to: Vec<&str> = to.iter().map(String::as_str).collect();
                    rules = rules.decode(&[key], &to, Encoding::Ggml(Ggml { kind, dtype }));
                }
                (None, _) if plain.is_floating() && plain != dtype => rules = rules.cast(key, dtype),
                _ => {}
            }
        }
        let two_more_norms = matches!(name, "gemma2" | "gemma3");
        let ffn_norm = if two_more_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        let up = if name == "phi3" { "mlp.gate_up_proj" } else { "mlp.up_proj" };
        for (from, to) in LAYER.into_iter().chain([("ffn_norm", ffn_norm), ("ffn_up", up)]) {
            rules = rules.rename(format!("blk.{{}}.{from}.*"), format!("model.layers.{{}}.{to}.*"));
        }
        Ok(rules
            .rename("token_embd.*", "model.embed_tokens.*")
            .rename("output_norm.*", "model.norm.*")
            .rename("output.*", "lm_head.*"))
    }

    /// The dtype of everything that is not packed: `float32` or `bfloat16` if all matrices are that; else
    /// `float16`, as scales are, or `bfloat16` for Gemma, whose activations are too large for it.
    pub fn dense_dtype(&self) -> Result<Dtype> {
        let matrices = self.tensors.values().filter(|t| t.shape.len() > 1);
        let mut kinds: Vec<Dtype> =
            matrices.map(|t| if t.packed.is_some() { Dtype::Float16 } else { t.dtype }).collect();
        kinds.sort_unstable_by_key(|dtype| dtype.size());
        kinds.dedup();
        Ok(match kinds[..] {
            [Dtype::Float32] => Dtype::Float32,
            [Dtype::Bfloat16] => Dtype::Bfloat16,
            _ if self.architecture()?.starts_with("gemma") => Dtype::Bfloat16,
            _ => Dtype::Float16,
        })
    }

    /// llama.cpp turns neighbours, Hugging Face the halves of a head: the rows of queries and keys in
    /// each head change places.
    fn turned_back(&self, mut rules: Rules) -> Result<Rules> {
        let config = self.config()?;
        let number = |key: &str| config[key].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
        let head_dim = number("head_dim");
        for (name, heads) in [("attn_q", "num_attention_heads"), ("attn_k", "num_key_value_heads")] {
            let heads = number(heads);
            let rows = heads.checked_mul(head_dim).filter(|rows| *rows > 0 && head_dim % 2 == 0);
            let rows = rows.ok_or_else(|| self.invalid(format!("{heads} heads of {head_dim}")))?;
            for (part, pattern, last) in [("weight", "[_, _]", vec![rows, -1]), ("bias", "[_]", vec![rows])] {
                let key = format!("blk.{{}}.{name}.{part}");
                rules = rules
                    .reshape(&format!("{key} {pattern}"), &[heads, head_dim / 2, 2, -1])
                    .transpose(&format!("{key} [_, _, _, _]"), &[0, 2, 1, 3])
                    .reshape(&format!("{key} [_, _, _, _]"), &last);
            }
        }
        Ok(rules)
    }
}
