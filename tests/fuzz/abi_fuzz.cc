// SPDX-License-Identifier: MIT
// Every operation of the C ABI with arguments that are right, strange or impossible: a call either
// succeeds within the memory it was given or returns a status with a sentence. The impossible must
// be refused. Works under the address and undefined-behaviour sanitizers; without them it can only
// see crashes and a wrong TSP_OK.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <string>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/random_views.h"

namespace tsp::fuzz {
namespace {

tsp_context_t* context(Bytes& bytes) {
  static const std::array<tsp_context_t*, 3> contexts = [] {
    std::array<tsp_context_t*, 3> made{};
    const char* const isas[] = {nullptr, "scalar", nullptr};
    for (size_t i = 0; i < made.size(); ++i) {
      tsp_context_options_t options;
      tsp_context_options_init(&options, sizeof options);
      options.backend = i == 2 ? TSP_BACKEND_REF : TSP_BACKEND_CPU;
      options.isa = isas[i];
      options.num_threads = i == 0 ? 2 : 1;
      if (tsp_context_create(&options, &made[i]) != TSP_OK) std::abort();
    }
    return made;
  }();
  return contexts[static_cast<size_t>(bytes.below(3))];
}

/// What all operations are given; each takes what it needs.
struct Case {
  explicit Case(Bytes& input) : bytes(input) {
    static constexpr int64_t kHeads[] = {1, 2, 3, 4};
    static constexpr int64_t kDims[] = {1, 7, 16, 40, 64};
    ctx = context(bytes);
    kv_heads = bytes.pick(kHeads);
    q_heads = kv_heads * bytes.range(1, 3);
    dim = bytes.pick(kDims);
    lengths = random_lengths(bytes);
    if (bytes.one_in(3)) {  // one sequence without a batch
      lengths.q_offsets.resize(2);
      lengths.k_offsets.resize(2);
    } else {
      batch = {lengths.q_offsets.data(), lengths.k_offsets.data(), lengths.num_seqs(), 0};
    }
    short_rows = lengths.longest_k() * lengths.num_seqs();
    share = bytes.below(3);
    window = bytes.range(1, 12);
    num_sets = static_cast<int32_t>(share == 0 ? q_heads : share == 1 ? kv_heads : 1);
    q_dtype = bytes.below(3);
    kv_dtype = bytes.below(3);
    q = random_view(bytes, memory, q_dtype, lengths.q_total(), q_heads, dim);
    out = random_view(bytes, memory, q_dtype, lengths.q_total(), q_heads, dim);
    const bool paged = batch.num_seqs > 0 && bytes.one_in(3);
    for (tsp_tensor_t* view : {&k, &v}) {
      *view = paged ? random_paged_view(bytes, memory, kv_dtype, lengths, kv_heads, dim)
                    : random_view(bytes, memory, kv_dtype, lengths.k_total(), kv_heads, dim);
    }
    if (bytes.one_in(2)) lse = random_view(bytes, memory, TSP_F32, lengths.q_total(), q_heads, 1);
    scores = random_view(bytes, memory, TSP_F32, lengths.prefix_total(window), q_heads, 1);
    make_sets();
  }

  void make_sets() {
    const int64_t stride = lengths.longest_k();
    const auto entries = static_cast<size_t>(lengths.num_seqs() * num_sets * stride);
    has_lists = entries > 0;
    sets.indices = static_cast<int32_t*>(memory.allocate(entries * sizeof(int32_t)));
    const auto num_seqs = static_cast<size_t>(lengths.num_seqs());
    sets.kept = static_cast<int32_t*>(memory.allocate(num_seqs * sizeof(int32_t)));
    sets.num_sets = num_sets;
    sets.set_stride = stride;
    sets.seq_stride = stride * num_sets;
    std::fill_n(sets.indices, entries, -1);
    for (size_t b = 0; b < num_seqs; ++b) {
      const int32_t k_len = lengths.k_offsets[b + 1] - lengths.k_offsets[b];
      sets.kept[b] = bytes.range(std::min(1, k_len), k_len);
      for (int32_t set = 0; set < num_sets; ++set) {
        int32_t* const list =
            sets.indices + static_cast<int64_t>(b) * sets.seq_stride + set * sets.set_stride;
        const int32_t skip = bytes.range(0, k_len - sets.kept[b]);
        for (int32_t i = 0; i < sets.kept[b]; ++i) list[i] = skip + i;
      }
    }
  }

  /// Block sets of positions, or of the entries of `of`; most of them right.
  tsp_block_sets_t random_blocks(const tsp_index_sets_t& of) {
    tsp_block_sets_t blocks{};
    const int32_t block = bytes.pick({16, 16, 32, 128});
    const auto longest = static_cast<int32_t>(std::clamp<int64_t>(lengths.longest_k(), 1, 2048));
    const int64_t rows = longest / block + 1;
    const auto seqs = static_cast<int64_t>(lengths.num_seqs());
    const auto ints = [&](int64_t count) {
      auto* const list =
          static_cast<int32_t*>(memory.allocate(static_cast<size_t>(count) * sizeof(int32_t)));
      std::fill_n(list, count, 0);
      return list;
    };
    blocks.block = block;
    blocks.num_sets = num_sets;
    blocks.row_stride = rows;
    blocks.set_stride = rows * rows;
    blocks.seq_stride = blocks.set_stride * num_sets;
    blocks.count_set_stride = rows;
    blocks.count_seq_stride = rows * num_sets;
    blocks.blocks = ints(seqs * blocks.seq_stride);
    blocks.counts = ints(seqs * blocks.count_seq_stride);
    if (bytes.one_in(2)) {
      blocks.column_set_stride = longest;
      blocks.column_seq_stride = blocks.column_set_stride * num_sets;
      blocks.columns = ints(seqs * blocks.column_seq_stride);
      blocks.num_columns = ints(seqs * num_sets);
    }
    for (int64_t b = 0; b < seqs; ++b) {
      const auto at = static_cast<size_t>(b);
      const int32_t k_len = lengths.k_offsets[at + 1] - lengths.k_offsets[at];
      const int32_t q_pos = k_len - (lengths.q_offsets[at + 1] - lengths.q_offsets[at]);
      for (int32_t set = 0; set < num_sets; ++set) {
        fill_set(blocks, of, b, set, k_len, q_pos);
      }
    }
    if (bytes.one_in(5)) {
      blocks.blocks[bytes.below(static_cast<int32_t>(rows))] = bytes.pick({-1, 1, 7, INT32_MAX});
    }
    if (bytes.one_in(8)) blocks.counts[0] = static_cast<int32_t>(bytes.strange_integer());
    if (bytes.one_in(8)) blocks.block = static_cast<int32_t>(bytes.strange_integer());
    if (bytes.one_in(8)) blocks.num_sets = bytes.pick({-1, 0, 1, INT32_MAX});
    if (bytes.one_in(12)) blocks.counts = nullptr;
    if (blocks.columns != nullptr && bytes.one_in(8)) {
      blocks.num_columns[0] = static_cast<int32_t>(bytes.strange_integer());
    }
    return blocks;
  }

  void fill_set(tsp_block_sets_t& blocks, const tsp_index_sets_t& of, int64_t b, int32_t set,
                int32_t k_len, int32_t q_pos) {
    int32_t count = k_len, first = q_pos;
    if (of.indices != nullptr && sets.kept[b] != k_len) {
      const int32_t* const list = sets.indices + b * sets.seq_stride + set * sets.set_stride;
      count = sets.kept[b];
      first = static_cast<int32_t>(std::lower_bound(list, list + count, q_pos) - list);
    }
    const int64_t counts_at = b * blocks.count_seq_stride + set * blocks.count_set_stride;
    for (int32_t m = 0; first + m * blocks.block < count; ++m) {
      const int32_t begin = first + m * blocks.block;
      const int32_t last = (std::min(begin + blocks.block, count) - 1) / blocks.block;
      int32_t* const row =
          blocks.blocks + b * blocks.seq_stride + set * blocks.set_stride + m * blocks.row_stride;
      int32_t& listed = blocks.counts[counts_at + m];
      for (int32_t n = 0; n <= last; ++n) {
        if (n >= begin / blocks.block || bytes.one_in(2)) row[listed++] = n;
      }
    }
    if (blocks.columns == nullptr) return;
    int32_t& num_columns = blocks.num_columns[b * num_sets + set];
    int32_t* const columns =
        blocks.columns + b * blocks.column_seq_stride + set * blocks.column_set_stride;
    for (int32_t entry = 0; entry < count; ++entry) {
      if (bytes.one_in(6)) columns[num_columns++] = entry;
    }
  }

  /// Spoils a few of the arguments; most cases stay nearly right, to reach deep.
  void spoil_some() {
    tsp_tensor_t* const views[] = {&q, &k, &v, &out, &lse, &scores};
    for (int32_t n = bytes.pick({0, 0, 1, 1, 2}); n > 0; --n) {
      lists_are_right = false;
      switch (bytes.below(6)) {
        case 0:
          sets.num_sets = static_cast<int32_t>(bytes.strange_integer());
          break;
        case 1:
          sets.set_stride = bytes.strange_integer();
          break;
        case 2:
          if (has_lists) {
            sets.indices[bytes.below(num_sets)] = static_cast<int32_t>(bytes.strange_integer());
          }
          break;
        case 3:
          sets.kept[0] = static_cast<int32_t>(bytes.strange_integer());
          break;
        case 4:
          spoil_batch();
          break;
        default:
          spoil(bytes, *bytes.pick(views));
          break;
      }
    }
  }

  void spoil_batch() {
    const auto at = static_cast<size_t>(bytes.below(lengths.num_seqs() + 1));
    const auto value = static_cast<int32_t>(bytes.strange_integer());
    switch (bytes.below(4)) {
      case 0:
        batch.q_offsets = nullptr;
        break;
      case 1:
        lengths.q_offsets[at] = value;
        break;
      case 2:
        lengths.k_offsets[at] = value;
        break;
      case 3:
        batch.num_seqs = std::min(value, batch.num_seqs);
        break;
    }
  }

  /// Index lists reach no further than their memory.
  bool sets_reachable() const {
    if (sets.num_sets < 1 || sets.set_stride < 0 || sets.seq_stride < 0) return true;
    const Wide last = Wide{std::max(batch.num_seqs, 1) - 1.0} * static_cast<Wide>(sets.seq_stride) +
                      static_cast<Wide>(sets.num_sets) * static_cast<Wide>(sets.set_stride);
    return memory.holds(sets.indices, last * Wide{sizeof(int32_t)});
  }

  Bytes& bytes;
  Memory memory;
  tsp_context_t* ctx;
  int64_t q_heads, kv_heads, dim;
  Lengths lengths;
  tsp_batch_t batch{};
  int32_t share, window, num_sets, short_rows, q_dtype, kv_dtype;
  tsp_tensor_t q{}, k{}, v{}, out{}, lse{}, scores{};
  tsp_index_sets_t sets{};
  bool has_lists = false;
  bool lists_are_right = true;  // lengths and index sets were not spoiled
};

long succeeded = 0;  // calls of the operation under way
long refused = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "abi_fuzz: %s\n", what);
  std::abort();
}

/// Also sizes of callers that were built earlier.
template <typename Params>
void spoil_size(Case& c, Params& params) {
  if (!c.bytes.one_in(30)) return;
  constexpr auto kSize = static_cast<int32_t>(sizeof(Params));
  params.struct_size = static_cast<uint32_t>(
      c.bytes.pick({0, 4, 8, 100, kSize - 4, kSize - 8, kSize - 40, kSize - 48}));
}

/// The struct as its caller has it: not a byte more than struct_size.
template <typename Params>
const Params* exact(Case& c, const Params& params) {
  const size_t bytes = std::clamp<size_t>(params.struct_size, sizeof(uint32_t), sizeof(Params));
  void* const copy = c.memory.allocate(bytes);
  std::memcpy(copy, &params, bytes);
  return static_cast<const Params*>(copy);
}

/// Runs the workspace function and, where no valid call could leave its memory, the operation.
template <typename Params>
void call(Case& c, Params& params, std::initializer_list<const tsp_tensor_t*> views,
          tsp_status_t (*workspace)(tsp_context_t*, const Params*, size_t*),
          tsp_status_t (*op)(tsp_context_t*, const Params*)) {
  bool must_fail = false;
  bool safe = c.sets_reachable();
  for (const tsp_tensor_t* view : views) {
    must_fail = must_fail || impossible(*view);
    safe = safe && reachable(*view, c.memory, params.batch);
  }
  if constexpr (requires { params.workspace; }) {
    size_t bytes = 0;
    const tsp_status_t status = workspace(c.ctx, exact(c, params), &bytes);
    expect(!(must_fail && status == TSP_OK), "the workspace of impossible arguments was computed");
    expect(status == TSP_OK || std::strlen(tsp_last_error()) > 0, "failed without a sentence");
    // Views that are valid but larger than our memory may ask for any amount: not of interest.
    if (status == TSP_OK && bytes > (size_t{1} << 24)) return;
    params.workspace_bytes = bytes;
    params.workspace = c.memory.allocate_aligned(bytes);
    if (c.bytes.one_in(30)) params.workspace = nullptr;
    if (c.bytes.one_in(30) && bytes > 0) --params.workspace_bytes;
  }
  if (!safe) return;
  const tsp_status_t status = op(c.ctx, exact(c, params));
  expect(!(must_fail && status == TSP_OK), "impossible arguments were accepted");
  ++(status == TSP_OK ? succeeded : refused);
  expect(status == TSP_OK || std::strlen(tsp_last_error()) > 0, "failed without a sentence");
}

void fuzz_score(Case& c) {
  tsp_score_params_t p;
  tsp_score_params_init(&p, sizeof p);
  p.window = c.window;
  p.pool = c.bytes.pick({1, 3, 7, 0, -1, 2, INT32_MAX});
  if (c.bytes.one_in(8)) p.scale = c.bytes.strange_float();
  p.precision = c.bytes.pick({0, 0, 1, 2});
  p.q = c.q, p.k = c.k, p.scores = c.scores, p.batch = c.batch;
  spoil_size(c, p);
  call(c, p, {&p.q, &p.k, &p.scores}, tsp_score_workspace, tsp_score);
}

void fuzz_select(Case& c) {
  tsp_select_params_t p;
  tsp_select_params_init(&p, sizeof p);
  p.window = c.bytes.one_in(8) ? static_cast<int32_t>(c.bytes.strange_integer()) : c.window;
  p.min_tokens = c.bytes.pick({0, 1, 5, 1024, -1, INT32_MAX});
  p.share = c.bytes.one_in(8) ? static_cast<int32_t>(c.bytes.strange_integer()) : c.share;
  if (c.bytes.one_in(4)) p.coverage = c.bytes.strange_float();
  if (c.bytes.one_in(4)) p.keep = c.bytes.strange_float();
  p.num_kv_heads = static_cast<int32_t>(c.kv_heads);
  p.q_len = c.lengths.q_offsets.at(1);
  p.k_len = c.lengths.k_offsets.at(1);
  p.scores = c.scores, p.selected = c.sets, p.batch = c.batch;
  spoil_size(c, p);
  call(c, p, {&p.scores}, tsp_select_workspace, tsp_select);
}

void fuzz_estimate(Case& c) {
  tsp_estimate_params_t p;
  tsp_estimate_params_init(&p, sizeof p);
  tsp_pattern_init(&p.pattern, c.bytes.pick({1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 0, 6}));
  tsp_pattern_t& a = p.pattern;
  a.block = c.bytes.pick({16, 16, 16, 32, 48, 512, 0, 17});
  a.stride = c.bytes.pick({2, 4, 8, 16, 3, -1});
  a.share = c.bytes.one_in(8) ? static_cast<int32_t>(c.bytes.strange_integer()) : c.share;
  a.threshold = c.bytes.one_in(8) ? c.bytes.strange_float() : 0.5f;
  a.gamma = c.bytes.one_in(8) ? c.bytes.strange_float() : 0.5f;
  a.tau = c.bytes.pick({0, 0, 1, 1, 2}) * 1.0f;
  a.alpha = c.bytes.one_in(8) ? c.bytes.strange_float() : 0.5f;
  a.min_budget = c.bytes.pick({0, 0, 16, 1024, -1, INT32_MAX});
  a.vertical = c.bytes.pick({1, 40, 1000, 0, INT32_MAX});
  a.slash = c.bytes.pick({1, 60, 1000, 0, INT32_MAX});
  a.sink_blocks = c.bytes.pick({0, 1, -1, INT32_MAX});
  a.local_blocks = c.bytes.pick({0, 1, 1 << 30, INT32_MAX});
  a.last_blocks = c.bytes.pick({0, 1, 1 << 30, INT32_MAX});
  if (c.bytes.one_in(8)) p.scale = c.bytes.strange_float();
  p.precision = c.bytes.pick({0, 0, 1, 2});
  p.q = c.q, p.k = c.k, p.batch = c.batch;
  if (c.bytes.one_in(2)) p.selected = c.sets;
  // Room for blocks of 16, to the entry; lengths that no tensor here has are refused before.
  const int64_t longest = std::clamp<int64_t>(c.lengths.longest_k(), 0, 2048);
  const int64_t most = (longest + 15) / 16;
  const int64_t sets = c.share == TSP_SHARE_HEAD       ? c.q_heads
                       : c.share == TSP_SHARE_KV_GROUP ? c.kv_heads
                                                       : 1;
  const int64_t all = c.lengths.num_seqs() * sets;
  const auto take = [&](int64_t entries) {
    return static_cast<int32_t*>(c.memory.allocate(static_cast<size_t>(entries) * sizeof(int32_t)));
  };
  tsp_block_sets_t& out = p.blocks;
  out = {take(all * most * most),
         take(all * most),
         take(all * longest),
         take(all),
         a.block,
         static_cast<int32_t>(sets),
         most,
         most * most,
         sets * most * most,
         most,
         sets * most,
         longest,
         sets * longest};
  if (c.bytes.one_in(4)) out.columns = nullptr;
  if (c.bytes.one_in(8)) {
    int64_t* const strides[] = {
        &out.row_stride,       &out.set_stride,        &out.seq_stride,       &out.count_set_stride,
        &out.count_seq_stride, &out.column_set_stride, &out.column_seq_stride};
    // A larger stride than there is room for cannot be seen.
    int64_t& stride = *c.bytes.pick(strides);
    stride = std::min(stride, c.bytes.strange_integer());
  }
  spoil_size(c, p);
  call(c, p, {&p.q, &p.k}, tsp_estimate_workspace, tsp_estimate);
}

void fuzz_attend(Case& c) {
  tsp_attend_params_t p;
  tsp_attend_params_init(&p, sizeof p);
  p.dropped = c.bytes.pick({0, 0, 1, 1, 2, -1});
  p.band = c.bytes.pick({1, 3, 256, 0, -5, INT32_MAX});
  p.sink = c.bytes.pick({0, 0, 1, 3, 256, -1, INT32_MAX});
  p.precision = c.bytes.pick({0, 0, 1, 2});
  if (c.bytes.one_in(8)) p.scale = c.bytes.strange_float();
  p.q = c.q, p.k = c.k, p.v = c.v, p.out = c.out, p.lse = c.lse, p.batch = c.batch;
  if (!c.bytes.one_in(4)) p.selected = c.sets;
  if (c.lists_are_right && c.bytes.one_in(2)) p.blocks = c.random_blocks(p.selected);
  spoil_size(c, p);
  const bool with_lse = p.lse.data != nullptr;
  if (with_lse) {
    call(c, p, {&p.q, &p.k, &p.v, &p.out, &p.lse}, tsp_attend_workspace, tsp_attend);
  } else {
    call(c, p, {&p.q, &p.k, &p.v, &p.out}, tsp_attend_workspace, tsp_attend);
  }
}

void fuzz_prefill(Case& c) {
  tsp_prefill_params_t p;
  tsp_prefill_params_init(&p, sizeof p);
  p.window = c.window;
  p.pool = c.bytes.pick({1, 7});
  p.min_tokens = c.bytes.pick({0, 3, 1024});
  p.share = c.share;
  p.coverage = c.bytes.one_in(4) ? c.bytes.strange_float() : 0.3f;
  p.keep = c.bytes.one_in(4) ? c.bytes.strange_float() : 0.0f;
  p.dropped = c.bytes.below(2);
  p.band = c.bytes.range(1, 9);
  p.sink = c.bytes.pick({0, 0, 1, 5, 300, -1});
  p.when = c.bytes.pick({0, 0, 1, 1, 2});
  p.q = c.q, p.k = c.k, p.v = c.v, p.out = c.out, p.batch = c.batch;
  if (!c.bytes.one_in(4)) p.selected = c.sets;
  if (c.bytes.one_in(4)) p.selected.indices = nullptr;
  if (c.bytes.one_in(3)) {
    p.given = p.selected;  // in place, or the chosen sets are not wanted
    p.given.indices = c.sets.indices;
  }
  if (c.lists_are_right && c.bytes.one_in(4)) {
    p.blocks = c.random_blocks(p.given);
    if (p.given.indices == nullptr && !c.bytes.one_in(4)) p.coverage = p.keep = 0;
    if (!c.bytes.one_in(4)) p.when = 0;
  }
  if (c.bytes.one_in(4)) {
    tsp_pattern_init(&p.pattern, c.bytes.pick({1, 2, 3, 4, 5, 6}));
    p.pattern.block = c.bytes.pick({16, 16, 32, 128, 5});
    p.pattern.stride = c.bytes.pick({4, 4, 16, 3});
    p.pattern.share = c.bytes.pick({0, 0, 1, 2, 3});
    if (!c.bytes.one_in(4)) p.blocks.blocks = nullptr;
  }
  int64_t tally[2] = {};
  if (c.bytes.one_in(3)) p.tally = tally;
  spoil_size(c, p);
  call(c, p, {&p.q, &p.k, &p.v, &p.out}, tsp_prefill_workspace, tsp_prefill);
}

/// Rows of the short sequences: C = tokens / number of sequences, any C that holds every list.
tsp_tensor_t short_view(Case& c, int32_t dtype, int64_t heads) {
  return random_view(c.bytes, c.memory, dtype, c.short_rows, heads, c.dim);
}

void fuzz_compress(Case& c) {
  tsp_compress_params_t p;
  tsp_compress_params_init(&p, sizeof p);
  const int64_t kv_heads = std::max<int64_t>(c.num_sets, c.kv_heads);
  p.q_out = short_view(c, c.q_dtype, c.q_heads);
  p.k_out = short_view(c, c.kv_dtype, kv_heads);
  p.v_out = short_view(c, c.kv_dtype, kv_heads);
  tsp_tensor_t* const outputs[] = {&p.q_out, &p.k_out, &p.v_out};
  if (c.bytes.one_in(4)) spoil(c.bytes, *c.bytes.pick(outputs));
  p.q = c.q, p.k = c.k, p.v = c.v, p.selected = c.sets, p.batch = c.batch;
  spoil_size(c, p);
  if (p.q.data == nullptr) {
    call<tsp_compress_params_t>(c, p, {&p.k, &p.v, &p.k_out, &p.v_out}, nullptr, tsp_compress);
  } else {
    call<tsp_compress_params_t>(c, p, {&p.q, &p.k, &p.v, &p.q_out, &p.k_out, &p.v_out}, nullptr,
                                tsp_compress);
  }
}

void fuzz_decompress(Case& c) {
  tsp_decompress_params_t p;
  tsp_decompress_params_init(&p, sizeof p);
  p.k_len = c.lengths.k_offsets.at(1);
  p.in = short_view(c, c.q_dtype, c.q_heads);
  if (c.bytes.one_in(4)) spoil(c.bytes, p.in);
  p.out = c.out, p.selected = c.sets, p.batch = c.batch;
  spoil_size(c, p);
  call<tsp_decompress_params_t>(c, p, {&p.in, &p.out}, nullptr, tsp_decompress);
}

struct Operation {
  const char* name;
  void (*fuzz)(Case&);
  long succeeded = 0;
  long refused = 0;
};
Operation operations[] = {{"score", fuzz_score},          {"select", fuzz_select},
                          {"estimate", fuzz_estimate},    {"attend", fuzz_attend},
                          {"prefill", fuzz_prefill},      {"compress", fuzz_compress},
                          {"decompress", fuzz_decompress}};

}  // namespace
}  // namespace tsp::fuzz

std::vector<std::string> fuzz_seeds() {
  // Decisions, not documents: any bytes do, as long as there are enough of them.
  std::vector<std::string> seeds;
  uint32_t state = 1;
  for (int n = 0; n < 64; ++n) {
    std::string seed;
    for (int i = 0; i < 400; ++i) {
      state = state * 1664525u + 1013904223u;
      seed.push_back(static_cast<char>(state >> 24));
    }
    seeds.push_back(seed);
  }
  return seeds;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tsp::fuzz;
  Bytes bytes(data, size);
  Operation& operation = operations[bytes.below(static_cast<int32_t>(std::size(operations)))];
  succeeded = refused = 0;
  Case c(bytes);
  c.spoil_some();
  operation.fuzz(c);
  operation.succeeded += succeeded;
  operation.refused += refused;
  return 0;
}

bool fuzz_reached_enough() {
  bool enough = true;
  for (const tsp::fuzz::Operation& op : tsp::fuzz::operations) {
    std::printf("%-10s %ld calls succeeded, %ld were refused\n", op.name, op.succeeded, op.refused);
    enough = enough && op.succeeded > 100 && op.refused > 100;
  }
  return enough;
}
