// Attention of a few queries over quantized keys and values: a threadgroup for each query of each head. Its
// simdgroups take turns at the keys, each with the maximum and the sum of what it has seen, and are joined at the end.

#include <metal_stdlib>

using namespace metal;

// A code of a row, whose codes lie in words one after another from the lowest bit of the first on.
template <int BITS, typename Words>
inline float code_of(Words words, int64_t step, uint index) {
  const uint bit = index * BITS;
  const uint word = bit / 32;
  const uint shift = bit % 32;
  uint code = words[word * step] >> shift;
  if (shift + BITS > 32) {
    code |= words[(word + 1) * step] << (32 - shift);
  }
  return float(code & ((1u << BITS) - 1));
}

// Heads have 32 * KEY and 32 * VALUE features. MASK: 0 for none, 1 for causal, 2 for `mask`, which says what is seen, 3
// for `added`, which is added to the scores. SINKS: whether each head has a score of one more key, whose value is zero.
// A cap of 0 is none.
template <typename T, int BITS, int GROUP, int KEY, int VALUE, int MASK, bool SINKS>
[[kernel]] void quantized_attention(
    const device T* queries [[buffer(0)]],
    const constant int* queries_shape [[buffer(1)]],
    const constant int64_t* queries_strides [[buffer(2)]],
    const device uint32_t* keys [[buffer(3)]],
    const constant int* keys_shape [[buffer(4)]],
    const constant int64_t* keys_strides [[buffer(5)]],
    const device T* key_scales [[buffer(6)]],
    const constant int64_t* key_scales_strides [[buffer(7)]],
    const device T* key_biases [[buffer(8)]],
    const constant int64_t* key_biases_strides [[buffer(9)]],
    const device uint32_t* values [[buffer(10)]],
    const constant int64_t* values_strides [[buffer(11)]],
    const device T* value_scales [[buffer(12)]],
    const constant int64_t* value_scales_strides [[buffer(13)]],
    const device T* value_biases [[buffer(14)]],
    const constant int64_t* value_biases_strides [[buffer(15)]],
    const device bool* mask [[buffer(16)]],
    const constant int64_t* mask_strides [[buffer(17)]],
    const device T* added [[buffer(18)]],
    const constant int64_t* added_strides [[buffer(19)]],
    const device T* sinks [[buffer(20)]],
    const constant float& scale [[buffer(21)]],
    const constant float& cap [[buffer(22)]],
    device T* out [[buffer(23)]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
    uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
  constexpr int SIMDGROUPS = 16;
  constexpr int WIDTH = 32 * VALUE;
  constexpr float LOWEST = -3.4028234663852886e38f;
  threadgroup float outputs[SIMDGROUPS * WIDTH];
  threadgroup float maxima[SIMDGROUPS];
  threadgroup float totals[SIMDGROUPS];

  const int heads = queries_shape[1];
  const int length = queries_shape[2];
  const int count = keys_shape[2];
  const int row = int(threadgroup_position_in_grid.y);
  const int place = row % length;
  const int head = row / length % heads;
  const int batch = row / length / heads;
  const int kv_head = head / (heads / keys_shape[1]);
  const int simdgroup = int(simdgroup_index_in_threadgroup);
  const uint lane = thread_index_in_simdgroup;

  auto query_at = queries +
      (batch * queries_strides[0] + head * queries_strides[1] + place * queries_strides[2]);
  float query[KEY];
  for (int j = 0; j < KEY; ++j) {
    query[j] = scale * float(query_at[(lane * KEY + j) * queries_strides[3]]);
  }
  auto k = keys + (batch * keys_strides[0] + kv_head * keys_strides[1]);
  auto k_scales = key_scales + (batch * key_scales_strides[0] + kv_head * key_scales_strides[1]);
  auto k_biases = key_biases + (batch * key_biases_strides[0] + kv_head * key_biases_strides[1]);
  auto v = values + (batch * values_strides[0] + kv_head * values_strides[1]);
  auto v_scales = value_scales + (batch * value_scales_strides[0] + kv_head * value_scales_strides[1]);
  auto v_biases = value_biases + (batch * value_biases_strides[0] + kv_head * value_biases_strides[1]);
  auto seen_at = mask + (batch * mask_strides[0] + head * mask_strides[1] + place * mask_strides[2]);
  auto added_at = added + (batch * added_strides[0] + head * added_strides[1] + place * added_strides[2]);

  float best = LOWEST;
  float total = 0;
  float output[VALUE] = {0};
  for (int i = simdgroup; i < count; i += SIMDGROUPS) {
    bool seen = true;
    if (MASK == 1) {
      seen = i <= count - length + place;
    }
    if (MASK == 2) {
      seen = seen_at[i * mask_strides[3]];
    }
    // Where nothing is seen, everything counts alike.
    float score = LOWEST;
    if (seen) {
      auto words = k + i * keys_strides[2];
      score = 0;
      for (int j = 0; j < KEY; ++j) {
        const uint at = lane * KEY + j;
        const float s = float(k_scales[i * key_scales_strides[2] + (at / GROUP) * key_scales_strides[3]]);
        const float b = float(k_biases[i * key_biases_strides[2] + (at / GROUP) * key_biases_strides[3]]);
        score += query[j] * (s * code_of<BITS>(words, keys_strides[3], at) + b);
      }
      score = simd_sum(score);
      if (cap != 0) {
        score = cap * metal::precise::tanh(score / cap);
      }
      if (MASK == 3) {
        score += float(added_at[i * added_strides[3]]);
      }
    }
    const float higher = metal::max(best, score);
    const float factor = metal::precise::exp(best - higher);
    const float weight = metal::precise::exp(score - higher);
    best = higher;
    total = total * factor + weight;
    auto words = v + i * values_strides[2];
    for (int j = 0; j < VALUE; ++j) {
      const uint at = lane * VALUE + j;
      const float s = float(v_scales[i * value_scales_strides[2] + (at / GROUP) * value_scales_strides[3]]);
      const float b = float(v_biases[i * value_biases_strides[2] + (at / GROUP) * value_biases_strides[3]]);
      output[j] = output[j] * factor + weight * (s * code_of<BITS>(words, values_strides[3], at) + b);
    }
  }

  if (lane == 0) {
    maxima[simdgroup] = best;
    totals[simdgroup] = total;
  }
  for (int j = 0; j < VALUE; ++j) {
    outputs[simdgroup * WIDTH + int(lane) * VALUE + j] = output[j];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  best = SINKS ? float(sinks[head]) : LOWEST;
  total = SINKS ? 1.0f : 0.0f;
  const float sink = best;
  for (int s = 0; s < SIMDGROUPS; ++s) {
    best = metal::max(best, maxima[s]);
  }
  total *= metal::precise::exp(sink - best);
  for (int s = 0; s < SIMDGROUPS; ++s) {
    total += totals[s] * metal::precise::exp(maxima[s] - best);
  }
  for (int d = int(thread_index_in_threadgroup); d < WIDTH; d += 32 * SIMDGROUPS) {
    float sum = 0;
    for (int s = 0; s < SIMDGROUPS; ++s) {
      sum += outputs[s * WIDTH + d] * metal::precise::exp(maxima[s] - best);
    }
    out[size_t(row) * WIDTH + d] = T(sum / total);
  }
}

#define instantiate_quantized_attention(name, type, bits, group, key, value, mask, sinks)       \
  template [[host_name("quantized_attention_" #name)]] [[kernel]]                               \
  decltype(quantized_attention<type, bits, group, key, value, mask, sinks>)                     \
  quantized_attention<type, bits, group, key, value, mask, sinks>;

instantiate_quantized_attention(float, float, 4, 32, 2, 2, 0, false)
instantiate_quantized_attention(half, half, 8, 64, 4, 4, 1, true)
instantiate_quantized_attention(bfloat, bfloat, 6, 64, 8, 4, 2, false)
instantiate_quantized_attention(added, bfloat, 3, 128, 4, 4, 3, true)
