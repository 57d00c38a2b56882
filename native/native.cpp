#include "native.h"

#include "mlx/allocator.h"
#include "mlx/c/error.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/enums.h"

#undef mlx_error
#define mlx_error(message) _mlx_error(__FILE__, __LINE__, "%s", message)

#ifndef __APPLE__
extern "C" char* openblas_get_config(void);
#endif

extern "C" const char* mlxport_blas_config(void) {
#ifdef __APPLE__
  return "Accelerate";
#else
  return openblas_get_config();
#endif
}

extern "C" int mlxport_array_over(
    mlx_array* res,
    void* data,
    const int* shape,
    int ndim,
    mlx_dtype dtype,
    void* payload,
    void (*release)(void*)) {
  using namespace mlx::core;
  try {
    Shape dims(shape, shape + ndim);
    auto type = mlx_dtype_to_cpp(dtype);
#if defined(MLXPORT_METAL) || defined(MLXPORT_CUDA)
    array over(data, std::move(dims), type, [payload, release](void*) { release(payload); });
#else
    // The CPU allocator's buffers start with their size, and their data 8 bytes later.
    allocator::Buffer buffer(static_cast<char*>(data) - sizeof(size_t));
    array over(buffer, std::move(dims), type, [payload, release](allocator::Buffer) { release(payload); });
#endif
    mlx_array_set_(*res, std::move(over));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
