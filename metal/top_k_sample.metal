// The index of the largest of `logits * scale + noise`, among the `k` largest logits of each row: a threadgroup for
// each row. The k-th largest is found two bits at a time, by counting.

#include <metal_stdlib>

using namespace metal;

// Numbers in the order of the values, zeros alike; NaN is the lowest.
inline uint ordered(float x) {
  const uint bits = as_type<uint>(x == 0 ? 0.0f : x);
  return x != x ? 0 : (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// The sum over the threadgroup. `partial` holds a number for each simdgroup, 32 at most.
inline uint sum_of(uint value, threadgroup uint* partial, uint simdgroup, uint lane) {
  value = simd_sum(value);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup == 0) {
    partial[lane] = 0;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lane == 0) {
    partial[simdgroup] = value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return simd_sum(partial[lane]);
}

template <typename T>
[[kernel]] void top_k_sample(
    const device T* logits [[buffer(0)]],
    const constant int* logits_shape [[buffer(1)]],
    const device float* noise [[buffer(2)]],
    const constant int& k [[buffer(3)]],
    const constant T& scale [[buffer(4)]],
    device uint32_t* token [[buffer(5)]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
    uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint3 threads_per_threadgroup [[threads_per_threadgroup]]) {
  threadgroup uint partial[32];
  threadgroup float best_values[32];
  threadgroup uint best_indices[32];
  const uint width = uint(logits_shape[1]);
  const size_t row = size_t(threadgroup_position_in_grid.y) * width;
  const uint first = thread_position_in_threadgroup.x;
  const uint step = threads_per_threadgroup.x;
  const uint simdgroup = simdgroup_index_in_threadgroup;
  const uint lane = thread_index_in_simdgroup;
  const uint wanted = uint(k);

  // The greatest number that `k` logits reach.
  uint least = 0;
  for (int shift = 30; shift >= 0; shift -= 2) {
    uint ones = 0;
    uint twos = 0;
    uint threes = 0;
    for (uint i = first; i < width; i += step) {
      const uint number = ordered(float(logits[row + i]));
      ones += number >= least + (1u << shift) ? 1 : 0;
      twos += number >= least + (2u << shift) ? 1 : 0;
      threes += number >= least + (3u << shift) ? 1 : 0;
    }
    ones = sum_of(ones, partial, simdgroup, lane);
    twos = sum_of(twos, partial, simdgroup, lane);
    threes = sum_of(threes, partial, simdgroup, lane);
    least += (ones >= wanted ? 1u << shift : 0) + (twos >= wanted ? 1u << shift : 0) +
        (threes >= wanted ? 1u << shift : 0);
  }

  // Of the logits that just reach it, the first ones are kept: those below `end`.
  uint above = 0;
  uint equal = 0;
  for (uint i = first; i < width; i += step) {
    const uint number = ordered(float(logits[row + i]));
    above += number > least ? 1 : 0;
    equal += number == least ? 1 : 0;
  }
  above = sum_of(above, partial, simdgroup, lane);
  equal = sum_of(equal, partial, simdgroup, lane);
  uint end = width;
  if (above + equal > wanted) {
    // The greatest `end` that leaves not too many, bit by bit.
    end = 0;
    for (uint bit = 1u << 30; bit != 0; bit >>= 1) {
      uint before = 0;
      for (uint i = first; i < width && i < end + bit; i += step) {
        before += ordered(float(logits[row + i])) == least ? 1 : 0;
      }
      before = sum_of(before, partial, simdgroup, lane);
      end += above + before <= wanted ? bit : 0;
    }
  }

  float best = -INFINITY;
  uint index = width;
  for (uint i = first; i < width; i += step) {
    const uint number = ordered(float(logits[row + i]));
    const float value = float(T(float(logits[row + i]) * float(scale))) + noise[row + i];
    const bool kept = number > least || (number == least && i < end);
    if (kept && (value > best || (index == width && value == value))) {
      best = value;
      index = i;
    }
  }
  // Of equal values the first.
  float highest = simd_max(best);
  index = simd_min(best == highest ? index : width);
  if (simdgroup == 0) {
    best_values[lane] = -INFINITY;
    best_indices[lane] = width;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lane == 0) {
    best_values[simdgroup] = highest;
    best_indices[simdgroup] = index;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  best = best_values[lane];
  highest = simd_max(best);
  index = simd_min(best == highest ? best_indices[lane] : width);
  if (first == 0) {
    token[threadgroup_position_in_grid.y] = metal::min(index, width - 1);
  }
}

template [[host_name("top_k_sample_float")]] [[kernel]] decltype(top_k_sample<float>) top_k_sample<float>;
template [[host_name("top_k_sample_half")]] [[kernel]] decltype(top_k_sample<half>) top_k_sample<half>;
template [[host_name("top_k_sample_bfloat")]] [[kernel]] decltype(top_k_sample<bfloat>) top_k_sample<bfloat>;
