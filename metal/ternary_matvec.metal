// A few rows by a matrix of -1, 0 and 1, or of -1 and 1, in groups with a scale: a simdgroup for four rows of the matrix
// and one other, whose words it shares out.

#include <metal_stdlib>

using namespace metal;

template <typename T, int BITS>
[[kernel]] void ternary_matvec(
    const device T* x [[buffer(0)]],
    const device uint32_t* w [[buffer(1)]],
    const constant int* w_shape [[buffer(2)]],
    const device T* scales [[buffer(3)]],
    const constant int* scales_shape [[buffer(4)]],
    device T* out [[buffer(5)]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
    uint3 thread_position_in_grid [[thread_position_in_grid]]) {
  constexpr int ROWS = 4;
  constexpr int CODES = 32 / BITS;
  constexpr uint MASK = (1u << BITS) - 1;
  const int rows = w_shape[0];
  const int words = w_shape[1];
  const int groups = scales_shape[1];
  const int of_group = words / groups;
  const int row = ROWS * int(thread_position_in_grid.y);
  auto x_row = x + size_t(thread_position_in_grid.z) * size_t(words) * CODES;

  float sums[ROWS] = {0};
  for (int i = int(thread_index_in_simdgroup); i < words; i += 32) {
    float values[CODES];
    for (int j = 0; j < CODES; ++j) {
      values[j] = float(x_row[size_t(i) * CODES + j]);
    }
    for (int r = 0; r < ROWS && row + r < rows; ++r) {
      const uint word = w[size_t(row + r) * words + i];
      float sum = 0;
      for (int j = 0; j < CODES; ++j) {
        const int code = int((word >> (j * BITS)) & MASK);
        sum += float(BITS == 1 ? 2 * code - 1 : code - 1) * values[j];
      }
      sums[r] += float(scales[size_t(row + r) * groups + i / of_group]) * sum;
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    const float sum = simd_sum(sums[r]);
    if (thread_index_in_simdgroup == 0 && row + r < rows) {
      out[size_t(thread_position_in_grid.z) * rows + row + r] = T(sum);
    }
  }
}

#define instantiate_ternary_matvec(name, type, bits)               \
  template [[host_name("ternary_matvec_" #name)]]                  \
  [[kernel]] decltype(ternary_matvec<type, bits>) ternary_matvec<type, bits>;

instantiate_ternary_matvec(float, float, 2)
instantiate_ternary_matvec(half, half, 2)
instantiate_ternary_matvec(bfloat, bfloat, 2)
instantiate_ternary_matvec(binary, bfloat, 1)
