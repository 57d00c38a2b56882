"""Cases for the transformers generator that it does not have.

    python extra_hf_cases.py --oracle DIR --out DIR [the generator's other arguments]

DIR of `--oracle` is the folder of the generator, with `gen.py` and `cases_lm.py`.
"""

import argparse
import json
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

ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
LIN = cases_lm.LIN
spark = dict(base("muse_spark_text"), rope_parameters=dict(rope_type="default", rope_theta=10000.0), num_hidden_layers=4, head_dim=16, sliding_window=8, post_norm_eps=1e-6, qk_scale_factor=2.0, output_multiplier=0.5, final_logit_softcapping=8.0, num_local_experts=8, num_experts_per_tok=2, moe_hidden_size=32, moe_intermediate_size=48, routed_scaling_factor=1.5)
del spark["rope_theta"]
audio = dict(patch_sizes=[4, 2], hidden_sizes=[8, 16], depths=[1, 1], num_hidden_layers=2, out_hidden_size=64)
lm("muse_spark", "experts of fewer features, each normed; fixed gates", dict(model_type="muse_spark", text_config=spark, vision_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, patch_size=4), audio_config=audio, out_hidden_size=64, projector_hidden_size=32), init=((r"residual_gate\.gate$", common.normal(0.0, 0.3)),), cls="MuseSparkForConditionalGeneration")
kda = dict(kda_layers=[1, 2, 4], full_attn_layers=[3], num_heads=4, head_dim=16, short_conv_kernel_size=4)
kimi = dict(base("kimi_linear"), num_hidden_layers=4, linear_attn_config=kda, model_max_length=512, kv_lora_rank=16, q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12, mla_use_nope=True, num_key_value_heads=4, num_experts=8, num_experts_per_token=2, num_shared_experts=1, moe_intermediate_size=48, moe_renormalize=True, moe_router_activation_func="sigmoid", num_expert_group=2, topk_group=1, routed_scaling_factor=1.5, first_k_dense_replace=1, moe_layer_freq=1)
lm("kimi_linear", "KDA and latent attention without positions, grouped sigmoid routing", kimi, init=((r"A_log$", common.normal(0.0, 0.4)),), save=cases_lm.renamed(lambda k, m: k.replace(".layers.0.block_sparse_moe.", ".layers.0.mlp.")))
lm("longcat_flash", "two latent attentions per layer, experts beside them, identity experts", dict(model_type="longcat_flash", hidden_size=64, ffn_hidden_size=96, expert_ffn_hidden_size=48, num_layers=2, num_attention_heads=4, vocab_size=300, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, head_dim=8, v_head_dim=12, moe_topk=3, n_routed_experts=4, zero_expert_num=2, zero_expert_type="identity", routed_scaling_factor=1.5, rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=512, mla_scale_q_lora=True, mla_scale_kv_lora=True, attention_method="MLA", tie_word_embeddings=False, **ids), after=lambda path: cases_lm.edit_tensors(path, drop=lambda k: any(f".experts.{i}." in k for i in (4, 5))))
lm("nanochat", "reversed rope, norms without weights, squared ReLU, soft cap", base("nanochat", hidden_act="relu2", final_logit_softcapping=15.0))
falcon_h1 = base("falcon_h1", head_dim=16, mamba_n_heads=4, mamba_d_head=24, mamba_d_ssm=96, mamba_d_state=8, mamba_d_conv=4, mamba_n_groups=2, mamba_chunk_size=8, mamba_rms_norm=False, tie_word_embeddings=False)
lm("falcon_h1", "Mamba 2 beside attention", falcon_h1)
lm("falcon_h1__norm", "a gated norm of two groups before the gate", falcon_h1 | dict(mamba_rms_norm=True, mamba_norm_before_gate=True))
lm("falcon_h1__multipliers", "all multipliers, biases, tied", falcon_h1 | dict(mamba_rms_norm=True, mamba_norm_before_gate=False, tie_word_embeddings=True, lm_head_multiplier=0.5, embedding_multiplier=2.0, mlp_multipliers=[0.7, 1.3], key_multiplier=0.6, attention_out_multiplier=0.8, attention_in_multiplier=1.2, ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 0.7], ssm_in_multiplier=1.1, ssm_out_multiplier=0.9, mamba_proj_bias=True, projectors_bias=True, attention_bias=True, mlp_bias=True))
granite4 = base("granitemoehybrid", num_hidden_layers=3, layer_types=["mamba", "attention", "mamba"], embedding_multiplier=2.0, attention_multiplier=0.2, logits_scaling=1.5, residual_multiplier=0.7, shared_intermediate_size=96, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=8, mamba_d_conv=4, mamba_n_groups=2, mamba_expand=2, mamba_chunk_size=8, mamba_conv_bias=True, mamba_proj_bias=False, attention_bias=False, tie_word_embeddings=True)
lm("granitemoehybrid", "experts and a layer for all tokens, rope", granite4 | dict(num_local_experts=4, num_experts_per_tok=2, position_embedding_type="rope", tie_word_embeddings=False))
lm("granitemoehybrid__dense", "no experts, no positions, tied", granite4 | dict(num_local_experts=0, num_experts_per_tok=0, position_embedding_type=None))
lm("olmo_hybrid", "gated delta nets with a convolution each for q, k and v", base("olmo_hybrid", num_hidden_layers=4, layer_types=[LIN, LIN, LIN, FULL], num_key_value_heads=4, linear_num_key_heads=4, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16, linear_conv_kernel_dim=4, linear_allow_neg_eigval=True), init=((r"A_log$", common.normal(0.0, 0.4)),))
lm("recurrent_gemma", "gated linear recurrences, a window of 8", base("recurrent_gemma", num_hidden_layers=3, num_key_value_heads=1, lru_width=80, conv1d_width=4, logits_soft_cap=30.0, attention_window_size=8, hidden_activation="gelu_pytorch_tanh", block_types=["recurrent", "recurrent", "attention"], partial_rotary_factor=0.5, tie_word_embeddings=True))
lm("recurrent_gemma__null", "as many key heads as heads, where the config has null", base("recurrent_gemma", num_hidden_layers=3, num_key_value_heads=None, lru_width=None, conv1d_width=4, attention_window_size=8, hidden_activation="gelu_pytorch_tanh", block_types=["recurrent", "recurrent", "attention"], tie_word_embeddings=True))
minimax = base("minimax", num_hidden_layers=4, head_dim=16, num_local_experts=4, num_experts_per_tok=2, block_size=8, full_attn_alpha_factor=1.2, full_attn_beta_factor=0.9, linear_attn_alpha_factor=1.1, linear_attn_beta_factor=0.8, mlp_alpha_factor=1.3, mlp_beta_factor=0.7)
lm("minimax", "lightning attention and softmax attention in turn, scaled residuals", minimax)
lm("minimax__types", "layers by their types, interleaved groups of heads", minimax | dict(layer_types=[LIN, LIN, FULL], num_hidden_layers=3, head_dim=24, sliding_window=None))

lm("phi__tied", "a tied head with a bias", base("phi", layer_norm_eps=1e-5, partial_rotary_factor=0.5, hidden_act="gelu_new", num_hidden_layers=2, tie_word_embeddings=True))
lm("gpt_neox__tied", "a tied head", dict(cases_lm.neox, num_hidden_layers=2, tie_word_embeddings=True))
lm("gemma2__untied", "a head of its own", base("gemma2", head_dim=24, num_hidden_layers=2, query_pre_attn_scalar=32, sliding_window=8, tie_word_embeddings=False))
lm("cohere__untied", "a head of its own", base("cohere", layer_norm_eps=1e-5, logit_scale=0.5, num_hidden_layers=2, tie_word_embeddings=False))
lm("gemma3_text__capped", "a cap of the scores that only the config has", cases_lm.gemma3_text | dict(num_hidden_layers=3, attn_logit_softcapping=3.0))
lm("gemma4_text__last", "a last layer that sees all positions, whatever `layer_types` says", cases_lm.gemma4_text | dict(num_hidden_layers=4, layer_types=[SLIDE, FULL, SLIDE, SLIDE], num_kv_shared_layers=0, hidden_size_per_layer_input=0), init=cases_lm.g4init)
lm("ministral3__sliding", "every layer slides", base("ministral3", head_dim=16, sliding_window=8, rope_parameters=dict(rope_theta=10000.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.3)))
lm("qwen3__yarn", "YaRN of the longest sequence, where no original one is told", base("qwen3", head_dim=24, num_hidden_layers=2, max_position_embeddings=128, rope_scaling=dict(rope_type="yarn", factor=4.0)))


def without_windows(path):
    """Takes out how many layers have no window."""
    for name in ("config.json", "config_legacy.json"):
        config = json.loads((path / name).read_text())
        del config["max_window_layers"], config["layer_types"]
        (path / name).write_text(json.dumps(config, indent=2) + "\n")


lm("qwen2__few", "fewer layers than those that have no window by default", base("qwen2", num_hidden_layers=2, use_sliding_window=True, sliding_window=4, max_window_layers=28), after=without_windows)
lm("minimax__sliding", "softmax attention in windows", minimax | dict(num_hidden_layers=2, sliding_window=5))
lm("nemotron_h__tied", "a head of its own, though the config says that it is tied", cases_lm.nemo_h | dict(tie_word_embeddings=True))
lm("kimi_linear__tied", "a head of its own, though the config says that it is tied", kimi | dict(tie_word_embeddings=True), init=((r"A_log$", common.normal(0.0, 0.4)),), save=cases_lm.renamed(lambda k, m: k.replace(".layers.0.block_sparse_moe.", ".layers.0.mlp.")))
lm("nanochat__tied", "a tied head", base("nanochat", num_hidden_layers=2, hidden_act="relu2", final_logit_softcapping=15.0, tie_word_embeddings=True))
lm("gemma3n_text__untied", "a head of its own", cases_lm.gemma3n | dict(tie_word_embeddings=False))


def edited(keys, **more):
    """Takes keys out of the configs, and puts others in."""

    def edit(path):
        for name in ("config.json", "config_legacy.json"):
            if (path / name).exists():
                config = json.loads((path / name).read_text())
                config = {key: value for key, value in config.items() if key not in keys} | more
                (path / name).write_text(json.dumps(config, indent=2) + "\n")

    return edit


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
lm("qwen3__two_ropes", "`rope_scaling` beside `rope_parameters`", base("qwen3", head_dim=24, num_hidden_layers=2, rope_theta=10000.0, rope_scaling=YARN), after=edited(["rope_theta"], rope_theta=10000.0, rope_scaling=YARN, rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=500.0)))
lm("deepseek_v2__absent", "as many experts as the class says", base("deepseek_v2", **cases_lm.MLA) | dict(num_hidden_layers=2, first_k_dense_replace=1, moe_intermediate_size=8, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=3, topk_method="greedy", n_group=1, topk_group=1), after=edited(["n_routed_experts", "n_shared_experts"]))
lm("falcon_h1__absent", "heads that share the width", falcon_h1 | dict(num_hidden_layers=2), after=edited(["mamba_d_head"]))
lm("nemotron_h__absent", "a shared expert that the config does not speak of", cases_lm.nemo_h | dict(n_shared_experts=1), after=edited(["n_shared_experts"]))


def vl(name, notes, text, vision, cls, **config):
    """The language model of a model with a tower."""
    options = {key: config.pop(key) for key in ("init", "after", "save") if key in config}
    lm(name, notes, dict(model_type=name.split("__")[0], text_config=text, vision_config=vision, **ids, **config), cls=cls, **options)


TOWER = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
QWEN_TOWER = dict(depth=1, hidden_size=16, intermediate_size=32, num_heads=2, patch_size=4, out_hidden_size=64)
MROPE = dict(rope_type="default", type="default", mrope_section=[2, 3, 3])
sections = lambda n: dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=n, mrope_interleaved=True))
vl("lfm2_vl", "text path", dict(cases_lm.lfm2), dict(TOWER, model_type="siglip2_vision_model", num_patches=4), "Lfm2VlForConditionalGeneration", projector_hidden_size=32, tie_word_embeddings=True)
vl("kimi_k25", "text path", dict(base("deepseek_v3"), **cases_lm.MLA, **cases_lm.EXP), dict(TOWER, patch_size=4), "Kimi_K25ForConditionalGeneration", tie_word_embeddings=False, save=cases_lm.renamed(lambda k, m: k.replace("language_model.model.blocks.", "language_model.model.layers.")))
vl("mistral3", "text path", base("mistral", sliding_window=None), dict(TOWER, model_type="pixtral", head_dim=8), "Mistral3ForConditionalGeneration", tie_word_embeddings=False, vision_feature_layer=-1)
vl("llava", "text path", base("llama"), dict(TOWER, model_type="clip_vision_model"), "LlavaForConditionalGeneration")
vl("qwen2_vl", "text path", dict(base("qwen2_vl_text"), rope_scaling=dict(MROPE, type="mrope", rope_type="default")), dict(depth=1, embed_dim=16, hidden_size=64, num_heads=2, patch_size=4), "Qwen2VLForConditionalGeneration", tie_word_embeddings=False)
vl("qwen2_5_vl", "text path", dict(base("qwen2_5_vl_text"), rope_scaling=dict(MROPE, type="mrope", rope_type="default")), dict(QWEN_TOWER, fullatt_block_indexes=[0]), "Qwen2_5_VLForConditionalGeneration", tie_word_embeddings=False)
vl("qwen3_vl", "text path", dict(base("qwen3_vl_text", head_dim=24), rope_scaling=dict(rope_type="default", mrope_section=[4, 4, 4], mrope_interleaved=True)), dict(QWEN_TOWER, num_position_embeddings=16, deepstack_visual_indexes=[0]), "Qwen3VLForConditionalGeneration", tie_word_embeddings=False)
vl("qwen3_vl_moe", "text path; fused experts as published", dict(base("qwen3_vl_moe_text", head_dim=24), num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, decoder_sparse_step=1, mlp_only_layers=[], rope_scaling=dict(rope_type="default", mrope_section=[4, 4, 4], mrope_interleaved=True)), dict(QWEN_TOWER, num_position_embeddings=16, deepstack_visual_indexes=[0]), "Qwen3VLMoeForConditionalGeneration", tie_word_embeddings=False)
vl("qwen3_5", "text path", cases_lm.qwen3_5, dict(QWEN_TOWER, num_position_embeddings=16), "Qwen3_5ForConditionalGeneration", tie_word_embeddings=False)
vl("qwen3_5_moe", "text path", cases_lm.qwen3_5 | dict(model_type="qwen3_5_moe_text", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=40), dict(QWEN_TOWER, num_position_embeddings=16), "Qwen3_5MoeForConditionalGeneration", tie_word_embeddings=False)
vl("gemma3", "text path", cases_lm.gemma3_text, dict(TOWER, model_type="siglip_vision_model"), "Gemma3ForConditionalGeneration", mm_tokens_per_image=4)
vl("gemma4", "text path", cases_lm.gemma4_text, dict(TOWER, patch_size=4), "Gemma4ForConditionalGeneration", init=cases_lm.g4init)
vl("minimax_m3_vl", "text path", cases_lm.minimax_m3, dict(TOWER, patch_size=4), "MiniMaxM3SparseForConditionalGeneration", tie_word_embeddings=False)
vl("qwen3_5__text_tied", "a head of its own, as the whole says and its text does not", cases_lm.qwen3_5 | dict(num_hidden_layers=2, layer_types=[LIN, FULL], tie_word_embeddings=True), dict(QWEN_TOWER, num_position_embeddings=16), "Qwen3_5ForConditionalGeneration", tie_word_embeddings=False)
vl("lfm2_vl__text_untied", "a tied head, as the whole says and its text does not", dict(cases_lm.lfm2, tie_word_embeddings=False), dict(TOWER, model_type="siglip2_vision_model", num_patches=4), "Lfm2VlForConditionalGeneration", projector_hidden_size=32, tie_word_embeddings=True)
vl("gemma4__text_untied", "a tied head, as the whole says and its text does not", cases_lm.gemma4_text | dict(tie_word_embeddings=False), dict(TOWER, patch_size=4), "Gemma4ForConditionalGeneration", init=cases_lm.g4init)

if __name__ == "__main__":
    for name in known:
        del common.CASES[name]
    sys.modules["cases_lm"] = cases_lm
    sys.argv[1:] = [*rest, "--part", "a"]
    sys.exit(gen.main())
