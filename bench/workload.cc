// SPDX-License-Identifier: MIT
#include "bench/workload.h"

#include <cmath>
#include <cstring>

#include "core/dtype.h"

namespace tsp::bench {
namespace {

/// splitmix64: the state is a counter, so any stream can start anywhere.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Close to normal, mean 0, variance 1: the sum of four 16-bit uniforms.
float normal(uint64_t stream, uint64_t index) {
  const uint64_t bits = mix(stream * 0x2545f4914f6cdd1du + index);
  const auto sum = static_cast<float>((bits & 0xffff) + (bits >> 16 & 0xffff) +
                                      (bits >> 32 & 0xffff) + (bits >> 48));
  return (sum / 65536.0f - 2.0f) * 1.7320508f;
}

enum Stream : uint64_t { kQ = 1, kK, kV, kDirection, kWeight };

constexpr float kQueryPull = 5.0f;  // how much of the shared direction a query has
constexpr float kSinkWeight = 3.5f;

/// How strongly key `token` answers: exp of a normal, so few tokens hold most of the mass.
float key_weight(int64_t token, int64_t head) {
  if (token == 0) return kSinkWeight;
  const auto index = static_cast<uint64_t>(token * 1024 + head);
  return std::fmin(std::exp(0.8f * normal(kWeight, index)) - 1.0f, kSinkWeight);
}

template <typename Value>
void fill(const tsp_tensor_t& view, Value value) {
  for (int64_t token = 0; token < view.tokens; ++token) {
    for (int64_t head = 0; head < view.heads; ++head) {
      const int64_t row = token * view.token_stride + head * view.head_stride;
      for (int64_t d = 0; d < view.dim; ++d) {
        store_from_f32(view.data, view.dtype, row + d, value(token, head, d, row + d));
      }
    }
  }
}

}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  memory_.reset(std::aligned_alloc(64, (bytes + 64) / 64 * 64));
  if (!memory_) throw std::bad_alloc();
  std::memset(memory_.get(), 0, bytes);  // touched, so that no sample pays for the page faults
}

tsp_tensor_t token_major(const Buffer& buffer, tsp_dtype_t dtype, int64_t tokens, int64_t heads,
                         int64_t dim) {
  return tsp_tensor_view(buffer.data(), dtype, tokens, heads, dim);
}

Workload::Workload(const Shape& s) : shape(s) {
  const auto allocate = [&](Buffer& memory, tsp_dtype_t dtype, int64_t tokens, int64_t heads) {
    memory = Buffer(static_cast<size_t>(tokens * heads * s.dim * dtype_bytes(dtype)));
    return token_major(memory, dtype, tokens, heads, s.dim);
  };
  q = allocate(q_memory, s.q_dtype, s.q_tokens, s.heads);
  out = allocate(out_memory, s.q_dtype, s.q_tokens, s.heads);
  k = allocate(k_memory, s.kv_dtype, s.tokens, s.kv_heads);
  v = allocate(v_memory, s.kv_dtype, s.tokens, s.kv_heads);

  const int64_t group = s.heads / s.kv_heads;
  const float unit = std::sqrt(static_cast<float>(s.dim)) / static_cast<float>(s.dim);
  const auto direction = [&](int64_t kv_head, int64_t d) {
    return normal(kDirection, static_cast<uint64_t>(kv_head * s.dim + d));
  };
  const int64_t first_query = (s.tokens - s.q_tokens) * s.heads * s.dim;
  fill(q, [&](int64_t, int64_t head, int64_t d, int64_t at) {
    return normal(kQ, static_cast<uint64_t>(first_query + at)) +
           kQueryPull * unit * direction(head / group, d);
  });
  fill(k, [&](int64_t token, int64_t head, int64_t d, int64_t at) {
    return 0.5f * normal(kK, static_cast<uint64_t>(at)) +
           key_weight(token, head) * direction(head, d) * 0.5f;
  });
  fill(v, [&](int64_t, int64_t, int64_t, int64_t at) {
    return normal(kV, static_cast<uint64_t>(at));
  });
}

}  // namespace tsp::bench
