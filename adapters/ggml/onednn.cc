// SPDX-License-Identifier: MIT
#include "adapters/ggml/onednn.h"

#include <dlfcn.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <list>
#include <vector>

#include "oneapi/dnnl/dnnl.h"

static_assert(DNNL_VERSION_MAJOR == 3, "the functions below are those of version 3");

namespace tsp::ggml_adapter {
namespace {

/// The functions of the C API that are used, by name from the open library.
struct Api {
#define TSP_DNNL_FUNCTIONS(X)                \
  X(dnnl_version)                            \
  X(dnnl_get_effective_cpu_isa)              \
  X(dnnl_engine_create)                      \
  X(dnnl_engine_destroy)                     \
  X(dnnl_stream_create)                      \
  X(dnnl_stream_destroy)                     \
  X(dnnl_stream_wait)                        \
  X(dnnl_memory_desc_create_with_strides)    \
  X(dnnl_memory_desc_destroy)                \
  X(dnnl_memory_desc_get_size)               \
  X(dnnl_memory_create)                      \
  X(dnnl_memory_set_data_handle)             \
  X(dnnl_memory_destroy)                     \
  X(dnnl_primitive_attr_create)              \
  X(dnnl_primitive_attr_set_scratchpad_mode) \
  X(dnnl_primitive_attr_destroy)             \
  X(dnnl_matmul_primitive_desc_create)       \
  X(dnnl_primitive_desc_query_md)            \
  X(dnnl_primitive_desc_destroy)             \
  X(dnnl_primitive_create)                   \
  X(dnnl_primitive_execute)                  \
  X(dnnl_primitive_destroy)
#define TSP_DNNL_POINTER(name) decltype(&::name) name = nullptr;
  TSP_DNNL_FUNCTIONS(TSP_DNNL_POINTER)
#undef TSP_DNNL_POINTER

  /// False, with the name of the first one that is not there.
  bool load(void* library, std::string& missing) {
#define TSP_DNNL_LOAD(name)                                         \
  name = reinterpret_cast<decltype(name)>(::dlsym(library, #name)); \
  if (name == nullptr) {                                            \
    missing = #name;                                                \
    return false;                                                   \
  }
    TSP_DNNL_FUNCTIONS(TSP_DNNL_LOAD)
#undef TSP_DNNL_LOAD
#undef TSP_DNNL_FUNCTIONS
    return true;
  }
};

bool ok(dnnl_status_t status) { return status == dnnl_success; }

/// The calling thread's OpenMP settings, which are ggml's as well, lent for a call and given back:
/// regions have exactly size() threads. That is what OpenMP hands out of the number that was asked
/// for, which OMP_THREAD_LIMIT, OMP_DYNAMIC and OMP_MAX_ACTIVE_LEVELS make smaller.
class Team {
 public:
  explicit Team(int32_t wanted)
      : dynamic_before_(omp_get_dynamic()), threads_before_(omp_get_max_threads()) {
    omp_set_dynamic(0);  // or the next region may have another number
#pragma omp parallel num_threads(wanted)
#pragma omp single
    size_ = omp_get_num_threads();
    omp_set_num_threads(size_);
  }
  ~Team() {
    omp_set_num_threads(threads_before_);
    omp_set_dynamic(dynamic_before_);
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int32_t size() const { return size_; }

 private:
  int dynamic_before_;
  int threads_before_;
  int32_t size_ = 1;
};

class Library final : public OneDnn {
 public:
  Library(void* handle, const Api& api, int32_t threads)
      : handle_(handle), api_(api), threads_(threads) {}

  ~Library() override {
    forget_products();
    if (attr_ != nullptr) api_.dnnl_primitive_attr_destroy(attr_);
    if (stream_ != nullptr) api_.dnnl_stream_destroy(stream_);
    if (engine_ != nullptr) api_.dnnl_engine_destroy(engine_);
    std::free(scratch_);
    ::dlclose(handle_);
  }

  bool start() {
    return ok(api_.dnnl_engine_create(&engine_, dnnl_cpu, 0)) &&
           ok(api_.dnnl_stream_create(&stream_, engine_, dnnl_stream_default_flags)) &&
           ok(api_.dnnl_primitive_attr_create(&attr_)) &&
           ok(api_.dnnl_primitive_attr_set_scratchpad_mode(attr_, dnnl_scratchpad_mode_user));
  }

  std::string version() const override {
    const dnnl_version_t* version = api_.dnnl_version();
    return std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
           std::to_string(version->patch);
  }

  bool has_bf16() const override { return has(dnnl_cpu_isa_avx512_core_bf16); }
  bool has_avx512() const override { return has(dnnl_cpu_isa_avx512_core); }

  void set_threads(int32_t threads) override { threads_ = threads; }

  bool prepare(const Gemm& gemm) override {
    const Team team(threads_);
    return product_of(gemm, team) != nullptr;
  }

  bool run(const Gemm& gemm, const void* a, const void* b, float* c) override {
    const Team team(threads_);
    Product* product = product_of(gemm, team);
    if (product == nullptr) return false;
    void* const handles[] = {const_cast<void*>(a), const_cast<void*>(b), c, scratch_};
    dnnl_exec_arg_t args[kNumArgs];
    for (int i = 0; i < kNumArgs; ++i) {
      if (!ok(api_.dnnl_memory_set_data_handle(product->memory[i], handles[i]))) return false;
      args[i] = {kArgs[i], product->memory[i]};
    }
    return ok(api_.dnnl_primitive_execute(product->primitive, stream_, kNumArgs, args)) &&
           ok(api_.dnnl_stream_wait(stream_));
  }

  size_t scratch_bytes() const override { return scratch_bytes_; }

  void parallel(int64_t count, const std::function<void(int64_t)>& body) const override {
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
    for (int64_t i = 0; i < count; ++i) body(i);
  }

 private:
  static constexpr int kNumArgs = 4;
  static constexpr int kArgs[kNumArgs] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST,
                                          DNNL_ARG_SCRATCHPAD};
  // A model has about six shapes, and twice that with the last chunk of a prompt.
  static constexpr size_t kMaxProducts = 64;

  struct Product {
    Gemm gemm;
    dnnl_primitive_t primitive = nullptr;
    dnnl_memory_t memory[kNumArgs] = {};
  };

  bool has(dnnl_cpu_isa_t isa) const {
    return (static_cast<unsigned>(api_.dnnl_get_effective_cpu_isa()) & isa) ==
           static_cast<unsigned>(isa);
  }

  /// Its entry in the list, made at need and moved to the front.
  // NOTE: the code is made for a number of threads; on fewer it leaves parts of the result out, and
  // reports success (oneDNN 3.2.0).
  Product* product_of(const Gemm& gemm, const Team& team) {
    if (team.size() != team_size_) forget_products();
    team_size_ = team.size();
    const auto at = std::find_if(products_.begin(), products_.end(),
                                 [&](const Product& product) { return product.gemm == gemm; });
    if (at != products_.end()) {
      products_.splice(products_.begin(), products_, at);
      return &products_.front();
    }
    if (products_.size() >= kMaxProducts) {
      destroy(products_.back());
      products_.pop_back();
    }
    Product& product = products_.emplace_front(Product{.gemm = gemm});
    if (create(product)) return &product;
    destroy(product);
    products_.pop_front();
    return nullptr;
  }

  bool create(Product& product) {
    const Gemm& gemm = product.gemm;
    const dnnl_data_type_t type = gemm.bf16 ? dnnl_bf16 : dnnl_f32;
    dnnl_memory_desc_t descs[3] = {};
    dnnl_primitive_desc_t desc = nullptr;
    const bool made = make_desc(descs[0], gemm.m, gemm.k, type, gemm.k, 1) &&
                      make_desc(descs[1], gemm.k, gemm.n, type, 1, gemm.k) &&
                      make_desc(descs[2], gemm.m, gemm.n, dnnl_f32, gemm.c_stride, 1) &&
                      ok(api_.dnnl_matmul_primitive_desc_create(&desc, engine_, descs[0], descs[1],
                                                                nullptr, descs[2], attr_)) &&
                      ok(api_.dnnl_primitive_create(&product.primitive, desc)) &&
                      make_memory(product, desc, descs);
    if (desc != nullptr) api_.dnnl_primitive_desc_destroy(desc);
    for (dnnl_memory_desc_t each : descs) {
      if (each != nullptr) api_.dnnl_memory_desc_destroy(each);
    }
    return made;
  }

  bool make_desc(dnnl_memory_desc_t& desc, int64_t rows, int64_t columns, dnnl_data_type_t type,
                 int64_t row_stride, int64_t column_stride) const {
    const dnnl_dims_t dims = {rows, columns};
    const dnnl_dims_t strides = {row_stride, column_stride};
    return ok(api_.dnnl_memory_desc_create_with_strides(&desc, 2, dims, type, strides));
  }

  bool make_memory(Product& product, dnnl_primitive_desc_t desc, dnnl_memory_desc_t (&descs)[3]) {
    const const_dnnl_memory_desc_t scratch =
        api_.dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
    const const_dnnl_memory_desc_t all[kNumArgs] = {descs[0], descs[1], descs[2], scratch};
    for (int i = 0; i < kNumArgs; ++i) {
      if (!ok(api_.dnnl_memory_create(&product.memory[i], all[i], engine_, DNNL_MEMORY_NONE))) {
        return false;
      }
    }
    return reserve_scratch(api_.dnnl_memory_desc_get_size(scratch));
  }

  bool reserve_scratch(size_t bytes) {
    if (bytes <= scratch_bytes_) return true;
    std::free(scratch_);
    constexpr size_t kAlign = 4096;
    const size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
    scratch_ = std::aligned_alloc(kAlign, rounded);
    scratch_bytes_ = scratch_ == nullptr ? 0 : rounded;
    return scratch_ != nullptr;
  }

  void destroy(Product& product) {
    for (dnnl_memory_t memory : product.memory) {
      if (memory != nullptr) api_.dnnl_memory_destroy(memory);
    }
    if (product.primitive != nullptr) api_.dnnl_primitive_destroy(product.primitive);
  }

  void forget_products() {
    for (Product& product : products_) destroy(product);
    products_.clear();
  }

  void* handle_;
  Api api_;
  int32_t threads_;
  int32_t team_size_ = 0;  // that products_ are made for
  dnnl_engine_t engine_ = nullptr;
  dnnl_stream_t stream_ = nullptr;
  dnnl_primitive_attr_t attr_ = nullptr;
  std::list<Product> products_;  // the last one used first
  void* scratch_ = nullptr;      // one for all: they run one after the other
  size_t scratch_bytes_ = 0;
};

}  // namespace

std::unique_ptr<OneDnn> OneDnn::open(const std::string& path, int32_t threads, std::string& why) {
  std::vector<std::string> names = {path};
  if (path.empty()) names = {TOKENSPARSE_ONEDNN_LIBRARY, "libdnnl.so.3"};
  void* handle = nullptr;
  for (const std::string& name : names) {
    handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle != nullptr) break;
    const char* error = ::dlerror();
    if (why.empty()) why = std::string("oneDNN cannot be loaded: ") + (error ? error : name);
  }
  if (handle == nullptr) return nullptr;
  why.clear();
  Api api;
  std::string missing;
  if (!api.load(handle, missing)) {
    why = "oneDNN cannot be used: it has no " + missing;
  } else if (const dnnl_version_t* version = api.dnnl_version();
             version->major != 3 || version->cpu_runtime != DNNL_RUNTIME_OMP) {
    why = "oneDNN cannot be used: it must be a version 3 that runs on OpenMP, got version " +
          std::to_string(version->major) + "." + std::to_string(version->minor);
  }
  if (!why.empty()) {
    ::dlclose(handle);
    return nullptr;
  }
  auto library = std::make_unique<Library>(handle, api, threads);
  if (library->start()) return library;
  why = "oneDNN cannot be used: it has no engine for this processor";
  return nullptr;
}

}  // namespace tsp::ggml_adapter
