// The sum of two arrays and its root-mean-square norm: a threadgroup for each row.

#include <metal_stdlib>

using namespace metal;

template <typename T>
[[kernel]] void add_rms_norm(
    const device T* x [[buffer(0)]],
    const constant int* x_shape [[buffer(1)]],
    const device T* residual [[buffer(2)]],
    const device T* weight [[buffer(3)]],
    const constant float& eps [[buffer(4)]],
    device T* sum [[buffer(5)]],
    device T* out [[buffer(6)]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
    uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint3 threads_per_threadgroup [[threads_per_threadgroup]]) {
  threadgroup float partial[32];
  const uint width = uint(x_shape[1]);
  const size_t row = size_t(threadgroup_position_in_grid.y) * width;
  const uint first = thread_position_in_threadgroup.x;
  const uint step = threads_per_threadgroup.x;

  float squares = 0;
  for (uint i = first; i < width; i += step) {
    const T value = T(float(x[row + i]) + float(residual[row + i]));
    sum[row + i] = value;
    squares += float(value) * float(value);
  }
  squares = simd_sum(squares);
  if (simdgroup_index_in_threadgroup == 0) {
    partial[thread_index_in_simdgroup] = 0;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index_in_simdgroup == 0) {
    partial[simdgroup_index_in_threadgroup] = squares;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  squares = simd_sum(partial[thread_index_in_simdgroup]);

  const float factor = metal::precise::rsqrt(squares / float(width) + eps);
  for (uint i = first; i < width; i += step) {
    out[row + i] = T(float(sum[row + i]) * factor * float(weight[i]));
  }
}

template [[host_name("add_rms_norm_float")]] [[kernel]] decltype(add_rms_norm<float>) add_rms_norm<float>;
template [[host_name("add_rms_norm_half")]] [[kernel]] decltype(add_rms_norm<half>) add_rms_norm<half>;
template [[host_name("add_rms_norm_bfloat")]] [[kernel]] decltype(add_rms_norm<bfloat>) add_rms_norm<bfloat>;
