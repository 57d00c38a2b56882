"""Freezes what mlx-lm or transformers computes for folders of tiny checkpoints: `tests/fixtures/zoo/`.

    python zoo.py --framework mlx|hf [--oracle DIR] [--only NAME,...] [--attempts N] CASES...

CASES are folders of case directories (`config.json`, `model.safetensors`, `case.json`, perhaps
`config_legacy.json`), as the generators of the reference write them. Their weights are not kept: each tensor is
drawn anew by a counter-based generator from its name, shape, and the mean and spread it has in the case, which
`tests/models/zoo.rs` does in the same way. DIR is the folder of the mlx-lm generator, for its repairs.

A fixture is one JSON file: the config as text (it may have Python's infinities), a line for each tensor, token ids, and some columns of the logits of
each position. Redrawn with other seeds where noise of 1e-6 in the weights moves the logits much.
"""

import argparse
import base64
import json
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "zoo"
LENGTH, PIECES, COLUMNS, GREEDY = 14, [5, 1, 6, 1, 1], 24, 4
# Noise of 1e-6 may move the logits by this part of their standard deviation.
MAX_NOISE = 1e-4
# What mlx-lm does not read and transformers does (`docs/deviations.md`): taken out of the configs.
UNREAD = {
    "mlx": {
        "gpt_oss": ["rope_scaling.truncate"],
        "qwen3_moe": ["rope_scaling"],
        "solar_open": ["rope_scaling"],
    },
    "hf": {},
}
# Cases that show what a framework does not do as the source: mlx-lm where it deviates from transformers in
# another way, and transformers where it draws the embeddings anew after loading.
DEVIATIONS = json.loads((Path(__file__).resolve().parent / "deviations.json").read_text())
SKIPPED = {"mlx": set(DEVIATIONS["mlx-lm"]) | {"glm4_moe_lite__yarn"}, "hf": {"youtu"}}
# What mlx-lm is right about token by token alone, with blocks that the positions of a fixture fill; it does not load
# such small ones.
STEPWISE, BLOCK = ["phi3small"], {"blocksparse_block_size": 4}
# What a model computes from its config, saves, and is not told by the checkpoint: kept as it is, since the source
# would take other values.
COMPUTED = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
GOLDEN = 0x9E3779B97F4A7C15
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
INTEGERS = {"U8": "u1", "I8": "u1", "U16": "<u2", "U32": "<u4", "I32": "<i4", "I64": "<i8", "F8_E4M3": "u1", "F8_E8M0": "u1"}


def read_tensors(path):
    """Name, dtype, shape and values (raw where they are packed) of a safetensors file."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    for key, entry in sorted(header.items()):
        if key == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        raw, dtype = data[end + start : end + stop], entry["dtype"]
        if dtype == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, FLOATS.get(dtype) or INTEGERS[dtype])
        yield key, dtype, entry["shape"], values.reshape(entry["shape"])


def recipe(key, dtype, shape, values):
    """One line: name, dtype, shape, and what to draw: mean and spread, the lowest and highest integer, or signs;
    of 8-bit floats, any sign and the largest number."""
    if dtype in FLOATS and values.size and np.unique(values).tolist() == [-1.0, 1.0]:
        numbers = "sign 1"
    elif dtype in FLOATS or dtype == "BF16":
        finite = values.astype(np.float64)
        low, high = (finite.mean(), finite.std()) if values.size else (0.0, 0.0)
        numbers = f"{low:.4g} {high:.4g}"
    elif dtype == "F8_E4M3" and (values > 127).any():
        numbers = f"sign {int((values & 127).max())}"
    else:
        numbers = f"{int(values.min())} {int(values.max())}" if values.size else "0 0"
    return f"{key} {dtype} {'x'.join(map(str, shape)) or '-'} {numbers}"


def hashes(key, seed, count):
    state = 0xCBF29CE484222325
    for byte in key.encode():
        state = ((state ^ byte) * 0x100000001B3) & (2**64 - 1)
    state = (state + seed * 0xD1342543DE82EF95) & (2**64 - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(state) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def draw(line, seed):
    """Name, dtype, shape and bytes of the tensor that a line of a recipe stands for."""
    key, dtype, shape, low, high = line.rsplit(" ", 4)
    shape = [] if shape == "-" else [int(n) for n in shape.split("x")]
    h = hashes(key, seed, int(np.prod(shape, dtype=np.int64)))
    if dtype in INTEGERS and low == "sign":
        sign = (h >> np.uint64(31)) << np.uint64(7) & np.uint64(128)
        values = (sign | (h >> np.uint64(32)) % np.uint64(int(high) + 1)).astype(INTEGERS[dtype])
        return key, dtype, shape, values.tobytes()
    if dtype in INTEGERS:
        low, high = int(low), int(high)
        values = (low + (h >> np.uint64(32)) % np.uint64(high - low + 1)).astype(INTEGERS[dtype])
        return key, dtype, shape, values.tobytes()
    if low == "sign":
        values = np.where(h >> np.uint64(63), 1.0, -1.0)
        return key, dtype, shape, values.astype(FLOATS[dtype]).tobytes()
    unit = (h >> np.uint64(11)).astype(np.float64) * 2.0**-53
    values = float(low) + float(high) * np.sqrt(3.0) * (2.0 * unit - 1.0)
    if dtype == "BF16":
        bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
        return key, dtype, shape, rounded.astype("<u2").tobytes()
    return key, dtype, shape, values.astype(np.float32).astype(FLOATS[dtype]).tobytes()


def write_checkpoint(directory, config, lines, seed, computed):
    header, blobs, offset = {"__metadata__": {"format": "mlx"}}, [], 0
    for line in lines:
        key, dtype, shape, raw = draw(line, seed)
        raw = computed.get(key, raw)
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(raw)]}
        blobs.append(raw)
        offset += len(raw)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    (directory / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"".join(blobs))
    (directory / "config.json").write_text(json.dumps(config))


def small_floats(bytes, exponent_bits, mantissa_bits):
    """Of bytes, the numbers of sign, exponent and mantissa in their lowest bits (e4m3: 4 and 3; e2m1: 2 and 1)."""
    mantissa = bytes & ((1 << mantissa_bits) - 1)
    exponent = ((bytes >> mantissa_bits) & ((1 << exponent_bits) - 1)).astype(np.int32)
    bias, least = (1 << (exponent_bits - 1)) - 1, exponent == 0
    fraction = mantissa.astype(np.float32) / (1 << mantissa_bits) + ~least
    negative = (bytes >> (exponent_bits + mantissa_bits)) & 1
    return np.where(negative, -1, 1) * np.ldexp(fraction, np.where(least, 1, exponent) - bias)


def without_nvfp4(directory):
    """Makes experts in modelopt's nvfp4 dense, whose global scales MLX has on a GPU alone."""
    from safetensors.numpy import save_file

    config = json.loads((directory / "config.json").read_text())
    tensors = {key: (dtype, values) for key, dtype, _, values in read_tensors(directory / "model.safetensors")}
    dense = {}
    for key, (dtype, values) in tensors.items():
        if f"{key}_weight_scale" in tensors:
            codes = small_floats(np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:-1], -1), 2, 1)
            scales = np.repeat(small_floats(tensors[f"{key}_weight_scale"][1], 4, 3), 16, axis=-1)
            whole = tensors[f"{key}_weight_scale_2"][1].reshape(len(values), -1, 1)
            whole = np.repeat(whole, values.shape[1] // whole.shape[1], axis=1)
            dense[key] = (codes * scales * whole).astype(np.float32)
        elif dtype == "F32" and not key.endswith("_scale_2"):
            dense[key] = np.ascontiguousarray(values)
    save_file(dense, directory / "model.safetensors", metadata={"format": "mlx"})
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))


def with_idle_experts(directory, config):
    """Gives experts that do nothing weights, which transformers stacks with the others' and published files lack."""
    from safetensors.numpy import load_file, save_file

    path, first = directory / "model.safetensors", config["n_routed_experts"]
    tensors = load_file(path)
    for key in [key for key in tensors if ".experts.0.gate_" in key or ".experts.0.up_" in key]:
        for i in range(first, first + config["zero_expert_num"]):
            tensors[key.replace(".experts.0.", f".experts.{i}.")] = np.zeros_like(tensors[key])
    save_file(tensors, path, metadata={"format": "pt"})


class Mlx:
    has_chunks = True

    def __init__(self, oracle):
        if oracle:
            sys.path.insert(0, str(oracle))
            # mlx-lm's olmo asks for this package and uses nothing of it.
            sys.modules["hf_olmo"] = types.ModuleType("hf_olmo")
            __import__("repairs").install()
        import mlx.core as mx
        import mlx_lm.models.muse_spark as muse_spark
        from mlx.utils import tree_flatten
        from mlx_lm import __version__, utils
        from mlx_lm.models.cache import make_prompt_cache

        self.mx, self.flatten, self.utils, self.make_cache = mx, tree_flatten, utils, make_prompt_cache
        self.name = f"mlx-lm {__version__}"
        # mlx-lm rounds two activations of Muse Spark to bfloat16 in every dtype, and transformers does not.
        muse_spark.mx = types.SimpleNamespace(**vars(mx) | dict(bfloat16=mx.float32))

    def load(self, directory):
        config = json.loads((directory / "config.json").read_text())
        if config.get("quantization_config", {}).get("quant_method") == "modelopt":
            without_nvfp4(directory)
        if config["model_type"] not in STEPWISE:
            return self.utils.load_model(directory)[0]
        model, _ = self.utils.load_model(directory, model_config={"blocksparse_block_size": 32})
        model._dummy_tokenizer_ids = self.mx.array([], dtype=self.mx.int32)
        for layer in model.layers:
            layer.self_attn.blocksparse_block_size = BLOCK["blocksparse_block_size"]
        return model

    def forward(self, model, ids, pieces):
        if model.model_type in STEPWISE:
            pieces = [1] * ids.shape[1]
        cache, start, parts = self.make_cache(model) if pieces else None, 0, []
        for n in pieces or [ids.shape[1]]:
            piece = self.mx.array(ids[:, start : start + n])
            out = model(piece, cache=cache) if pieces else model(piece)
            out = out[0] if isinstance(out, tuple) else out
            parts.append(np.array(out.astype(self.mx.float32)))
            start += n
        return np.concatenate(parts, axis=1)

    def add_noise(self, model, rng):
        noisy = []
        for path, p in self.flatten(model.parameters()):
            if p.dtype in (self.mx.float32, self.mx.float16, self.mx.bfloat16):
                noise = self.mx.array(rng.standard_normal(p.shape).astype(np.float32))
                noisy.append((path, (p.astype(self.mx.float32) * (1 + 1e-6 * noise)).astype(p.dtype)))
        model.load_weights(noisy, strict=False)
        for _, module in model.named_modules():
            for key in [k for k in list(vars(module)) + list(module.keys()) if k.endswith("_w_eff")]:
                setattr(module, key, None)


class Transformers:
    # Its caches do not all take several tokens at once.
    has_chunks = False

    def __init__(self, _):
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.utils.logging.disable_progress_bar()
        self.torch, self.transformers = torch, transformers
        self.name = f"transformers {transformers.__version__}"

    def load(self, directory):
        classes = self.transformers.AutoModelForCausalLM, self.transformers.AutoModelForImageTextToText
        config = self.transformers.AutoConfig.from_pretrained(directory)
        if config.model_type == "longcat_flash":
            with_idle_experts(directory, json.loads((directory / "config.json").read_text()))
        load = classes[type(config) not in classes[0]._model_mapping].from_pretrained
        model, info = load(
            directory, dtype=self.torch.float32, attn_implementation="eager", output_loading_info=True
        )
        bad = [key for key in info["missing_keys"] if "lm_head" not in key and "inv_freq" not in key]
        if bad or info["mismatched_keys"]:
            raise RuntimeError(f"transformers misses {bad[:3]} {list(info['mismatched_keys'])[:3]}")
        return model.eval()

    def forward(self, model, ids, pieces):
        past, start, parts = None, 0, []
        with self.torch.no_grad():
            for n in pieces or [ids.shape[1]]:
                piece = self.torch.tensor(ids[:, start : start + n].astype(np.int64))
                out = model(piece, past_key_values=past, use_cache=bool(pieces))
                past = out.get("past_key_values", out.get("cache_params")) if pieces else None
                parts.append(out.logits.float().numpy())
                start += n
        return np.concatenate(parts, axis=1)

    def add_noise(self, model, rng):
        with self.torch.no_grad():
            for p in model.parameters():
                noise = self.torch.tensor(rng.standard_normal(tuple(p.shape)).astype(np.float32))
                p.mul_(1 + 1e-6 * noise)


def spread(a, b):
    with np.errstate(invalid="ignore"):
        return float(np.where(a == b, 0.0, np.abs(a - b)).max())


def without(config, path):
    *parents, key = path.split(".")
    for parent in parents:
        config = config.get(parent) or {}
    config.pop(key, None)


def freeze(framework, directory, unread, attempts):
    config = json.loads((directory / "config.json").read_text())
    for path in unread.get(config["model_type"], []):
        without(config, path)
    if config["model_type"] in STEPWISE:
        config |= BLOCK
    case = json.loads((directory / "case.json").read_text())
    tensors = list(read_tensors(directory / "model.safetensors"))
    lines = [recipe(*tensor) for tensor in tensors]
    computed = {key: values.tobytes() for key, _, _, values in tensors if key.endswith(COMPUTED)}
    best = None
    for seed in range(attempts):
        rng = np.random.default_rng([seed, len(lines)])
        with tempfile.TemporaryDirectory() as tmp:
            tmp = Path(tmp)
            write_checkpoint(tmp, config, lines, seed, computed)
            model = framework.load(tmp)
        vocab = framework.forward(model, np.zeros((1, 1), np.int32), None).shape[-1]
        ids = rng.integers(0, vocab, (2, LENGTH)).astype(np.int32)
        full = framework.forward(model, ids, None)
        if not np.isfinite(full).all():
            continue
        cached = framework.forward(model, ids, PIECES) if framework.has_chunks else full
        greedy, row, margin = [], ids[:1], np.inf
        for _ in range(GREEDY):
            last = framework.forward(model, row, None)[0, -1]
            top = np.sort(last)[-2:]
            margin = min(margin, float(top[1] - top[0]))
            greedy.append(int(last.argmax()))
            row = np.concatenate([row, [[greedy[-1]]]], axis=1).astype(np.int32)
        framework.add_noise(model, rng)
        noise = spread(framework.forward(model, ids, None), full)
        std = float(full.std())
        score = max(noise / (MAX_NOISE * std), 20 * noise / max(margin, 1e-9))
        columns = np.sort(rng.choice(vocab, min(COLUMNS, vocab), replace=False))
        pack = lambda a: base64.b64encode(np.ascontiguousarray(a[..., columns], "<f4").tobytes()).decode()
        fixture = {
            "case": directory.name,
            "framework": framework.name,
            "notes": case.get("notes", ""),
            "config": json.dumps(config),
            "seed": seed,
            "ids": ids.tolist(),
            "columns": columns.tolist(),
            "std": std,
            "noise": noise,
            "greedy": greedy,
            "logits": pack(full),
            "tensors": lines,
        }
        if (directory / "config_legacy.json").exists():
            legacy = json.loads((directory / "config_legacy.json").read_text())
            fixture["config_legacy"] = json.dumps(legacy)
        if spread(cached, full) > max(20 * noise, 1e-3 * std):
            fixture["cached_logits"] = pack(cached)
        if best is None or score < best[0]:
            best = (score, fixture)
        if score <= 1:
            break
    if best is None:
        raise RuntimeError("the logits are not finite with any seed")
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=["mlx", "hf"], required=True)
    parser.add_argument("--oracle", type=Path)
    parser.add_argument("--only", default="", help="names of cases or architectures")
    parser.add_argument("--attempts", type=int, default=6, help="seeds to try")
    parser.add_argument("cases", nargs="+", type=Path)
    args = parser.parse_args()
    framework = {"mlx": Mlx, "hf": Transformers}[args.framework](args.oracle)
    only = {name for name in args.only.split(",") if name}
    OUT.mkdir(parents=True, exist_ok=True)
    failed = 0
    for folder in args.cases:
        for directory in sorted(path.parent for path in folder.rglob("case.json")):
            if only and directory.name not in only and directory.name.split("__")[0] not in only:
                continue
            model_type = json.loads((directory / "config.json").read_text())["model_type"]
            if directory.name in SKIPPED[args.framework] and model_type not in [*UNREAD[args.framework], *STEPWISE]:
                continue
            try:
                score, fixture = freeze(framework, directory, UNREAD[args.framework], args.attempts)
            except Exception as error:
                failed += 1
                print(f"FAIL {directory.name:40} {type(error).__name__}: {str(error)[:160]}", flush=True)
                continue
            prefix = "" if args.framework == "mlx" else "hf-"
            head = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in fixture.items() if k != "tensors")
            lines = ",\n".join("  " + json.dumps(line) for line in fixture["tensors"])
            text = "{\n" + head + ',\n "tensors": [\n' + lines + "\n ]\n}\n"
            target = OUT / f"{prefix}{directory.name}.json"
            (OUT / ".new").write_text(text)
            shutil.move(OUT / ".new", target)
            print(f"ok   {target.name:44} {len(text):7} bytes, noise {score:.2f} of the limit, seed {fixture['seed']}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
