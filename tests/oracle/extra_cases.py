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
import mlx.core as mx
from cases import FULL, LINEAR, SLIDE, YARN, base, case
from mlx_lm.models import muse_spark
from mlx_lm.models.cache import make_prompt_cache
from weights import normal

known = set(cases.CASES)

case("internlm3", "Llama with a bias of the projections, linear rope", base("internlm3", bias=True, qkv_bias=True, rope_scaling=dict(LINEAR, rope_type="linear")))
case("telechat3", "Llama with YaRN", base("telechat3", rope_scaling=dict(YARN, type="telechat3-yarn", rope_type="telechat3-yarn")))
case("phixtral", "parallel blocks, experts without a gate", dict(model_type="phixtral", num_vocab=300, model_dim=64, num_heads=4, num_layers=3, rotary_dim=8, num_experts_per_tok=2, num_local_experts=4), vocab=300)
case("phixtral__as_phi-msft", "model_type phi-msft is read as phixtral", dict(model_type="phi-msft", num_vocab=300, model_dim=64, num_heads=4, num_layers=2, rotary_dim=8, num_experts_per_tok=2, num_local_experts=4), vocab=300)
case("nanochat", "reversed rope, norms without weights, squared ReLU, soft cap", base("nanochat"))
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48)
case("dots1", "grouped sigmoid routing, q/k norms", base("dots1", first_k_dense_replace=1, moe_intermediate_size=48, n_routed_experts=8, n_shared_experts=1, norm_topk_prob=True, num_experts_per_tok=2, routed_scaling_factor=1.5, n_group=2, topk_group=1))
case("ernie4_5_moe", "every second layer has experts, a shared one, interleaved rope", base("ernie4_5_moe", num_hidden_layers=4, use_bias=False, moe_num_experts=4, moe_k=2, moe_intermediate_size=48, moe_layer_start_index=1, moe_layer_interval=2, moe_num_shared_experts=2))
case("ernie4_5_moe__sigmoid", "sigmoid routing, no shared expert, tied", base("ernie4_5_moe", use_bias=False, moe_num_experts=4, moe_k=2, moe_intermediate_size=0, moe_layer_end_index=1, moe_gate_act="sigmoid", tie_word_embeddings=True))
case("minimax", "norms over all heads, sigmoid routing with a bias", base("minimax", num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=0, rotary_dim=8, head_dim=24))
case("minimax__as_minimax_m2", "model_type minimax_m2 is read as minimax; no q/k norms", base("minimax_m2", num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=0, rotary_dim=8, use_qk_norm=False))
case("mellum", "sliding layers with a rope of their own", base("mellum", head_dim=24, **EXPERTS, norm_topk_prob=True, sliding_window=8, layer_types=[SLIDE, FULL, SLIDE], rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=500000.0), sliding_attention=dict(rope_type="default", rope_theta=10000.0))))
hunyuan = base("hunyuan", num_hidden_layers=4, attention_bias=False, num_experts=4, num_shared_expert=1, moe_topk=2, use_mixed_mlp_moe=True, use_qk_norm=True, use_cla=True, cla_share_factor=2, rope_scaling=dict(type="dynamic", factor=1.0, alpha=100.0))
case("hunyuan", "pairs of layers share keys and values, norms after rope, a shared expert", hunyuan)
case("hunyuan__lists", "sizes by layer, no sharing", hunyuan | dict(num_hidden_layers=3, use_cla=False, moe_topk=[1, 2, 2], num_shared_expert=[1, 2, 1], moe_intermediate_size=[48, 40, 48], use_qk_norm=False))
step3p5 = base("step3p5", num_hidden_layers=4, num_attention_groups=2, head_dim=24, sliding_window=8, layer_types=[FULL, SLIDE, FULL, SLIDE], yarn_only_types=[FULL], rope_scaling=dict(YARN, rope_type="yarn"), rope_theta=[500000.0, 10000.0, 500000.0, 10000.0], partial_rotary_factors=[0.5, 1.0, 0.5, 1.0], attention_other_setting=dict(num_attention_heads=8, num_attention_groups=4), moe_num_experts=4, moe_top_k=2, moe_intermediate_size=48, share_expert_dim=40, moe_layers_enum="1,2,3", swiglu_limits=[0.0, 0.0, 1.0, 2.0], swiglu_limits_shared=[0.5, 0.0, 1.0, 0.0])
case("step3p5", "head gates, heads and ropes by layer, limited SwiGLU", step3p5)
case("step3p5__plain", "no gates, one rope, default layers", {k: v for k, v in step3p5.items() if k not in ("layer_types", "yarn_only_types", "rope_scaling", "partial_rotary_factors", "attention_other_setting", "moe_layers_enum", "swiglu_limits", "swiglu_limits_shared")} | dict(num_hidden_layers=3, rope_theta=10000.0, use_head_wise_attn_gate=False))
case("qwen2_vl__as_qwen2_5_vl", "model_type qwen2_5_vl is read as qwen2_vl", cases.text("qwen2_5_vl", cases.qwen2_vl_text))
case("gemma4__as_gemma4_unified", "model_type gemma4_unified is read as gemma4", cases.text("gemma4_unified", cases.gemma4_text))
# mlx-lm rounds two activations of Muse Spark to bfloat16 in every dtype, and transformers does not.
muse_spark.mx = types.SimpleNamespace(**vars(muse_spark.mx) | dict(bfloat16=muse_spark.mx.float32))
case("muse_spark__float32", "without rounding to bfloat16", cases.CASES["muse_spark"].config())
plamo2 = base("plamo2", num_hidden_layers=4, hidden_size_per_head=16, full_attention_idx=[], mamba_d_state=8, mamba_d_conv=4, mamba_num_heads=6, tie_word_embeddings=True)
case("plamo2", "Mamba 2 and attention in turn, tied", plamo2)
case("plamo2__step", "attention in every fourth layer, untied", plamo2 | dict(num_hidden_layers=5, mamba_step=4, mamba_num_heads=4, tie_word_embeddings=False))
case("openelm", "layers of different widths, q/k norms, tied", dict(model_type="openelm", head_dim=16, num_transformer_layers=3, model_dim=64, vocab_size=300, ffn_dim_divisor=16, num_query_heads=[4, 4, 8], num_kv_heads=[2, 2, 4], ffn_multipliers=[0.5, 1.0, 1.6]))
case("openelm__untied", "an untied head, no q/k norms", dict(model_type="openelm", head_dim=16, num_transformer_layers=2, model_dim=64, vocab_size=300, ffn_dim_divisor=16, num_query_heads=[4, 2], num_kv_heads=[1, 2], ffn_multipliers=[0.7, 1.3], normalize_qk_projections=False, share_input_output_layers=False))

falcon_h1 = base("falcon_h1", head_dim=16, mamba_n_heads=4, mamba_d_head=24, mamba_d_ssm=96, mamba_d_state=8, mamba_d_conv=4, mamba_n_groups=1, mamba_rms_norm=True, tie_word_embeddings=True)
case("falcon_h1", "Mamba 2 beside attention, gated norm, tied", falcon_h1)
case("falcon_h1__no_norm", "no norm behind the gate, two groups, untied", falcon_h1 | dict(mamba_rms_norm=False, mamba_n_groups=2, tie_word_embeddings=False))
granite4 = base("granitemoehybrid", num_hidden_layers=3, layer_types=["mamba", "attention", "mamba"], embedding_multiplier=2.0, attention_multiplier=0.2, logits_scaling=1.5, residual_multiplier=0.7, shared_intermediate_size=96, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=8, mamba_d_conv=4, mamba_n_groups=1, mamba_conv_bias=True, mamba_proj_bias=False, attention_bias=False, position_embedding_type="nope", tie_word_embeddings=True)
case("granitemoehybrid", "Mamba 2 and attention without rope, dense", granite4)
case("granitemoehybrid__moe", "experts and a layer for all tokens, rope, untied", granite4 | dict(num_local_experts=4, num_experts_per_tok=2, position_embedding_type="rope", tie_word_embeddings=False))
case("recurrent_gemma", "gated linear recurrences, a local window of 8, soft cap", base("recurrent_gemma", num_hidden_layers=3, num_key_value_heads=1, block_types=["recurrent", "recurrent", "attention"], attention_bias=False, conv1d_width=4, logits_soft_cap=30.0, attention_window_size=8))
case("olmo_hybrid", "gated delta nets with a convolution each for q, k and v, norms after attention", base("olmo_hybrid", num_hidden_layers=4, attention_bias=False, tie_word_embeddings=False, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=24, linear_conv_kernel_dim=4, linear_allow_neg_eigval=True))

latent = dict(kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=12)
delta = dict(num_heads=4, head_dim=16, short_conv_kernel_size=4, kda_layers=[1, 2, 4])
kimi_linear = base("kimi_linear", num_hidden_layers=4, num_key_value_heads=4, head_dim=16, linear_attn_config=delta, model_max_length=512, num_experts=8, moe_intermediate_size=48, **latent, num_experts_per_token=2, num_shared_experts=1, routed_scaling_factor=1.5, first_k_dense_replace=1, num_expert_group=2, topk_group=1)
case("kimi_linear", "Kimi delta attention and latent attention without positions", kimi_linear)
case("kimi_linear__softmax", "softmax router, all layers but one are delta attention, tied", kimi_linear | dict(moe_router_activation_func="softmax", num_expert_group=1, num_shared_experts=0, tie_word_embeddings=True))
longcat = dict(model_type="longcat_flash", attention_method="MLA", zero_expert_type="identity", hidden_size=64, ffn_hidden_size=96, moe_topk=3, expert_ffn_hidden_size=48, n_routed_experts=4, zero_expert_num=2, num_layers=2, vocab_size=300, max_position_embeddings=512, num_attention_heads=4, q_lora_rank=24, **latent, routed_scaling_factor=1.5, rms_norm_eps=1e-5, rope_theta=10000.0, mla_scale_q_lora=True, mla_scale_kv_lora=True, attention_bias=False)
case("longcat_flash", "two latent attentions per layer, experts that do nothing", longcat, init=((r"e_score_correction_bias$", normal(0, 0.08)),))
ling = base("bailing_moe_linear", num_hidden_layers=5, num_key_value_heads=4, moe_intermediate_size=48, num_experts=8, num_shared_experts=1, norm_topk_prob=True, num_experts_per_tok=2, first_k_dense_replace=1, layer_group_size=2, group_norm_size=2, partial_rotary_factor=0.5, use_qk_norm=True, moe_router_enable_expert_bias=True, routed_scaling_factor=1.5, score_function="sigmoid", n_group=2, topk_group=1, use_bias=False, rope_scaling=None)
case("bailing_moe_linear", "lightning attention and full attention, sigmoid group routing", ling)
case("bailing_moe_linear__plain", "softmax router without groups, heads that are no power of two", ling | dict(num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=6, hidden_size=96, use_qk_norm=False, moe_router_enable_expert_bias=False, score_function="softmax", n_group=1))

case("gemma3n__unclipped", "coefficients that mlx-lm does not clip, no shared layers", cases.text("gemma3n", cases.gemma3n | dict(num_kv_shared_layers=0, altup_coef_clip=120.0)), init=((r"correct_output_scale$", cases.normal(1.0, 0.2)),))

baichuan_m1 = base("baichuan_m1", num_hidden_layers=4, sliding_window=8, sliding_window_layers=[1, 3], conv_window=2, num_swa_attention_heads=8, num_swa_key_value_heads=4)
case("baichuan_m1", "convolutions of keys and values, sliding layers with more heads, a head of unit rows", baichuan_m1)
case("baichuan_m1__even", "the same heads in all layers, the first one slides", baichuan_m1 | dict(num_hidden_layers=2, sliding_window_layers=[0], num_swa_attention_heads=None, num_swa_key_value_heads=None))
case("glm4__halves", "pairs half a head apart, no attention biases, one key head", base("glm4", head_dim=24, num_key_value_heads=1, attention_bias=False, partial_rotary_factor=0.5, rope_traditional=False))
case("llama4_text__turning", "norms of queries and keys, rotary positions in all layers, tied", base("llama4_text", head_dim=16, intermediate_size_mlp=80, use_qk_norm=True, no_rope_layers=[1, 1, 1], tie_word_embeddings=True))
case("olmo__ratio", "hidden features by their ratio, interleaved rope, more embeddings than tokens", dict(model_type="olmo", d_model=64, n_layers=2, mlp_hidden_size=None, n_heads=4, vocab_size=290, embedding_size=300, rope_traditional=True, mlp_ratio=3))

# What configs leave out, or say otherwise than as a rule.
absent = {"n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "n_shared_experts", "first_k_dense_replace", "num_experts_per_tok", "rms_norm_eps", "num_key_value_heads", "topk_method", "scoring_func"}
flash = cases.CASES["glm4_moe_lite"].config() | dict(num_hidden_layers=2, n_routed_experts=8)
case("glm4_moe_lite__absent", "what its own class says of the routing, not DeepSeek-V3's", {k: v for k, v in flash.items() if k not in absent}, complete=False)
hybrid = cases.CASES["bailing_hybrid"].config()
case("bailing_hybrid__straight", "queries straight from the input", {k: v for k, v in hybrid.items() if k != "q_lora_rank"})
nemotron = cases.CASES["nemotron_h"].config() | dict(n_shared_experts=0)
case("nemotron_h__shared", "shared experts that are as wide as other layers, however many", {k: v for k, v in nemotron.items() if k != "moe_shared_expert_intermediate_size"})
case("deepseek__no_shared", "no shared experts: 0 of them", cases.CASES["deepseek"].config() | dict(n_shared_experts=0))
k3 = cases.CASES["kimi_k3__plain"].config()
absent = ("num_attention_heads", "first_k_dense_replace", "num_shared_experts")
k3["text_config"] = {k: v for k, v in k3["text_config"].items() if k not in absent} | dict(qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4, num_shared_experts=None)
k3["text_config"]["linear_attn_config"]["kda_layers"] = [1, 3, 4, 5, 7]
case("kimi_k3__absent", "what its own class says of heads and dense layers, not Kimi Linear's; kinds of layers that it does not have", k3, complete=False)
case("recurrent_gemma__uncapped", "no soft cap", cases.CASES["recurrent_gemma"].config() | dict(logits_soft_cap=None), complete=False)
case("olmo_hybrid__no_rope", "no base: no positions", cases.CASES["olmo_hybrid"].config() | dict(rope_theta=None), complete=False)
moe = cases.CASES["qwen3_5_moe"].config()
moe["text_config"] |= dict(decoder_sparse_step=2, mlp_only_layers=[0])
case("qwen3_5_moe__step", "experts in all layers, whatever the config says", moe, complete=False)
for name in ("gemma2", "lfm2"):
    case(f"{name}__bf16", "bfloat16 weights and activations", cases.CASES[name].config(), dtype=mx.bfloat16)

v3 = cases.CASES["bailing_moe_v3"]
case("bailing_moe_v3__named", "the name of its module as model_type", v3.config() | dict(model_type="bailing_moe_v3"), init=v3.init)


def stepwise(model):
    """Makes a model of block-sparse layers read one token at a time: of several at once mlx-lm lets queries see the
    future of their block."""
    model._dummy_tokenizer_ids = mx.array([], dtype=mx.int32)

    def forward(self, inputs, cache=None):
        cache = cache or make_prompt_cache(self)
        return mx.concatenate([plain(self, inputs[:, i : i + 1], cache) for i in range(inputs.shape[1])], axis=1)

    plain = type(model).__call__
    model.__class__ = type("Stepwise", (type(model),), dict(__call__=forward))


case("phi3small__stepwise", "muP scales, interleaved gegelu, block-sparse layers, one token at a time", cases.CASES["phi3small"].config(), patch=stepwise)

if __name__ == "__main__":
    for name in known:
        del cases.CASES[name]
    sys.argv[1:] = rest
    sys.exit(gen.main())
