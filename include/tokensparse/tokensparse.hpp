// SPDX-License-Identifier: MIT
/// \file tokensparse.hpp
/// C++20 on top of the C ABI, header only: contexts that clean up, statuses with their sentence,
/// params with their defaults, workspace that grows by itself. Shapes and meaning of each op stand
/// in its C header.
#ifndef TOKENSPARSE_TOKENSPARSE_HPP_
#define TOKENSPARSE_TOKENSPARSE_HPP_

#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "tokensparse/tokensparse.h"

namespace tokensparse {

/// What a call came to: a code, and one sentence when it is not TSP_OK.
class [[nodiscard]] Status {
 public:
  Status() = default;
  explicit Status(tsp_status_t code)
      : code_(code), message_(code == TSP_OK ? "" : tsp_last_error()) {}
  bool ok() const { return code_ == TSP_OK; }
  tsp_status_t code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  tsp_status_t code_ = TSP_OK;
  std::string message_;
};

/// A view of `[tokens, heads, dim]`, token-major and dense unless the strides are changed after.
inline tsp_tensor_t view(void* data, tsp_dtype_t dtype, int64_t tokens, int64_t heads,
                         int64_t dim) {
  return tsp_tensor_view(data, dtype, tokens, heads, dim);
}
inline tsp_tensor_t view(float* data, int64_t tokens, int64_t heads, int64_t dim) {
  return view(data, TSP_F32, tokens, heads, dim);
}
/// Inputs are not written through their view.
inline tsp_tensor_t view(const float* data, int64_t tokens, int64_t heads, int64_t dim) {
  return view(const_cast<float*>(data), tokens, heads, dim);
}
/// The same data laid out `[heads, tokens, dim]`.
inline tsp_tensor_t head_major(tsp_tensor_t v) {
  v.token_stride = v.dim;
  v.head_stride = v.tokens * v.dim;
  return v;
}

/// A method with the parameters its authors publish.
inline tsp_pattern_t pattern(tsp_pattern_kind_t kind) {
  tsp_pattern_t p;
  tsp_pattern_init(&p, kind);
  return p;
}

struct ContextOptions : tsp_context_options_t {
  ContextOptions() { tsp_context_options_init(this, sizeof(tsp_context_options_t)); }
};
struct ScoreParams : tsp_score_params_t {
  ScoreParams() { tsp_score_params_init(this, sizeof(tsp_score_params_t)); }
};
struct SelectParams : tsp_select_params_t {
  SelectParams() { tsp_select_params_init(this, sizeof(tsp_select_params_t)); }
};
struct CompressParams : tsp_compress_params_t {
  CompressParams() { tsp_compress_params_init(this, sizeof(tsp_compress_params_t)); }
};
struct AttendParams : tsp_attend_params_t {
  AttendParams() { tsp_attend_params_init(this, sizeof(tsp_attend_params_t)); }
};
struct DecompressParams : tsp_decompress_params_t {
  DecompressParams() { tsp_decompress_params_init(this, sizeof(tsp_decompress_params_t)); }
};
struct EstimateParams : tsp_estimate_params_t {
  EstimateParams() { tsp_estimate_params_init(this, sizeof(tsp_estimate_params_t)); }
};
struct PrefillParams : tsp_prefill_params_t {
  PrefillParams() { tsp_prefill_params_init(this, sizeof(tsp_prefill_params_t)); }
};

/// Owns a tsp_context and the host workspace of the calls that bring none. Serves one call at a
/// time.
class Context {
 public:
  static Status create(const ContextOptions& options, Context* out) {
    tsp_context_t* ctx = nullptr;
    Status status(tsp_context_create(&options, &ctx));
    out->ctx_.reset(ctx);
    return status;
  }
  tsp_context_t* get() const { return ctx_.get(); }
  std::string backend() const { return tsp_context_backend(get()); }
  std::string isa() const { return tsp_context_isa(get()); }
  int32_t threads() const { return tsp_context_threads(get()); }

  /// 64-byte aligned host memory of at least `bytes`, kept until a larger one is asked for; null
  /// when there is none.
  void* workspace(size_t bytes) {
    if (bytes > workspace_bytes_) {
      workspace_.reset();
      workspace_bytes_ = 0;
      workspace_.reset(::operator new (bytes, std::align_val_t{64}, std::nothrow));
      if (workspace_ != nullptr) workspace_bytes_ = bytes;
    }
    return workspace_.get();
  }

 private:
  struct Destroy {
    void operator()(tsp_context_t* ctx) const { tsp_context_destroy(ctx); }
  };
  struct Free {
    void operator()(void* memory) const { ::operator delete (memory, std::align_val_t{64}); }
  };
  std::unique_ptr<tsp_context_t, Destroy> ctx_;
  std::unique_ptr<void, Free> workspace_;
  size_t workspace_bytes_ = 0;
};

namespace detail {

/// Asks for the size of the workspace where the caller brought none, then runs the op. A GPU's
/// workspace is device memory and always the caller's.
template <typename Params, typename Query, typename Op>
Status run(Context& ctx, Params params, Query query, Op op) {
  if (params.workspace == nullptr) {
    size_t bytes = 0;
    if (Status status(query(ctx.get(), &params, &bytes)); !status.ok()) return status;
    params.workspace = ctx.workspace(bytes);
    params.workspace_bytes = params.workspace == nullptr ? 0 : bytes;
  }
  return Status(op(ctx.get(), &params));
}

}  // namespace detail

inline Status score(Context& ctx, const ScoreParams& p) {
  return detail::run(ctx, p, tsp_score_workspace, tsp_score);
}
inline Status select(Context& ctx, const SelectParams& p) {
  return detail::run(ctx, p, tsp_select_workspace, tsp_select);
}
inline Status estimate(Context& ctx, const EstimateParams& p) {
  return detail::run(ctx, p, tsp_estimate_workspace, tsp_estimate);
}
inline Status compress(Context& ctx, const CompressParams& p) {
  return Status(tsp_compress(ctx.get(), &p));
}
inline Status attend(Context& ctx, const AttendParams& p) {
  return detail::run(ctx, p, tsp_attend_workspace, tsp_attend);
}
inline Status decompress(Context& ctx, const DecompressParams& p) {
  return Status(tsp_decompress(ctx.get(), &p));
}
inline Status prefill(Context& ctx, const PrefillParams& p) {
  return detail::run(ctx, p, tsp_prefill_workspace, tsp_prefill);
}

}  // namespace tokensparse
#endif  // TOKENSPARSE_TOKENSPARSE_HPP_
