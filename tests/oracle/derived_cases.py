"""Writes tiny checkpoints for `zoo.py --framework mlx`, in packed layouts that other programs publish.

    python derived_cases.py OUT

They are made of the recipes of fixtures (`tests/fixtures/zoo`), whose matrices become codes and scales:

- DeepSeek-V4.1: the names of its own code, e4m3 with a power of two (e8m0) for each 32 x 32 block, experts in e2m1,
  two in a byte, with one for each 32 of a row.
- Muse Spark: the experts in nvfp4 as modelopt has them: e2m1, e4m3 for each 16 of a row, float32 for each matrix.
- BitNet: codes of -1, 0 and 1, four in a byte, whose scale multiplies or divides by what the config names.

And Phi-3-small with heads that divide into groups of 32, for quantized caches.
"""

import json
import re
import sys
from pathlib import Path

from zoo import OUT as FIXTURES
from zoo import write_checkpoint

EXPERT = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
NAMES = [
    (r"^model\.embed_tokens\.", "embed."), (r"^lm_head\.", "head."), (r"^model\.", ""), (r"\.mlp\.", ".ffn."),
    (r"\.self_attn\.", ".attn."), (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."), (r"\.attn_hc\.", ".hc_attn_"), (r"\.ffn_hc\.", ".hc_ffn_"),
    (r"\.sinks$", ".attn_sink"), (r"\.q_a_proj\.", ".wq_a."), (r"\.q_b_proj\.", ".wq_b."), (r"\.kv_proj\.", ".wkv."),
    (r"compressor\.gate_proj\.", "compressor.wgate."), (r"\.o_a_proj\.", ".wo_a."), (r"\.o_b_proj\.", ".wo_b."),
    (r"\.q_a_norm\.", ".q_norm."), (r"\.compressor\.kv_norm\.", ".compressor.norm."),
    (r"\.indexer\.k_proj\.", ".indexer.wk."), (r"\.e_score_correction_bias$", ".bias"),
    (r"shared_experts\.(\w+_proj)\.", lambda m: f"shared_experts.{EXPERT[m[1]]}."),
]
PACKED = re.compile(r"attn\.(wq_a|wq_b|wkv|wo_a|wo_b)\.|indexer\.wq_b\.|shared_experts\.w[123]\.")


def fixture(name):
    data = json.loads((FIXTURES / f"{name}.json").read_text())
    for line in data["tensors"]:
        key, dtype, shape, *numbers = line.split(" ")
        yield key, dtype, [int(n) for n in shape.split("x")] if shape != "-" else [], " ".join(numbers)


def config(name):
    return json.loads(json.loads((FIXTURES / f"{name}.json").read_text())["config"])


def line(key, dtype, shape, numbers):
    return f"{key} {dtype} {'x'.join(map(str, shape)) or '-'} {numbers}"


def write(out, name, config, lines, notes):
    directory = out / name
    directory.mkdir(parents=True, exist_ok=True)
    write_checkpoint(directory, config, lines, 0, {})
    (directory / "case.json").write_text(json.dumps({"notes": notes}))


def deepseek_v41(out):
    """Sizes are multiples of 32, as blocks are."""
    wide = {24: 32, 48: 64}
    block = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]}
    args = config("deepseek_v41") | {"o_lora_rank": 32, "moe_intermediate_size": 64, "quantization_config": block}
    lines = []
    for key, dtype, shape, numbers in fixture("deepseek_v41"):
        if re.search(r"switch_mlp|shared_experts|\.o_[ab]_proj", key):
            shape = [wide.get(n, n) for n in shape]
        if expert := re.match(r"model\.(layers\.\d+)\.mlp\.experts\.switch_mlp\.(\w+)\.weight", key):
            count, rows, columns = shape
            for at in range(count):
                to = f"{expert[1]}.ffn.experts.{at}.{EXPERT[expert[2]]}"
                lines.append(line(f"{to}.weight", "I8", [rows, columns // 2], "0 255"))
                lines.append(line(f"{to}.scale", "F8_E8M0", [rows, columns // 32], "120 122"))
            continue
        for old, new in NAMES:
            key = re.sub(old, new, key)
        if len(shape) == 3:
            shape = [shape[0] * shape[1], shape[2]]
        if PACKED.search(key) and "compressor" not in key:
            scale = key.removesuffix("weight") + "scale"
            lines.append(line(key, "F8_E4M3", shape, "sign 126"))
            lines.append(line(scale, "F8_E8M0", [shape[0] // 32, shape[1] // 32], "116 118"))
        else:
            lines.append(line(key, dtype, shape, numbers))
    write(out, "deepseek_v41__published", args, lines, "published names, e4m3 in blocks, experts in e2m1")


def muse_spark(out):
    block = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
    lines = []
    for key, dtype, shape, numbers in fixture("hf-muse_spark"):
        if key.startswith(("model.audio", "model.vision")):
            continue
        if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            lines.append(line(key, dtype, shape, numbers))
            continue
        count, rows, columns = shape
        halves = [2] if "gate_up" in key else []
        lines.append(line(key, "U8", [count, rows, columns // 2], "0 255"))
        lines.append(line(f"{key}_weight_scale", "F8_E4M3", [count, rows, columns // 16], "40 64"))
        lines.append(line(f"{key}_weight_scale_2", "F32", [count, *halves], "0.05 0.01"))
        lines.append(line(f"{key}_input_scale", "F32", [count, *halves], "0.05 0.01"))
    args = {key: value for key, value in config("hf-muse_spark").items() if "audio" not in key and "vision" not in key}
    args |= {"quantization_config": block}
    write(out, "muse_spark__nvfp4", args, lines, "published layout, experts in nvfp4")


def bitnet(out):
    for name, source, linear_class in [("bitnet__auto", "bitnet", "autobitlinear"), ("llama__bitnet", "llama", "bitlinear")]:
        lines = []
        for key, dtype, shape, numbers in fixture(source):
            if key.endswith("_scale"):
                continue
            if not key.endswith("_proj.weight"):
                lines.append(line(key, dtype, shape, numbers))
                continue
            rows = shape[0] if dtype == "U8" else shape[0] // 4
            scale = "0.15 0.01" if linear_class == "autobitlinear" else "6 0.5"
            lines.append(line(key, "U8", [rows, shape[1]], "0 170"))
            lines.append(line(key + "_scale", "F32", [1], scale))
        block = {"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": "offline", "modules_to_not_convert": ["lm_head"]}
        write(out, name, config(source) | {"quantization_config": block}, lines, f"packed ternary weights, {linear_class}")


def phi3small(out):
    lines = []
    for key, dtype, shape, numbers in fixture("phi3small__blocks"):
        shape = [64 if n == 32 else n for n in shape]
        if "query_key_value" in key:
            shape[0] = 128
        lines.append(line(key, dtype, shape, numbers))
    args = config("phi3small__blocks") | {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    write(out, "phi3small__wide", args, lines, "blocks of positions, heads of 32")


if __name__ == "__main__":
    for case in deepseek_v41, muse_spark, bitnet, phi3small:
        case(Path(sys.argv[1]))
