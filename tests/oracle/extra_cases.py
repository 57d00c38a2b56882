"""Cases for the mlx-lm generator that it does not have.

    python extra_cases.py --oracle DIR --out DIR [the generator's other arguments]

DIR of `--oracle` is the folder of the generator, with `gen.py` and `cases.py`.
"""

import argparse
import sys
import types

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--oracle", required=True)
args, rest = parser.parse_known_args()
sys.path.insert(0, args.oracle)
# mlx-lm's olmo asks for this package and uses nothing of it.
sys.modules.setdefault("hf_olmo", types.ModuleType("hf_olmo"))

import cases
import gen
from cases import LINEAR, YARN, base, case

known = set(cases.CASES)

case("internlm3", "Llama with a bias of the projections, linear rope", base("internlm3", bias=True, qkv_bias=True, rope_scaling=dict(LINEAR, rope_type="linear")))
case("telechat3", "Llama with YaRN", base("telechat3", rope_scaling=dict(YARN, type="telechat3-yarn", rope_type="telechat3-yarn")))
case("phixtral", "parallel blocks, experts without a gate", dict(model_type="phixtral", num_vocab=300, model_dim=64, num_heads=4, num_layers=3, rotary_dim=8, num_experts_per_tok=2, num_local_experts=4), vocab=300)
case("phixtral__as_phi-msft", "model_type phi-msft is read as phixtral", dict(model_type="phi-msft", num_vocab=300, model_dim=64, num_heads=4, num_layers=2, rotary_dim=8, num_experts_per_tok=2, num_local_experts=4), vocab=300)
case("nanochat", "reversed rope, norms without weights, squared ReLU, soft cap", base("nanochat"))

if __name__ == "__main__":
    for name in known:
        del cases.CASES[name]
    sys.argv[1:] = rest
    sys.exit(gen.main())
