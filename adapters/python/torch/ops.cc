// SPDX-License-Identifier: MIT
/// \file ops.cc
/// The operations as torch operators over torch's stable ABI: one library for every torch from 2.10
/// on. Fake implementations are added from Python.
#include <algorithm>
#include <array>
#include <string>

#include "adapters/ggml/block_choice.h"
#include "arguments.h"

namespace tsp_torch {
namespace {

constexpr std::initializer_list<const char*> kShares = {"head", "kv_group", "layer"};
constexpr std::initializer_list<const char*> kDropped = {"zero", "local"};
constexpr std::initializer_list<const char*> kPrecisions = {"f32", "bf16"};

Value give(Tensor tensor) { return reinterpret_cast<Value>(tensor.release()); }

void prefill(Value* stack, uint64_t count, uint64_t /*results*/) {
  Arguments in(stack, count);
  tokensparse::PrefillParams p;
  const Tensor& q = in.tensor();
  const Tensor& k = in.tensor();
  const Tensor& v = in.tensor();
  const Device device = device_of(q);
  p.coverage = static_cast<float>(in.real());
  p.keep = static_cast<float>(in.real());
  p.window = int32(in.integer(), "window");
  p.pool = int32(in.integer(), "pool");
  p.min_tokens = int32(in.integer(), "min_tokens");
  p.share = in.choice("share", kShares);
  p.dropped = in.choice("dropped", kDropped);
  p.sink = int32(in.integer(), "sink");
  p.band = int32(in.integer(), "band");
  p.precision = in.choice("precision", kPrecisions);
  p.scale = static_cast<float>(in.real());
  const std::string broken = tsp::ggml_adapter::parse_blocks(in.text(), p.pattern);
  if (!broken.empty()) fail("blocks: " + broken);
  p.q = view(q, "q", device);
  p.k = view(k, "k", device);
  p.v = view(v, "v", device);
  Tensor out = empty({p.q.tokens, p.q.heads, p.q.dim}, torch_dtype(p.q.dtype), device);
  p.out = view(out, "out", device);
  Lease(device).run(p, tsp_prefill_workspace, tsp_prefill);
  stack[0] = give(std::move(out));
}

/// Dense attention, or attention on sets.
template <bool kSets>
void attend(Value* stack, uint64_t count, uint64_t /*results*/) {
  Arguments in(stack, count);
  tokensparse::AttendParams p;
  const Tensor& q = in.tensor();
  const Tensor& k = in.tensor();
  const Tensor& v = in.tensor();
  const Device device = device_of(q);
  if constexpr (kSets) {
    const Tensor& indices = in.tensor();
    const Tensor& kept = in.tensor();
    p.dropped = in.choice("dropped", kDropped);
    p.sink = int32(in.integer(), "sink");
    p.band = int32(in.integer(), "band");
    p.selected = sets(indices, kept, device);
  }
  p.precision = in.choice("precision", kPrecisions);
  p.scale = static_cast<float>(in.real());
  p.q = view(q, "q", device);
  p.k = view(k, "k", device);
  p.v = view(v, "v", device);
  Tensor out = empty({p.q.tokens, p.q.heads, p.q.dim}, torch_dtype(p.q.dtype), device);
  Tensor lse = empty({p.q.tokens, p.q.heads}, g_shim.f32, device);
  p.out = view(out, "out", device);
  p.lse = view(lse, "lse", device, 2);
  Lease(device).run(p, tsp_attend_workspace, tsp_attend);
  stack[0] = give(std::move(out));
  stack[1] = give(std::move(lse));
}

void score(Value* stack, uint64_t count, uint64_t /*results*/) {
  Arguments in(stack, count);
  tokensparse::ScoreParams p;
  const Tensor& q = in.tensor();
  const Tensor& k = in.tensor();
  const Device device = device_of(q);
  p.window = int32(in.integer(), "window");
  p.pool = int32(in.integer(), "pool");
  p.scale = static_cast<float>(in.real());
  p.precision = in.choice("precision", kPrecisions);
  p.q = view(q, "q", device);
  p.k = view(k, "k", device);
  const int64_t rows = p.k.tokens - std::min<int64_t>(p.window, p.q.tokens);
  Tensor scores = empty({std::max<int64_t>(rows, 0), p.q.heads}, g_shim.f32, device);
  p.scores = view(scores, "scores", device, 2);
  Lease(device).run(p, tsp_score_workspace, tsp_score);
  stack[0] = give(std::move(scores));
}

void select(Value* stack, uint64_t count, uint64_t /*results*/) {
  Arguments in(stack, count);
  tokensparse::SelectParams p;
  const Tensor& scores = in.tensor();
  const Device device = device_of(scores);
  p.q_len = int32(in.integer(), "q_len");
  p.k_len = int32(in.integer(), "k_len");
  p.num_kv_heads = int32(in.integer(), "num_kv_heads");
  p.coverage = static_cast<float>(in.real());
  p.keep = static_cast<float>(in.real());
  p.window = int32(in.integer(), "window");
  p.min_tokens = int32(in.integer(), "min_tokens");
  p.share = in.choice("share", kShares);
  p.scores = view(scores, "scores", device, 2);
  const std::array<int64_t, 3> num_sets = {p.scores.heads, p.num_kv_heads, 1};
  const int64_t longest = std::max(p.k_len, 1);
  Tensor indices =
      empty({1, num_sets[static_cast<size_t>(p.share)], longest}, g_shim.int32, device);
  Tensor kept = empty({1}, g_shim.int32, device);
  // A result is a function of the arguments: nothing undefined behind the sets.
  check(g_shim.zero(indices.get()), "zeros");
  p.selected = sets(indices, kept, device);
  Lease(device).run(p, tsp_select_workspace, tsp_select);
  stack[0] = give(std::move(indices));
  stack[1] = give(std::move(kept));
}

struct Operator {
  const char* name;
  const char* schema;
  Kernel kernel;
};
constexpr std::array<Operator, 5> kOperators = {{
    {"prefill",
     "prefill(Tensor q, Tensor k, Tensor v, float coverage=0.005, float keep=0.0, "
     "int window=128, int pool=7, int min_tokens=1024, str share=\"head\", str dropped=\"zero\", "
     "int sink=0, int band=256, str precision=\"f32\", float scale=0.0, "
     "str blocks=\"none\") -> Tensor",
     prefill},
    {"attend",
     "attend(Tensor q, Tensor k, Tensor v, str precision=\"f32\", float scale=0.0) "
     "-> (Tensor, Tensor)",
     attend<false>},
    {"attend_sets",
     "attend_sets(Tensor q, Tensor k, Tensor v, Tensor indices, Tensor kept, "
     "str dropped=\"zero\", int sink=0, int band=256, str precision=\"f32\", float scale=0.0) "
     "-> (Tensor, Tensor)",
     attend<true>},
    {"score",
     "score(Tensor q, Tensor k, int window=128, int pool=7, float scale=0.0, "
     "str precision=\"f32\") -> Tensor",
     score},
    {"select",
     "select(Tensor scores, int q_len, int k_len, int num_kv_heads, float coverage=0.005, "
     "float keep=0.0, int window=128, int min_tokens=1024, str share=\"head\") "
     "-> (Tensor, Tensor)",
     select},
}};

}  // namespace
}  // namespace tsp_torch

extern "C" {

/// Registers the operators with the torch that `libtorch` (a dlopen handle) is. Returns null, or
/// what is missing. `backend` and `threads` of calls on the CPU: see HostOptions.
TSP_API const char* tsp_torch_register(void* libtorch, int32_t backend, int32_t threads) {
  using namespace tsp_torch;
  if (const char* missing = find_shim(libtorch, &g_shim)) return missing;
  g_host = {backend, threads};
  // The handles stay: torch drops an operator with its library.
  LibraryHandle definitions = nullptr;
  if (g_shim.library_def("tokensparse", __FILE__, __LINE__, &definitions)) return "a new library";
  for (const Operator& op : kOperators) {
    if (g_shim.define(definitions, op.schema)) return op.name;
  }
  for (const char* key : {"CPU", "CUDA"}) {
    LibraryHandle kernels = nullptr;
    if (g_shim.library_impl_for("tokensparse", key, __FILE__, __LINE__, &kernels)) return key;
    for (const Operator& op : kOperators) {
      if (g_shim.implement(kernels, op.name, op.kernel, kTorchVersion)) return op.name;
    }
  }
  return nullptr;
}

/// tsp_parallel_fn for contexts that other code creates. Only after tsp_torch_register().
TSP_API void tsp_torch_parallel(void* user, int32_t num_threads, void (*fn)(void* arg, int32_t i),
                                void* arg) {
  tsp_torch::on_torchs_threads(user, num_threads, fn, arg);
}

}  // extern "C"
