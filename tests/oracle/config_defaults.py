"""Writes `assets/config-defaults.json`: what keys mean that a config leaves out.

    python config_defaults.py --mlx PYTHON    # transformers 5.23.0; PYTHON: one that has mlx-lm 0.32.2

For each `model_type` two rows. `always`: what the config class of transformers says of a key, with its other names
behind it (`a|b`), before it computes one from another; keys of which mlx-lm's class says that they may be missing
are left out, as both frameworks write checkpoints. A model that transformers does not have follows mlx-lm. `needed`:
those keys, of what is not there, that an `Args` of ours cannot do without.
"""

import argparse
import dataclasses
import json
import re
import subprocess
from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ROOT = Path(__file__).resolve().parent.parent.parent
MLX = """
import dataclasses, json, sys, types
sys.modules["hf_olmo"] = types.ModuleType("hf_olmo")
from mlx_lm import utils
found = {}
for name in sys.argv[1:]:
    try:
        _, args = utils._get_classes({"model_type": name})
    except Exception:
        continue
    texts = [c for key, c in vars(sys.modules[args.__module__]).items() if key.startswith("Text")]
    found[name] = {f.name: f.default for c in [args, *texts] if dataclasses.is_dataclass(c) for f in dataclasses.fields(c)}
print(json.dumps(found, default=str))
"""


# Of these no value says what a missing one says: tied if there is no head, as in `rope_scaling`, ...
MISSING = {
    "tie_word_embeddings",
    "weight_tying",
    "vocab_size",
    "partial_rotary_factor",
    "rotary_pct",
    "original_max_position_embeddings",
}


# Keys of which mlx-lm says that they may be missing, and transformers what it takes then; its checkpoints go by that.
TOLD = {"deepseek_v2": ["n_routed_experts", "n_shared_experts"], "nemotron_h": ["n_shared_experts"]}


def fields_of_args():
    """The names of numbers and flags in any struct that is read from a config: those without a default, and all."""
    field = re.compile(r"((?:    #\[serde\([^\n]*\n)?)    (?:pub(?:\(\w+\))? )?(\w+): (Option<)?(?:i32|usize|f32|f64|bool)>?,")
    needed, found = set(), set()
    for path in (ROOT / "src").glob("[mn][on]*/**/*.rs"):
        for attribute, name, optional in field.findall(path.read_text()):
            found |= {name, *re.findall(r'(?:alias|rename) = "(\w+)"', attribute)}
            if not attribute and not optional and path.is_relative_to(ROOT / "src" / "models"):
                needed.add(name)
    return needed, found


def number(value):
    return type(value) in (bool, int, float)


def always(config, mlx, found):
    """What the class `config` says of keys that are not in a config, as far as mlx-lm's does not say `None`."""
    names, row = {}, {}
    for alias, name in config.attribute_map.items():
        names.setdefault(name, []).append(alias)
        names.setdefault(alias, []).append(name)
    says = lambda key: not mlx or any(mlx.get(name) is not None for name in [key, *names.get(key, [])])
    for field in dataclasses.fields(config):
        key = field.name
        if number(field.default) and key in found - MISSING and (says(key) or key in TOLD.get(config.model_type, [])):
            row["|".join([key, *names.get(key, [])])] = field.default
    built = config()
    rope = getattr(built, "rope_parameters", None) or {}
    if rope.get("rope_type") == "default":
        row["rope_theta|rotary_emb_base|rope_parameters"] = rope["rope_theta"]
    kinds = getattr(built, "mlp_layer_types", None)
    if kinds and "first_k_dense_replace" not in row and mlx.get("first_k_dense_replace") is not None:
        row["first_k_dense_replace|mlp_layer_types"] = kinds.index("sparse")
    return row


def text_class(config):
    text = getattr(config, "sub_configs", {}).get("text_config")
    return text if getattr(text, "model_type", "") else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlx", required=True)
    args = parser.parse_args()
    registry = (ROOT / "src" / "models" / "registry.rs").read_text()
    types = re.findall(r'"([^"]+)"', registry[registry.index("\nmodels! {") :])
    found = json.loads(subprocess.run([args.mlx, "-c", MLX, *types], capture_output=True, text=True, check=True).stdout)
    needed, known = fields_of_args()
    mlx = dict(found)
    rows = {name: {key: v for key, v in row.items() if number(v) and key in known - MISSING} for name, row in found.items()}
    for name in types:
        if name not in CONFIG_MAPPING:
            continue
        config = CONFIG_MAPPING[name]
        text = text_class(config)
        if text:
            rows[name] = rows[text.model_type] = always(text, mlx.get(text.model_type, {}), known)
            found[name] = found[text.model_type] = text().to_dict()
        elif "text_config" not in getattr(config, "sub_configs", {}):
            rows[name] = always(config, mlx.get(name, {}), known)
            found[name] = config().to_dict()
    lines = []
    for name, row in sorted(found.items()):
        first = {key: rows[name][key] for key in sorted(rows[name])}
        there = {key for keys in first for key in keys.split("|")}
        second = {key: row[key] for key in sorted(row) if key in needed - there and number(row[key])}
        if first or second:
            lines.append(f"  {json.dumps(name)}: {json.dumps({'always': first, 'needed': second})}")
    (ROOT / "assets" / "config-defaults.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
