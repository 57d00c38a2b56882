"""Tiny language models with the logits of transformers or mlx-lm, for `tests/models`.

    python lm.py transformers   # torch 2.15, transformers 5.23.0
    python lm.py mlx            # mlx 0.32.4, mlx-lm 0.32.2

Each case is a checkpoint in `tests/fixtures/lm/NAME`, with `expect.safetensors`: `input_ids`, int32
[2, 20], `logits`, float32 [2, 20, 40], and `greedy`, int32 [12], which follow the first row. The two
frameworks cover what they implement rightly: mlx-lm has no window in Mistral and reads less of YaRN's
settings, and always takes LongRoPE's long factors; transformers has no MLX quantization.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "lm"
VOCABULARY, LENGTH, GREEDY = 40, 20, 12
LLAMA = dict(
    model_type="llama",
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    vocab_size=VOCABULARY,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)
QWEN3 = LLAMA | dict(model_type="qwen3")
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
FULL, SLIDE = "full_attention", "sliding_attention"


def rope(rope_type, **settings):
    return LLAMA | dict(rope_parameters=dict(rope_theta=100.0, rope_type=rope_type, **settings))


def old_rope(**settings):
    return LLAMA | dict(rope_theta=100.0, rope_scaling=settings)


TRANSFORMERS = {
    "llama": LLAMA | dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "rope_linear": rope("linear", factor=2.5),
    "rope_dynamic": rope("dynamic", factor=2.0) | dict(max_position_embeddings=16),
    "rope_llama3": rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    "rope_yarn": rope(**YARN, beta_fast=4.0),
    "rope_yarn_mscale": rope(**YARN, mscale=0.7, mscale_all_dim=0.4, truncate=False),
    "rope_yarn_factor": rope(**YARN, attention_factor=1.3, beta_slow=0.5),
    "mistral": LLAMA | dict(model_type="mistral", sliding_window=6, num_hidden_layers=2),
    "qwen3": QWEN3 | dict(attention_bias=True, num_hidden_layers=2),
    "qwen3_sliding": QWEN3 | dict(num_hidden_layers=2, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "rope_longrope": old_rope(type="longrope", long_factor=[1.1, 1.5, 2.0, 3.0], short_factor=[1.0, 1.2, 1.4, 1.6], original_max_position_embeddings=32),
}
MLX = {
    "rope_proportional": old_rope(rope_type="proportional", partial_rotary_factor=0.5, factor=2.0),
    "sliding": LLAMA | dict(num_hidden_layers=2, sliding_window=6, layer_types=[FULL, SLIDE]),
    "q4": LLAMA | dict(quantization=dict(group_size=32, bits=4)),
    "mxfp4": QWEN3 | dict(quantization=dict(group_size=32, bits=4, mode="mxfp4")),
}


def draw(name, key, shape):
    """Weights that give logits of about 1: a norm is near 1, a matrix keeps the size of what it is fed."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {key}".encode()))
    if "norm" in key:
        return rng.uniform(0.6, 1.4, shape).astype(np.float32)
    scale = 0.2 if key.endswith("bias") else 2.0 / np.sqrt(shape[-1])
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def save(name, config, weights, logits, greedy, ids):
    directory = OUT / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(weights, directory / "model.safetensors")
    save_file(dict(input_ids=ids, logits=logits, greedy=greedy), directory / "expect.safetensors")
    print(f"{name:20} logits {logits.std():.2f}, greedy {greedy.tolist()}")


def ids_of(name):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.integers(0, VOCABULARY, (2, LENGTH)).astype(np.int32)


def with_transformers():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, config in TRANSFORMERS.items():
        settings = AutoConfig.for_model(**config)
        settings._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(settings).eval()
        state = {key: draw(name, key, value.shape) for key, value in model.state_dict().items()}
        if config["tie_word_embeddings"]:
            state.pop("lm_head.weight")
        model.load_state_dict({key: torch.tensor(value) for key, value in state.items()}, strict=False)
        model.tie_weights()
        ids = ids_of(name)
        with torch.no_grad():
            logits = model(torch.tensor(ids).long()).logits.numpy()
            sequence = ids[:1].tolist()[0]
            for _ in range(GREEDY):
                sequence.append(int(model(torch.tensor([sequence])).logits[0, -1].argmax()))
        save(name, config, state, logits, np.array(sequence[LENGTH:], np.int32), ids)


def with_mlx():
    import importlib

    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.generate import generate_step

    mx.set_default_device(mx.cpu)
    for name, config in MLX.items():
        arch = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
        model = arch.Model(arch.ModelArgs.from_dict(config | dict(rope_theta=config.get("rope_theta", 10000.0))))
        weights = [(key, mx.array(draw(name, key, value.shape))) for key, value in tree_flatten(model.parameters())]
        model.load_weights(weights)
        if "quantization" in config:
            nn.quantize(model, **config["quantization"])
        ids = ids_of(name)
        logits = np.array(model(mx.array(ids)))
        tokens = generate_step(mx.array(ids[0]), model, max_tokens=GREEDY)
        greedy = np.array([int(token) for token, _ in tokens], np.int32)
        weights = {key: np.array(value) for key, value in tree_flatten(model.parameters())}
        save(name, config, weights, logits, greedy, ids)


if __name__ == "__main__":
    {"transformers": with_transformers, "mlx": with_mlx}[sys.argv[1]]()
