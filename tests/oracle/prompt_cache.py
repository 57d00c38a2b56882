"""Prompt caches that mlx-lm writes, for `tests/models/prompt_caches.rs`, and what it makes of ours.

    python prompt_cache.py write                        # mlx 0.32.4, mlx-lm 0.32.2
    python prompt_cache.py check target/debug/mlxport   # our files in mlx-lm

`tests/fixtures/prompt_cache/NAME.safetensors` holds the first 11 tokens of a checkpoint's prompt, and
NAME.expect.safetensors the tokens after them, `ids`, and their `logits`. `classes.safetensors` has a
cache of every class.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models import cache as caches
from mlx_lm.utils import load_model

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "tests" / "fixtures" / "prompt_cache"
FIXTURES = ROOT / "tests" / "fixtures" / "lm"
# name: (checkpoint, quantization of the cache)
CASES = {
    "kv": (FIXTURES / "q4", None),
    "rotating": (FIXTURES / "sliding", None),
    "quantized": (ROOT / "assets" / "tiny-qwen3", dict(group_size=32, bits=8)),
}
LENGTH, MORE = 11, 6


def ids_of(vocabulary):
    """Ids with which no key or value is at the edge of a code, where the last bit of a sum decides."""
    return [(i * i * 7 + i * 3 + 9) % min(vocabulary, 1000) for i in range(LENGTH + MORE)]


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
    model, _ = load_model(directory)
    model.set_dtype(mx.float32, lambda dtype: dtype in (mx.bfloat16, mx.float16))
    return model


def write():
    OUT.mkdir(exist_ok=True)
    for name, (directory, how) in CASES.items():
        model = load(directory)
        ids = ids_of(model.args.vocab_size)
        cache = prefill(model, ids[:LENGTH], how)
        caches.save_prompt_cache(str(OUT / f"{name}.safetensors"), cache, {"model": name, "a.b": "é"})
        logits = decode(model, ids[LENGTH:], cache)
        expect = {"ids": mx.array(ids[LENGTH:]), "logits": mx.array(logits)}
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


def check(program):
    worst = 0.0
    with tempfile.TemporaryDirectory() as directory:
        for name, (checkpoint, how) in CASES.items():
            model, path = load(checkpoint), f"{directory}/{name}.safetensors"
            ids = ids_of(model.args.vocab_size)
            command = [program, "cache", "make", "--model", checkpoint, "--out", path, "--dtype", "float32"]
            command += ["--prompt-ids", ",".join(map(str, ids[:LENGTH]))]
            if how:
                command += ["--kv-bits", str(how["bits"]), "--kv-group-size", str(how["group_size"]), "--quantized-kv-start", "0"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            cache, metadata = caches.load_prompt_cache(path, return_metadata=True)
            found = decode(model, ids[LENGTH:], cache)
            expected = decode(model, ids[LENGTH:], prefill(model, ids[:LENGTH], how))
            error = np.abs(found - expected).max() / expected.std()
            worst = max(worst, error)
            print(f"{name}: {[type(c).__name__ for c in cache]}, {metadata}, error {error:.1e}")
        every = caches.load_prompt_cache(str(OUT / "classes.safetensors"))
        print([type(c).__name__ for c in every])
    sys.exit(int(worst > 2e-4))


if __name__ == "__main__":
    write() if sys.argv[1] == "write" else check(sys.argv[2])
