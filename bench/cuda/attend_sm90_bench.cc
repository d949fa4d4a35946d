// SPDX-License-Identifier: MIT
// Checks the warpgroup attention kernel against plain f32 loops and times it, on any Hopper GPU.
// Built by the preset `cuda`.
//
// usage: attend_sm90_bench [check] [small] [time] [JSON]     check and time without arguments;
// small: short cases alone, once each, for compute-sanitizer
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "attend_sm90_bench.h"

namespace tsp::cuda {
namespace {

template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) {
    must(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<size_t>(count, 1) * sizeof(T)),
         "cudaMalloc");
  }
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) {
    must(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }
  ~Buffer() { (void)cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  size_t size() const { return count_; }

 private:
  T* data_ = nullptr;
  size_t count_;
};

struct Case {
  std::string name;
  int32_t q_len, k_len, heads, kv_heads, head_dim;
  bool bf16;
  int32_t kept;           // of each set; 0 with sets = 0: no lists
  int32_t sets;           // 0: every token
  int32_t block_percent;  // of the key blocks, with their diagonal ones; 0: no block lists
  float sigma;
};

uint32_t next_random(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

/// Device memory of a case, and the parameters over it.
struct Problem {
  explicit Problem(const Case& c)
      : k_rows((c.sets > 0 ? c.kept : c.k_len) + (c.sets > 0 ? 300 : 0)),
        units(c.sets == c.heads ? c.heads : c.kv_heads),
        q(static_cast<size_t>(c.q_len) * static_cast<size_t>(c.heads * c.head_dim)),
        out(q.size()),
        k(static_cast<size_t>(k_rows) * static_cast<size_t>(units * c.head_dim)),
        v(k.size()),
        lse(static_cast<size_t>(c.q_len) * static_cast<size_t>(c.heads)),
        tickets(2) {
    fill_normal(q.get(), static_cast<int64_t>(q.size()), 1, c.sigma, c.bf16);
    fill_normal(k.get(), static_cast<int64_t>(k.size()), 2, c.sigma, c.bf16);
    fill_normal(v.get(), static_cast<int64_t>(v.size()), 3, 1.f, c.bf16);
    must(cudaMemset(tickets.get(), 0, 8), "cudaMemset");
    const bool compact = c.sets > 0;
    // Compact copies are [unit, row, D], tensors [token, head, D].
    Rows kv;
    kv.token_stride = compact ? c.head_dim : int64_t{units} * c.head_dim;
    kv.head_stride = compact ? int64_t{k_rows} * c.head_dim : c.head_dim;
    p.k = p.v = kv;
    p.k.data = k.get();
    p.v.data = v.get();
    p.q.data = q.get();
    p.q.token_stride = int64_t{c.heads} * c.head_dim;
    p.q.head_stride = c.head_dim;
    p.out = p.q;
    p.out.data = out.get();
    p.lse = {lse.get(), c.heads, 1};
    p.tickets = tickets.get();
    p.q_len = c.q_len;
    p.k_len = c.k_len;
    p.k_rows = k_rows;
    p.num_heads = c.heads;
    p.heads_per_unit = c.heads / units;
    p.scale_log2 = 1.4426950408889634f / std::sqrt(static_cast<float>(c.head_dim));
    p.head_dim = c.head_dim;
    p.bf16 = c.bf16;
    int device = 0;
    must(cudaGetDevice(&device), "cudaGetDevice");
    must(cudaDeviceGetAttribute(&p.num_sms, cudaDevAttrMultiProcessorCount, device), "SMs");
    if (compact) make_sets(c);
    if (c.block_percent > 0) make_blocks(c);
  }

  void make_sets(const Case& c) {
    uint32_t state = 7;
    std::vector<int32_t> all, first;
    for (int32_t s = 0; s < c.sets; ++s) {
      std::vector<int32_t> tokens(static_cast<size_t>(c.k_len));
      for (size_t t = 0; t < tokens.size(); ++t) tokens[t] = static_cast<int32_t>(t);
      for (size_t t = 0; t < static_cast<size_t>(c.kept); ++t) {
        std::swap(tokens[t], tokens[t + next_random(state) % (tokens.size() - t)]);
      }
      tokens.resize(static_cast<size_t>(c.kept));
      std::sort(tokens.begin(), tokens.end());
      first.push_back(static_cast<int32_t>(
          std::lower_bound(tokens.begin(), tokens.end(), c.k_len - c.q_len) - tokens.begin()));
      tokens.resize(static_cast<size_t>(c.kept) + 5, 1 << 30);  // must not be read
      all.insert(all.end(), tokens.begin(), tokens.end());
    }
    indices = std::make_unique<Buffer<int32_t>>(all);
    q_first = std::make_unique<Buffer<int32_t>>(first);
    kept = std::make_unique<Buffer<int32_t>>(std::vector<int32_t>{c.kept});
    p.sets.indices = indices->get();
    p.sets.kept = kept->get();
    p.sets.set_stride = c.kept + 5;
    p.sets.heads_per_set = c.heads / c.sets;
    p.q_first = q_first->get();
    // Behind the kept rows: NaN keys; of V zeros up to a multiple of 128, then NaN.
    for (int32_t u = 0; u < units; ++u) {
      const int64_t end = (int64_t{u} * k_rows + c.kept) * c.head_dim;
      const int64_t padded = (int64_t{u} * k_rows + (c.kept + 127) / 128 * 128) * c.head_dim;
      fill_bits(k.get() + end, 300 * c.head_dim, 0x7fff);
      fill_bits(v.get() + end, padded - end, 0);
      fill_bits(v.get() + padded, 300 * c.head_dim - (padded - end), 0x7fff);
    }
  }

  void make_blocks(const Case& c) {
    uint32_t state = 11;
    const int32_t tiles = (c.q_len + 127) / 128, stride = (c.k_len + 127) / 128 + 3;
    std::vector<int32_t> all(static_cast<size_t>(c.heads * tiles * stride), 1 << 30);
    std::vector<int32_t> count(static_cast<size_t>(c.heads * tiles));
    for (int32_t h = 0; h < c.heads; ++h) {
      for (int32_t t = 0; t < tiles; ++t) {
        const int32_t last = (std::min(c.k_len, c.k_len - c.q_len + (t + 1) * 128) - 1) / 128;
        auto* list = all.data() + (static_cast<int64_t>(h) * tiles + t) * stride;
        int32_t& n = count[static_cast<size_t>(h * tiles + t)];
        if (h == 1 && t == 1) continue;  // sees nothing
        for (int32_t b = 0; b <= last; ++b) {
          const bool diagonal = b + 1 >= last;
          if (diagonal || static_cast<int32_t>(next_random(state) % 100) < c.block_percent) {
            list[n++] = b;
          }
        }
      }
    }
    blocks = std::make_unique<Buffer<int32_t>>(all);
    counts = std::make_unique<Buffer<int32_t>>(count);
    p.blocks = {blocks->get(), counts->get(), int64_t{tiles} * stride, stride, tiles};
    for (const int32_t n : count) num_blocks += n;
  }

  void poison() {
    fill_bits(out.get(), static_cast<int64_t>(out.size()), 0xffff);
    must(cudaMemset(lse.get(), 0xff, lse.size() * 4), "cudaMemset");
  }

  AttendSm90Params p;
  int32_t k_rows;
  int32_t units;
  Buffer<uint16_t> q, out, k, v;
  Buffer<float> lse;
  Buffer<int32_t> tickets;
  std::unique_ptr<Buffer<int32_t>> indices, q_first, kept, blocks, counts;
  int64_t num_blocks = 0;
};

/// 64-bit FNV-1a over the output and the log-sum-exp.
uint64_t digest(const Problem& problem) {
  std::vector<uint16_t> out(problem.out.size());
  std::vector<uint16_t> lse(problem.lse.size() * 2);
  must(cudaMemcpy(out.data(), problem.out.get(), out.size() * 2, cudaMemcpyDeviceToHost), "copy");
  must(cudaMemcpy(lse.data(), problem.lse.get(), lse.size() * 2, cudaMemcpyDeviceToHost), "copy");
  uint64_t hash = 14695981039346656037u;
  for (const auto* part : {&out, &lse}) {
    for (const uint16_t word : *part) hash = (hash ^ word) * 1099511628211u;
  }
  return hash;
}

bool check_case(const Case& c, int repeats) {
  Problem problem(c);
  const int32_t num_rows = std::min(c.q_len, c.sets > 0 ? c.kept : c.k_len);
  std::vector<int32_t> rows;
  for (int32_t r = 0; r < num_rows; ++r) {
    if (num_rows <= 2048 || r % (num_rows / 256) == 0 || r + 3 > num_rows) rows.push_back(r);
  }
  Buffer<int32_t> device_rows(rows);
  const size_t count = rows.size() * static_cast<size_t>(c.heads);
  Buffer<float> want(count * static_cast<size_t>(c.head_dim)), want_lse(count);
  Buffer<float> plain(want.size()), plain_lse(count);
  const auto num = static_cast<int32_t>(rows.size());
  const ReferenceArgs exact{problem.p, device_rows.get(), num, false, want.get(), want_lse.get()};
  ReferenceArgs rounded{problem.p, device_rows.get(), num, true, plain.get(), plain_lse.get()};
  run_reference(exact);
  run_reference(rounded);

  uint64_t first = 0;
  bool equal = true;
  for (int i = 0; i < repeats; ++i) {
    problem.poison();
    if (launch_attend_sm90(problem.p, nullptr) != TSP_OK) {
      std::printf("FAIL %s: %s\n", c.name.c_str(), tsp_last_error());
      return false;
    }
    must(cudaDeviceSynchronize(), c.name.c_str());
    const uint64_t now = digest(problem);
    if (i == 0) first = now;
    equal = equal && now == first;
  }
  const Difference d = compare(exact, problem.out.get(), problem.lse.get());
  // The plain implementation's error, on the same rows.
  std::vector<float> a(want.size()), b(want.size());
  must(cudaMemcpy(a.data(), want.get(), a.size() * 4, cudaMemcpyDeviceToHost), "copy");
  must(cudaMemcpy(b.data(), plain.get(), b.size() * 4, cudaMemcpyDeviceToHost), "copy");
  double square = 0, reference = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) continue;
    const double difference = double{a[i]} - double{b[i]};
    square += difference * difference;
    reference += double{a[i]} * double{a[i]};
    largest = std::max(largest, std::abs(difference));
  }
  const double norm = reference > 0 ? std::sqrt(square / reference) : 0;
  const bool good = equal && d.missing == 0 && d.strayed == 0 && d.norm <= 2 * norm + 1e-7 &&
                    d.largest <= 2 * largest + 1e-5 && d.lse < 1e-3;
  std::printf(
      "%s %s: error %.2e (plain %.2e), largest %.2e (%.2e), lse %.1e, missing %lld, "
      "strayed %lld, %d runs %s\n",
      good ? "ok  " : "FAIL", c.name.c_str(), d.norm, norm, d.largest, largest, d.lse,
      static_cast<long long>(d.missing), static_cast<long long>(d.strayed), repeats,
      equal ? "equal" : "DIFFER");
  return good;
}

std::vector<Case> checks() {
  std::vector<Case> cases;
  for (const int32_t dim : {64, 128}) {
    for (const bool bf16 : {true, false}) {
      const auto add = [&](const char* name, int32_t q, int32_t k, int32_t h, int32_t kv,
                           int32_t kept, int32_t sets, int32_t percent, float sigma = 1.f) {
        cases.push_back({std::string(name) + (bf16 ? " bf16 " : " f16 ") + std::to_string(dim), q,
                         k, h, kv, dim, bf16, kept, sets, percent, sigma});
      };
      add("one token", 1, 1, 4, 2, 0, 0, 0);
      add("one tile", 128, 128, 4, 1, 0, 0, 0);
      add("odd", 1000, 1000, 8, 2, 0, 0, 0);
      add("chunk", 333, 1777, 4, 4, 0, 0, 0);
      add("one row", 1, 5000, 8, 2, 0, 0, 0);
      add("extreme", 700, 700, 4, 2, 0, 0, 0, 12.f);
      add("set a head", 1500, 1500, 4, 2, 700, 4, 0);
      add("set a group", 1500, 1500, 8, 2, 701, 2, 0);
      add("one set, chunk", 600, 1500, 8, 4, 777, 1, 0);
      add("sets differ, chunk", 300, 1500, 8, 2, 130, 8, 0);
      add("one kept", 300, 300, 4, 2, 1, 2, 0);
      add("none kept", 300, 300, 4, 2, 0, 2, 0);
      add("blocks", 2000, 2000, 4, 2, 0, 0, 30);
      add("blocks, chunk", 777, 3000, 4, 4, 0, 0, 20);
      add("long", 20000, 20000, 2, 1, 0, 0, 0);
    }
  }
  return cases;
}

struct Timing {
  Case c;
  double share;  // of the causal pairs of kept entries that were computed
  double ms, least_ms, tflops;
};

Timing time_case(const Case& c) {
  Problem problem(c);
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin), "event");
  must(cudaEventCreate(&end), "event");
  const double entries = c.sets > 0 ? c.kept : c.k_len;
  double flops = 2.0 * entries * entries * c.head_dim * c.heads;
  double share = 1;
  if (c.block_percent > 0) {
    const double all = flops;
    flops = 4.0 * 128 * 128 * c.head_dim * static_cast<double>(problem.num_blocks);
    share = flops / all;
  }
  const int rounds = std::clamp(static_cast<int>(2e13 / flops * 10), 4, 40);
  std::vector<float> times;
  for (int round = 0; round < rounds + 2; ++round) {
    must(cudaEventRecord(begin), "record");
    if (launch_attend_sm90(problem.p, nullptr) != TSP_OK) {
      std::printf("%s: %s\n", c.name.c_str(), tsp_last_error());
      std::exit(1);
    }
    must(cudaEventRecord(end), "record");
    must(cudaEventSynchronize(end), c.name.c_str());
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (round >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  const double ms = times[times.size() / 2];
  std::printf("%-34s %8.3f ms (least %8.3f) %6.1f TFLOP/s\n", c.name.c_str(), ms, times[0],
              flops / ms * 1e-9);
  std::fflush(stdout);
  return {c, share, ms, times[0], flops / ms * 1e-9};
}

std::vector<Case> timings() {
  std::vector<Case> cases;
  for (const int32_t length : {8192, 16384, 32768, 65536, 131072}) {
    cases.push_back(
        {"dense " + std::to_string(length), length, length, 32, 8, 128, true, 0, 0, 0, 1.f});
  }
  for (const int32_t length : {8192, 32768, 131072}) {
    cases.push_back({"dense " + std::to_string(length) + " D 64", length, length, 32, 8, 64, true,
                     0, 0, 0, 1.f});
  }
  cases.push_back({"dense 32768 f16", 32768, 32768, 32, 8, 128, false, 0, 0, 0, 1.f});
  for (const int32_t length : {32768, 131072}) {
    cases.push_back({"a quarter of " + std::to_string(length) + ", set a group", length, length, 32,
                     8, 128, true, length / 4, 8, 0, 1.f});
    cases.push_back({"25 % of the blocks of " + std::to_string(length), length, length, 32, 8, 128,
                     true, 0, 0, 25, 1.f});
  }
  return cases;
}

int run(int argc, char** argv) {
  bool check = argc == 1, time = argc == 1, small = false;
  const char* json = nullptr;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "check") == 0) {
      check = true;
    } else if (std::strcmp(argv[i], "small") == 0) {
      check = small = true;
    } else if (std::strcmp(argv[i], "time") == 0) {
      time = true;
    } else {
      json = argv[i];
    }
  }
  int failures = 0, checked = 0;
  if (check) {
    for (const Case& c : checks()) {
      if (small && c.k_len > 2000) continue;
      failures += !check_case(c, small ? 1 : 20);
      ++checked;
    }
    std::printf("%d cases, %d failures\n", checked, failures);
  }
  std::vector<Timing> results;
  if (time) {
    for (const Case& c : timings()) results.push_back(time_case(c));
  }
  if (json != nullptr) {
    std::FILE* file = std::fopen(json, "w");
    if (file == nullptr) return 1;
    cudaDeviceProp device{};
    must(cudaGetDeviceProperties(&device, 0), "properties");
    std::fprintf(file,
                 "{\"card\": \"%s\", \"cases_checked\": %d, \"failures\": %d, \"timings\": [\n",
                 device.name, checked, failures);
    for (size_t i = 0; i < results.size(); ++i) {
      const Timing& t = results[i];
      std::fprintf(
          file,
          "  {\"case\": \"%s\", \"tokens\": %d, \"kept\": %d, \"heads\": [%d, %d], \"dim\": "
          "%d, \"share\": %.4f, \"ms\": %.4f, \"min\": %.4f, \"tflops\": %.1f}%s\n",
          t.c.name.c_str(), t.c.k_len, t.c.sets > 0 ? t.c.kept : t.c.k_len, t.c.heads, t.c.kv_heads,
          t.c.head_dim, t.share, t.ms, t.least_ms, t.tflops, i + 1 < results.size() ? "," : "");
    }
    std::fprintf(file, "]}\n");
    std::fclose(file);
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace tsp::cuda

int main(int argc, char** argv) { return tsp::cuda::run(argc, argv); }
