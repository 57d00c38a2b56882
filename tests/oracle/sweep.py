"""Holds `mlxport` to the recorded outputs of mlx-lm and transformers on whole folders of checkpoints.

    python sweep.py --mlxport target/release/mlxport [--only NAME,...] CASES...

CASES are folders of case directories, each a checkpoint with `expect.npz` and `case.json`, as the two
oracle generators write them. A case passes if every kind of pass gives the recorded logits: in one
piece, in chunks through a cache, token by token, and batched; and if the greedy tokens are equal. A
`config_legacy.json` is tried as `config.json` too.

The error of logits is the largest absolute difference over their standard deviation.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

FLOAT32 = 1e-4
# For half precision and quantized weights: so many times what noise of 1e-6 in the weights does.
NOISE_FACTOR, REDUCED = 20.0, 2e-3


def call(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"exit code {done.returncode}")
    return done.stdout


def forward(mlxport, model, ids, chunks=None):
    with tempfile.TemporaryDirectory() as tmp:
        np.savez(f"{tmp}/in.npz", input_ids=ids)
        extra = ["--chunks", ",".join(str(n) for n in chunks)] if chunks is not None else []
        call(mlxport, "forward", "--model", model, "--inputs", f"{tmp}/in.npz", "--outputs", f"{tmp}/out.npz", *extra)
        with np.load(f"{tmp}/out.npz") as out:
            return out["logits"]


def greedy(mlxport, model, ids, count):
    ids = ",".join(str(n) for n in ids)
    out = call(mlxport, "generate", "--model", model, "--prompt-ids", ids, "--max-tokens", count, "--ignore-eos", "--json")
    return json.loads(out)["tokens"]


def tolerance(case, std):
    noise = case.get("max_abs_diff_weights_noise_1e-6")
    exact = case.get("dtype", "float32") == "float32" and not case.get("quantization")
    if exact or noise is None:
        return FLOAT32
    return max(NOISE_FACTOR * noise / std, REDUCED)


def expected(case, expect):
    """Name, token ids, chunks and logits of every pass that was recorded."""
    ids, logits = expect["input_ids"], expect["logits"]
    length = ids.shape[1]
    yield "full", ids, None, logits
    cached = expect["prefill_logits"] if "prefill_logits" in expect else None
    if cached is not None:
        prefill = cached.shape[1]
        steps = [prefill] + [1] * (length - prefill)
        yield "decode", ids, steps, np.concatenate([cached, expect["decode_logits"]], axis=1)
        yield "chunks", ids, expect["chunk_sizes"].tolist(), expect["chunked_logits"]
    else:
        yield "decode", ids, [length // 2] + [1] * (length - length // 2), logits
        yield "chunks", ids, [5, 7, 1, 3], logits
    yield "batch", expect["batch_input_ids"], None, expect["batch_logits"]
    if cached is None:
        yield "batch chunks", expect["batch_input_ids"], [5, 1, 1], expect["batch_logits"]


def check(mlxport, directory, model):
    case = json.loads((directory / "case.json").read_text())
    with np.load(directory / "expect.npz") as file:
        expect = dict(file)
    worst, failures = 0.0, []
    for name, ids, chunks, logits in expected(case, expect):
        error = np.abs(forward(mlxport, model, ids.astype(np.int32), chunks) - logits).max() / logits.std()
        limit = tolerance(case, logits.std())
        worst = max(worst, error / limit)
        if not error <= limit:
            failures.append(f"{name}: {error:.2e} above {limit:.1e}")
    tokens = case["greedy"] if "greedy" in case else expect["greedy"].ravel().tolist()
    found = greedy(mlxport, model, expect["input_ids"][0].tolist(), len(tokens))
    if found != list(tokens):
        failures.append(f"greedy: {found}, recorded {list(tokens)} (smallest margin {case['greedy_min_margin']:.1e})")
    return worst, failures


def models_of(directory):
    """The checkpoint as it is, and with the older spelling of its config."""
    yield directory.name, directory
    legacy = directory / "config_legacy.json"
    if legacy.exists():
        with tempfile.TemporaryDirectory() as tmp:
            for file in directory.iterdir():
                if file.name not in ("config.json", "expect.npz"):
                    os.symlink(file.resolve(), f"{tmp}/{file.name}")
            shutil.copy(legacy, f"{tmp}/config.json")
            yield f"{directory.name} (legacy config)", tmp


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlxport", required=True, type=Path)
    parser.add_argument("--only", default="", help="names of cases or architectures")
    parser.add_argument("cases", nargs="+", type=Path)
    args = parser.parse_args()
    only = {name for name in args.only.split(",") if name}
    passed = failed = 0
    for folder in args.cases:
        for directory in sorted(path.parent for path in folder.rglob("case.json")):
            if only and directory.name not in only and directory.name.split("__")[0] not in only:
                continue
            for name, model in models_of(directory):
                try:
                    worst, failures = check(args.mlxport, directory, model)
                except RuntimeError as error:
                    worst, failures = float("inf"), [str(error)]
                passed, failed = passed + (not failures), failed + bool(failures)
                print(f"{'FAIL' if failures else 'ok  '} {name:40} {worst:8.1%} of the tolerance")
                for failure in failures:
                    print(f"     {failure}")
    print(f"{passed} of {passed + failed} checkpoints pass")
    sys.exit(failed > 0 or passed == 0)


if __name__ == "__main__":
    main()
