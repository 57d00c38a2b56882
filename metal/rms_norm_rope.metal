// The root-mean-square norm of each head's features, then their turn by the position: a simdgroup for each row.

#include <metal_stdlib>

using namespace metal;

template <typename T, bool TRADITIONAL>
[[kernel]] void rms_norm_rope(
    const device T* x [[buffer(0)]],
    const constant int* x_shape [[buffer(1)]],
    const constant int64_t* x_strides [[buffer(2)]],
    const device T* weight [[buffer(3)]],
    const device float* frequencies [[buffer(4)]],
    const constant int* frequencies_shape [[buffer(5)]],
    const device int* offsets [[buffer(6)]],
    const constant int* offsets_shape [[buffer(7)]],
    const constant float& eps [[buffer(8)]],
    const constant float& scale [[buffer(9)]],
    device T* out [[buffer(10)]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
    uint3 thread_position_in_grid [[thread_position_in_grid]]) {
  const int heads = x_shape[1];
  const int length = x_shape[2];
  const int width = x_shape[3];
  const int pairs = frequencies_shape[0];
  const int lane = int(thread_index_in_simdgroup);
  const int row = int(thread_position_in_grid.y);
  const int place = row % length;
  const int head = row / length % heads;
  const int batch = row / length / heads;
  auto from = x + (batch * x_strides[0] + head * x_strides[1] + place * x_strides[2]);
  const int64_t step = x_strides[3];

  float squares = 0;
  for (int i = lane; i < width; i += 32) {
    const float value = float(from[i * step]);
    squares += value * value;
  }
  const float factor = metal::precise::rsqrt(simd_sum(squares) / float(width) + eps);

  const float position = float(offsets[batch % offsets_shape[0]] + place) * scale;
  auto to = out + size_t(row) * size_t(width);
  for (int i = lane; i < pairs; i += 32) {
    const int one = TRADITIONAL ? 2 * i : i;
    const int other = TRADITIONAL ? 2 * i + 1 : i + pairs;
    const float angle = position * frequencies[i];
    const float c = metal::precise::cos(angle);
    const float s = metal::precise::sin(angle);
    const float a = float(from[one * step]) * factor * float(weight[one]);
    const float b = float(from[other * step]) * factor * float(weight[other]);
    to[one] = T(a * c - b * s);
    to[other] = T(a * s + b * c);
  }
  for (int i = 2 * pairs + lane; i < width; i += 32) {
    to[i] = T(float(from[i * step]) * factor * float(weight[i]));
  }
}

#define instantiate_rms_norm_rope(name, type, traditional)      \
  template [[host_name("rms_norm_rope_" #name)]]                \
  [[kernel]] decltype(rms_norm_rope<type, traditional>) rms_norm_rope<type, traditional>;

instantiate_rms_norm_rope(float, float, false)
instantiate_rms_norm_rope(half, half, true)
instantiate_rms_norm_rope(bfloat, bfloat, false)
