// SPDX-License-Identifier: MIT
// The CPU backend: one op table, and per instruction set the kernels behind it.
#include <string>
#include <string_view>

#include "core/cpu_features.h"
#include "core/error.h"
#include "cpu/ops.h"

namespace tsp {
namespace cpu {
namespace {

struct Isa {
  const char* name;
  bool (*usable)();
  const Kernels* f32;
  const Kernels* bf16;  // null: no bf16 arithmetic
};

/// Best last.
constexpr Isa kIsas[] = {
    {"scalar", [] { return true; }, &kernels_scalar, nullptr},
#ifdef TSP_EMULATE_AMX
    {"amx_emulated", has_avx512_bf16, &kernels_avx512, &kernels_amx_emulated},
#endif
#ifdef TSP_CPU_X86
    {"avx2", has_avx2, &kernels_avx2, nullptr},
    {"avx512", has_avx512, &kernels_avx512, nullptr},
    {"avx512_bf16", has_avx512_bf16, &kernels_avx512, &kernels_avx512_bf16},
    {"amx_bf16", has_amx_bf16, &kernels_avx512, &kernels_amx_bf16},
#endif
#ifdef TSP_CPU_ARM64
    {"neon", [] { return true; }, &kernels_neon, nullptr},
#endif
};

const Isa* find(std::string_view name) {
  for (const Isa& isa : kIsas) {
    if (name == isa.name && isa.usable()) return &isa;
  }
  return nullptr;
}

/// Shorter sequences attend in less time than choosing takes.
constexpr int32_t kMinPayingKeys = 4096;

bool prefill_pays(const tsp_context_t&, const tsp_prefill_params_t&, const Seq& seq, int32_t) {
  return seq.k_len >= kMinPayingKeys;
}

constexpr OpTable kTable = {
    .backend = "cpu",
    .score = score,
    .select = select,
    .compress = compress,
    .attend = attend,
    .decompress = decompress,
    .prefill = nullptr,  // composed by dispatch
    .score_workspace = score_workspace,
    .select_workspace = select_workspace,
    .attend_workspace = attend_workspace,
    .prefill_workspace = nullptr,
    .check_score = [](const tsp_context_t& ctx,
                      const tsp_score_params_t& p) { return check_arithmetic(ctx, p.precision); },
    .check_attend = [](const tsp_context_t& ctx,
                       const tsp_attend_params_t& p) { return check_arithmetic(ctx, p.precision); },
    .check_prefill = nullptr,
    .prefill_pays = prefill_pays,
};

}  // namespace

const Kernels* kernels_for(const tsp_context_t& ctx, int32_t precision) {
  const Isa* const isa = find(ctx.isa);
  return precision == TSP_PRECISION_BF16 ? isa->bf16 : isa->f32;
}

tsp_status_t check_arithmetic(const tsp_context_t& ctx, int32_t precision) {
  if (kernels_for(ctx, precision) != nullptr) return TSP_OK;
  return fail(TSP_UNSUPPORTED,
              "precision: bf16 needs isa avx512_bf16 or amx_bf16, but this context runs %s",
              ctx.isa.c_str());
}

}  // namespace cpu

const OpTable* cpu_ops(const char* isa) {
  return cpu::find(isa) == nullptr ? nullptr : &cpu::kTable;
}

/// Instruction sets this machine can run, best last, separated by spaces.
const char* cpu_isas() {
  static const std::string names = [] {
    std::string list;
    for (const cpu::Isa& isa : cpu::kIsas) {
      if (!isa.usable()) continue;
      if (!list.empty()) list += ' ';
      list += isa.name;
    }
    return list;
  }();
  return names.c_str();
}

}  // namespace tsp
