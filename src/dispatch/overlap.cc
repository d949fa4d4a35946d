// SPDX-License-Identifier: MIT
#include "dispatch/overlap.h"

#include <algorithm>
#include <cinttypes>
#include <iterator>
#include <limits>

#include "core/dtype.h"
#include "core/error.h"

namespace tsp {
namespace {

constexpr uint64_t kEverything = std::numeric_limits<uint64_t>::max();

/// Bytes from the first to the last element, but for axes of stride `without`. Saturates.
uint64_t extent(const tsp_tensor_t& v, int64_t without) {
  const int64_t counts[] = {v.tokens, v.heads, v.dim};
  const int64_t strides[] = {v.token_stride, v.head_stride, v.dim_stride};
  const auto element = static_cast<uint64_t>(dtype_bytes(v.dtype));
  uint64_t bytes = element;
  for (int i = 0; i < 3; ++i) {
    if (strides[i] == without && counts[i] > 1) continue;
    uint64_t axis;
    if (__builtin_mul_overflow(static_cast<uint64_t>(counts[i] - 1) * element,
                               static_cast<uint64_t>(strides[i]), &axis) ||
        __builtin_add_overflow(bytes, axis, &bytes)) {
      return kEverything;
    }
  }
  return bytes;
}

int64_t largest_stride(const tsp_tensor_t& v) {
  int64_t largest = 0;
  if (v.tokens > 1) largest = std::max(largest, v.token_stride);
  if (v.heads > 1) largest = std::max(largest, v.head_stride);
  if (v.dim > 1) largest = std::max(largest, v.dim_stride);
  return largest;
}

/// False only where no element can be shared.
bool may_overlap(const tsp_tensor_t& a, const tsp_tensor_t& b) {
  const auto a_begin = reinterpret_cast<uintptr_t>(a.data);
  const auto b_begin = reinterpret_cast<uintptr_t>(b.data);
  const bool a_first = a_begin <= b_begin;
  const uint64_t distance = a_first ? b_begin - a_begin : a_begin - b_begin;
  if (distance >= extent(a_first ? a : b, -1)) return false;
  // Parts of one tensor: what each repeats at the same stride, seen within one such step.
  const int64_t a_bytes = dtype_bytes(a.dtype), b_bytes = dtype_bytes(b.dtype);
  const int64_t a_step = largest_stride(a), b_step = largest_stride(b);
  const auto step = static_cast<uint64_t>(std::max(a_step * a_bytes, b_step * b_bytes));
  if (step == 0) return true;
  const uint64_t a_inner = extent(a, static_cast<uint64_t>(a_step * a_bytes) == step ? a_step : -1);
  const uint64_t b_inner = extent(b, static_cast<uint64_t>(b_step * b_bytes) == step ? b_step : -1);
  const uint64_t from_a = (a_first ? distance : step - distance % step) % step;
  return from_a < a_inner || b_inner > step - from_a;
}

/// An axis steps over all that the axes of smaller strides reach.
bool is_nested(const tsp_tensor_t& v) {
  struct Axis {
    int64_t stride, count;
  } axes[] = {{v.token_stride, v.tokens}, {v.head_stride, v.heads}, {v.dim_stride, v.dim}};
  std::sort(std::begin(axes), std::end(axes),
            [](const Axis& a, const Axis& b) { return a.stride < b.stride; });
  int64_t reach = 0;  // the last element so far
  for (const Axis& axis : axes) {
    if (axis.count <= 1) continue;
    if (axis.stride <= reach) return false;
    int64_t steps;
    if (__builtin_mul_overflow(axis.count - 1, axis.stride, &steps) ||
        __builtin_add_overflow(reach, steps, &reach)) {
      return true;  // no memory is so large
    }
  }
  return true;
}

tsp_status_t check_pair(const Region& out, const Region& other) {
  for (const tsp_tensor_t* v : {&out.view, &other.view}) {
    if (v->data == nullptr || v->block_table != nullptr || v->tokens == 0) return TSP_OK;
  }
  if (!may_overlap(out.view, other.view)) return TSP_OK;
  return fail(TSP_INVALID_ARGUMENT, "%s: must not overlap %s, got memory at %p and %p", out.name,
              other.name, out.view.data, other.view.data);
}

}  // namespace

Region lists_region(const char* name, const tsp_index_sets_t& sets, const tsp_batch_t& batch) {
  tsp_tensor_t v{};
  v.data = sets.indices;
  v.tokens = batch.num_seqs;
  v.heads = sets.num_sets;
  v.dim = longest_k(batch);
  v.token_stride = sets.seq_stride;
  v.head_stride = sets.set_stride;
  v.dim_stride = 1;
  return {name, v};
}

Region counts_region(const char* name, const tsp_index_sets_t& sets, const tsp_batch_t& batch) {
  tsp_tensor_t v{};
  v.data = sets.kept;
  v.tokens = batch.num_seqs;
  v.heads = v.dim = v.token_stride = 1;
  return {name, v};
}

tsp_status_t check_apart(std::initializer_list<Region> outputs,
                         std::initializer_list<Region> inputs) {
  for (const Region* out = outputs.begin(); out != outputs.end(); ++out) {
    if (out->view.data != nullptr && out->view.tokens > 0 && !is_nested(out->view)) {
      return fail(TSP_INVALID_ARGUMENT,
                  "%s: its elements must not overlap each other, got strides %" PRId64 ", %" PRId64
                  ", %" PRId64,
                  out->name, out->view.token_stride, out->view.head_stride, out->view.dim_stride);
    }
    for (const Region* other = out + 1; other != outputs.end(); ++other) {
      TSP_RETURN_IF_ERROR(check_pair(*out, *other));
    }
    for (const Region& in : inputs) TSP_RETURN_IF_ERROR(check_pair(*out, in));
  }
  return TSP_OK;
}

}  // namespace tsp
