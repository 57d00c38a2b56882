// Forced into every file of mlx-c.
#pragma once

// GCC before 13 has no <format>, which mlx-c uses; fmt is where it came from.
#if !__has_include(<format>)
#include <fmt/format.h>
namespace std {
using fmt::format;
}
#endif

// mlx-c passes the message of an exception as a printf format; a '%' in a file name would be read as a directive.
#include "mlx/c/error.h"
#undef mlx_error
#define mlx_error(message) _mlx_error(__FILE__, __LINE__, "%s", message)
