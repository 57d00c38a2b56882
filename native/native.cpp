#include "native.h"

#include <algorithm>
#include <condition_variable>
#include <future>
#include <mutex>
#include <sstream>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/error.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/closure.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/private/export.h"
#include "mlx/c/private/graph_utils.h"
#include "mlx/c/private/stream.h"
#include "mlx/c/private/string.h"
#include "mlx/c/private/vector.h"
#include "mlx/compile_impl.h"
#include "mlx/graph_utils.h"
#include "mlx/primitives.h"
#include "mlx/scheduler.h"
#include "mlx/transforms_impl.h"
#include "mlx/utils.h"

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

extern "C" void mlxport_start(void) {
  std::promise<void> known;
  std::thread([&known] {
    mlx::core::is_main_thread();
    known.set_value();
    // Stays, so that no later thread gets its id.
    std::mutex mutex;
    std::unique_lock lock(mutex);
    std::condition_variable never;
    while (true) {
      never.wait(lock);
    }
  }).detach();
  known.get_future().wait();
}

namespace {

using namespace mlx::core;

// In place of an array whose computation has failed.
class Failed : public Primitive {
 public:
  Failed(Stream stream, std::string message) : Primitive(stream), message_(std::move(message)) {}
  void eval_cpu(const std::vector<array>&, std::vector<array>&) override {
    throw std::runtime_error(message_);
  }
  void eval_gpu(const std::vector<array>&, std::vector<array>&) override {
    throw std::runtime_error(message_);
  }
  const char* name() const override {
    return "Failed";
  }

 private:
  std::string message_;
};

// MLX marks the event of a batch of work with an error if its stream had one when the batch ended. The mark stays, but
// the message in it goes to whoever asks first; MLX then takes the arrays of the batch for computed. So after any
// failure in the process, every graph is searched for marked arrays before it is evaluated. All of this runs under the
// lock of `ffi`.
bool any_failure = false;
// Of this thread, to which its arrays belong too.
thread_local std::string last_message;
thread_local std::vector<Event> in_flight;

bool is_marked(const array& a) {
  return a.status() == array::Status::evaluated && a.event().valid() && a.event().load_error() != nullptr;
}

void replace(array& a, const std::string& message) {
  auto failed = std::make_shared<Failed>(
      a.event().valid() ? a.event().stream() : default_stream(default_device()), message);
  a.primitive_ptr() = std::move(failed);
  a.set_siblings({}, 0);
  a.inputs().clear();
  a.attach_event(Event{});
  a.set_status(array::Status::unscheduled);
}

// Calls `f` on every array of the graphs, from the outputs to what is computed already.
template <typename F>
void for_each(std::vector<array>& outputs, F f) {
  std::unordered_set<std::uintptr_t> seen;
  std::vector<array*> todo;
  auto add = [&](array& a) {
    if (seen.insert(a.id()).second) {
      todo.push_back(&a);
    }
  };
  for (auto& a : outputs) {
    add(a);
  }
  while (!todo.empty()) {
    auto& a = *todo.back();
    todo.pop_back();
    f(a);
    for (auto& in : a.inputs()) {
      add(in);
    }
    for (auto& s : a.siblings()) {
      add(s);
    }
  }
}

// Lets all work that is queued finish, and then forgets what failed in it.
void settle_streams() {
  std::vector<std::future<void>> done;
  auto streams = get_streams();
  for (auto& s : streams) {
    if (s.device == Device::cpu) {
      auto p = std::make_shared<std::promise<void>>();
      done.push_back(p->get_future());
      scheduler::enqueue(s, [p = std::move(p)] { p->set_value(); });
    }
  }
  for (auto& f : done) {
    f.wait();
  }
  for (auto& s : streams) {
    try {
      s.device == Device::cpu ? scheduler::check_error(s) : synchronize(s);
    } catch (const std::exception&) {
    }
  }
}

// `waited_late`: the message was taken from work queued earlier, so that work behind it may be unmarked.
void after_failure(std::vector<array>& outputs, const std::string& message, bool waited_late) {
  static Error unmarked;
  any_failure = true;
  last_message = message;
  settle_streams();
  if (waited_late) {
    for (auto& event : in_flight) {
      if (!event.load_error()) {
        event.set_error(unmarked);
      }
    }
  }
  in_flight.clear();
  for (auto& a : outputs) {
    if (is_marked(a)) {
      replace(a, message);
    }
  }
}

// Inside a transform nothing can be marked by events; here what is computed is kept in hand instead.
void eval_traced(std::vector<array>& outputs) {
  std::vector<array> nodes;
  for_each(outputs, [&nodes](array& a) {
    if (a.status() == array::Status::unscheduled) {
      nodes.push_back(a);
    }
  });
  try {
    eval(outputs);
  } catch (const std::exception& e) {
    after_failure(outputs, e.what(), false);
    for (auto& a : nodes) {
      if (a.status() != array::Status::unscheduled) {
        replace(a, e.what());
      }
    }
    throw;
  }
}

void evaluate(std::vector<array>& outputs, bool async) {
  if (any_failure) {
    for_each(outputs, [](array& a) {
      if (is_marked(a)) {
        replace(a, last_message);
      }
    });
  }
  if (detail::in_tracing() && !async) {
    return eval_traced(outputs);
  }
  std::erase_if(in_flight, [](auto& event) { return event.is_signaled() && !event.load_error(); });
  bool waits_late = std::any_of(outputs.begin(), outputs.end(), [](auto& a) {
    return a.status() == array::Status::evaluated && a.event().valid();
  });
  try {
    async_eval(outputs);
    for (auto& a : outputs) {
      if (!async) {
        a.wait();
      } else if (a.event().valid() && !a.event().is_signaled()) {
        in_flight.push_back(a.event());
      }
    }
  } catch (const std::exception& e) {
    after_failure(outputs, e.what(), waits_late);
    throw;
  }
}

} // namespace

extern "C" int mlxport_eval(const mlx_vector_array outputs, bool async) {
  try {
    auto arrays = mlx_vector_array_get_(outputs);
    evaluate(arrays, async);
    return 0;
  } catch (const std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}

extern "C" int mlxport_synchronize(const mlx_stream stream) {
  try {
    synchronize(mlx_stream_get_(stream));
    return 0;
  } catch (const std::exception& e) {
    std::vector<array> none;
    after_failure(none, e.what(), false);
    mlx_error(e.what());
    return 1;
  }
}

extern "C" void mlxport_finish_stream(const mlx_stream stream) {
  try {
    synchronize(mlx_stream_get_(stream));
  } catch (const std::exception&) {
    any_failure = true;
  }
}

extern "C" void mlxport_start_thread(void) {
  detail::compile_cache();
  detail::InTracing tracing;
  cpu::get_command_encoders();
  last_message.clear();
  in_flight.clear();
}

extern "C" bool mlxport_cpu_compiler_is_available(void) {
  return detail::compile_available_for_device(Device::cpu);
}

extern "C" mlx_function_exporter
mlxport_function_exporter_new(const char* file, const mlx_closure_kwargs fun, bool shapeless) {
  try {
    return mlx_function_exporter_new_(exporter(file, mlx_closure_kwargs_get_(fun), shapeless));
  } catch (const std::exception& e) {
    mlx_error(e.what());
    return {nullptr};
  }
}

extern "C" int mlxport_dense_constants(mlx_vector_array* res, const mlx_vector_array outputs) {
  try {
    auto arrays = mlx_vector_array_get_(outputs);
    std::unordered_map<std::uintptr_t, array> dense;
    auto make_dense = [&dense](array& a) {
      // A placeholder has no data yet.
      if (a.has_primitive() || a.status() == array::Status::unscheduled) {
        return;
      }
      a.wait();
      if (!a.flags().row_contiguous) {
        auto it = dense.find(a.id());
        if (it == dense.end()) {
          auto copy = contiguous(a);
          copy.eval();
          it = dense.emplace(a.id(), copy).first;
          // Keeps the id taken.
          dense.emplace(copy.id(), a);
        }
        a = it->second;
      }
    };
    for_each(arrays, [&](array& a) {
      for (auto& in : a.inputs()) {
        make_dense(in);
      }
    });
    for (auto& a : arrays) {
      make_dense(a);
    }
    mlx_vector_array_set_(*res, std::move(arrays));
    return 0;
  } catch (const std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}

extern "C" int mlxport_graph_dot(mlx_string* res, const mlx_node_namer names, const mlx_vector_array outputs) {
  try {
    std::ostringstream text;
    export_to_dot(text, mlx_node_namer_get_(names), mlx_vector_array_get_(outputs));
    mlx_string_set_(*res, text.str());
    return 0;
  } catch (const std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
