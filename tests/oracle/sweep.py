"""Holds `mlxport` to the recorded outputs of mlx-lm and transformers on whole folders of checkpoints.

    python sweep.py --mlxport target/release/mlxport [--only NAME,...] [--table MD] [--json JSON] CASES...

CASES are folders of case directories, each a checkpoint with `expect.npz` and `case.json`, as the two
oracle generators write them. A case passes if every kind of pass gives the recorded logits: in one
piece, in chunks through a cache, token by token, and batched; and if the greedy tokens are equal. Where the
source chose one by less than the tolerance of two logits, another that lacks no more may be chosen; it is told,
and all tokens are compared after those that were recorded. Where a model rounds, or chooses, inside, and float32 is
too coarse to say which way, the recorded logits are those of the other way: a sequence that differs passes if noise of
1e-6 in the weights makes its logits the recorded ones, within the same tolerance; it is told too. A
`config_legacy.json` is tried as `config.json` too.

The error of logits is the largest absolute difference over their standard deviation. In half precision it is that
of MLX's own operations, which round where the source's do; the kernels round less often, and are held to be no further
from what the same weights give in float32 than the source is. Cases that can't pass, since mlx-lm computes something
else than transformers, are in `deviations.json`, with the reason; they are expected to fail. `--table` and `--json` write what was seen, model type by model type.
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

# Of float32, and of quantized weights; or so many times what noise of 1e-6 in the weights does. Half precision has
# what its generator suggests. Last, how many times the source's distance from float32 the kernels' may be.
FLOAT32, REDUCED, NOISE_FACTOR, ROUNDING = 2e-4, 2e-3, 20.0, 1.05
NOISE, DRAWS = 1e-6, 8
DEVIATIONS = json.loads((Path(__file__).resolve().parent / "deviations.json").read_text())


def call(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"exit code {done.returncode}")
    return done.stdout


def forward(mlxport, model, ids, chunks=None, *extra):
    with tempfile.TemporaryDirectory() as tmp:
        np.savez(f"{tmp}/in.npz", input_ids=ids)
        if chunks is not None:
            extra = ["--chunks", ",".join(str(n) for n in chunks), *extra]
        call(mlxport, "forward", "--model", model, "--inputs", f"{tmp}/in.npz", "--outputs", f"{tmp}/out.npz", *extra)
        with np.load(f"{tmp}/out.npz") as out:
            return out["logits"]


def greedy(mlxport, model, ids, count):
    ids = ",".join(str(n) for n in ids)
    out = call(mlxport, "generate", "--model", model, "--prompt-ids", ids, "--max-tokens", count, "--ignore-eos", "--json")
    return json.loads(out)["tokens"]


def is_exact(case):
    return case.get("dtype", "float32") == "float32" and not case.get("quantization")


def tolerance(case, std):
    if case.get("dtype", "float32") != "float32":
        return case["suggested_atol"] / std
    noise = case.get("max_abs_diff_weights_noise_1e-6", case.get("sensitivity", 0.0))
    return max(NOISE_FACTOR * noise / std, FLOAT32 if is_exact(case) else REDUCED)


def is_half(model):
    """Whether weights, or scales, are in half precision: mlx-lm's rounding of each step is in the logits then."""
    with open(f"{model}/model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return any(tensor.get("dtype") in ("F16", "BF16") for tensor in header.values())


def noisy(model, folder, seed):
    """The checkpoint, in `folder`, with relative noise in every weight of float32."""
    for file in Path(model).iterdir():
        if file.name != "model.safetensors":
            os.symlink(file.resolve(), f"{folder}/{file.name}")
    data = bytearray(Path(model, "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    draw = np.random.default_rng(seed)
    for tensor in json.loads(data[8:start]).values():
        if tensor.get("dtype") == "F32":
            begin, end = (start + offset for offset in tensor["data_offsets"])
            values = np.frombuffer(data, np.float32, (end - begin) // 4, begin)
            values *= 1 + NOISE * draw.standard_normal(values.size, np.float32)
    Path(folder, "model.safetensors").write_bytes(data)


def error_of(found, logits):
    """For each sequence."""
    return np.abs(found - logits).max(axis=(1, 2)) / logits.std()


def tied_error(mlxport, model, ids, chunks, logits, error, limit):
    """The error of each sequence, or the smallest that noise in the weights gives, until none is above `limit`."""
    for seed in range(DRAWS):
        if error.max() <= limit:
            break
        with tempfile.TemporaryDirectory() as folder:
            noisy(model, folder, seed)
            error = np.fmin(error, error_of(forward(mlxport, folder, ids, chunks), logits))
    return error


def rms(values):
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def rounding(mlxport, model, ids, chunks, logits):
    """How far the kernels' logits are from what the weights give in float32, over how far the recorded ones are."""
    found = forward(mlxport, model, ids, chunks)
    exact = forward(mlxport, model, ids, None, "--dtype", "float32")
    return rms(found - exact) / rms(logits - exact)


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
    """What was found: errors, what failed, what differs by a tie."""
    case = json.loads((directory / "case.json").read_text())
    with np.load(directory / "expect.npz") as file:
        expect = dict(file)
    half = is_half(model)
    seen = {"error": 0.0, "part": 0.0, "limit": 0.0, "rounding": 0.0 if half else None}
    failures, ties = [], []
    for name, ids, chunks, logits in expected(case, expect):
        ids = ids.astype(np.int32)
        found = forward(mlxport, model, ids, chunks, *(["--path", "reference"] if half else []))
        error, limit = error_of(found, logits), float(tolerance(case, logits.std()))
        if is_exact(case) and not error.max() <= limit:
            first = float(error.max())
            error = tied_error(mlxport, model, ids, chunks, logits, error, limit)
            if error.max() <= limit:
                ties.append(f"{name}: {first:.2e} by a tie inside")
        error = float(error.max())
        seen["error"], seen["part"] = max(seen["error"], error), max(seen["part"], error / limit)
        seen["limit"] = max(seen["limit"], limit)
        if not error <= limit:
            failures.append(f"{name}: {error:.2e} above {limit:.1e}")
        if half:
            ratio = rounding(mlxport, model, ids, chunks, logits)
            seen["rounding"] = max(seen["rounding"], ratio)
            if not ratio <= ROUNDING:
                failures.append(f"{name}: the kernels are {ratio:.3f} times as far from float32 as the source")
    tokens = list(case["greedy"]) if "greedy" in case else expect["greedy"].ravel().tolist()
    ids = expect["input_ids"][0].tolist()
    found, margin = greedy(mlxport, model, ids, len(tokens)), case["greedy_min_margin"]
    tie = found != tokens and is_tied(mlxport, model, ids, tokens, margin, 2 * tolerance(case, logits.std()) * logits.std())
    if found != tokens and not tie:
        failures.append(f"greedy: {found}, recorded {tokens} (smallest margin {margin:.1e})")
    return seen | {"failures": failures, "ties": ties + (["other tokens by a tie"] if tie else [])}


def is_tied(mlxport, model, ids, tokens, margin, limit):
    """Whether the source chose some token by less than `limit`, and each lacks no more to the best one here, after
    the tokens that were recorded before it."""
    logits = forward(mlxport, model, np.array([ids + tokens[:-1]], np.int32))[0, len(ids) - 1 :]
    lacking = logits.max(axis=-1) - logits[np.arange(len(tokens)), tokens]
    return margin <= limit and float(lacking.max()) <= limit


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


def source(directory):
    case = json.loads((directory / "case.json").read_text())
    return "mlx-lm" if "mlx_lm" in case.get("generator", {}) else "transformers"


def write_table(path, rows, halves):
    lines = [
        "# Models",
        "",
        "What `tests/oracle/sweep.py`, the comparison of `make parity`, saw: every case is a tiny random checkpoint of the",
        "source framework, run in one piece, in chunks through a cache, token by token, batched, and greedily; logits and",
        "tokens are those of the source, a token of two that are tied within the tolerance either one. Where a model rounds",
        "inside, and noise of 1e-6 in the weights decides which way, the logits are those of either way. The error is the",
        "largest of all logits in float32 over their standard deviation.",
        "`docs/deviations.md` tells where the two frameworks disagree; such cases of mlx-lm are not counted. No reference",
        "runs `minimax_m3`, `minimax_text_01` and `muse_glimmer_text`: they are other names of what the table has as `minimax_m3_vl_text`,",
        "`minimax` and `muse_glimmer`.",
        "",
        "| model type | cases of mlx-lm | cases of transformers | worst error |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[0].lower()):
        cells = [f"{row[of][0]} of {row[of][1]}" if row[of][1] else "" for of in ("mlx-lm", "transformers")]
        lines.append(f"| `{name}` | {cells[0]} | {cells[1]} | {row['worst']:.1e} |")
    lines += [
        "",
        "## Half precision",
        "",
        "Cases with weights, or parts of them, in half precision are compared twice. With MLX's own operations (`forward",
        "--path reference`) the error is held to the tolerance that the generator of the case states: each step is rounded",
        "where mlx-lm rounds it. The kernels round once where MLX rounds after every operation, so their logits are others.",
        "They are held to be as exact: their distance from what the same weights give in float32, as a root mean square, is",
        f"at most {ROUNDING} of that of mlx-lm's logits.",
        "",
        "| case | error with MLX's operations | tolerance | the kernels' distance from float32, over mlx-lm's |",
        "| --- | --- | --- | --- |",
    ]
    for name, (error, limit, ratio) in sorted(halves.items()):
        lines.append(f"| `{name}` | {error:.1e} | {limit:.1e} | {ratio:.2f} |")
    path.write_text("\n".join(lines) + "\n")


def write_json(path, rows):
    statuses = [
        {
            "model_type": name,
            "passed": row["mlx-lm"][0] + row["transformers"][0],
            "total": row["mlx-lm"][1] + row["transformers"][1],
            "worst_error": float(f"{row['worst']:.2e}"),
        }
        for name, row in sorted(rows.items())
    ]
    path.write_text("[\n" + ",\n".join("  " + json.dumps(status) for status in statuses) + "\n]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlxport", required=True, type=Path)
    parser.add_argument("--only", default="", help="names of cases or architectures")
    parser.add_argument("--table", type=Path, help="file for the table, Markdown")
    parser.add_argument("--json", type=Path, help="file for the same as JSON")
    parser.add_argument("cases", nargs="+", type=Path)
    args = parser.parse_args()
    only = {name for name in args.only.split(",") if name}
    known = {row["model_type"] for row in json.loads(call(args.mlxport, "models", "--json"))}
    passed = failed = deviating = 0
    rows, halves = {}, {}
    for folder in args.cases:
        for directory in sorted(path.parent for path in folder.rglob("case.json")):
            if only and directory.name not in only and directory.name.split("__")[0] not in only:
                continue
            of = source(directory)
            reason = DEVIATIONS[of].get(directory.name)
            for name, model in models_of(directory):
                try:
                    seen = check(args.mlxport, directory, model)
                except RuntimeError as error:
                    seen = {"error": 0.0, "part": float("inf"), "rounding": None, "failures": [str(error)], "ties": []}
                failures = seen["failures"]
                if reason and failures:
                    deviating += 1
                    print(f"dev  {name:40} {reason}", flush=True)
                    continue
                note = "".join(f", {tie}" for tie in seen["ties"])
                if seen["rounding"] is not None:
                    note = f", kernels {seen['rounding']:.2f} of the source's rounding{note}"
                    halves[name] = max(halves.get(name, ()), (seen["error"], seen["limit"], seen["rounding"]))
                passed, failed = passed + (not failures), failed + bool(failures)
                print(f"{'FAIL' if failures else 'ok  '} {name:40} {seen['part']:8.1%} of the tolerance{note}", flush=True)
                for failure in failures:
                    print(f"     {failure}")
                case = json.loads((directory / "case.json").read_text())
                model_type = json.loads((Path(model) / "config.json").read_text())["model_type"]
                if model_type not in known:
                    continue
                row = rows.setdefault(
                    model_type, {"mlx-lm": [0, 0], "transformers": [0, 0], "worst": 0.0}
                )
                row[of] = [row[of][0] + (not failures), row[of][1] + 1]
                if is_exact(case):
                    row["worst"] = max(row["worst"], seen["error"])
    print(f"{passed} of {passed + failed} checkpoints pass; {deviating} deviate as documented")
    if args.table:
        write_table(args.table, rows, halves)
    if args.json:
        write_json(args.json, rows)
    sys.exit(failed > 0 or passed == 0)


if __name__ == "__main__":
    main()
