"""Writes tests/fixtures/indexing.json: random index expressions and what NumPy makes of them.

Where MLX's Python accepts an expression it is asked too; the differences are counted and printed.
Needs numpy; mlx if it is there. Run: python tests/oracle/indexing.py
"""

import json
import pathlib
import random

import numpy as np

try:
    import mlx.core as mx
except ImportError:
    mx = None

OPS = ["set", "add", "subtract", "multiply", "maximum", "minimum"]
AT = {
    "add": np.add.at,
    "subtract": np.subtract.at,
    "multiply": np.multiply.at,
    "maximum": np.maximum.at,
    "minimum": np.minimum.at,
}


def entry(rng, size, group):
    """One index of an axis: (for NumPy, for the fixture)."""
    kind = rng.choices(["int", "range", "array", "list"], [3, 5, 3, 1])[0]
    if kind in ("array", "list") and size == 0:
        kind = "range"
    if kind == "int":
        value = rng.randint(-size - 1, size)  # now and then outside
        return value, value
    if kind == "range":
        bound = lambda: rng.choice([None, None, rng.randint(-size - 2, size + 2)])
        parts = bound(), bound(), rng.choice([None, None, 1, 2, 3, -1, -2])
        return slice(*parts), {"range": parts}
    shape = (rng.choice([1, 2, 3]),) if kind == "list" else rng.choice(group)
    values = np.array([rng.randint(-size, size - 1) for _ in range(int(np.prod(shape)))], np.int32).reshape(shape)
    return values, {kind: values.flatten().tolist(), "shape": list(shape)}


def expression(rng, shape):
    group = rng.choice([[(2,), (1,)], [(2, 3), (3,), (2, 1)], [()], [(0,)], [(3,), (2,)]])
    pairs = [entry(rng, size, group) for size in shape[: rng.randint(0, len(shape))]]
    if rng.random() < 0.4:
        last = [entry(rng, size, group) for size in shape[len(shape) - rng.randint(0, len(shape) - len(pairs)) :]]
        pairs = pairs + [(Ellipsis, "...")] + (last if len(pairs) + len(last) <= len(shape) else [])
    for _ in range(rng.choice([0, 0, 1, 2])):
        pairs.insert(rng.randint(0, len(pairs)), (None, None))
    if rng.random() < 0.02:
        pairs.append((0, 0))  # now and then one too many
    return tuple(p[0] for p in pairs), [p[1] for p in pairs]


def flat(x):
    return [int(v) for v in np.asarray(x).flatten()]


def case(rng, differences):
    shape = [rng.choice([1, 2, 3, 4, 3, 2, 0] if rng.random() < 0.2 else [2, 3, 4]) for _ in range(rng.randint(1, 4))]
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    index, written = expression(rng, shape)
    out = {"shape": shape, "index": written}
    try:
        part = x[index]
    except (IndexError, ValueError):
        return out | {"error": True}
    out |= {"part": list(part.shape), "values": flat(part)}
    if mx is not None:
        ours = tuple(mx.array(i) if isinstance(i, np.ndarray) else i for i in index)
        try:
            theirs = np.array(mx.array(x)[ours])
            same = theirs.shape == part.shape and (theirs == part).all()
            differences["agrees" if same else "differs"] += 1
        except Exception:
            differences["refuses"] += 1
    op = rng.choice(OPS)
    value_shape = [d if rng.random() < 0.8 else 1 for d in part.shape][rng.choice([0, 0, 0, 1]) :]
    value_shape = rng.choice([[], [1] * rng.choice([0, 2])]) + value_shape
    if op == "set" and len(np.unique(part)) != part.size:
        value_shape = []  # which of several values stays is not defined
    value = np.array([rng.randint(-3, 3) for _ in range(int(np.prod(value_shape)))], np.float32).reshape(value_shape)
    updated = x.copy()
    if op == "set":
        updated[index] = value
    else:
        # ufunc.at has no leading ones in its value
        while value.ndim > part.ndim:
            value = value[0]
        AT[op](updated, index, value)
    return out | {"op": op, "value": flat(value), "value_shape": list(value.shape), "updated": flat(updated)}


def main():
    rng = random.Random(20)
    differences = {"agrees": 0, "differs": 0, "refuses": 0}
    cases = [case(rng, differences) for _ in range(600)]
    cases = [c for c in cases if len(c.get("values", [])) <= 60 and len(c.get("updated", [])) <= 60]
    path = pathlib.Path(__file__).parent.parent / "fixtures" / "indexing.json"
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    path.write_text(f"[\n{lines}\n]\n")
    errors = sum("error" in c for c in cases)
    print(f"{len(cases)} cases, {errors} of them errors; MLX's Python: {differences}")


if __name__ == "__main__":
    main()
