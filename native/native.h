// What mlx-c has no call for.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "mlx/c/array.h"
#include "mlx/c/closure.h"
#include "mlx/c/export.h"
#include "mlx/c/graph_utils.h"
#include "mlx/c/string.h"
#include "mlx/c/vector.h"
#include "primitive.h"

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

// Called once, before anything else of MLX. MLX treats its first thread specially: work queued there
// throws the errors of earlier work. Here no caller is that thread.
void mlxport_start(void);

// Computes arrays. Where work on a CPU stream has failed, the arrays that came of it, which MLX would
// hand out unwritten, fail with its error from then on; the streams are clean again.
// Returns 0, or 1 after reporting an error.
int mlxport_eval(const mlx_vector_array outputs, bool async);

// Waits for a stream. What has failed there is reported, and treated as by mlxport_eval.
int mlxport_synchronize(const mlx_stream stream);

// Waits for a stream and forgets what has failed there.
void mlxport_finish_stream(const mlx_stream stream);

// Makes the thread-locals of MLX and of this file, so that they outlive those that the thread makes later.
void mlxport_start_thread(void);

// Whether MLX can build fused operations for the CPU, that is, finds the compiler it calls.
bool mlxport_cpu_compiler_is_available(void);

// An exporter for a function with arrays by name; empty after reporting an error.
mlx_function_exporter mlxport_function_exporter_new(const char* file, const mlx_closure_kwargs fun, bool shapeless);

// Makes the constants of a traced graph row-major: MLX exports their memory as if it were.
int mlxport_dense_constants(mlx_vector_array* res, const mlx_vector_array outputs);

// The graph in Graphviz's language.
int mlxport_graph_dot(mlx_string* res, const mlx_node_namer names, const mlx_vector_array outputs);

#ifdef __cplusplus
}
#endif
