"""Perplexities by mlx-lm, for `tests/models/perplexity.rs`.

    python perplexity.py   # mlx 0.32.4, mlx-lm 0.32.2

`tests/fixtures/perplexity.json`: for checkpoints of `tests/fixtures/lm`, the perplexity of their 40
`input_ids` in samples of `length`, and its standard error.
"""

import json
from pathlib import Path

import mlx.core as mx
from mlx_lm.perplexity import eval_ppl
from mlx_lm.utils import load_model

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def main():
    rows = []
    for name in ["llama", "q4", "sliding"]:
        model, _ = load_model(FIXTURES / "lm" / name)
        ids = mx.load(str(FIXTURES / "lm" / name / "expect.safetensors"))["input_ids"].reshape(-1)
        for length, samples, batch in [(10, -1, 3), (7, -1, 8), (12, 2, 1), (40, -1, 8)]:
            data = ids[: ids.size // length * length].reshape(-1, length)
            data = data[:samples] if samples > 0 else data
            perplexity, error = eval_ppl(model, data, batch_size=batch)
            rows.append(dict(name=name, length=length, samples=samples, batch=batch, perplexity=perplexity, standard_error=error))
    (FIXTURES / "perplexity.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
