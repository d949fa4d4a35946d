// SPDX-License-Identifier: MIT
// A consumer warpgroup: 64 query rows. S of the next K tile is multiplied while P V of this one is,
// and its softmax runs under P V and under the other warpgroup's products.
#pragma once

#include <type_traits>

#include "cuda/attend/sm90/attend_sm90_tile.cuh"
#include "cuda/sm80/mma.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace tsp::cuda {

template <typename Type, int kHeadDim, int kConsumers>
struct Sm90Consumer {
  using Tile = Sm90Tile<kHeadDim, kConsumers>;
  using Shared = typename Tile::SharedStorage;
  // Of a thread: rows lane / 4 and 8 below of its warp's 16. Element 4 j + 2 h + c is of row h and
  // of column 8 j + 2 (lane % 4) + c, in S and in O.
  static constexpr int kScores = kSm90TileKv / 2;
  static constexpr int kOutputs = kHeadDim / 2;
  static constexpr int kQSteps = kHeadDim / 16;  // k16 steps of Q K^T
  static constexpr int kPSteps = kSm90TileKv / 16;
  static constexpr int kTurn = 1;  // named barriers kTurn + group
  static constexpr bool kHoldsQueries = Tile::kShape.queries_in_registers();

  const AttendSm90Args& a;
  Shared& shared;
  RingPlace<kSm90Stages> k_at, v_at;
  RingPlace<kSm90Tasks> task_at;
  RingPlace<1> q_at;
  int group;  // of the consumers

  __device__ __forceinline__ Sm90Consumer(const AttendSm90Args& args, Shared& storage)
      : a(args), shared(storage) {
    group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0) - 1;
  }

  /// Read anew by every step that wants it: none is common, and registers are short.
  static __device__ __forceinline__ int thread() {
    int id;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(id));
    return id;
  }
  /// Of the query tile: the first row of the warp of `thread`, and the first of the thread itself.
  static __device__ __forceinline__ int warp_row(int thread) { return thread / 32 * 16 - 64; }
  static __device__ __forceinline__ int own_row(int thread) {
    return warp_row(thread) + thread % 32 / 4;
  }

  /// The consumers take turns at the tensor cores: one's exponentials run under the other's
  /// products.
  __device__ __forceinline__ void take_turn() { sync_named(kTurn + group, 256); }
  __device__ __forceinline__ void pass_turn() {
    arrive_named(kTurn + (group + 1) % kConsumers, 256);
  }

  /// Address for ldmatrix of row `row`: chunk `low` (0 or 1) + 2 `step` of a tile whose column
  /// blocks are `block_bytes`.
  static __device__ __forceinline__ uint32_t row_address(uint32_t tile, int row, int low) {
    return tile + static_cast<uint32_t>(row * 128 + ((low ^ row) & 7) * 16);
  }
  static __device__ __forceinline__ uint32_t at_step(uint32_t row_address, int step,
                                                     int block_bytes) {
    return (row_address ^ static_cast<uint32_t>(step % 4 * 32)) +
           static_cast<uint32_t>(step / 4 * block_bytes);
  }

  /// Where ldmatrix finds the warp's rows of Q, the left operand of a product: at_step() of it.
  __device__ __forceinline__ uint32_t queries() {
    const int id = thread();
    return row_address(shared_address(shared.q), warp_row(id) + id % 16, id % 32 / 16);
  }

  /// Starts S = Q K^T of the K tile at k_at.
  __device__ __forceinline__ void start_scores(float (&s)[kScores],
                                               const uint32_t (&q)[kQSteps][4]) {
    wgmma_fence();
    const uint64_t k = tile_descriptor(shared_address(shared.k)) +
                       static_cast<uint32_t>(k_at.index) * (Tile::kKvBytes / 16);
#pragma unroll
    for (int step = 0; step < kQSteps; ++step) {
      const uint64_t k_step = k + step / 4 * (Tile::kKvBlockBytes / 16) + step % 4 * 2;
      if constexpr (kHoldsQueries) {
        wgmma<Type, false>(s, q[step], k_step, step > 0);
      } else {
        const uint64_t from =
            tile_descriptor(shared_address(shared.q) + static_cast<uint32_t>(group) * 64 * 128);
        wgmma<Type>(s, from + step / 4 * (Tile::kQBlockBytes / 16) + step % 4 * 2, k_step,
                    step > 0);
      }
    }
    wgmma_commit();
  }

  /// Starts O += P V of the V tile at v_at.
  __device__ __forceinline__ void start_outputs(float (&o)[kOutputs],
                                                const uint32_t (&p)[kPSteps][4]) {
    wgmma_fence();
    const uint64_t v = transposed_descriptor(shared_address(shared.v), Tile::kKvBlockBytes) +
                       static_cast<uint32_t>(v_at.index) * (Tile::kKvBytes / 16);
#pragma unroll
    for (int step = 0; step < kPSteps; ++step) {
      wgmma<Type, true>(o, p[step], v + step * 128, 1);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void release_k() {
    arrive_warp(&shared.k_empty[k_at.index]);
    k_at.advance();
  }
  __device__ __forceinline__ void release_v() {
    arrive_warp(&shared.v_empty[v_at.index]);
    v_at.advance();
  }

  /// S of the K tile at k_at again, of this warp's 16 rows, by products that a warp does alone.
  __device__ __forceinline__ void repeat_scores(float (&s)[kScores],
                                                const uint32_t (&q)[kQSteps][4]) {
    const int lane = thread() % 32;
    const uint32_t from =
        row_address(shared_address(shared.k[k_at.index]), lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < kScores; ++i) s[i] = 0.f;
#pragma unroll(kHoldsQueries ? kQSteps : 1)  // else addresses take registers that are short
    for (int step = 0; step < kQSteps; ++step) {
      uint32_t rows[4];
      if constexpr (kHoldsQueries) {
#pragma unroll
        for (int i = 0; i < 4; ++i) rows[i] = q[step][i];
      } else {
        load_matrix(rows, at_step(queries(), step, Tile::kQBlockBytes));
      }
#pragma unroll
      for (int j = 0; j < kPSteps; ++j) {
        uint32_t b[4];
        load_matrix(b, at_step(from, step, Tile::kKvBlockBytes) + j * 16 * 128);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          auto& c = reinterpret_cast<float(&)[4]>(s[8 * j + 4 * half]);
          mma<Type>(c, rows, b[2 * half], b[2 * half + 1]);
        }
      }
    }
  }

  /// Hides the keys beyond a row's own entry.
  __device__ __forceinline__ void hide(float (&s)[kScores], const Sm90Task& task) {
    const int block = shared.key_block[k_at.index];
    const int id = thread();
    const int ahead = task.first + own_row(id) - block * kSm90TileKv - id % 4 * 2;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      if (i / 4 * 8 + i % 2 > ahead + i / 2 % 2 * 8) s[i] = -INFINITY;
    }
  }

  /// S becomes P = 2^(S - max), which `added` sums up.
  __device__ __forceinline__ void exponentiate(float (&s)[kScores], const float (&max)[2],
                                               float (&added)[2]) {
    const float scale = a.p.scale_log2;
    float part[4] = {};  // two chains a row
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      s[i] = exp2_fast(fmaf(s[i], scale, -max[i / 2 % 2]));
      part[i / 4 % 2 * 2 + i / 2 % 2] += s[i];
    }
    added[0] = part[0] + part[2];
    added[1] = part[1] + part[3];
  }

  /// P with a look for the maximum; true: O has to be multiplied with alpha.
  __device__ __forceinline__ bool find_weights(float (&s)[kScores], float (&max)[2],
                                               float (&sum)[2], float (&alpha)[2]) {
    float top[4] = {s[0], s[2], s[4], s[6]};
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      float& t = top[i / 4 % 2 * 2 + i / 2 % 2];
      t = fmaxf(t, s[i]);
    }
    bool moves = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float t = fmaxf(top[h], top[h + 2]);
      t = fmaxf(t, __shfl_xor_sync(~0u, t, 1));
      t = fmaxf(t, __shfl_xor_sync(~0u, t, 2));
      top[h] = fmaxf(t * a.p.scale_log2, max[h]);
      moves |= top[h] > max[h] + kSm90RescaleAbove;
    }
    moves = __any_sync(~0u, moves);
    if (moves) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        alpha[h] = exp2_fast(max[h] - top[h]);
        sum[h] *= alpha[h];
        max[h] = top[h];
      }
    }
    float added[2];
    exponentiate(s, max, added);
    sum[0] += added[0];
    sum[1] += added[1];
    return moves;
  }

  /// P with the maximum so far. false: it is too low for a row of the warp (or a NaN is about); S
  /// is gone then.
  __device__ __forceinline__ bool try_weights(float (&s)[kScores], const float (&max)[2],
                                              float (&sum)[2]) {
    float added[2];
    exponentiate(s, max, added);
    const bool fits = added[0] <= kSm90RaiseAbove && added[1] <= kSm90RaiseAbove;
    if (!__all_sync(~0u, fits)) return false;
    sum[0] += added[0];
    sum[1] += added[1];
    return true;
  }

  static __device__ __forceinline__ void pack_weights(const float (&s)[kScores],
                                                      uint32_t (&p)[kPSteps][4]) {
#pragma unroll
    for (int i = 0; i < kPSteps; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) p[i][j] = pack<Type>(s[8 * i + 2 * j], s[8 * i + 2 * j + 1]);
    }
  }

  /// O, maxima and sums of a task that has steps.
  __device__ __forceinline__ void walk(const Sm90Task& task, float (&o)[kOutputs], float (&max)[2],
                                       float (&sum)[2]) {
    float s[kScores];
    float alpha[2];
    uint32_t p[kPSteps][4];
    uint32_t q[kQSteps][4];  // if it holds them

    wait_for(&shared.q_full, q_at.parity);
    q_at.advance();
    if constexpr (kHoldsQueries) {
      const uint32_t from = queries();
#pragma unroll
      for (int step = 0; step < kQSteps; ++step) {
        load_matrix(q[step], at_step(from, step, Tile::kQBlockBytes));
      }
      arrive_warp(&shared.q_empty);
    }

    wait_for(&shared.k_full[k_at.index], k_at.parity);
    start_scores(s, q);
    wgmma_wait<0>();
    pin(s);
    if (task.num_masked > 0) hide(s, task);
    release_k();
    find_weights(s, max, sum, alpha);
    pack_weights(s, p);

    const auto next = [&](auto masked) {
      wait_for(&shared.k_full[k_at.index], k_at.parity);
      take_turn();
      start_scores(s, q);
      wait_for(&shared.v_full[v_at.index], v_at.parity);
      start_outputs(o, p);
      pass_turn();
      wgmma_wait<1>();
      pin(s);
      bool moves = false;
      if constexpr (decltype(masked)::value) {
        hide(s, task);
        moves = find_weights(s, max, sum, alpha);
      } else if (!try_weights(s, max, sum)) {
        repeat_scores(s, q);
        moves = find_weights(s, max, sum, alpha);
      }
      release_k();
      wgmma_wait<0>();
      pin(o);
      release_v();
      pack_weights(s, p);
      if (moves) {
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) o[i] *= alpha[i / 2 % 2];
      }
    };
    // Two loops: a branch inside would make the compiler wait for P V before the exponentials.
    int step = 1;
#pragma unroll 1
    for (; step < task.num_masked; ++step) next(std::true_type{});
#pragma unroll 1
    for (; step < task.num_steps; ++step) next(std::false_type{});

    if constexpr (!kHoldsQueries) arrive_warp(&shared.q_empty);
    wait_for(&shared.v_full[v_at.index], v_at.parity);
    start_outputs(o, p);
    wgmma_wait<0>();
    pin(o);
    release_v();
  }

  /// Four values of four neighbouring lanes: value j of lane c and value c of lane j change places.
  static __device__ __forceinline__ void transpose(uint32_t (&v)[4], int lane) {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
      const bool upper = (lane & bit) != 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((i & bit) != 0) continue;
        const uint32_t got = __shfl_xor_sync(~0u, upper ? v[i] : v[i | bit], bit);
        (upper ? v[i] : v[i | bit]) = got;
      }
    }
  }

  /// Scatters rows to their positions, 16 bytes a thread, straight from registers.
  __device__ __forceinline__ void write(const Sm90Task& task, const float (&o)[kOutputs],
                                        const float (&max)[2], const float (&sum)[2]) {
    const AttendSm90Params& p = a.p;
    const int lane = thread() % 32;
    const int row = own_row(thread());
    const int32_t* list = list_of(p.sets, task.head / p.sets.heads_per_set);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[h];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const float inverse = total == 0.f ? 0.f : 1.f / total;
      const int32_t entry = task.first + row + 8 * h;
      const bool there = entry < shared.n;
      const int32_t token = there ? position_of(list, entry) - (p.k_len - p.q_len) : 0;
      if (there && p.lse.data != nullptr && lane % 4 == 0) {
        p.lse.at(token, task.head) = (max[h] + log2f(total)) * 0.6931471805599453f;
      }
      auto* to = reinterpret_cast<uint4*>(p.out.row(token, task.head)) + lane % 4;
#pragma unroll
      for (int four = 0; four < kHeadDim / 32; ++four) {
        // Four lanes hold a pair each of four chunks; lane c takes chunk c.
        uint32_t pairs[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* from = o + (four * 4 + j) * 4 + 2 * h;
          pairs[j] = pack<Type>(from[0] * inverse, from[1] * inverse);
        }
        transpose(pairs, lane);
        if (there) to[four * 4] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      }
    }
  }

  __device__ __forceinline__ void run() {
    if (group == kConsumers - 1) pass_turn();  // the first one
    for (;;) {
      wait_for(&shared.task_full[task_at.index], task_at.parity);
      const Sm90Task task = shared.task[task_at.index];
      arrive_warp(&shared.task_empty[task_at.index]);
      task_at.advance();
      if (task.head < 0) return;
      float o[kOutputs] = {};
      float max[2] = {kSm90NoMax, kSm90NoMax};
      float sum[2] = {};
      if (task.num_steps > 0) walk(task, o, max, sum);
      write(task, o, max, sum);
    }
  }
};

}  // namespace tsp::cuda
