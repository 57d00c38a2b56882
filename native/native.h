// What mlx-c has no call for.
#pragma once

#include <stddef.h>

#include "mlx/c/array.h"

#ifdef __cplusplus
extern "C" {
#endif

// What BLAS says of itself, or "Accelerate". Lives as long as the process.
const char* mlxport_blas_config(void);

// An array over memory that the caller keeps alive until `release(payload)`. The CPU backend copies nothing.
// `data` must be aligned to the dtype and writable (an operation may reuse its input's memory), and the
// 8 bytes before it must be readable (MLX's CPU allocator keeps a size there).
// Returns 0, or 1 after reporting an error.
int mlxport_array_over(
    mlx_array* res,
    void* data,
    const int* shape,
    int ndim,
    mlx_dtype dtype,
    void* payload,
    void (*release)(void*));

#ifdef __cplusplus
}
#endif
