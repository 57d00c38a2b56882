"""Filters, penalties and seeded draws of mlx-lm's samplers, for `tests/models/sampling.rs`.

    python sampling.py   # mlx 0.32.4, mlx-lm 0.32.2

`tests/fixtures/sampling.json`: `logits`, 4 rows of 24; for each of `filters` the settings, what is left
of the log probabilities of each row (null where dropped), and 40 tokens drawn from the first row after a
seed; for each of `penalties` the settings, the tokens before, and the logits of the first row after.
"""

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, apply_xtc, make_logits_processors, make_sampler

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "sampling.json"
FILTERS = [
    dict(),
    dict(top_p=0.5),
    dict(top_p=0.93),
    dict(min_p=0.05),
    dict(min_p=0.6, min_tokens_to_keep=5),
    dict(top_k=4),
    dict(xtc_probability=1.0, xtc_threshold=0.08),
    dict(xtc_probability=1.0, xtc_threshold=0.05, xtc_special_tokens=[3, 17, 20]),
    dict(xtc_probability=1.0, xtc_threshold=0.5),
    dict(top_p=0.9, min_p=0.1, xtc_probability=1.0, xtc_threshold=0.1, top_k=3),
    dict(temp=0.5, top_p=0.95, min_p=0.02, top_k=6),
    dict(temp=1.7, xtc_probability=0.5, xtc_threshold=0.05),
]
PENALTIES = [
    dict(repetition_penalty=1.3),
    dict(repetition_penalty=0.8, repetition_context_size=3),
    dict(presence_penalty=0.7, presence_context_size=5),
    dict(frequency_penalty=0.4),
    dict(frequency_penalty=-0.4, frequency_context_size=0),
    dict(logit_bias={3: 2.5, 11: -100.0}),
    dict(logit_bias={5: 1.0}, repetition_penalty=1.5, presence_penalty=0.2, frequency_penalty=0.3, repetition_context_size=4),
]


def kept(logprobs, temp=0, top_p=0, min_p=0, min_tokens_to_keep=1, top_k=0, xtc_probability=0, xtc_threshold=0.1, xtc_special_tokens=()):
    """The filters in the order of `make_sampler`."""
    if 0 < top_p < 1:
        logprobs = apply_top_p(logprobs, top_p)
    if min_p:
        logprobs = apply_min_p(logprobs, min_p, min_tokens_to_keep)
    if xtc_probability:
        logprobs = apply_xtc(logprobs, xtc_probability, xtc_threshold, list(xtc_special_tokens))
    if top_k:
        logprobs = apply_top_k(logprobs, top_k)
    return logprobs


def rows(array):
    return [[None if math.isinf(x) else float(x) for x in row] for row in np.array(array).astype(np.float32)]


def main():
    mx.set_default_device(mx.cpu)
    rng = np.random.default_rng(3)
    logits = mx.array((2.5 * rng.standard_normal((4, 24))).astype(np.float32))
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    before = [int(x) for x in rng.integers(0, 12, 32)]
    filters = []
    for settings in FILTERS:
        sampler = make_sampler(**({"temp": 1.0} | settings))
        mx.random.seed(11)
        drawn = [int(sampler(logprobs[:1]).item()) for _ in range(40)]
        deterministic = settings.get("xtc_probability", 1.0) == 1.0
        left = rows(kept(logprobs, **settings)) if deterministic else None
        filters.append(dict(settings=settings, kept=left, drawn=drawn))
    penalties = []
    for settings in PENALTIES:
        out = logits[:1]
        for processor in make_logits_processors(**settings):
            out = processor(mx.array(before), out)
        penalties.append(dict(settings=settings, logits=rows(out)[0]))
    out = dict(logits=rows(logits), seed=11, filters=filters, before=before, penalties=penalties)
    OUT.write_text(json.dumps(out) + "\n")
    print(f"{len(filters)} filters, {len(penalties)} penalties")


if __name__ == "__main__":
    main()
