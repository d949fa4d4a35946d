// SPDX-License-Identifier: MIT
/// \file context.h
/// Where operations run: backend, instruction set, threads, stream.
#ifndef TOKENSPARSE_CONTEXT_H_
#define TOKENSPARSE_CONTEXT_H_

#include "tokensparse/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tsp_backend {
  TSP_BACKEND_CPU = 0,   ///< vectorised, multi-threaded
  TSP_BACKEND_REF = 1,   ///< the specification: scalar, double accumulation, slow
  TSP_BACKEND_CUDA = 2,  ///< an NVIDIA GPU; TSP_UNAVAILABLE where the build or the machine has none
} tsp_backend_t;

/// Runs `fn(arg, i)` once for every i < num_threads, in any order, on any threads, and returns when
/// all have returned. Calls may overlap or follow one another: no op waits for another index.
typedef void (*tsp_parallel_fn)(void* user, int32_t num_threads, void (*fn)(void* arg, int32_t i),
                                void* arg);

typedef struct tsp_context_options {
  uint32_t struct_size;
  int32_t backend;      ///< tsp_backend_t
  int32_t num_threads;  ///< CPU: 0 = as many as this process may keep busy (affinity, CPU quota)
  int32_t device;       ///< CUDA: device ordinal
  const char* isa;      ///< CPU: "scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16", "neon";
                        ///< null = TOKENSPARSE_ISA from the environment, else the best there is. A
                        ///< path that the machine lacks is TSP_UNAVAILABLE, never another path.
  ///< CUDA: "sm_90", "sm_90+cudnn", "sm_80" (what runs everywhere); null = the
  ///< best
  void* stream;  ///< CUDA: cudaStream_t that every op is enqueued on; null = default stream
  tsp_parallel_fn parallel;  ///< CPU: the caller's thread pool; null = the context's own
  void* parallel_user;       ///< passed to `parallel`
} tsp_context_options_t;

/// A context serves one call at a time; different contexts are independent.
typedef struct tsp_context tsp_context_t;

TSP_API void tsp_context_options_init(tsp_context_options_t* options, uint32_t struct_size);
/// Creates a context. On failure *ctx is null and tsp_last_error() says why.
TSP_API tsp_status_t tsp_context_create(const tsp_context_options_t* options, tsp_context_t** ctx);
/// Null is allowed. Waits for the context's threads, not for its stream.
TSP_API void tsp_context_destroy(tsp_context_t* ctx);
/// Changes the number of threads (CPU) for the calls that follow. Where the system refuses so many,
/// TSP_OUT_OF_MEMORY, and the number stays what it was.
TSP_API tsp_status_t tsp_context_set_threads(tsp_context_t* ctx, int32_t num_threads);
/// Changes the stream (CUDA) for the calls that follow.
TSP_API tsp_status_t tsp_context_set_stream(tsp_context_t* ctx, void* stream);

TSP_API const char* tsp_context_backend(const tsp_context_t* ctx);  ///< "cpu", "ref", "cuda"
TSP_API const char* tsp_context_isa(const tsp_context_t* ctx);      ///< "avx512", "sm_90", "double"
TSP_API int32_t tsp_context_threads(const tsp_context_t* ctx);

/// The CPU paths this machine can run, best last, separated by spaces.
TSP_API const char* tsp_cpu_isas(void);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // TOKENSPARSE_CONTEXT_H_
