"""Prompt caches that mlx-lm writes, for `tests/models/prompt_caches.rs`, and what it makes of ours.

    python prompt_cache.py write                        # mlx 0.32.4, mlx-lm 0.32.2
    python prompt_cache.py limits                       # likewise
    python prompt_cache.py check target/debug/mlxport   # our files in mlx-lm

`tests/fixtures/prompt_cache/NAME.safetensors` holds the first tokens of a checkpoint's prompt, and
NAME.expect.safetensors the tokens after them, `ids`, and their `logits`. `classes.safetensors` has a
cache of every class. `limits.json` has the greedy tokens of prompts with `max_kv_size`, and which modules of
mlx-lm make caches of their own, which take no limit.
"""

import importlib
import json
import pkgutil

import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm import models
from mlx_lm.generate import generate_step
from mlx_lm.models import cache as caches
from mlx_lm.utils import MODEL_REMAPPING, load_model

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "tests" / "fixtures" / "prompt_cache"
FIXTURES = ROOT / "tests" / "fixtures" / "lm"
# name: (checkpoint, quantization of the cache, tokens of the prompt)
CASES = {
    "kv": (FIXTURES / "q4", None, 11),
    "rotating": (FIXTURES / "sliding", None, 11),
    "quantized": (ROOT / "assets" / "tiny-qwen3", dict(group_size=32, bits=8), 11),
    "dynamic": (FIXTURES / "rope_dynamic", None, 21),
}
MORE = 6


def ids_of(vocabulary, count):
    """Ids with which no key or value is at the edge of a code, where the last bit of a sum decides."""
    return [(i * i * 7 + i * 3 + 9) % min(vocabulary, 1000) for i in range(count)]


def prefill(model, ids, how):
    """All but the last token at once, as a generation reads its prompt."""
    cache = caches.make_prompt_cache(model)
    model(mx.array(ids[:-1])[None], cache=cache)
    cache = [c.to_quantized(**how) for c in cache] if how else cache
    model(mx.array(ids[-1:])[None], cache=cache)
    return cache


def decode(model, ids, cache):
    """One token at a time."""
    parts = [model(mx.array([[token]]), cache=cache)[0] for token in ids]
    return np.array(mx.concatenate(parts).astype(mx.float32))


def load(directory):
    rope = json.loads((directory / "config.json").read_text()).get("rope_parameters")
    # mlx-lm knows the old names alone.
    model, _ = load_model(directory, model_config=dict(rope, rope_scaling=rope) if rope else {})
    model.set_dtype(mx.float32, lambda dtype: dtype in (mx.bfloat16, mx.float16))
    return model


def write():
    OUT.mkdir(exist_ok=True)
    for name, (directory, how, length) in CASES.items():
        model = load(directory)
        ids = ids_of(model.args.vocab_size, length + MORE)
        cache = prefill(model, ids[:length], how)
        caches.save_prompt_cache(str(OUT / f"{name}.safetensors"), cache, {"model": name, "a.b": "é"})
        logits = decode(model, ids[length:], cache)
        expect = {"ids": mx.array(ids[length:]), "logits": mx.array(logits)}
        mx.save_safetensors(str(OUT / f"{name}.expect.safetensors"), expect)
        print(f"{name}: {[type(c).__name__ for c in cache]}")
    draw = lambda *shape: mx.random.normal(shape, key=mx.random.key(sum(shape)))
    states = caches.ArraysCache(3)
    states[0], states[2] = draw(1, 3, 4), draw(1, 2, 4, 4)
    chunked, full, ring = caches.ChunkedKVCache(6), caches.KVCache(), caches.RotatingKVCache(5, keep=2)
    for cache in (chunked, full, ring):
        for length in (7, 1, 3):
            if cache is chunked:
                cache.maybe_trim_front()
            cache.update_and_fetch(draw(1, 2, length, 4), draw(1, 2, length, 4))
    parts = caches.CacheList(states, full, caches.KVCache())
    quantized = caches.QuantizedKVCache(32, 4)
    quantized.update_and_fetch(draw(1, 2, 3, 32), draw(1, 2, 3, 32))
    every = [full, states, chunked, ring, parts, quantized, caches.KVCache(), caches.ArraysCache(2)]
    caches.save_prompt_cache(str(OUT / "classes.safetensors"), every)


def unbiased():
    """The checkpoint `qwen3` without biases, which mlx-lm does not read, and with an attention that weighs more."""
    out, config = OUT / "qwen3", json.loads((FIXTURES / "qwen3" / "config.json").read_text())
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text(json.dumps(config | dict(attention_bias=False, rope_theta=10000.0)) + "\n")
    weights = mx.load(str(FIXTURES / "qwen3" / "model.safetensors"))
    louder = lambda key: 3.0 if key.endswith(("v_proj.weight", "q_norm.weight")) else 1.0
    weights = {key: louder(key) * weight for key, weight in weights.items() if not key.endswith("bias")}
    mx.save_safetensors(str(out / "model.safetensors"), weights)
    return out


def limits():
    """What fits nowhere: the prompt, what of it goes through the model at once, or the text after it."""
    cases = []
    for directory in (ROOT / "assets" / "tiny-qwen3", unbiased(), FIXTURES / "llama", FIXTURES / "sliding"):
        model = load(directory)
        for size, length, step in (None, 40, 512), (16, 40, 512), (16, 40, 7), (16, 40, 30), (12, 5, 512), (29, 37, 9):
            prompt = ids_of(model.args.vocab_size, length)
            run = generate_step(mx.array(prompt), model, max_tokens=32, max_kv_size=size, prefill_step_size=step)
            name = str(directory.relative_to(ROOT))
            cases.append(dict(model=name, size=size, prompt=prompt, step=step, tokens=[int(t) for t, _ in run]))
    own = {}
    for module in pkgutil.iter_modules(models.__path__):
        try:
            made = importlib.import_module(f"mlx_lm.models.{module.name}")
        except (Exception, SystemExit):
            continue  # it needs what is not installed
        if hasattr(made, "Model"):
            own[module.name] = hasattr(made.Model, "make_cache")
    own |= {name: own[module] for name, module in MODEL_REMAPPING.items() if module in own}
    lines = lambda rows: ",\n".join(f"  {json.dumps(row)}" for row in rows)
    names = [sorted(name for name in own if own[name] == mine) for mine in (True, False)]
    text = f'{{"cases": [\n{lines(cases)}\n],\n"own": {json.dumps(names[0])},\n"plain": {json.dumps(names[1])}}}\n'
    (OUT / "limits.json").write_text(text)


def check(program):
    worst = 0.0
    with tempfile.TemporaryDirectory() as directory:
        for name, (checkpoint, how, length) in CASES.items():
            model, path = load(checkpoint), f"{directory}/{name}.safetensors"
            ids = ids_of(model.args.vocab_size, length + MORE)
            command = [program, "cache", "make", "--model", checkpoint, "--out", path, "--dtype", "float32"]
            command += ["--prompt-ids", ",".join(map(str, ids[:length]))]
            if how:
                command += ["--kv-bits", str(how["bits"]), "--kv-group-size", str(how["group_size"]), "--quantized-kv-start", "0"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            cache, metadata = caches.load_prompt_cache(path, return_metadata=True)
            found = decode(model, ids[length:], cache)
            expected = decode(model, ids[length:], prefill(model, ids[:length], how))
            error = np.abs(found - expected).max() / expected.std()
            worst = max(worst, error)
            print(f"{name}: {[type(c).__name__ for c in cache]}, {metadata}, error {error:.1e}")
        every = caches.load_prompt_cache(str(OUT / "classes.safetensors"))
        print([type(c).__name__ for c in every])
    sys.exit(int(worst > 2e-4))


if __name__ == "__main__":
    {"write": write, "limits": limits}.get(sys.argv[1], lambda: check(sys.argv[2]))()
