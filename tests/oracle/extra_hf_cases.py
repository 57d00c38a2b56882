"""Cases for the transformers generator that it does not have.

    python extra_hf_cases.py --oracle DIR --out DIR [the generator's other arguments]

DIR of `--oracle` is the folder of the generator, with `gen.py` and `cases_lm.py`.
"""

import argparse
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--oracle", required=True)
args, rest = parser.parse_known_args()
sys.path.insert(0, args.oracle)

import gen
import common
import cases_lm
from cases_lm import FULL, SLIDE, base, lm

known = set(common.CASES)

lm("ernie4_5_moe", "softmax routing with a correction, shared experts, every second layer sparse", base("ernie4_5_moe", num_hidden_layers=4, moe_num_experts=4, moe_k=2, moe_intermediate_size=48, moe_layer_start_index=1, moe_layer_interval=2, moe_num_shared_experts=2, use_bias=False))
lm("dots1", "grouped sigmoid routing, q/k norms, a sliding layer", base("dots1", first_k_dense_replace=1, moe_intermediate_size=48, n_routed_experts=8, n_shared_experts=1, norm_topk_prob=True, num_experts_per_tok=2, routed_scaling_factor=1.5, n_group=2, topk_group=1, sliding_window=8, max_window_layers=2, layer_types=[FULL, FULL, SLIDE]))
lm("mellum", "sliding layers with a rope of their own", base("mellum", head_dim=24, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=True, sliding_window=8, layer_types=[SLIDE, FULL, SLIDE], rope_parameters=dict(full_attention=dict(rope_type="yarn", rope_theta=500000.0, factor=4.0, original_max_position_embeddings=64), sliding_attention=dict(rope_type="default", rope_theta=10000.0))))
lm("mixtral__sliding", "every layer slides", base("mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=8))
lm("qwen2_moe__options", "a dense layer, every second sparse, normalised, sliding", base("qwen2_moe", num_hidden_layers=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=80, decoder_sparse_step=2, mlp_only_layers=[3], norm_topk_prob=True, use_sliding_window=True, sliding_window=8, max_window_layers=3))
lm("llama4_text__two", "two experts per token in all layers but one, another pattern of positions, biases", cases_lm.llama4 | dict(num_experts_per_tok=2, interleave_moe_layer_step=1, moe_layers=[0, 2, 3], no_rope_layers=[0, 1, 1, 0], attention_bias=True), init=((r"experts\.(gate_up|down)_proj$", cases_lm.scaled(1.0, 1)),))
lm("llama4", "with a vision tower", dict(model_type="llama4", text_config=cases_lm.llama4, vision_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vision_output_dim=16, image_size=28, patch_size=14, projector_input_dim=16, projector_output_dim=16)), init=((r"experts\.(gate_up|down)_proj$", cases_lm.scaled(1.0, 1)),), cls="Llama4ForConditionalGeneration")
lm("olmo__clip", "shared keys and values, clipped projections, tied", base("olmo", clip_qkv=0.5, tie_word_embeddings=True))
muse = dict(base("muse_glimmer_text"), num_hidden_layers=5, head_dim=16, sliding_window=8, post_norm_eps=1e-6, qk_scale_factor=2.0, output_multiplier=0.5, final_logit_softcapping=8.0)
lm("muse_glimmer", "a pattern of layers counted from the last one, with a vision tower", dict(model_type="muse_glimmer", text_config=muse, vision_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, patch_size=4), out_hidden_size=64, projector_hidden_size=32), cls="MuseGlimmerForConditionalGeneration")

if __name__ == "__main__":
    for name in known:
        del common.CASES[name]
    sys.modules["cases_lm"] = cases_lm
    sys.argv[1:] = [*rest, "--part", "a"]
    sys.exit(gen.main())
