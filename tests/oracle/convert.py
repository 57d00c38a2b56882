"""Holds `mlxport convert` to mlx-lm's own conversion of the same checkpoints.

    python convert.py --mlxport target/debug/mlxport [--only NAME,...] CASES
    python convert.py --record ../fixtures/convert.json ../../assets/tiny-qwen3
    python convert.py --layers ../fixtures/quantized_layers.json CASES...

Needs mlx and mlx-lm. CASES is a folder of case directories, as the oracle of language models writes them. Each
checkpoint is converted both ways, in several ways of quantizing; the tensors must be the same, bit for bit,
mlx-lm must load ours, and its logits must equal those of its own. A second run must give the same bytes.
`--record` writes digests of the tensors that mlx-lm makes of one checkpoint, and its `quantization`; `--layers`, for
each case that `tests/fixtures/zoo` has, digests of which layers it quantizes, and how.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.models.bitlinear_layers import BitLinear
from mlx_lm.utils import dequantize_model, load_model, quantize_model, save_config, save_model

ROOT = Path(__file__).resolve().parent.parent.parent
WAYS = {
    "plain": ([], {}),
    "q4": (["--quantize", "--bits", "4", "--group-size", "32"], {"group_size": 32, "bits": 4}),
    "mxfp4": (["--quantize", "--mode", "mxfp4"], {"group_size": 32, "bits": 4, "mode": "mxfp4"}),
    "mixed_3_6": (["--quantize", "--predicate", "mixed_3_6", "--group-size", "32"], {"group_size": 32, "bits": 4, "recipe": "mixed_3_6"}),
    "mixed_2_6": (["--quantize", "--predicate", "mixed_2_6", "--group-size", "32"], {"group_size": 32, "bits": 4, "recipe": "mixed_2_6"}),
    "dequantize": (["--dequantize"], {}),
}


def tensors(folder):
    out = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        out.update(mx.load(str(file)))
    return out


def digest(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(Path(folder).iterdir())}


def recipe_of(recipe, model, group_size):
    """mlx-lm's recipe; but the vectors of Kimi K3 stay dense, which it could not run quantized, and keeps dense without one."""
    predicate = mixed_quant_predicate_builder(recipe, model, group_size)
    return lambda path, layer: not path.endswith("_res_proj") and predicate(path, layer)


def theirs(source, out, way, options):
    model, config = load_model(source, lazy=True)
    if way == "dequantize":
        config.pop("quantization", None)
        config.pop("quantization_config", None)
        model = dequantize_model(model)
    elif options:
        options = dict(options)
        recipe = options.pop("recipe", None)
        predicate = recipe_of(recipe, model, options["group_size"]) if recipe else None
        model, config = quantize_model(model, config, **options, quant_predicate=predicate)
    save_model(out, model)
    save_config(config, Path(out) / "config.json")


def ternary_product(layer, x, packed):
    """What mlx-lm's kernel computes, which is for Metal alone."""
    rows = mx.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)]).astype(x.dtype) - 1
    return x @ rows.T * layer.weight_scale


BitLinear.execute_matmul_kernel = ternary_product


def logits(folder, ids):
    model, _ = load_model(Path(folder))
    out = model(mx.array(ids))
    return np.array(out.astype(mx.float32))


def check(mlxport, source, way, flags, options):
    with tempfile.TemporaryDirectory() as tmp:
        ours, again, other = (Path(tmp) / name for name in ("ours", "again", "other"))
        try:
            theirs(source, other, way, options)
        except Exception as error:
            return f"mlx-lm fails: {error}"
        for out in (ours, again):
            done = subprocess.run([mlxport, "convert", source, "--out", out, *flags], capture_output=True, text=True)
            if done.returncode:
                return f"FAIL {done.stderr.strip()}"
        if digest(ours) != digest(again):
            return "FAIL two runs differ"
        a, b = tensors(ours), tensors(other)
        if a.keys() != b.keys():
            return f"FAIL keys: ours alone {sorted(a.keys() - b.keys())[:6]}, theirs alone {sorted(b.keys() - a.keys())[:6]}"
        for name in a:
            if a[name].dtype != b[name].dtype or a[name].shape != b[name].shape:
                return f"FAIL {name}: {a[name].dtype} {a[name].shape}, theirs {b[name].dtype} {b[name].shape}"
            if not np.array_equal(np.array(a[name].view(mx.uint8)), np.array(b[name].view(mx.uint8))):
                return f"FAIL {name} differs"
        ids = np.load(source / "expect.npz")["input_ids"]
        if not np.array_equal(logits(ours, ids), logits(other, ids), equal_nan=True):
            return "FAIL logits differ"
        quantization = [json.loads((f / "config.json").read_text()).get("quantization") for f in (ours, other)]
        return f"ok   {len(a)} tensors" + ("" if quantization[0] == quantization[1] else f" (configs: {quantization[0]} {quantization[1]})")[:300]


def record(source, path):
    out = {}
    for way, (_, options) in WAYS.items():
        if way != "dequantize":
            with tempfile.TemporaryDirectory() as tmp:
                theirs(source, tmp, way, options)
                raw = {k: np.array(v.view(mx.uint8)).tobytes() for k, v in tensors(tmp).items()}
                digests = {k: hashlib.sha256(v).hexdigest()[:16] for k, v in sorted(raw.items())}
                out[way] = {"tensors": digests, "quantization": json.loads((Path(tmp) / "config.json").read_text()).get("quantization")}
    path.write_text(json.dumps(out, indent=1) + "\n")


def layers(model, config, recipe):
    """A line for each quantized layer, as `tests/port/convert.rs` writes it."""
    predicate = recipe_of(recipe, model, 32) if recipe else None
    model, _ = quantize_model(model, config, group_size=32, bits=4, quant_predicate=predicate)
    quantized = [(path, layer) for path, layer in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module) if "scales" in layer]
    lines = sorted(f"{path} {layer.group_size} {layer.bits}\n" for path, layer in quantized)
    return [len(lines), hashlib.sha256("".join(lines).encode()).hexdigest()[:16]]


def record_layers(folders, path):
    out = {}
    for source in sorted(case.parent for folder in folders for case in folder.rglob("case.json")):
        config = json.loads((source / "config.json").read_text())
        if "quantization" in config or not (ROOT / "tests" / "fixtures" / "zoo" / f"{source.name}.json").exists():
            continue
        for way, recipe in {"q4": None, "mixed_3_6": "mixed_3_6"}.items():
            try:
                out.setdefault(source.name, {})[way] = layers(*load_model(source, lazy=True), recipe)
            except (Exception, SystemExit) as error:
                print(f"{source.name} {way}: mlx-lm fails: {error}")
    path.write_text("{\n" + ",\n".join(f'"{name}": {json.dumps(ways)}' for name, ways in out.items()) + "\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlxport")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--layers", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("cases", type=Path, nargs="+")
    args = parser.parse_args()
    if args.record:
        return record(args.cases[0], args.record)
    if args.layers:
        return record_layers(args.cases, args.layers)
    only, failed = {n for n in args.only.split(",") if n}, 0
    for source in sorted(path.parent for folder in args.cases for path in folder.rglob("case.json")):
        if only and source.name not in only and source.name.split("__")[0] not in only:
            continue
        quantized = "quantization" in json.loads((source / "config.json").read_text())
        for way in args.ways.split(","):
            if quantized != (way == "dequantize") and way != "plain":
                continue
            result = check(args.mlxport, source, way, *WAYS[way])
            failed += result.startswith("FAIL")
            print(f"{source.name:28} {way:10} {result}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
