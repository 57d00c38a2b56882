// What generated kernels and the Metal header ask of the runtime, and what Rust passes to a launch.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace mtlhost {

// Of one thread, in the units of Metal's attributes.
struct Ids {
  uint32_t thread_position_in_grid[3];
  uint32_t thread_position_in_threadgroup[3];
  uint32_t threadgroup_position_in_grid[3];
  uint32_t threads_per_threadgroup[3];
  uint32_t dispatch_threads_per_threadgroup[3];
  uint32_t threads_per_grid[3];
  uint32_t threadgroups_per_grid[3];
  uint32_t thread_index_in_threadgroup;
  uint32_t thread_index_in_simdgroup;
  uint32_t simdgroup_index_in_threadgroup;
  uint32_t thread_index_in_quadgroup;
  uint32_t quadgroup_index_in_threadgroup;
  uint32_t simdgroups_per_threadgroup;
  uint32_t dispatch_simdgroups_per_threadgroup;
  uint32_t quadgroups_per_threadgroup;
  uint32_t dispatch_quadgroups_per_threadgroup;
};

constexpr int kLanes = 32;
constexpr int kLaneBytes = 64;

// The values that the lanes of a simdgroup brought to one collective operation.
struct Exchange {
  uint32_t active;  // bit per lane
  alignas(64) unsigned char lane[kLanes][kLaneBytes];
};

enum AtomicKind { kAtomicLoad = 0, kAtomicStore = 1, kAtomicUpdate = 2 };

}  // namespace mtlhost

extern "C" {
const mtlhost::Ids* mtlhost_ids();
void mtlhost_barrier(int width, unsigned flags, const char* file, int line);
// Waits until the lanes of the simdgroup (or of the quad, with width 4) have brought their values.
const mtlhost::Exchange* mtlhost_exchange(
    int width, const char* op, const void* value, unsigned bytes, const char* file, int line);
void mtlhost_atomic(const void* address, unsigned bytes, int kind);
// Whether a weak compare-and-exchange is to fail for no reason.
bool mtlhost_spurious();
// The memory of a threadgroup variable; `site` tells one declaration from another.
void* mtlhost_threadgroup(const void* site, const char* name, size_t bytes, size_t align);
[[noreturn]] void mtlhost_fail(const char* message);

// Written for each kernel by the Rust side.
void mtlhost_kernel(void* const* buffers, void* const* threadgroup);
bool mtlhost_set_constant(int index, const void* value, size_t bytes);
}
