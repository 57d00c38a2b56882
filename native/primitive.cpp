#include "primitive.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <future>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/copy.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/error.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/private/stream.h"
#include "mlx/c/private/vector.h"
#include "mlx/primitives.h"
#include "mlx/scheduler.h"
#include "mlx/transforms.h"
#include "mlx/transforms_impl.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#undef mlx_error
#define mlx_error(message) _mlx_error(__FILE__, __LINE__, "%s", message)

namespace {

using namespace mlx::core;
using Arrays = std::vector<array>;

// As mlx-c says it of a closure: the caller knows by the words that it keeps the error itself.
constexpr auto failed_in_rust = "the kernel returned a non-zero value";

struct Spec {
  Shape shape;
  Dtype dtype;
};

mlxport_spec spec_of(const Shape& shape, Dtype dtype) {
  return {shape.data(), shape.size(), mlx_dtype_to_c(dtype)};
}

// A vector of mlx-c's.
struct Vector {
  mlx_vector_array c;

  explicit Vector(const Arrays& arrays = {}) : c(mlx_vector_array_new_(arrays)) {}
  Vector(const Vector&) = delete;
  ~Vector() {
    mlx_vector_array_free_(c);
  }
};

// What `call` puts into the vector it gets.
template <typename F>
Arrays returned(F call) {
  Vector out;
  if (call(&out.c)) {
    throw std::runtime_error(failed_in_rust);
  }
  return std::move(mlx_vector_array_get_(out.c));
}

// The caller's functions, and the payload until nobody needs it.
struct Kernel {
  mlxport_kernel c;
  // Of each input itself, where it is computed and no transformation follows it, as those of weights. The graph does not know
  // of these: it would copy, go through and free each of them for each output.
  std::vector<std::optional<array>> held;

  explicit Kernel(mlxport_kernel c) : c(c) {}
  Kernel(const Kernel&) = delete;
  ~Kernel() {
    c.release(c.payload);
  }

  // Holds what it can of all inputs, and gives the others to the graph.
  Arrays hold(const Arrays& inputs) {
    Arrays drawn;
    held.reserve(inputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
      auto& in = inputs[i];
      bool is_fixed = in.is_available() && !in.is_tracer() && !is_in_place(i);
      if (is_fixed && (takes_strided(i) || in.flags().row_contiguous)) {
        held.emplace_back(in);
      } else {
        held.emplace_back();
        drawn.push_back(in);
      }
    }
    return drawn;
  }

  // All inputs, of those of the graph.
  Arrays all(const Arrays& drawn) const {
    Arrays inputs;
    inputs.reserve(held.size());
    auto next = drawn.begin();
    for (auto& in : held) {
      inputs.push_back(in ? *in : *next++);
    }
    return inputs;
  }

  // The place among all inputs of each of the graph.
  std::vector<int> places() const {
    std::vector<int> places;
    for (size_t i = 0; i < held.size(); ++i) {
      if (!held[i]) {
        places.push_back(i);
      }
    }
    return places;
  }

  bool takes_strided(size_t input) const {
    return input < 64 && (c.strided >> input & 1);
  }

  std::vector<Spec> outputs(const Arrays& inputs) const {
    std::vector<mlxport_spec> specs;
    for (auto& in : inputs) {
      specs.push_back(spec_of(in.shape(), in.dtype()));
    }
    std::vector<Spec> out;
    if (c.outputs(c.payload, specs.data(), specs.size(), &out)) {
      throw std::runtime_error(failed_in_rust);
    }
    return out;
  }

  Arrays reference(const Arrays& inputs) const {
    Vector ins(inputs);
    return returned([&](auto* out) { return c.reference(c.payload, out, ins.c); });
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums) const {
    Vector ins(primals), cots(cotangents);
    return returned(
        [&](auto* out) { return c.vjp(c.payload, out, ins.c, cots.c, argnums.data(), argnums.size()); });
  }

  Arrays vmap(const Arrays& inputs, const std::vector<int>& axes) const {
    Vector ins(inputs);
    return returned([&](auto* out) { return c.vmap(c.payload, out, ins.c, axes.data(), axes.size()); });
  }

  // The input that an output begins as, or -1.
  int in_place(size_t output) const {
    return output < c.in_place_count ? c.in_place[output] : -1;
  }

  bool is_in_place(size_t input) const {
    return std::find(c.in_place, c.in_place + c.in_place_count, static_cast<int>(input)) !=
        c.in_place + c.in_place_count;
  }
};

// What one evaluation needs on the stream's thread. The arrays' memory is kept alive by the evaluation.
struct Call {
  struct View {
    void* data;
    Shape shape;
    Strides strides;
    Dtype dtype;
    size_t nbytes;
  };
  std::shared_ptr<const Kernel> kernel;
  std::vector<View> inputs;
  std::vector<View> outputs;

  static View view(const array& a) {
    return {const_cast<void*>(a.data<void>()), a.shape(), a.strides(), a.dtype(), a.nbytes()};
  }

  static std::vector<mlxport_view> lend(const std::vector<View>& views) {
    std::vector<mlxport_view> lent;
    lent.reserve(views.size());
    for (auto& v : views) {
      lent.push_back({v.data, v.strides.data(), spec_of(v.shape, v.dtype)});
    }
    return lent;
  }

  // All of them, or only those that are to be zero at first.
  void clear(bool all) const {
    for (size_t i = 0; i < outputs.size(); ++i) {
      auto& out = outputs[i];
      if (out.nbytes > 0 && (all || (!kernel->c.fills && kernel->in_place(i) < 0))) {
        std::memset(out.data, 0, out.nbytes);
      }
    }
  }

  void run() const {
    auto ins = lend(inputs);
    auto outs = lend(outputs);
    clear(false);
    std::string message;
    auto& c = kernel->c;
    if (c.run(c.payload, ins.data(), ins.size(), outs.data(), outs.size(), &message)) {
      clear(true);
      throw std::runtime_error("kernel `" + std::string(c.name) + "`: " + message);
    }
  }
};

// Each output of a primitive holds all inputs until it is computed. This lets only one hold them, unless the graph is to stay,
// and gives them back if something fails before `done`.
class HeldOnce {
 public:
  HeldOnce(const Arrays& inputs, Arrays& outputs) : inputs_(inputs), outputs_(outputs) {
    if (!outputs.front().is_tracer()) {
      for (auto& out : outputs) {
        if (&out.inputs() != &inputs) {
          out.inputs().clear();
        }
      }
    }
  }
  HeldOnce(const HeldOnce&) = delete;
  ~HeldOnce() {
    for (auto& out : outputs_) {
      if (!done_ && &out.inputs() != &inputs_) {
        out.inputs() = inputs_;
      }
    }
  }

  void done() {
    done_ = true;
  }

 private:
  const Arrays& inputs_;
  Arrays& outputs_;
  bool done_{false};
};

// Of a stream's kernels with outputs in the place of inputs.
//
// The memory of an input can be taken over once what was enqueued with it is done, and MLX enqueues what comes later without
// waiting for it: so it waits here. What was enqueued before a kernel is done when that begins.
class Progress {
 public:
  static Progress& of(Stream stream) {
    // Never destroyed: a stream's thread may outlive what is static.
    static auto& mutex = *new std::mutex();
    static auto& all = *new std::unordered_map<int, Progress>();
    std::lock_guard lock(mutex);
    return all[stream.index];
  }

  void enqueued() {
    std::lock_guard lock(mutex_);
    ++enqueued_;
  }

  void begun() {
    {
      std::lock_guard lock(mutex_);
      ++begun_;
    }
    changed_.notify_all();
  }

  // Until nobody else holds the memory of `in`, or the stream has nothing left to do that might.
  void wait_until_alone(const array& in, Stream stream) {
    // What the stream waits for may be work of a GPU that nobody has committed: then a copy is to be made.
    auto limit = gpu::is_available() ? std::chrono::milliseconds(100) : std::chrono::hours(1);
    auto end = std::chrono::steady_clock::now() + limit;
    std::unique_lock lock(mutex_);
    while (!in.is_donatable() && begun_ < enqueued_) {
      if (changed_.wait_until(lock, end) == std::cv_status::timeout) {
        return;
      }
    }
    lock.unlock();
    if (!in.is_donatable()) {
      auto done = std::make_shared<std::promise<void>>();
      scheduler::enqueue(stream, [done] { done->set_value(); });
      done->get_future().wait_until(end);
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t enqueued_{0}, begun_{0};
};

// Lets the system give large memory in large pages: small ones come one by one, which takes longer than many a kernel.
void in_large_pages(const array& out) {
#ifdef __linux__
  constexpr size_t page = 2 << 20;
  auto data = reinterpret_cast<uintptr_t>(out.data<char>());
  auto first = (data + page - 1) / page * page, end = (data + out.nbytes()) / page * page;
  if (out.nbytes() >= 4 * page && first < end) {
    // A wish: without it the memory is the same.
    madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
  }
#endif
}

class RustKernel : public Primitive {
 public:
  RustKernel(Stream stream, std::shared_ptr<const Kernel> kernel)
      : Primitive(stream), kernel_(std::move(kernel)) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    auto& encoder = cpu::get_command_encoder(stream());
    auto call = std::make_shared<Call>();
    call->kernel = kernel_;
    auto places = kernel_->places();
    // First, while nothing here holds an input and keeps its memory from being taken over.
    std::optional<HeldOnce> once;
    if (kernel_->c.in_place_count > 0) {
      once.emplace(inputs, outputs);
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (int place = kernel_->in_place(i); place >= 0) {
        auto from = std::find(places.begin(), places.end(), place) - places.begin();
        auto& in = inputs[from];
        Progress::of(stream()).wait_until_alone(in, stream());
        copy_cpu(in, outputs[i], in.flags().row_contiguous ? CopyType::Vector : CopyType::General, stream());
      }
    }
    call->inputs.reserve(kernel_->held.size());
    call->outputs.reserve(outputs.size());
    auto drawn = inputs.begin();
    for (size_t i = 0; i < kernel_->held.size(); ++i) {
      if (auto& held = kernel_->held[i]) {
        call->inputs.push_back(Call::view(*held));
        continue;
      }
      auto in = *drawn++;
      if (kernel_->is_in_place(i)) {
        call->inputs.push_back({nullptr, in.shape(), in.strides(), in.dtype(), 0});
        continue;
      }
      if (!kernel_->takes_strided(i) && !in.flags().row_contiguous) {
        in = contiguous_copy_cpu(in, stream());
        encoder.add_temporary(in);
      }
      encoder.set_input_array(in);
      call->inputs.push_back(Call::view(in));
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      auto& out = outputs[i];
      if (kernel_->in_place(i) < 0) {
        out.set_data(allocator::malloc(out.nbytes()));
        in_large_pages(out);
      }
      encoder.set_output_array(out);
      call->outputs.push_back(Call::view(out));
    }
    if (once) {
      once->done();
    }
    // Not as a dispatch of the encoder, which would count it: MLX dispatches once more for each operation itself, and
    // waits, and is woken, by that count.
    if (kernel_->c.in_place_count > 0) {
      auto& progress = Progress::of(stream());
      scheduler::enqueue(stream(), [call = std::move(call), &progress] {
        progress.begun();
        call->run();
      });
      progress.enqueued();
    } else {
      scheduler::enqueue(stream(), [call = std::move(call)] { call->run(); });
    }
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("a kernel of the CPU on a GPU stream");
  }

  // Only the arguments in question are variables: the others may be integers, which have no gradient.
  Arrays vjp(
      const Arrays& primals,
      const Arrays& cotangents,
      const std::vector<int>& argnums,
      const Arrays&) override {
    auto inputs = kernel_->all(primals);
    auto wanted = placed(argnums);
    auto gradients = kernel_->vjp(inputs, cotangents, wanted);
    if (gradients.size() == wanted.size()) {
      return gradients;
    }
    return mlx::core::vjp(of(inputs, wanted), chosen(inputs, wanted), cotangents).second;
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    auto inputs = kernel_->all(primals);
    auto wanted = placed(argnums);
    return mlx::core::jvp(of(inputs, wanted), chosen(inputs, wanted), tangents).second;
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& drawn, const std::vector<int>& drawn_axes) override {
    auto inputs = kernel_->all(drawn);
    std::vector<int> axes(inputs.size(), -1);
    auto places = kernel_->places();
    for (size_t i = 0; i < places.size(); ++i) {
      axes[places[i]] = drawn_axes[i];
    }
    auto outputs = kernel_->vmap(inputs, axes);
    if (outputs.empty()) {
      auto reference = [kernel = kernel_](const Arrays& in) { return kernel->reference(in); };
      outputs = mlx::core::vmap(reference, axes)(inputs);
    }
    std::vector<int> out_axes(outputs.size(), 0);
    return {std::move(outputs), std::move(out_axes)};
  }

  std::vector<Shape> output_shapes(const Arrays& inputs) override {
    std::vector<Shape> shapes;
    for (auto& spec : kernel_->outputs(kernel_->all(inputs))) {
      shapes.push_back(spec.shape);
    }
    return shapes;
  }

  const char* name() const override {
    return kernel_->c.name;
  }

 private:
  // The places among all inputs of these of the graph.
  std::vector<int> placed(const std::vector<int>& argnums) const {
    auto places = kernel_->places();
    std::vector<int> placed;
    for (int i : argnums) {
      placed.push_back(places[i]);
    }
    return placed;
  }

  static Arrays chosen(const Arrays& primals, const std::vector<int>& argnums) {
    Arrays vars;
    for (int i : argnums) {
      vars.push_back(primals[i]);
    }
    return vars;
  }

  std::function<Arrays(const Arrays&)> of(const Arrays& primals, const std::vector<int>& argnums) const {
    return [kernel = kernel_, primals, argnums](const Arrays& vars) {
      auto all = primals;
      for (size_t i = 0; i < vars.size(); ++i) {
        all[argnums[i]] = vars[i];
      }
      return kernel->reference(all);
    };
  }

  std::shared_ptr<const Kernel> kernel_;
};

} // namespace

extern "C" bool mlxport_fixed(mlxport_view* view, mlx_array array) {
  auto& in = mlx_array_get_(array);
  if (!in.is_available() || in.is_tracer() || !in.flags().row_contiguous) {
    return false;
  }
  *view = {in.data<void>(), in.strides().data(), spec_of(in.shape(), in.dtype())};
  return true;
}

extern "C" void mlxport_push_spec(void* out, const int* shape, size_t ndim, mlx_dtype dtype) {
  static_cast<std::vector<Spec>*>(out)->push_back({Shape(shape, shape + ndim), mlx_dtype_to_cpp(dtype)});
}

extern "C" void mlxport_set_message(void* message, const char* text, size_t length) {
  static_cast<std::string*>(message)->assign(text, length);
}

extern "C" int mlxport_kernel_apply(
    mlx_vector_array* res,
    mlx_vector_array inputs,
    mlxport_kernel kernel,
    mlx_stream stream) {
  try {
    auto owned = std::make_shared<Kernel>(kernel);
    auto& ins = mlx_vector_array_get_(inputs);
    auto s = mlx_stream_get_(stream);
    if (s.device == Device::gpu || detail::in_export_tracing()) {
      mlx_vector_array_set_(*res, owned->reference(ins));
      return 0;
    }
    std::vector<Shape> shapes;
    std::vector<Dtype> dtypes;
    for (auto& spec : owned->outputs(ins)) {
      shapes.push_back(spec.shape);
      dtypes.push_back(spec.dtype);
    }
    auto drawn = owned->hold(ins);
    auto primitive = std::make_shared<RustKernel>(s, std::move(owned));
    mlx_vector_array_set_(*res, array::make_arrays(std::move(shapes), dtypes, primitive, drawn));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
