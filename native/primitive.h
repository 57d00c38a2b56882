// A primitive whose CPU implementation is a function of the caller.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mlx/c/array.h"
#include "mlx/c/stream.h"
#include "mlx/c/vector.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mlxport_spec_ {
  const int* shape;
  size_t ndim;
  mlx_dtype dtype;
} mlxport_spec;

// An array in memory: `data` is its first element, `strides` count elements.
typedef struct mlxport_view_ {
  void* data;
  const int64_t* strides;
  mlxport_spec spec;
} mlxport_view;

typedef struct mlxport_kernel_ {
  // Handed to every function below. `release` runs once, on any thread, and so does `run`.
  void* payload;
  // Lives as long as the payload.
  const char* name;
  // Bit i: input i may come with any strides. The others are made row-contiguous.
  uint64_t strided;
  // Whether `run` writes every element, so that outputs need not be zero.
  bool fills;
  // Output i begins as input `in_place[i]`, whose memory it takes over where nobody else needs it; as zeros if that is -1,
  // or beyond the count. Such an input is lent without its memory. They live as long as the payload.
  const int* in_place;
  size_t in_place_count;
  // Calls mlxport_push_spec(out, ...) for each output. Returns 0, or 1 after keeping an error.
  int (*outputs)(void* payload, const mlxport_spec* inputs, size_t count, void* out);
  // Fills the outputs, which are row-contiguous and, unless it `fills` them or they are in place, zero. Returns 0, or 1
  // after mlxport_set_message(message, ...).
  int (*run)(
      void* payload,
      const mlxport_view* inputs,
      size_t input_count,
      const mlxport_view* outputs,
      size_t output_count,
      void* message);
  // The same in operations of MLX. Returns 0, or 1 after keeping an error.
  int (*reference)(void* payload, mlx_vector_array* res, mlx_vector_array inputs);
  // Gradients of the primals that `argnums` names; none where those of the reference are to be taken. Returns 0, or 1
  // after keeping an error.
  int (*vjp)(
      void* payload,
      mlx_vector_array* res,
      mlx_vector_array primals,
      mlx_vector_array cotangents,
      const int* argnums,
      size_t count);
  // The outputs for each index of the inputs' `axes`, of which -1 is none, along their first axis; none where those of
  // the reference are to be taken. Returns 0, or 1 after keeping an error.
  int (*vmap)(void* payload, mlx_vector_array* res, mlx_vector_array inputs, const int* axes, size_t count);
  void (*release)(void* payload);
} mlxport_kernel;

// Of an array that is computed, row-contiguous and not followed by a transformation, where it is; else returns false. It lives
// as long as the array.
bool mlxport_fixed(mlxport_view* view, mlx_array array);

void mlxport_push_spec(void* out, const int* shape, size_t ndim, mlx_dtype dtype);
void mlxport_set_message(void* message, const char* text, size_t length);

// Adds the kernel to the graph; on a GPU stream, and where the graph is exported, its reference.
// The graph has those inputs alone that are not computed yet, or that a transformation follows; the kernel holds the others.
// Takes over the payload, also when it fails. Returns 0, or 1 after reporting an error.
int mlxport_kernel_apply(
    mlx_vector_array* res,
    mlx_vector_array inputs,
    mlxport_kernel kernel,
    mlx_stream stream);

#ifdef __cplusplus
}
#endif
