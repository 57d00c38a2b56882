// The gated delta rule, position by position: a simdgroup for each row of each head's state, whose columns it shares out.

#include <metal_stdlib>

using namespace metal;

// A lane has COLUMNS of at most 32 * COLUMNS. BY_COLUMN: whether each column decays on its own.
template <typename T, int COLUMNS, bool BY_COLUMN>
[[kernel]] void gated_delta(
    const device T* queries [[buffer(0)]],
    const constant int* queries_shape [[buffer(1)]],
    const device T* keys [[buffer(2)]],
    const device T* values [[buffer(3)]],
    const constant int* values_shape [[buffer(4)]],
    const device float* log_decay [[buffer(5)]],
    const device float* beta [[buffer(6)]],
    const device float* state [[buffer(7)]],
    device T* out [[buffer(8)]],
    device float* last [[buffer(9)]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
    uint3 thread_position_in_grid [[thread_position_in_grid]]) {
  const int length = queries_shape[1];
  const int key_heads = queries_shape[2];
  const int columns = queries_shape[3];
  const int heads = values_shape[2];
  const int rows = values_shape[3];
  const int lane = int(thread_index_in_simdgroup);
  const int row = int(thread_position_in_grid.y);
  const int head = int(thread_position_in_grid.z) % heads;
  const int batch = int(thread_position_in_grid.z) / heads;
  const int key_head = head / (heads / key_heads);
  const size_t at = (size_t(thread_position_in_grid.z) * rows + row) * columns;

  float memory[COLUMNS];
  for (int j = 0; j < COLUMNS; ++j) {
    const int c = lane + 32 * j;
    memory[j] = c < columns ? state[at + c] : 0.0f;
  }
  for (int t = 0; t < length; ++t) {
    const size_t position = size_t(batch) * length + t;
    const size_t of_key = (position * key_heads + key_head) * columns;
    const size_t of_head = position * heads + head;
    float recalled = 0;
    for (int j = 0; j < COLUMNS; ++j) {
      const int c = lane + 32 * j;
      if (c < columns) {
        memory[j] *= metal::precise::exp(BY_COLUMN ? log_decay[of_head * columns + c] : log_decay[of_head]);
        recalled += memory[j] * float(keys[of_key + c]);
      }
    }
    recalled = simd_sum(recalled);
    const float change = (float(values[of_head * rows + row]) - recalled) * beta[of_head];
    float answer = 0;
    for (int j = 0; j < COLUMNS; ++j) {
      const int c = lane + 32 * j;
      if (c < columns) {
        memory[j] += change * float(keys[of_key + c]);
        answer += memory[j] * float(queries[of_key + c]);
      }
    }
    answer = simd_sum(answer);
    if (lane == 0) {
      out[of_head * rows + row] = T(answer);
    }
  }
  for (int j = 0; j < COLUMNS; ++j) {
    const int c = lane + 32 * j;
    if (c < columns) {
      last[at + c] = memory[j];
    }
  }
}

#define instantiate_gated_delta(name, type, columns, by_column)       \
  template [[host_name("gated_delta_" #name)]]                          \
  [[kernel]] decltype(gated_delta<type, columns, by_column>) gated_delta<type, columns, by_column>;

instantiate_gated_delta(float, float, 4, false)
instantiate_gated_delta(half, half, 4, false)
instantiate_gated_delta(bfloat, bfloat, 4, false)
instantiate_gated_delta(by_column, bfloat, 4, true)
