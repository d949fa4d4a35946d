// SPDX-License-Identifier: MIT
// `tokensparse apply`: the operator on q, k and v of a safetensors file.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "cli/options.h"
#include "cli/safetensors.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

struct ApplyOptions {
  std::string in;
  std::string out;
  tsp_prefill_params_t params;
  BackendOptions backend;
  bool json = false;
};

struct Input {
  TensorInfo info;
  std::vector<std::byte> bytes;
  tsp_tensor_t view{};
};

std::optional<tsp_dtype_t> operator_dtype(const std::string& name) {
  if (name == "F32") return TSP_F32;
  if (name == "F16") return TSP_F16;
  if (name == "BF16") return TSP_BF16;
  return std::nullopt;
}

tsp_tensor_t contiguous(void* data, tsp_dtype_t dtype, const std::vector<int64_t>& shape) {
  tsp_tensor_t view{};
  view.data = data;
  view.dtype = dtype;
  view.tokens = shape[0];
  view.heads = shape[1];
  view.dim = shape[2];
  view.token_stride = shape[1] * shape[2];
  view.head_stride = shape[2];
  view.dim_stride = 1;
  return view;
}

/// Index of the first NaN or infinity: all exponent bits set.
template <typename Bits>
std::optional<size_t> first_nonfinite(const std::vector<std::byte>& bytes, Bits exponent) {
  const auto* const values = reinterpret_cast<const Bits*>(bytes.data());
  for (size_t i = 0; i < bytes.size() / sizeof(Bits); ++i) {
    if ((values[i] & exponent) == exponent) return i;
  }
  return std::nullopt;
}

void check_finite(const std::string& what, const Input& input) {
  const std::optional<size_t> at =
      input.view.dtype == TSP_F32   ? first_nonfinite<uint32_t>(input.bytes, 0x7f800000u)
      : input.view.dtype == TSP_F16 ? first_nonfinite<uint16_t>(input.bytes, 0x7c00u)
                                    : first_nonfinite<uint16_t>(input.bytes, 0x7f80u);
  if (!at) return;
  const auto index = static_cast<int64_t>(*at);
  const auto& shape = input.info.shape;
  throw Failure(
      what + " must be finite, but is NaN or infinity at " +
      shape_text({index / (shape[1] * shape[2]), index / shape[2] % shape[1], index % shape[2]}));
}

Input load(SafetensorsReader& file, const std::string& path, const std::string& name) {
  Input input;
  input.info = file.find(name);
  const std::string what = path + ": tensor \"" + name + "\"";
  const auto dtype = operator_dtype(input.info.dtype);
  if (!dtype) throw Failure(what + " must be F32, F16 or BF16, got " + input.info.dtype);
  const auto& shape = input.info.shape;
  if (shape.size() != 3 || shape[0] < 1 || shape[1] < 1 || shape[2] < 1) {
    throw Failure(what + " must be [tokens, heads, dim], each at least 1, got " +
                  shape_text(shape));
  }
  input.bytes = file.read(input.info);
  input.view = contiguous(input.bytes.data(), *dtype, shape);
  check_finite(what, input);
  return input;
}

struct AlignedFree {
  void operator()(void* memory) const { std::free(memory); }
};
using Workspace = std::unique_ptr<void, AlignedFree>;

Workspace allocate_workspace(size_t bytes) {
  Workspace memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  if (bytes != 0 && !memory) throw std::bad_alloc();
  return memory;
}

/// What a run of the operator left behind, ready to be written.
struct Result {
  std::vector<std::byte> out;
  std::vector<int32_t> indices;  // [num_sets, kept]
  int32_t num_sets;
  int32_t kept;
  double seconds;
};

Result run_operator(tsp_context_t* ctx, tsp_prefill_params_t params, const Input& q, const Input& k,
                    const Input& v, const std::string& path) {
  Result result;
  result.out.resize(q.bytes.size());
  const int64_t tokens = k.view.tokens;
  result.num_sets = static_cast<int32_t>(params.share == TSP_SHARE_HEAD       ? q.view.heads
                                         : params.share == TSP_SHARE_KV_GROUP ? k.view.heads
                                                                              : 1);
  params.q = q.view;
  params.k = k.view;
  params.v = v.view;
  params.out = contiguous(result.out.data(), static_cast<tsp_dtype_t>(q.view.dtype), q.info.shape);
  params.selected.num_sets = result.num_sets;
  params.selected.set_stride = tokens;
  params.selected.seq_stride = tokens * result.num_sets;
  const auto check_input = [&path](tsp_status_t status) {
    if (status != TSP_OK) throw Failure(path + ": " + tsp_last_error());
  };
  check_input(tsp_prefill_workspace(ctx, &params, &params.workspace_bytes));

  std::vector<int32_t> lists(static_cast<size_t>(tokens * result.num_sets));
  params.selected.indices = lists.data();
  params.selected.kept = &result.kept;
  check_input(tsp_prefill_workspace(ctx, &params, &params.workspace_bytes));
  const Workspace workspace = allocate_workspace(params.workspace_bytes);
  params.workspace = workspace.get();
  const auto start = std::chrono::steady_clock::now();
  check_input(tsp_prefill(ctx, &params));
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  for (int32_t set = 0; set < result.num_sets; ++set) {
    const auto begin = lists.begin() + set * tokens;
    result.indices.insert(result.indices.end(), begin, begin + result.kept);
  }
  return result;
}

void print_statistics(const ApplyOptions& options, const tsp_context_t* ctx, const Input& q,
                      const Input& k, const Result& result) {
  const double kept_share = static_cast<double>(result.kept) / static_cast<double>(k.view.tokens);
  if (options.json) {
    const nlohmann::json statistics = {{"out", options.out},
                                       {"q", q.info.shape},
                                       {"k", k.info.shape},
                                       {"dtype", q.info.dtype},
                                       {"num_sets", result.num_sets},
                                       {"kept", result.kept},
                                       {"kept_share", kept_share},
                                       {"seconds", result.seconds},
                                       {"backend", tsp_context_backend(ctx)},
                                       {"isa", tsp_context_isa(ctx)},
                                       {"threads", tsp_context_threads(ctx)}};
    std::printf("%s\n", statistics.dump(2).c_str());
    return;
  }
  std::printf("q %s, k and v %s, %s\n", shape_text(q.info.shape).c_str(),
              shape_text(k.info.shape).c_str(), q.info.dtype.c_str());
  std::printf("kept     %d of %lld tokens (%.1f %%) in each of %d sets\n", result.kept,
              static_cast<long long>(k.view.tokens), 100 * kept_share, result.num_sets);
  std::printf("time     %.3f s on %s (%s), %d threads\n", result.seconds, tsp_context_backend(ctx),
              tsp_context_isa(ctx), tsp_context_threads(ctx));
  std::printf("written  %s\n", options.out.c_str());
}

void apply(const ApplyOptions& options) {
  const Context ctx = open_context(options.backend);
  SafetensorsReader file(options.in);
  const Input q = load(file, options.in, "q");
  const Input k = load(file, options.in, "k");
  const Input v = load(file, options.in, "v");
  const Result result = run_operator(ctx.get(), options.params, q, k, v, options.in);
  write_safetensors(options.out,
                    {{"out", q.info.dtype, q.info.shape, result.out.data()},
                     {"indices", "I32", {result.num_sets, result.kept}, result.indices.data()}});
  print_statistics(options, ctx.get(), q, k, result);
}

constexpr const char* kFooter =
    "The file holds q [Tq, Hq, D], k and v [Tk, Hkv, D], each F32, F16 or BF16; Tq <= Tk: the\n"
    "queries are the last Tq tokens. Written are out [Tq, Hq, D] in the dtype of q, and indices\n"
    "[S, n] as I32: the tokens that each of the S sets kept, ascending.\n"
    "\n"
    "Examples:\n"
    "  tokensparse apply qkv.safetensors --out o.safetensors\n"
    "  tokensparse apply qkv.safetensors --out exact.safetensors --coverage 0\n"
    "  tokensparse apply qkv.safetensors --out o.safetensors --keep 0.5 --share kv_group --json";

}  // namespace

void add_apply(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("apply", "The operator on q, k and v of a .safetensors file");
  const auto options = std::make_shared<ApplyOptions>();
  tsp_prefill_params_init(&options->params, sizeof options->params);
  verb->add_option("IN", options->in, "Where q, k and v are")->required()->type_name("");
  verb->add_option("--out", options->out, "Where to write out and indices")
      ->required()
      ->type_name("FILE");
  add_operator_options(*verb, options->params);
  add_backend_options(*verb, options->backend);
  verb->add_flag("--json", options->json, "Print the statistics as JSON, and nothing else");
  verb->footer(kFooter);
  verb->callback([options] { apply(*options); });
}

}  // namespace tsp::cli
