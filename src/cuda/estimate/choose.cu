// SPDX-License-Identifier: MIT
// estimate: masses to lists, by the rules and in the integers of core/block_choice.cc.
#include "cuda/estimate/cut.cuh"
#include "cuda/launch.h"
#include "tokensparse/types.h"

namespace tsp::cuda {
namespace {

constexpr int kRowWarps = 4;      // query blocks of a block, a warp each
constexpr int kSetThreads = 512;  // of a block that decides about a set's lines
// Masses of a line that fit shared memory: 227 KB on Hopper, 99 KB everywhere.
constexpr int kWideLineRoom = 56 * 1024;
constexpr int kLineRoom = 24 * 1024;
// As in core/block_choice.cc.
constexpr int kFirstColumns = 30;
constexpr int kNearSlashes = 100;
constexpr int kLeastSlashes = 50;

/// A query block of a set, and what it reads whatever the estimate is.
struct QueryRow {
  const EstimateArgs& a;
  BlockCut cut;
  int set, m;

  __device__ QueryRow(const EstimateArgs& args, int set_index, int block_index)
      : a(args), cut(args.cuts[set_index * args.heads_per_set()]), set(set_index), m(block_index) {}
  __device__ bool exists() const { return m < cut.query_blocks(a.block); }
  __device__ int visible() const { return cut.visible(m, a.block); }
  __device__ int diagonal() const { return cut.first_entry(m, a.block) / a.block; }
  __device__ bool last() const { return m >= int64_t{cut.query_blocks(a.block)} - a.last_blocks; }
  __device__ bool always(int n) const {
    return n < a.sink_blocks || n >= diagonal() - a.local_blocks;
  }
  /// The blocks that are in, ascending, by one warp: in(n, whether n exists).
  template <typename In>
  __device__ void write(In&& in) const {
    int32_t* const row = a.out.blocks + set * a.out.set_stride + m * a.out.row_stride;
    const int lane = static_cast<int>(threadIdx.x) % 32, end = visible();
    int32_t count = 0;
    for (int begin = 0; begin < end; begin += 32) {
      const int n = begin + lane;
      const bool listed = in(n, n < end) && n < end;
      const uint32_t votes = __ballot_sync(~0u, listed);
      if (listed) row[count + __popc(votes & ((1u << lane) - 1))] = n;
      count += __popc(votes);
    }
    if (lane == 0) a.out.counts[set * a.out.count_stride + m] = count;
  }
};

__device__ __forceinline__ Units max_of_warp(Units x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const Units other = __shfl_xor_sync(~0u, x, step);
    x = other > x ? other : x;
  }
  return x;
}

/// What a query block adds to what is always in: those above `value`, and the first `need` of its
/// equals.
struct Added {
  Units value;
  int32_t need;
};

/// What a lane has of a query block's other masses, every 32nd: in registers, kEach of them.
template <int kEach>
struct Others {
  uint32_t bits[kEach];  // of the f32
  Units units[kEach];

  __device__ __forceinline__ Others(const QueryRow& row, const float* mass, float unit) {
    const int lane = static_cast<int>(threadIdx.x) % 32, end = row.visible();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int n = lane + i * 32;
      const float x = n < end && !row.always(n) ? mass[n] : 0.f;
      bits[i] = __float_as_uint(x);
      units[i] = to_units(x, unit);
    }
  }
  template <typename Belongs>
  __device__ __forceinline__ Units sum_where(Belongs&& belongs) const {
    Units sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (belongs(bits[i], units[i])) sum += units[i];
    }
    return sum_of_warp(sum);
  }
};
/// In memory: any number of them.
template <>
struct Others<0> {
  const QueryRow& row;
  const float* mass;
  float unit;

  __device__ __forceinline__ Others(const QueryRow& r, const float* m, float u)
      : row(r), mass(m), unit(u) {}
  template <typename Belongs>
  __device__ __forceinline__ Units sum_where(Belongs&& belongs) const {
    Units sum = 0;
    for (int n = static_cast<int>(threadIdx.x) % 32; n < row.visible(); n += 32) {
      const Units units = to_units(mass[n], unit);
      if (!row.always(n) && belongs(__float_as_uint(mass[n]), units)) sum += units;
    }
    return sum_of_warp(sum);
  }
};

/// The fewest of the strongest others whose mass reaches `wanted`, by one warp: bit by bit the
/// largest f32 from which on masses suffice. Their order is that of the fixed point.
template <int kEach>
__device__ __forceinline__ Added reach_by_warp(const QueryRow& row, const float* mass, float unit,
                                               Units wanted) {
  const Others<kEach> others(row, mass, unit);
  uint32_t least = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const uint32_t higher = least | 1u << bit;
    const Units sum = others.sum_where([&](uint32_t bits, Units) { return bits >= higher; });
    if (sum >= wanted) least = higher;
  }
  const Units value = to_units(__uint_as_float(least), unit);
  const Units above = others.sum_where([&](uint32_t, Units units) { return units > value; });
  return {value, static_cast<int32_t>((wanted - above + value - 1) / value)};
}

/// xattention, pooled, flash: a warp per query block of up to 32 * kEach key blocks; 0: of any
/// number. Grid (query blocks, sets).
template <int kEach>
__global__ void __launch_bounds__(kRowWarps * 32)
    choose_map_kernel(const __grid_constant__ EstimateArgs a,
                      const __grid_constant__ MapPart part) {
  await_previous();
  const int local = static_cast<int>(blockIdx.x) * kRowWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const QueryRow row(a, part.first_set + static_cast<int>(blockIdx.y), part.first_block + local);
  if (local >= part.num_blocks || !row.exists()) return;
  const bool flash = a.kind == TSP_PATTERN_FLASH;
  const float threshold = part.thresholds[blockIdx.y];
  const int visible = row.visible();
  const float* const mass = a.mass + (int64_t{blockIdx.y} * part.num_blocks + local) * a.key_blocks;
  const float unit = unit_of_mass(visible);
  bool bad = false;
  Units total = 0, given = 0, most = 0;
  for (int n = lane; n < visible; n += 32) {
    bad = bad || !rankable(mass[n]);
    const Units value = to_units(mass[n], unit);
    total += value;
    given += row.always(n) ? value : 0;
    most = value > most ? value : most;
  }
  const bool everything =
      __any_sync(~0u, bad) || row.last() || (flash ? a.alpha <= 0.f : threshold >= 1.f);
  if (everything) {
    row.write([](int, bool) { return true; });
    return;
  }
  Added added{kAlwaysFirst, 0};
  if (flash) {
    added = {ceil_share(a.alpha, max_of_warp(most)), visible};
  } else {
    const Units limit = ceil_share(threshold, sum_of_warp(total));
    given = sum_of_warp(given);
    if (given < limit) added = reach_by_warp<kEach>(row, mass, unit, limit - given);
  }
  int32_t seen = 0;  // of the equals
  row.write([&](int n, bool there) {
    const bool always = there && row.always(n);
    const Units value = there ? to_units(mass[n], unit) : 0;
    const uint32_t equals = __ballot_sync(~0u, there && !always && value == added.value);
    const int32_t rank = seen + __popc(equals & ((1u << lane) - 1));
    seen += __popc(equals);
    return always || value > added.value || (value == added.value && rank < added.need);
  });
}

/// A set's lines of one kind, decided by one block.
struct LineSet {
  using Rank = Ranking<kSetThreads>;
  const EstimateArgs& a;
  const BlockCut cut;
  const int set, local;
  const int kind;  // 0: columns, 1: slashes
  Rank& ranking;
  const float* own;  // the line of this kind, in shared memory where it fits

  __device__ int n() const { return cut.count; }
  __device__ int num_blocks() const { return cut.key_blocks(a.block); }
  __device__ const float* line(int of) const {
    return (of == 0 ? a.columns : a.slashes) + int64_t{local} * a.k_len;
  }
  __device__ float* sums(int kind) const {
    return a.sums + (int64_t{local} * 2 + kind) * a.key_blocks;
  }
  __device__ bool all_rankable(const float* mass, int64_t count) const {
    bool bad = false;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < count; i += kSetThreads) bad |= !rankable(mass[i]);
    return __syncthreads_or(bad) == 0;
  }
  /// Whether both lines can be ranked; `room` for one, null: too long.
  __device__ bool read_lines(float* room) {
    own = line(kind);
    bool bad = false;
#pragma unroll 8
    for (int i = static_cast<int>(threadIdx.x); i < n(); i += kSetThreads) {
      const float mass = own[i];
      bad |= !rankable(mass) | !rankable(line(1 - kind)[i]);
      if (room != nullptr) room[i] = mass;
    }
    if (room != nullptr) own = room;
    return __syncthreads_or(bad) == 0;
  }

  /// The `wanted` strongest, the first `forced` before others.
  __device__ Cut strongest(const float* mass, int count, int wanted, int forced) {
    const float unit = unit_of_mass(count);
    const auto mass_of = [=](int64_t i) { return i < forced ? kFirstMass : mass[i]; };
    const auto found =
        ranking.reach<false>(count, static_cast<Units>(min(wanted, count)), unit, mass_of);
    return ranking.cut_at(count, found, found.need, unit, mass_of);
  }
  /// Calls fn(i, whether it belongs, how many that belong come before); returns how many do.
  template <typename Fn>
  __device__ int in_order(const float* mass, int count, int forced, const Cut& in, Fn&& fn) {
    const float unit = unit_of_mass(count);
    int32_t before = 0;
    for (int begin = 0; begin < count; begin += kSetThreads) {
      const int i = begin + static_cast<int>(threadIdx.x);
      int32_t here = 0;
      const bool yes =
          i < count && belongs(in, i < forced ? kAlwaysFirst : to_units(mass[i], unit), i);
      const int32_t rank = ranking.reduce.rank(yes, here);
      if (i < count) fn(i, yes, before + rank);
      before += here;
    }
    return before;
  }

  __device__ void vertical() {
    const Cut columns_in = strongest(own, n(), max(a.vertical, kFirstColumns), kFirstColumns);
    int32_t* const out = a.out.columns + set * a.out.column_stride;
    const int count = in_order(own, n(), kFirstColumns, columns_in, [&](int t, bool yes, int rank) {
      if (yes) out[rank] = t;
    });
    if (threadIdx.x == 0) a.out.num_columns[set] = count;
  }
  __device__ void slash() {
    const Cut slashes_in = strongest(own, n(), max(a.slash, kLeastSlashes), kNearSlashes);
    int32_t* const rank_of = a.slash_rank + int64_t{local} * (a.k_len + 1);
    const int all = in_order(own, n(), kNearSlashes, slashes_in,
                             [&](int d, bool, int rank) { rank_of[d] = rank; });
    if (threadIdx.x == 0) rank_of[n()] = all;
  }

  /// A warp per block.
  __device__ void sum_blocks(const float* mass, float* out) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int i = static_cast<int>(threadIdx.x) / 32; i < num_blocks(); i += kSetThreads / 32) {
      float sum = 0.f;
      for (int t = i * a.block + lane; t < min((i + 1) * a.block, n()); t += 32) sum += mass[t];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
      if (lane == 0) out[i] = sum;
    }
    __syncthreads();
  }
  /// 0 log 0 = 0.
  static __device__ double part_of_divergence(double x, double mean) {
    return x > 0 ? 0.5 * x * log(x / mean) : 0.0;
  }
  __device__ bool pooled_fits() {
    const float* const guess = a.guess + int64_t{local} * a.key_blocks;
    if (!all_rankable(guess, num_blocks())) return false;
    double divergence = 0;
    for (int i = static_cast<int>(threadIdx.x); i < num_blocks(); i += kSetThreads) {
      const double found = static_cast<double>(sums(0)[i]), guessed = static_cast<double>(guess[i]);
      const double mean = (found + guessed) / 2;
      divergence += part_of_divergence(found, mean) + part_of_divergence(guessed, mean);
    }
    divergence = ranking.reduce.sum(divergence);
    return sqrt(divergence > 0 ? divergence : 0.0) < static_cast<double>(a.tau);
  }
  __device__ Units total_of(const float* mass, int count, float unit) {
    Units total = 0;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kSetThreads) {
      total += to_units(mass[i], unit);
    }
    return ranking.reduce.sum(total);
  }
  /// How many of the strongest entries it takes to have more than gamma of the mass, in blocks.
  __device__ int blocks_to_cover(const float* mass) {
    const float unit = unit_of_mass(n());
    const Units total = total_of(mass, n(), unit);
    const Units limit = floor_share(a.gamma, total);
    int64_t count = n();
    if (total > limit) {
      const auto found =
          ranking.reach<true>(n(), limit + 1, unit, [=](int64_t i) { return mass[i]; });
      count = found.above + found.need;
    }
    return static_cast<int>(count / a.block) + 1;
  }
  __device__ void choose_blocks(int wanted) {
    uint8_t* const in = a.line_blocks + (int64_t{local} * 2 + kind) * a.key_blocks;
    const Cut cut_in = strongest(sums(kind), num_blocks(), wanted, 1);
    in_order(sums(kind), num_blocks(), 1, cut_in, [&](int i, bool yes, int) { in[i] = yes; });
  }

  __device__ int64_t num_pairs() const { return int64_t{num_blocks()} * cut.query_blocks(a.block); }
  __device__ float pair_mass(int64_t index) const {
    // 32-bit division takes a third of the time: 2^16 blocks of each kind are 2^31 masses.
    const auto m = static_cast<int>(static_cast<uint32_t>(index) / num_blocks());
    const auto i = static_cast<int>(index - int64_t{m} * num_blocks());
    if (i >= cut.visible(m, a.block)) return 0.f;
    return a.mass[(int64_t{local} * a.query_blocks + m) * a.key_blocks + i];
  }
  /// The strongest pairs while their mass stays within gamma; false: not rankable.
  __device__ bool choose_pairs(Cut& pairs) {
    const float unit = unit_of_mass(num_pairs());
    bool bad = false;
    Units total = 0;
    for (int64_t i = threadIdx.x; i < num_pairs(); i += kSetThreads) {
      const float mass = pair_mass(i);
      bad = bad || !rankable(mass);
      total += to_units(mass, unit);
    }
    if (__syncthreads_or(bad) != 0) return false;
    total = ranking.reduce.sum(total);
    const Units limit = floor_share(a.gamma, total);
    pairs = {0, num_pairs()};
    if (total <= limit) return true;
    const auto mass_of = [&](int64_t i) { return pair_mass(i); };
    const auto found = ranking.reach<true>(num_pairs(), limit + 1, unit, mass_of);
    pairs = ranking.cut_at(num_pairs(), found, found.need - 1, unit, mass_of);
    return true;
  }

  /// False: everything is read.
  __device__ bool flexprefill(LineChoice& choice) {
    const int budget = (a.min_budget + a.block - 1) / a.block;
    if (a.gamma >= 1.f || n() <= max(int64_t{2} * a.block, int64_t{budget} * a.block)) return false;
    // Whether pooled blocks decide both kinds find out: the sums of columns are written twice.
    sum_blocks(line(0), sums(0));
    if (kind == 1) sum_blocks(own, sums(1));
    const bool pooled = pooled_fits();
    Cut pairs{kAlwaysFirst, 0};
    if (kind == 0 && pooled && !choose_pairs(pairs)) return false;
    const int least = max(1, budget);
    choose_blocks(pooled ? least : max(least, blocks_to_cover(own)));
    choice.pooled = pooled ? 1 : 0;
    choice.pairs = pairs;
    return true;
  }
};

/// Grid (sets, kinds). Shared memory for a line of Tk masses, or none.
__global__ void __launch_bounds__(kSetThreads, 1)
    choose_lines_kernel(const __grid_constant__ EstimateArgs a, const int first_set,
                        const bool lines_fit) {
  await_previous();
  __shared__ LineSet::Rank ranking;
  extern __shared__ float room[];
  const int local = static_cast<int>(blockIdx.x);
  const int set = first_set + local;
  const int kind = static_cast<int>(blockIdx.y);
  LineSet lines{a, a.cuts[set * a.heads_per_set()], set, local, kind, ranking, nullptr};
  if (lines.cut.queries() == 0) return;
  LineChoice choice{0, 0, {kAlwaysFirst, 0}};
  bool read = lines.read_lines(lines_fit ? room : nullptr);
  if (read && a.kind == TSP_PATTERN_MINFERENCE) kind == 0 ? lines.vertical() : lines.slash();
  if (read && a.kind == TSP_PATTERN_FLEXPREFILL) read = lines.flexprefill(choice);
  choice.everything = read ? 0 : 1;
  if (kind == 0 && threadIdx.x == 0) a.choices[local] = choice;
}

/// A warp per query block. Grid (query blocks, sets).
__global__ void __launch_bounds__(kRowWarps * 32)
    write_lines_kernel(const __grid_constant__ EstimateArgs a, const int first_set) {
  await_previous();
  const int local = static_cast<int>(blockIdx.y);
  const QueryRow row(a, first_set + local,
                     static_cast<int>(blockIdx.x) * kRowWarps + static_cast<int>(threadIdx.x) / 32);
  if (!row.exists()) return;
  const LineChoice choice = a.choices[local];
  if (choice.everything != 0 || row.last()) {
    row.write([](int, bool) { return true; });
    return;
  }
  const int last = row.cut.last_entry(row.m, a.block);
  if (a.kind == TSP_PATTERN_MINFERENCE) {
    const int first = row.cut.first_entry(row.m, a.block);
    const int32_t* const rank = a.slash_rank + int64_t{local} * (a.k_len + 1);
    row.write([&](int n, bool there) {
      if (!there) return false;
      // Distances that lead from the query block into block n.
      const int nearest = max(0, first - n * a.block - a.block + 1);
      const int farthest = last - n * a.block;
      return row.always(n) || rank[farthest + 1] > rank[nearest];
    });
    return;
  }
  const uint8_t* const columns = a.line_blocks + int64_t{local} * 2 * a.key_blocks;
  const uint8_t* const slashes = columns + a.key_blocks;
  const int key_blocks = row.cut.key_blocks(a.block);
  const float unit = unit_of_mass(int64_t{key_blocks} * row.cut.query_blocks(a.block));
  const float* const mass = a.mass + (int64_t{local} * a.query_blocks + row.m) * a.key_blocks;
  row.write([&](int n, bool there) {
    if (!there) return false;
    const int near = row.diagonal() - n;
    if (row.always(n) || columns[n] != 0 || slashes[row.visible() - 1 - n] != 0) return true;
    if (near >= 0 && slashes[near] != 0) return true;
    return choice.pooled != 0 &&
           belongs(choice.pairs, to_units(mass[n], unit), int64_t{row.m} * key_blocks + n);
  });
}

dim3 grid_of(int32_t query_blocks, int32_t sets) {
  return dim3(static_cast<unsigned>((query_blocks + kRowWarps - 1) / kRowWarps),
              static_cast<unsigned>(sets));
}

}  // namespace

tsp_status_t launch_choose_map(const EstimateArgs& a, const MapPart& part, cudaStream_t stream) {
  const auto kernel = a.key_blocks <= 256    ? choose_map_kernel<8>
                      : a.key_blocks <= 1024 ? choose_map_kernel<32>
                                             : choose_map_kernel<0>;
  return launch("estimate: choose", kernel, grid_of(part.num_blocks, part.num_sets),
                dim3(kRowWarps * 32), 0, stream, a, part);
}

tsp_status_t launch_choose_lines(const EstimateArgs& a, const MapPart& part, bool hopper,
                                 cudaStream_t stream) {
  const int first = part.first_set;
  const bool fit = a.k_len <= (hopper ? kWideLineRoom : kLineRoom);
  TSP_RETURN_IF_ERROR(launch("estimate: choose lines", choose_lines_kernel,
                             dim3(static_cast<unsigned>(part.num_sets), 2), dim3(kSetThreads),
                             fit ? static_cast<size_t>(a.k_len) * sizeof(float) : 0, stream, a,
                             first, fit));
  return launch("estimate: write lines", write_lines_kernel, grid_of(a.query_blocks, part.num_sets),
                dim3(kRowWarps * 32), 0, stream, a, first);
}

}  // namespace tsp::cuda
