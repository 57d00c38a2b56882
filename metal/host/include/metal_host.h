// Metal's types and standard library as C++20, for one kernel at a time on the CPU. No C or C++ library header that
// declares functions is included: their global names would meet those of the shaders.
#pragma once
#include "runtime.h"

#include "metal_scalar.h"
#include "metal_vector.h"

#include "metal_math.h"
#include "metal_simd.h"
#include "metal_sync.h"
