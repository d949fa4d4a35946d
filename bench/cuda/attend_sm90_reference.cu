// SPDX-License-Identifier: MIT
// Attention by plain loops in f32, random inputs, and the comparison, all on the device.
#include <algorithm>
#include <cmath>
#include <vector>

#include "attend_sm90_bench.h"
#include "cuda/ptx.cuh"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

__device__ float value_of(uint16_t bits, bool bf16) {
  return bf16 ? to_float<Bf16>(bits) : to_float<F16>(bits);
}
__device__ uint16_t bits_of(float value, bool bf16) {
  return static_cast<uint16_t>(bf16 ? pack<Bf16>(value, 0.f) : pack<F16>(value, 0.f));
}

__device__ uint32_t hashed(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

__global__ void normal_kernel(uint16_t* data, int64_t count, uint32_t seed, float sigma,
                              bool bf16) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint32_t a = hashed(static_cast<uint32_t>(i) * 2 + seed);
    const uint32_t b = hashed(a ^ static_cast<uint32_t>(i >> 32) ^ 0x9e3779b9u);
    const float u = (static_cast<float>(a >> 8) + 1.f) / 16777217.f;
    const float v = static_cast<float>(b >> 8) / 16777216.f;
    data[i] = bits_of(sigma * sqrtf(-2.f * logf(u)) * cospif(2.f * v), bf16);
  }
}

__global__ void bits_kernel(uint16_t* data, int64_t count, uint16_t bits) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    data[i] = bits;
  }
}

__device__ bool sees(const AttendSm90Params& p, int32_t head, int32_t row, int32_t key) {
  if (p.blocks.blocks == nullptr) return true;
  const int32_t tile = row / 128;
  const int32_t count = p.blocks.count(head, tile);
  const int32_t* list = p.blocks.of_tile(head, tile);
  for (int32_t i = 0; i < count; ++i) {
    if (list[i] == key / 128) return true;
  }
  return false;
}

/// Grid (num_rows, heads of the launch), 8 warps; a warp takes every eighth key, a lane D / 32
/// channels.
__global__ void reference_kernel(ReferenceArgs args) {
  const AttendSm90Params& p = args.p;
  __shared__ float s_max[8], s_sum[8], s_out[8][128];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int32_t local = static_cast<int32_t>(blockIdx.y);
  const int32_t head = p.head_begin + local;
  const int32_t set = head / p.sets.heads_per_set;
  const int32_t* list = list_of(p.sets, set);
  const int32_t n = num_kept(p.sets, p.k_len);
  const int32_t q_first = p.q_first == nullptr ? p.k_len - p.q_len : p.q_first[set];
  const int32_t row = args.rows[blockIdx.x];
  const int32_t entry = q_first + row;
  const int32_t unit = local / p.heads_per_unit;
  const int per_lane = p.head_dim / 32;
  float* out = args.out + (int64_t{blockIdx.x} * p.num_heads + local) * p.head_dim;
  float* lse = args.lse + int64_t{blockIdx.x} * p.num_heads + local;
  if (entry >= n) {
    for (int c = static_cast<int>(threadIdx.x); c < p.head_dim; c += 256) out[c] = NAN;
    if (threadIdx.x == 0) *lse = NAN;
    return;
  }
  float q[4];
  for (int c = 0; c < per_lane; ++c) {
    const uint16_t* from = p.q.row(position_of(list, entry) - (p.k_len - p.q_len), head);
    q[c] = value_of(from[lane * per_lane + c], p.bf16);
  }
  const auto score = [&](int32_t key) {
    const uint16_t* from = p.k.row(key, unit);
    float dot = 0.f;
    for (int c = 0; c < per_lane; ++c) {
      dot += q[c] * value_of(from[lane * per_lane + c], p.bf16);
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) dot += __shfl_xor_sync(~0u, dot, lanes);
    return dot * p.scale_log2;
  };
  float max = -INFINITY, sum = 0.f, o[4] = {};
  for (int32_t key = warp; key <= entry; key += 8) {
    if (sees(p, head, row, key)) max = fmaxf(max, score(key));
  }
  s_max[warp] = max;
  __syncthreads();
  for (int i = 0; i < 8; ++i) max = fmaxf(max, s_max[i]);
  for (int32_t key = warp; key <= entry; key += 8) {
    if (!sees(p, head, row, key)) continue;
    const float weight = exp2f(score(key) - max);
    sum += weight;
    const float used = args.round_weights ? value_of(bits_of(weight, p.bf16), p.bf16) : weight;
    const uint16_t* from = p.v.row(key, unit);
    for (int c = 0; c < per_lane; ++c) o[c] += used * value_of(from[lane * per_lane + c], p.bf16);
  }
  for (int c = 0; c < per_lane; ++c) s_out[warp][lane * per_lane + c] = o[c];
  s_sum[warp] = sum;
  __syncthreads();
  sum = 0.f;
  for (int i = 0; i < 8; ++i) sum += s_sum[i];
  for (int c = static_cast<int>(threadIdx.x); c < p.head_dim; c += 256) {
    float total = 0.f;
    for (int i = 0; i < 8; ++i) total += s_out[i][c];
    total = sum == 0.f ? 0.f : total / sum;
    out[c] = args.round_weights ? value_of(bits_of(total, p.bf16), p.bf16) : total;
  }
  if (threadIdx.x == 0) *lse = sum == 0.f ? -INFINITY : (max + log2f(sum)) * 0.69314718f;
}

float host_value(uint16_t bits, bool bf16) {
  if (bf16) {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    __builtin_memcpy(&value, &word, 4);
    return value;
  }
  const int exponent = bits >> 10 & 31;
  const float mantissa = static_cast<float>(bits & 1023);
  float value =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024.f, exponent - 25);
  if (exponent == 31) value = NAN;
  return (bits & 0x8000) != 0 ? -value : value;
}

template <typename T>
std::vector<T> to_host(const T* device, size_t count) {
  std::vector<T> host(count);
  must(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost), "copy");
  return host;
}

}  // namespace

void fill_normal(uint16_t* data, int64_t count, uint32_t seed, float sigma, bool bf16) {
  normal_kernel<<<1024, 256>>>(data, count, seed, sigma, bf16);
  must(cudaGetLastError(), "fill");
}
void fill_bits(uint16_t* data, int64_t count, uint16_t bits) {
  bits_kernel<<<1024, 256>>>(data, count, bits);
  must(cudaGetLastError(), "fill");
}

void run_reference(const ReferenceArgs& args) {
  if (args.num_rows == 0) return;
  const dim3 grid(static_cast<unsigned>(args.num_rows), static_cast<unsigned>(args.p.num_heads));
  reference_kernel<<<grid, 256>>>(args);
  must(cudaDeviceSynchronize(), "reference");
}

Difference compare(const ReferenceArgs& args, const uint16_t* got, const float* got_lse) {
  const AttendSm90Params& p = args.p;
  const auto heads = static_cast<size_t>(p.num_heads), dims = static_cast<size_t>(p.head_dim);
  const auto rows = to_host(args.rows, static_cast<size_t>(args.num_rows));
  const auto want = to_host(args.out, rows.size() * heads * dims);
  const auto want_lse = to_host(args.lse, rows.size() * heads);
  const auto own =
      to_host(got, static_cast<size_t>(p.q_len) * static_cast<size_t>(p.out.token_stride));
  const auto own_lse =
      to_host(got_lse, static_cast<size_t>(p.q_len) * static_cast<size_t>(p.lse.token_stride));
  int32_t n = p.k_len;
  if (p.sets.kept != nullptr) n = to_host(p.sets.kept, 1)[0];
  Difference d{};
  double square = 0, reference = 0;
  std::vector<uint8_t> touched(static_cast<size_t>(p.q_len) * heads);
  for (size_t h = 0; h < heads; ++h) {
    const int32_t head = p.head_begin + static_cast<int32_t>(h);
    const int32_t set = head / p.sets.heads_per_set;
    std::vector<int32_t> list;
    if (p.sets.indices != nullptr) list = to_host(p.sets.of_set(set), static_cast<size_t>(n));
    const int32_t q_first =
        p.q_first == nullptr ? p.k_len - p.q_len : to_host(p.q_first + set, 1)[0];
    for (int32_t e = q_first; e < n; ++e) {
      const int32_t token = (list.empty() ? e : list[static_cast<size_t>(e)]) - (p.k_len - p.q_len);
      touched[static_cast<size_t>(token) * heads + h] = 1;
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      const int32_t entry = q_first + rows[r];
      if (entry >= n) continue;
      const int32_t token =
          (list.empty() ? entry : list[static_cast<size_t>(entry)]) - (p.k_len - p.q_len);
      const auto* row = own.data() + token * p.out.token_stride + head * p.out.head_stride;
      for (size_t c = 0; c < dims; ++c) {
        const double a = host_value(row[c], p.bf16), b = want[(r * heads + h) * dims + c];
        if (!std::isfinite(a)) {
          ++d.missing;
          continue;
        }
        square += (a - b) * (a - b);
        reference += b * b;
        d.largest = std::max(d.largest, std::abs(a - b));
      }
      const double a =
          own_lse[static_cast<size_t>(token * p.lse.token_stride + head * p.lse.head_stride)];
      const double b = want_lse[r * heads + h];
      if (std::isinf(b) && a == b) continue;
      if (!std::isfinite(a)) ++d.missing;
      d.lse = std::max(d.lse, std::abs(a - b));
    }
  }
  for (int32_t t = 0; t < p.q_len; ++t) {
    for (size_t h = 0; h < heads; ++h) {
      if (touched[static_cast<size_t>(t) * heads + h] != 0) continue;
      const int32_t head = p.head_begin + static_cast<int32_t>(h);
      const auto* row = own.data() + t * p.out.token_stride + head * p.out.head_stride;
      for (size_t c = 0; c < dims; ++c) d.strayed += row[c] != 0xffff;
    }
  }
  d.norm = reference > 0 ? std::sqrt(square / reference) : 0;
  return d;
}

}  // namespace tsp::cuda
