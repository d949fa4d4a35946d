// SPDX-License-Identifier: MIT
#include "dispatch/pattern.h"

#include "dispatch/checks.h"
#include "tokensparse/estimate.h"

namespace tsp {
namespace {

constexpr int32_t kMany = 1 << 30;

tsp_status_t check_share(const char* name, float value, bool zero) {
  if ((zero ? value >= 0 : value > 0) && value <= 1) return TSP_OK;
  return fail(TSP_INVALID_ARGUMENT, "%s: must be in %s0, 1], got %g", name, zero ? "[" : "(",
              static_cast<double>(value));
}

tsp_status_t check_threshold(const tsp_pattern_t& p, int32_t num_sets) {
  if (p.thresholds == nullptr) return check_share("pattern.threshold", p.threshold, false);
  for (int32_t s = 0; s < num_sets; ++s) {
    TSP_RETURN_IF_ERROR(check_share("pattern.thresholds", p.thresholds[s], false));
  }
  return TSP_OK;
}

tsp_status_t check_xattention(const tsp_pattern_t& p, int32_t num_sets) {
  TSP_RETURN_IF_ERROR(check_range("pattern.stride", p.stride, 2, 64));
  if (p.block % p.stride != 0) {
    return fail(TSP_INVALID_ARGUMENT, "pattern.stride: must divide pattern.block (%d), got %d",
                p.block, p.stride);
  }
  return check_threshold(p, num_sets);
}

tsp_status_t check_flexprefill(const tsp_pattern_t& p) {
  TSP_RETURN_IF_ERROR(check_share("pattern.gamma", p.gamma, false));
  TSP_RETURN_IF_ERROR(check_share("pattern.tau", p.tau, true));
  return check_range("pattern.min_budget", p.min_budget, 0, kMany);
}

tsp_status_t check_minference(const tsp_pattern_t& p) {
  TSP_RETURN_IF_ERROR(check_range("pattern.vertical", p.vertical, 1, kMany));
  return check_range("pattern.slash", p.slash, 1, kMany);
}

}  // namespace

tsp_status_t check_pattern(const tsp_pattern_t& p, int32_t num_sets) {
  TSP_RETURN_IF_ERROR(
      check_range("pattern.kind", p.kind, TSP_PATTERN_XATTENTION, TSP_PATTERN_FLASH));
  TSP_RETURN_IF_ERROR(check_range("pattern.share", p.share, TSP_SHARE_HEAD, TSP_SHARE_LAYER));
  TSP_RETURN_IF_ERROR(check_range("pattern.block", p.block, 16, 512));
  if (p.block % 16 != 0) {
    return fail(TSP_INVALID_ARGUMENT, "pattern.block: must be a multiple of 16, got %d", p.block);
  }
  TSP_RETURN_IF_ERROR(check_range("pattern.sink_blocks", p.sink_blocks, 0, kMany));
  TSP_RETURN_IF_ERROR(check_range("pattern.local_blocks", p.local_blocks, 0, kMany));
  TSP_RETURN_IF_ERROR(check_range("pattern.last_blocks", p.last_blocks, 0, kMany));
  switch (p.kind) {
    case TSP_PATTERN_XATTENTION:
      return check_xattention(p, num_sets);
    case TSP_PATTERN_FLEXPREFILL:
      return check_flexprefill(p);
    case TSP_PATTERN_MINFERENCE:
      return check_minference(p);
    case TSP_PATTERN_POOLED:
      return check_threshold(p, num_sets);
    default:
      return check_share("pattern.alpha", p.alpha, true);
  }
}

}  // namespace tsp

extern "C" void tsp_pattern_init(tsp_pattern_t* pattern, int32_t kind) {
  tsp_pattern_t p{};
  p.kind = kind;
  p.block = 128;
  p.stride = 16;
  p.threshold = 0.9f;
  p.gamma = 0.95f;
  p.tau = 0.1f;
  p.alpha = 0.1f;
  p.min_budget = 1024;
  p.vertical = 1000;
  p.slash = 6096;
  if (kind == TSP_PATTERN_XATTENTION) p.sink_blocks = 1;
  if (kind == TSP_PATTERN_FLASH) {
    p.sink_blocks = 2;
    p.local_blocks = 3;
    p.last_blocks = 2;
  }
  *pattern = p;
}
