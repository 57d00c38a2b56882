"""Writes `assets/config-defaults.json`: what keys mean that a config leaves out.

    python config_defaults.py --mlx PYTHON    # transformers 5.23.0; PYTHON: one that has mlx-lm 0.32.2

For each `model_type`, those keys that an `Args` of ours cannot do without: as the config class of transformers has
them, or, for a model that transformers does not have, that of mlx-lm.
"""

import argparse
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
    found[name] = {f.name: f.default for f in dataclasses.fields(args)}
print(json.dumps(found, default=str))
"""


def needed():
    """The names of numbers and flags without a default, in any struct that is read from a config."""
    field = re.compile(r"(?<!\)\])\n    (?:pub(?:\(\w+\))? )?(\w+): (?:i32|usize|f32|f64|bool),")
    return {name for path in (ROOT / "src" / "models").rglob("*.rs") for name in field.findall(path.read_text())}


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
    for name in types:
        if name not in CONFIG_MAPPING:
            continue
        config = CONFIG_MAPPING[name]
        text = text_class(config)
        if text:
            found[name] = found[text.model_type] = text().to_dict()
        elif "text_config" not in getattr(config, "sub_configs", {}):
            found[name] = config().to_dict()
    names = needed()
    number = lambda value: type(value) in (bool, int, float)
    rows = {name: {key: row[key] for key in sorted(row) if key in names and number(row[key])} for name, row in found.items()}
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items()) if row]
    (ROOT / "assets" / "config-defaults.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
