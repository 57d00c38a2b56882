// gate * sigmoid(gate * (slope + cubic * gate^2)) * x, of which SwiGLU and GeGLU are cases: four neighbours for each
// thread.

#include <metal_stdlib>

using namespace metal;

template <typename T>
[[kernel]] void gated(
    const device T* gate [[buffer(0)]],
    const constant int* gate_shape [[buffer(1)]],
    const device T* x [[buffer(2)]],
    const constant float& slope [[buffer(3)]],
    const constant float& cubic [[buffer(4)]],
    device T* out [[buffer(5)]],
    uint3 thread_position_in_grid [[thread_position_in_grid]]) {
  const uint width = uint(gate_shape[1]);
  const size_t row = size_t(thread_position_in_grid.y) * width;
  const uint first = 4 * thread_position_in_grid.x;
  for (uint i = first; i < metal::min(first + 4, width); ++i) {
    const float g = float(gate[row + i]);
    const float inner = cubic == 0 ? g * slope : g * (slope + cubic * (g * g));
    // The exponential of what is not positive is at most one.
    const float e = metal::precise::exp(-metal::abs(inner));
    const float sigmoid = (inner < 0 ? e : 1.0f) / (1.0f + e);
    out[row + i] = T(g * sigmoid * float(x[row + i]));
  }
}

template [[host_name("gated_float")]] [[kernel]] decltype(gated<float>) gated<float>;
template [[host_name("gated_half")]] [[kernel]] decltype(gated<half>) gated<half>;
template [[host_name("gated_bfloat")]] [[kernel]] decltype(gated<bfloat>) gated<bfloat>;
