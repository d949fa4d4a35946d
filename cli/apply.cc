// SPDX-License-Identifier: MIT
// `tokensparse apply`: the operator on q, k and v of a safetensors file.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/device_memory.h"
#include "cli/options.h"
#include "cli/output_file.h"
#include "cli/safetensors.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

struct ApplyOptions {
  std::string in;
  std::string out;
  tokensparse::PrefillParams params;
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

tsp_tensor_t view_of(std::vector<std::byte>& bytes, tsp_dtype_t dtype,
                     const std::vector<int64_t>& shape) {
  return tokensparse::view(bytes.data(), dtype, shape[0], shape[1], shape[2]);
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
  input.view = view_of(input.bytes, *dtype, shape);
  check_finite(what, input);
  return input;
}

/// What a run of the operator left behind, ready to be written.
struct Result {
  std::vector<std::byte> out;
  std::vector<int32_t> indices;  // [num_sets, kept]
  int32_t num_sets;
  int32_t kept;
  int64_t tally[2] = {};  // kept tokens, and the pairs of all heads
  double seconds;
};

Result run_operator(tokensparse::Context& context, tokensparse::PrefillParams params, Input& q,
                    Input& k, Input& v, const std::string& path) {
  Result result;
  result.out.resize(q.bytes.size());
  params.q = q.view;
  params.k = k.view;
  params.v = v.view;
  params.out = view_of(result.out, static_cast<tsp_dtype_t>(q.view.dtype), q.info.shape);
  // Shapes first: the lists below are sized by numbers that are not yet trusted.
  size_t bytes;
  check(tokensparse::Status(tsp_prefill_workspace(context.get(), &params, &bytes)), path + ": ");

  const int64_t tokens = k.view.tokens;
  const int64_t sets[] = {q.view.heads, k.view.heads, 1};  // by tsp_share_t
  result.num_sets = static_cast<int32_t>(sets[params.share]);
  std::vector<int32_t> lists(static_cast<size_t>(tokens * result.num_sets));
  const bool on_gpu = context.backend() == "cuda";
  DeviceMemory q_memory(on_gpu, q.bytes.data(), q.bytes.size());
  DeviceMemory k_memory(on_gpu, k.bytes.data(), k.bytes.size());
  DeviceMemory v_memory(on_gpu, v.bytes.data(), v.bytes.size());
  DeviceMemory out(on_gpu, result.out.data(), result.out.size());
  DeviceMemory indices(on_gpu, lists.data(), lists.size() * sizeof(int32_t));
  DeviceMemory kept(on_gpu, &result.kept, sizeof(int32_t));
  DeviceMemory workspace(on_gpu, nullptr, bytes);
  for (DeviceMemory* input : {&q_memory, &k_memory, &v_memory}) input->upload();
  params.q.data = q_memory.data();
  params.k.data = k_memory.data();
  params.v.data = v_memory.data();
  params.out.data = out.data();
  params.selected.num_sets = result.num_sets;
  params.selected.set_stride = tokens;
  params.selected.indices = static_cast<int32_t*>(indices.data());
  params.selected.kept = static_cast<int32_t*>(kept.data());
  params.workspace = workspace.data();
  params.workspace_bytes = bytes;
  // A GPU counts there, and no blocks.
  if (!on_gpu) params.tally = result.tally;
  const auto start = std::chrono::steady_clock::now();
  check(tokensparse::Status(tsp_prefill(context.get(), &params)), path + ": ");
  synchronise(on_gpu);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (DeviceMemory* output : {&out, &indices, &kept}) output->download();

  for (int32_t set = 0; set < result.num_sets; ++set) {
    const auto begin = lists.begin() + set * tokens;
    result.indices.insert(result.indices.end(), begin, begin + result.kept);
  }
  return result;
}

void print_statistics(const ApplyOptions& options, const tokensparse::Context& context,
                      const Input& q, const Input& k, const Result& result) {
  const double kept_share = static_cast<double>(result.kept) / static_cast<double>(k.view.tokens);
  const double rows = static_cast<double>(q.view.tokens);
  const double dense = static_cast<double>(q.view.heads) * rows *
                       (static_cast<double>(k.view.tokens) - (rows - 1) / 2);
  const auto pairs = static_cast<double>(result.tally[1]);
  const bool counted = context.backend() != "cuda";
  if (options.json) {
    nlohmann::json statistics = {
        {"out", options.out},       {"q", q.info.shape},           {"k", k.info.shape},
        {"dtype", q.info.dtype},    {"num_sets", result.num_sets}, {"kept", result.kept},
        {"kept_share", kept_share}, {"seconds", result.seconds},   {"backend", context.backend()},
        {"isa", context.isa()},     {"threads", context.threads()}};
    if (counted) statistics["pairs_share"] = pairs / dense;
    std::printf("%s\n", statistics.dump(2).c_str());
    return;
  }
  std::printf("q %s, k and v %s, %s\n", shape_text(q.info.shape).c_str(),
              shape_text(k.info.shape).c_str(), q.info.dtype.c_str());
  std::printf("kept     %d of %lld tokens (%.1f %%) in each of %d sets\n", result.kept,
              static_cast<long long>(k.view.tokens), 100 * kept_share, result.num_sets);
  if (counted) {
    std::printf("pairs    %.1f %% of those of dense attention\n", 100 * pairs / dense);
  }
  std::printf("time     %.2f ms on %s (%s), %d threads\n", 1e3 * result.seconds,
              context.backend().c_str(), context.isa().c_str(), context.threads());
  std::printf("written  %s\n", options.out.c_str());
}

void apply(const ApplyOptions& options) {
  tokensparse::Context context = open_context(options.backend);
  SafetensorsReader file(options.in);
  { const OutputFile writable(options.out, {options.in}); }  // says so before the work, not after
  Input q = load(file, options.in, "q");
  Input k = load(file, options.in, "k");
  Input v = load(file, options.in, "v");
  const Result result = run_operator(context, options.params, q, k, v, options.in);
  write_safetensors(options.out,
                    {{"out", q.info.dtype, q.info.shape, result.out.data()},
                     {"indices", "I32", {result.num_sets, result.kept}, result.indices.data()}},
                    {options.in});
  print_statistics(options, context, q, k, result);
}

constexpr const char* kFooter =
    "The file holds q [Tq, Hq, D], k and v [Tk, Hkv, D], each F32, F16 or BF16; Tq <= Tk: the\n"
    "queries are the last Tq tokens. Written are out [Tq, Hq, D] in the dtype of q, and indices\n"
    "[S, n] as I32: the tokens that each of the S sets kept, ascending.\n"
    "\n"
    "Examples:\n"
    "  tokensparse apply qkv.safetensors --out o.safetensors\n"
    "  tokensparse apply qkv.safetensors --out exact.safetensors --coverage 0\n"
    "  tokensparse apply qkv.safetensors --out o.safetensors --keep 0.5 --share kv_group --json\n"
    "  tokensparse apply qkv.safetensors --out o.safetensors --blocks xattention,threshold=0.8";

}  // namespace

void add_apply(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("apply", "The operator on q, k and v of a .safetensors file");
  const auto options = std::make_shared<ApplyOptions>();
  verb->add_option("IN", options->in, "Where q, k and v are")->required()->type_name("");
  verb->add_option("--out", options->out, "Where to write out and indices")
      ->required()
      ->type_name("FILE");
  add_operator_options(*verb, options->params);
  add_blocks_option(*verb, options->params.pattern);
  add_backend_options(*verb, options->backend, true);
  verb->add_flag("--json", options->json, "Print the statistics as JSON, and nothing else");
  verb->footer(kFooter);
  verb->callback([options] { apply(*options); });
}

}  // namespace tsp::cli
