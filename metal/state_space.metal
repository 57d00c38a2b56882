// The recurrence of Mamba-2, position by position: a simdgroup for each row of each head's state, whose columns it
// shares out.

#include <metal_stdlib>

using namespace metal;

// A lane has COLUMNS of at most 32 * COLUMNS. BY_COLUMN: whether each column decays on its own.
template <typename T, int COLUMNS, bool BY_COLUMN>
[[kernel]] void state_space(
    const device T* queries [[buffer(0)]],
    const constant int* queries_shape [[buffer(1)]],
    const device T* keys [[buffer(2)]],
    const device float* values [[buffer(3)]],
    const constant int* values_shape [[buffer(4)]],
    const device float* log_decay [[buffer(5)]],
    const device float* state [[buffer(6)]],
    device T* out [[buffer(7)]],
    device float* last [[buffer(8)]],
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
    const float value = values[of_head * rows + row];
    float answer = 0;
    for (int j = 0; j < COLUMNS; ++j) {
      const int c = lane + 32 * j;
      if (c < columns) {
        const float decay = BY_COLUMN ? log_decay[of_head * columns + c] : log_decay[of_head];
        memory[j] = memory[j] * metal::precise::exp(decay) + value * float(keys[of_key + c]);
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

#define instantiate_state_space(name, type, columns, by_column)       \
  template [[host_name("state_space_" #name)]]                          \
  [[kernel]] decltype(state_space<type, columns, by_column>) state_space<type, columns, by_column>;

instantiate_state_space(float, float, 4, false)
instantiate_state_space(half, half, 4, false)
instantiate_state_space(bfloat, bfloat, 4, false)
instantiate_state_space(by_column, bfloat, 4, true)
