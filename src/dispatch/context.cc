// SPDX-License-Identifier: MIT
#include <cstdlib>
#include <new>
#include <system_error>

#include "core/usable_cores.h"
#include "dispatch/checks.h"

namespace tsp {

const char* cpu_isas();

namespace {

constexpr int32_t kMaxThreads = 1024;

tsp_status_t fail_threads(int32_t num_threads, const std::exception& reason) {
  return fail(TSP_OUT_OF_MEMORY, "num_threads: could not start %d threads: %s", num_threads,
              reason.what());
}

tsp_status_t open_cpu(tsp_context_t& ctx, const char* isa) {
  if (isa == nullptr || *isa == '\0') isa = std::getenv("TOKENSPARSE_ISA");
  std::string wanted = isa == nullptr ? "" : isa;
  if (wanted.empty()) {
    const std::string all = cpu_isas();
    wanted = all.substr(all.rfind(' ') + 1);
  }
  ctx.ops = cpu_ops(wanted.c_str());
  if (ctx.ops == nullptr) {
    return fail(TSP_UNAVAILABLE, "isa: must be one this machine has (%s), got \"%s\"", cpu_isas(),
                wanted.c_str());
  }
  ctx.isa = wanted;
  return TSP_OK;
}

tsp_status_t open(tsp_context_t& ctx, const tsp_context_options_t& options) {
  TSP_RETURN_IF_ERROR(check_range("backend", options.backend, TSP_BACKEND_CPU, TSP_BACKEND_CUDA));
  TSP_RETURN_IF_ERROR(check_range("num_threads", options.num_threads, 0, kMaxThreads));
  ctx.backend = options.backend;
  if (ctx.backend == TSP_BACKEND_CUDA) {
    ctx.device = options.device;
    ctx.stream = options.stream;
    if (options.isa != nullptr) ctx.isa = options.isa;
#ifdef TSP_WITH_CUDA
    return cuda_open(ctx);
#else
    return fail(TSP_UNAVAILABLE, "backend: cuda is not part of this build of tokensparse %s",
                tsp_version());
#endif
  }
  const int32_t num_threads =
      options.num_threads == 0 ? std::min(usable_cores(), kMaxThreads) : options.num_threads;
  try {
    ctx.threads =
        std::make_unique<ThreadPool>(num_threads, options.parallel, options.parallel_user);
  } catch (const std::system_error& e) {
    return fail_threads(num_threads, e);
  }
  if (ctx.backend == TSP_BACKEND_CPU) return open_cpu(ctx, options.isa);
  ctx.ops = ref_ops();
  ctx.isa = "double";
  return TSP_OK;
}

}  // namespace
}  // namespace tsp

extern "C" {

void tsp_context_options_init(tsp_context_options_t* options, uint32_t struct_size) {
  tsp::init_params(options, struct_size, tsp_context_options_t{});
}

tsp_status_t tsp_context_create(const tsp_context_options_t* options, tsp_context_t** ctx) {
  if (ctx == nullptr) return tsp::fail(TSP_INVALID_ARGUMENT, "ctx: must not be null");
  *ctx = nullptr;
  tsp_context_options_t o;
  if (options == nullptr) {
    tsp_context_options_init(&o, sizeof o);
  } else {
    TSP_RETURN_IF_ERROR(tsp::read_params(options, &o));
  }
  try {
    auto created = std::make_unique<tsp_context>();
    TSP_RETURN_IF_ERROR(tsp::open(*created, o));
    *ctx = created.release();
    return TSP_OK;
  } catch (const std::bad_alloc&) {
    return tsp::fail(TSP_OUT_OF_MEMORY, "context: out of memory");
  } catch (const std::exception& e) {
    return tsp::fail(TSP_INTERNAL, "context: %s", e.what());
  }
}

void tsp_context_destroy(tsp_context_t* ctx) { delete ctx; }

tsp_status_t tsp_context_set_threads(tsp_context_t* ctx, int32_t num_threads) {
  TSP_RETURN_IF_ERROR(tsp::check_context(ctx));
  TSP_RETURN_IF_ERROR(tsp::check_range("num_threads", num_threads, 1, tsp::kMaxThreads));
  try {
    if (ctx->threads != nullptr) ctx->threads->resize(num_threads);
    return TSP_OK;
  } catch (const std::exception& e) {
    return tsp::fail_threads(num_threads, e);
  }
}

tsp_status_t tsp_context_set_stream(tsp_context_t* ctx, void* stream) {
  TSP_RETURN_IF_ERROR(tsp::check_context(ctx));
  ctx->stream = stream;
  return TSP_OK;
}

const char* tsp_context_backend(const tsp_context_t* ctx) { return ctx->ops->backend; }
const char* tsp_context_isa(const tsp_context_t* ctx) { return ctx->isa.c_str(); }
int32_t tsp_context_threads(const tsp_context_t* ctx) {
  return ctx->threads == nullptr ? 1 : ctx->threads->size();
}
const char* tsp_cpu_isas(void) { return tsp::cpu_isas(); }
}
