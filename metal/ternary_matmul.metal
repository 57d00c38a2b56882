// Rows by a matrix of -1, 0 and 1, or of -1 and 1, in groups with a scale: a threadgroup of four simdgroups for 32 by 32
// results, each simdgroup for a quarter of them.

#include <metal_stdlib>
#include <metal_simdgroup_matrix>

using namespace metal;

template <typename T, int BITS>
[[kernel]] void ternary_matmul(
    const device T* x [[buffer(0)]],
    const constant int* x_shape [[buffer(1)]],
    const device uint32_t* w [[buffer(2)]],
    const constant int* w_shape [[buffer(3)]],
    const device T* scales [[buffer(4)]],
    const constant int* scales_shape [[buffer(5)]],
    device T* out [[buffer(6)]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
    uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
  constexpr int TILE = 32;
  // Rows of tiles begin in different banks of memory.
  constexpr int STRIDE = TILE + 4;
  constexpr int CODES = 32 / BITS;
  constexpr uint MASK = (1u << BITS) - 1;
  threadgroup float left[TILE * STRIDE];
  threadgroup float right[TILE * STRIDE];
  const int count = x_shape[0];
  const int depth = x_shape[1];
  const int rows = w_shape[0];
  const int groups = scales_shape[1];
  const int of_group = depth / groups;
  const int top = TILE * int(threadgroup_position_in_grid.y);
  const int side = TILE * int(threadgroup_position_in_grid.x);
  const int m0 = 16 * (int(simdgroup_index_in_threadgroup) / 2);
  const int n0 = 16 * (int(simdgroup_index_in_threadgroup) % 2);
  // A lane has two neighbours of each 8 by 8 matrix.
  const int lane = int(thread_index_in_simdgroup);
  const int r = ((lane / 4) & 4) + (lane / 2) % 4;
  const int c = ((lane / 4) & 2) * 2 + (lane % 2) * 2;

  simdgroup_matrix<float, 8, 8> sums[2][2];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      sums[i][j].thread_elements()[0] = 0;
      sums[i][j].thread_elements()[1] = 0;
    }
  }
  // The depth is a multiple of 32.
  for (int start = 0; start < depth; start += TILE) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = int(thread_index_in_threadgroup); i < TILE * TILE; i += 128) {
      const int line = i / TILE;
      const int at = start + i % TILE;
      float value = 0;
      if (top + line < count) {
        value = float(x[size_t(top + line) * depth + at]);
      }
      left[line * STRIDE + i % TILE] = value;
      value = 0;
      if (side + line < rows) {
        const uint word = w[size_t(side + line) * (depth / CODES) + at / CODES];
        const int code = int((word >> (at % CODES * BITS)) & MASK);
        value = float(scales[size_t(side + line) * groups + at / of_group]);
        value *= float(BITS == 1 ? 2 * code - 1 : code - 1);
      }
      right[line * STRIDE + i % TILE] = value;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int d = 0; d < TILE; d += 8) {
      simdgroup_matrix<float, 8, 8> a[2];
      simdgroup_matrix<float, 8, 8> b[2];
      for (int i = 0; i < 2; ++i) {
        a[i].thread_elements()[0] = left[(m0 + 8 * i + r) * STRIDE + d + c];
        a[i].thread_elements()[1] = left[(m0 + 8 * i + r) * STRIDE + d + c + 1];
        b[i].thread_elements()[0] = right[(n0 + 8 * i + c) * STRIDE + d + r];
        b[i].thread_elements()[1] = right[(n0 + 8 * i + c + 1) * STRIDE + d + r];
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) {
          simdgroup_multiply_accumulate(sums[i][j], a[i], b[j], sums[i][j]);
        }
      }
    }
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const int m = top + m0 + 8 * i + r;
      const int n = side + n0 + 8 * j + c;
      for (int e = 0; e < 2; ++e) {
        if (m < count && n + e < rows) {
          out[size_t(m) * rows + n + e] = T(float(sums[i][j].thread_elements()[e]));
        }
      }
    }
  }
}

#define instantiate_ternary_matmul(name, type, bits)               \
  template [[host_name("ternary_matmul_" #name)]]                  \
  [[kernel]] decltype(ternary_matmul<type, bits>) ternary_matmul<type, bits>;

instantiate_ternary_matmul(float, float, 2)
instantiate_ternary_matmul(half, half, 2)
instantiate_ternary_matmul(bfloat, bfloat, 2)
instantiate_ternary_matmul(binary, bfloat, 1)
