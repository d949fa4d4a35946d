// SPDX-License-Identifier: MIT
// The CPU backend: one op table, and per instruction set the kernels behind it.
#include <string>
#include <string_view>

#include "core/cpu_features.h"
#include "core/error.h"
#include "cpu/ops.h"
#include "cpu/prefill_cost.h"

namespace tsp {
namespace cpu {
namespace {

struct Isa {
  const char* name;
  bool (*usable)();
  const Kernels* f32;
  const Kernels* bf16;  // null: no bf16 arithmetic
  const Costs& f32_costs;
  const Costs& bf16_costs;
};

// AVX-512 with and without bf16: measured at D 64 and 128 on AMD EPYC Zen 5, 2026-11-27. AVX2 (the
// same machine) and AMX (an Intel Xeon, 2026-11-25): dense's time a pair is measured, packing and
// choosing are carried over. Scalar and NEON are guesses. Only ratios within a line count.
constexpr Costs kScalarCosts = {0.25, 2.0, 1.0, 2.0};
constexpr Costs kAvx2Costs = {0.034, 0.15, 0.27, 1.4};
constexpr Costs kAvx512Costs = {0.015, 0.17, 0.27, 1.4};
constexpr Costs kAvx512Bf16Costs = {0.0074, 0.155, 0.27, 1.4};
constexpr Costs kAmxCosts = {0.0094, 0.27, 0.4, 2.8};

/// Best last.
constexpr Isa kIsas[] = {
    {"scalar", [] { return true; }, &kernels_scalar, nullptr, kScalarCosts, kScalarCosts},
#ifdef TSP_EMULATE_AMX
    {"amx_emulated", has_avx512_bf16, &kernels_avx512, &kernels_amx_emulated, kAvx512Costs,
     kAmxCosts},
#endif
#ifdef TSP_CPU_X86
    {"avx2", has_avx2, &kernels_avx2, nullptr, kAvx2Costs, kAvx2Costs},
    {"avx512", has_avx512, &kernels_avx512, nullptr, kAvx512Costs, kAvx512Costs},
    {"avx512_bf16", has_avx512_bf16, &kernels_avx512, &kernels_avx512_bf16, kAvx512Costs,
     kAvx512Bf16Costs},
    {"amx_bf16", has_amx_bf16, &kernels_avx512, &kernels_amx_bf16, kAvx512Costs, kAmxCosts},
#endif
#ifdef TSP_CPU_ARM64
    {"neon", [] { return true; }, &kernels_neon, nullptr, kAvx2Costs, kAvx2Costs},
#endif
};

const Isa* find(std::string_view name) {
  for (const Isa& isa : kIsas) {
    if (name == isa.name && isa.usable()) return &isa;
  }
  return nullptr;
}

bool pays(const tsp_context_t& ctx, const tsp_prefill_params_t& p, const Seq& seq, int32_t kept,
          bool chosen) {
  const Isa* const isa = find(ctx.isa);
  return prefill_pays(p.precision == TSP_PRECISION_BF16 ? isa->bf16_costs : isa->f32_costs, p, seq,
                      kept, chosen);
}

constexpr OpTable kTable = {
    .backend = "cpu",
    .score = score,
    .select = select,
    .compress = compress,
    .attend = attend,
    .decompress = decompress,
    .estimate = estimate,
    .prefill = nullptr,  // composed by dispatch
    .score_workspace = score_workspace,
    .select_workspace = select_workspace,
    .attend_workspace = attend_workspace,
    .estimate_workspace = estimate_workspace,
    .prefill_workspace = nullptr,
    .check_score = [](const tsp_context_t& ctx,
                      const tsp_score_params_t& p) { return check_arithmetic(ctx, p.precision); },
    .check_attend = [](const tsp_context_t& ctx,
                       const tsp_attend_params_t& p) { return check_arithmetic(ctx, p.precision); },
    .check_estimate =
        [](const tsp_context_t& ctx, const tsp_estimate_params_t& p) {
          return check_arithmetic(ctx, p.precision);
        },
    .check_prefill = nullptr,
    .prefill_pays = pays,
    .pattern_pays = [](const tsp_context_t&, const tsp_prefill_params_t& p, const Seq& seq,
                       int32_t kept, double listed) { return pattern_pays(p, seq, kept, listed); },
    .may_pay = nullptr,
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
