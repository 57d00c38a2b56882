"""Freezes what optimizers, schedules and losses of MLX and PyTorch compute, for tests/core/optim.rs.

    pip install "mlx[cpu]==0.32.4" torch numpy
    python tests/oracle/optim.py

Where both frameworks define the same update, PyTorch in float64 is recorded; MLX in float32 otherwise.
"""

import json
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import torch
import torch.nn.functional as F

SEED, STEPS, LR = 7, 6, 0.05
OUT = Path(__file__).parent.parent / "fixtures" / "optim.json"

rng = np.random.default_rng(SEED)
SHAPES = {"weight": (3, 4), "bias": (4,)}
START = {k: rng.standard_normal(s).round(4) for k, s in SHAPES.items()}
GRADIENTS = [{k: rng.standard_normal(s).round(4) for k, s in SHAPES.items()} for _ in range(STEPS)]


def flat(values):
    return [float(v) for k in SHAPES for v in np.asarray(values[k], np.float64).ravel()]


def by_torch(make):
    params = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in START.items()}
    optimizer = make(list(params.values()))
    steps = []
    for gradient in GRADIENTS:
        for k, p in params.items():
            p.grad = torch.tensor(gradient[k], dtype=torch.float64)
        optimizer.step()
        steps.append(flat({k: p.detach().numpy() for k, p in params.items()}))
    return steps


def by_mlx(optimizer):
    params = {k: mx.array(v, mx.float32) for k, v in START.items()}
    steps = []
    for gradient in GRADIENTS:
        params = optimizer.apply_gradients({k: mx.array(v, mx.float32) for k, v in gradient.items()}, params)
        steps.append(flat({k: np.array(v) for k, v in params.items()}))
    return steps


def optimizers():
    t, tw = torch.optim, {"lr": LR}
    return {
        "sgd": by_torch(lambda p: t.SGD(p, **tw)),
        "sgd_momentum": by_torch(lambda p: t.SGD(p, **tw, momentum=0.9, weight_decay=0.1)),
        "sgd_nesterov": by_torch(lambda p: t.SGD(p, **tw, momentum=0.9, nesterov=True)),
        # PyTorch does not dampen the first step; MLX does.
        "sgd_dampened": by_mlx(optim.SGD(LR, momentum=0.9, dampening=0.5)),
        "adam": by_mlx(optim.Adam(LR)),
        "adam_corrected": by_torch(lambda p: t.Adam(p, **tw, betas=(0.8, 0.95))),
        "adamw": by_mlx(optim.AdamW(LR, weight_decay=0.1)),
        "adamw_corrected": by_torch(lambda p: t.AdamW(p, **tw, weight_decay=0.1)),
        "adamw_scheduled": by_mlx(optim.AdamW(optim.cosine_decay(LR, 4), weight_decay=0.1)),
    }


def schedules():
    warm = optim.linear_schedule(0.0, 0.1, 10)
    made = {
        "linear": warm,
        "cosine": optim.cosine_decay(0.1, 20, 0.01),
        "exponential": optim.exponential_decay(0.1, 0.9),
        "step": optim.step_decay(0.1, 0.5, 7),
        "warmup_cosine": optim.join_schedules([warm, optim.cosine_decay(0.1, 20, 0.01)], [10]),
    }
    return {k: [float(f(mx.array(step))) for step in range(40)] for k, f in made.items()}


def clipping():
    out = {}
    for limit in (0.5, 100.0):
        params = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in START.values()]
        for p, g in zip(params, GRADIENTS[0].values()):
            p.grad = torch.tensor(g, dtype=torch.float64)
        norm = torch.nn.utils.clip_grad_norm_(params, limit)
        out[str(limit)] = {"norm": float(norm), "clipped": flat(dict(zip(SHAPES, (p.grad for p in params))))}
    return out


def losses():
    logits = (3 * rng.standard_normal((2, 3, 5))).round(4)
    targets, ignored = rng.integers(0, 5, (2, 3)), np.array([[0, 1, 0], [0, 0, 1]])
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(targets)

    def loss(**kw):
        return F.cross_entropy(x.reshape(-1, 5), y.reshape(-1), reduction="none", **kw).reshape(2, 3)

    masked = torch.where(torch.tensor(ignored) == 1, -100, y).reshape(-1)
    mean = F.cross_entropy(x.reshape(-1, 5), masked)
    mean.backward()
    return {
        "logits": logits.ravel().tolist(),
        "targets": targets.ravel().tolist(),
        "ignored": ignored.ravel().tolist(),
        "each": loss().detach().ravel().tolist(),
        "smoothed": loss(label_smoothing=0.1).detach().ravel().tolist(),
        "mean": mean.item(),
        "gradient": x.grad.ravel().tolist(),
    }


FIXTURE = {
    "versions": {"mlx": mx.__version__, "torch": torch.__version__},
    "shapes": list(SHAPES.values()),
    "learning_rate": LR,
    "start": flat(START),
    "gradients": [flat(g) for g in GRADIENTS],
    "optimizers": optimizers(),
    "schedules": schedules(),
    "clipping": clipping(),
    "losses": losses(),
}
lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in FIXTURE.items())
OUT.parent.mkdir(exist_ok=True)
OUT.write_text(f"{{\n{lines}\n}}\n")
