"""Records GGUF files and what their tensors mean.

    python gguf_files.py ../fixtures/gguf ../fixtures/text

Needs gguf (llama.cpp's own package), mlx, mlx-lm and numpy. `types.gguf` has a matrix of every type; those
that the package can quantize are of drawn numbers, the others of drawn bytes, and the package says what they
mean (`types.npz`). `llama.gguf` is a tiny Llama in F32, with the rows of queries and keys as llama.cpp has
them, the tokenizer of ../fixtures/text/byte_fallback, and logits of mlx-lm (`llama.npz`); `qwen3.gguf` the
same of Qwen 3 in Q8_0, with the tokenizer of ../fixtures/text/bytelevel; `k_quants.gguf` a layer of Qwen 3 with
matrices in Q2_K to Q6_K, whose logits are those of the float32 numbers that the package makes of them.
`parts-0000N-of-00003.gguf` is one file in three parts.
"""

import json
import sys
import tempfile
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as T
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama, qwen3

DRAWN = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]
BYTES = [T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.MXFP4]
# Where the halves of blocks of drawn bytes have float16 numbers, which must be finite.
HALVES = {T.Q2_K: (80, 82), T.Q3_K: (108,), T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,), T.MXFP4: ()}


def types(out, rng):
    writer, expect = gguf.GGUFWriter(out / "types.gguf", "llama"), {}
    for kind in DRAWN:
        packed = gguf.quants.quantize(rng.normal(size=(3, 256)).astype(np.float32), kind)
        writer.add_tensor(f"{kind.name}.weight", packed, raw_dtype=kind)
        expect[kind.name] = gguf.quants.dequantize(packed, kind)
    for kind in BYTES:
        size, block = gguf.GGML_QUANT_SIZES[kind]
        packed = rng.integers(0, 256, (3, 256 // size, block)).astype(np.uint8)
        for at in HALVES[kind]:
            packed[..., at : at + 2] = rng.uniform(0.01, 1, (3, 256 // size, 1)).astype(np.float16).view(np.uint8)
        if kind == T.MXFP4:
            packed[..., 0] = rng.integers(120, 130, (3, 256 // size))
        packed = packed.reshape(3, -1)
        writer.add_tensor(f"{kind.name}.weight", packed, raw_dtype=kind)
        expect[kind.name] = gguf.quants.dequantize(packed, kind)
    writer.add_tensor("F16.weight", rng.normal(size=(2, 3)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.savez(out / "types.npz", **{k: v.astype(np.float32) for k, v in expect.items()})


def parts(out):
    """Five tensors, two to a part: `at0` is [0, 0], `at1` [1, 1] and so on."""
    writer = gguf.GGUFWriter(out / "parts.gguf", "llama", split_max_tensors=2)
    writer.add_name("in parts")
    for at in range(5):
        writer.add_tensor(f"at{at}", np.full(2, at, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(w, heads):
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def tokenizer(writer, source, eos):
    data = json.loads((source / "tokenizer.json").read_text())
    config = json.loads((source / "tokenizer_config.json").read_text())
    vocab = {**data["model"]["vocab"], **{t["content"]: t["id"] for t in data["added_tokens"]}}
    tokens = sorted(vocab, key=vocab.get)
    special = {t["content"]: 3 if t["special"] else 4 for t in data["added_tokens"]}
    scored = data["model"].get("byte_fallback")
    merges = [m if isinstance(m, list) else m.split(" ") for m in data["model"]["merges"]]
    writer.add_tokenizer_model("llama" if scored else "gpt2")
    writer.add_token_list(tokens)
    kinds = [special.get(t, 6 if scored and t.startswith("<0x") else 1) for t in tokens]
    if scored:
        # SentencePiece keeps one score for each token, which is the rank of the merge that makes it.
        ranks = {"".join(pair): -float(rank) for rank, pair in reversed(list(enumerate(merges)))}
        writer.add_token_scores([ranks.get(t, -1e9) for t in tokens])
        kinds[vocab["<unk>"]] = 2
        writer.add_unk_token_id(vocab["<unk>"])
    else:
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges([" ".join(m) for m in merges])
    writer.add_token_types(kinds)
    if config.get("bos_token"):
        writer.add_bos_token_id(vocab[config["bos_token"]])
        writer.add_add_bos_token(data["post_processor"] is not None and data["post_processor"]["type"] == "TemplateProcessing")
    writer.add_eos_token_id(vocab[eos])
    if (source / "chat_template.jinja").exists():
        writer.add_chat_template((source / "chat_template.jinja").read_text())
    return len(tokens)


NAMES = [
    ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"), ("model.layers", "blk"),
    ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"), ("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"),
    ("post_attention_layernorm", "ffn_norm"), ("input_layernorm", "attn_norm"),
]


def model(out, rng, name, module, text, eos, kind, factors=None, **extra):
    path = out / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, name)
    vocab = tokenizer(writer, text, eos)
    heads, kv_heads, head_dim, hidden = 4, 2, 8, 32
    args = dict(model_type=name, hidden_size=hidden, num_hidden_layers=2, intermediate_size=64, num_attention_heads=heads,
                num_key_value_heads=kv_heads, head_dim=head_dim, rms_norm_eps=1e-5, vocab_size=vocab, rope_theta=10000.0,
                max_position_embeddings=64, tie_word_embeddings=False, **extra)
    net = module.Model(module.ModelArgs.from_dict(args))
    params = {}
    for key, value in tree_flatten(net.parameters()):
        drawn = rng.normal(size=value.shape) * (value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1)
        drawn = (drawn + (value.ndim == 1)).astype(np.float16).astype(np.float32)
        packed = value.ndim > 1 and kind != T.F32
        stored = gguf.quants.quantize(drawn, kind) if packed else drawn
        params[key] = mx.array(gguf.quants.dequantize(stored, kind) if packed else drawn)
        for theirs, ours in NAMES:
            key = key.replace(theirs, ours)
        if name == "llama" and key.endswith(("attn_q.weight", "attn_k.weight")):
            stored = permuted(stored, heads if "attn_q" in key else kv_heads)
        writer.add_tensor(key, stored, raw_dtype=kind if packed else None)
    net.update(tree_unflatten(list(params.items())))
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = rng.integers(0, vocab, (1, 12)).astype(np.int32)
    np.savez(out / f"{name}.npz", input_ids=ids, logits=np.array(net(mx.array(ids))))


# What a block's scale, and that of its minima, are for numbers of about 0.06.
SCALES = {T.Q2_K: (4e-3, 4e-3), T.Q3_K: (1.5e-3,), T.Q4_K: (3e-4, 2e-3), T.Q5_K: (1.5e-4, 2e-3), T.Q6_K: (5e-5,)}
K_QUANTS = {"q_proj": T.Q2_K, "k_proj": T.Q3_K, "v_proj": T.Q4_K, "gate_proj": T.Q5_K, "up_proj": T.Q6_K}


def k_quants(out, rng):
    """Blocks of drawn bytes, and beside them numbers that float16 does not hold."""
    hidden, vocab, small = 256, 16, 8
    path = out / "k_quants.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*"abcdefghijklmno", "ab"])
    writer.add_token_types([1] * vocab)
    writer.add_token_merges(["a b"])
    args = dict(model_type="qwen3", hidden_size=hidden, num_hidden_layers=1, intermediate_size=small,
                num_attention_heads=1, num_key_value_heads=1, head_dim=small, rms_norm_eps=1e-5, vocab_size=vocab,
                rope_theta=10000.0, max_position_embeddings=64, tie_word_embeddings=False)
    net = qwen3.Model(qwen3.ModelArgs.from_dict(args))
    params = {}
    for key, value in tree_flatten(net.parameters()):
        kind = K_QUANTS.get(key.split(".")[-2])
        if kind:
            _, block = gguf.GGML_QUANT_SIZES[kind]
            stored = rng.integers(0, 256, (value.shape[0], block)).astype(np.uint8)
            for at, scale in zip(HALVES[kind], SCALES[kind]):
                drawn = rng.uniform(0.5, 1.5, (value.shape[0], 1)) * scale
                stored[:, at : at + 2] = drawn.astype(np.float16).view(np.uint8)
            meant = gguf.quants.dequantize(stored, kind)
        else:
            drawn = rng.normal(size=value.shape) * (value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1)
            stored = meant = (drawn + (value.ndim == 1)).astype(np.float32)
        params[key] = mx.array(meant)
        for theirs, ours in NAMES:
            key = key.replace(theirs, ours)
        writer.add_tensor(key, stored, raw_dtype=kind)
    net.update(tree_unflatten(list(params.items())))
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(small)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(small)
    writer.add_value_length(small)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = rng.integers(0, vocab, (1, 12)).astype(np.int32)
    np.savez(out / "k_quants.npz", input_ids=ids, logits=np.array(net(mx.array(ids))))


def llama3_factors(head_dim, base, factor, low, high, context):
    """What llama.cpp writes for the rule of Llama 3: how much longer each wave becomes."""
    waves = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (context / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(waves < context / high, 1, np.where(waves > context / low, factor, between)).astype(np.float32)


def main():
    out, text, rng = Path(sys.argv[1]), Path(sys.argv[2]), np.random.default_rng(7)
    out.mkdir(parents=True, exist_ok=True)
    parts(out)
    types(out, rng)
    scaling = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    factors = llama3_factors(8, 10000.0, 4.0, 1.0, 4.0, 128)
    model(out, rng, "llama", llama, text / "byte_fallback", "<|end|>", T.F32, factors, rope_scaling=scaling)
    model(out, rng, "qwen3", qwen3, text / "bytelevel", json.loads((text / "bytelevel/tokenizer_config.json").read_text())["eos_token"], T.Q8_0)
    k_quants(out, np.random.default_rng(11))


if __name__ == "__main__":
    main()
