// SPDX-License-Identifier: MIT
// Readers of the blocks of GGUF files: a scale in f16 and integers in pieces of 4, 1 and 2 bits.
// For units that define TSP_READER, the attributes of functions that need AVX-512 (F, BW, VL) and
// F16C, and store(__m512, Out*).
#ifndef TSP_READER
#error "define TSP_READER first"
#endif

namespace tsp::ggml_adapter {
namespace {

struct Q4_0 {
  uint16_t scale;
  uint8_t low[16];  // value i in the low half of byte i, value 16 + i in the high one
};

struct Q5_0 {
  uint16_t scale;
  uint8_t high[4];  // the fifth bit of each value
  uint8_t low[16];  // as in Q4_0
};

struct Q8_0 {
  uint16_t scale;
  int8_t values[32];
};

struct Q4K {
  uint16_t scale, min_scale;
  uint8_t scales[12];  // factors of 8 runs of 32 values: 6 bits for the scale, 6 for the minimum
  uint8_t low[128];    // two runs in 32 bytes
};

struct Q5K {
  uint16_t scale, min_scale;
  uint8_t scales[12];  // as in Q4K
  uint8_t high[32];    // the fifth bit of value i of run j is bit j of byte i
  uint8_t low[128];    // as in Q4K
};

struct Q6K {
  uint8_t low[128];   // four bits of 128 values in 64 bytes
  uint8_t high[64];   // two bits of 128 values in 32 bytes
  int8_t scales[16];  // of 16 values each
  uint16_t scale;
};
static_assert(sizeof(Q4_0) == 18 && sizeof(Q5_0) == 22 && sizeof(Q8_0) == 34);
static_assert(sizeof(Q4K) == 144 && sizeof(Q5K) == 176 && sizeof(Q6K) == 210);

TSP_READER inline __m128i load16(const void* at) {
  return _mm_loadu_si128(static_cast<const __m128i*>(at));
}

TSP_READER inline __m256i load32(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}

template <class Out>
TSP_READER inline void store_scaled(__m128i values, float scale, Out* out) {
  const __m512 wide = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(values));
  store(_mm512_mul_ps(wide, _mm512_set1_ps(scale)), out);
}

/// The low halves of 16 bytes, then their high halves.
TSP_READER inline __m256i halves(const uint8_t* bytes) {
  const __m128i low = load16(bytes);
  const __m256i both =
      _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_srli_epi16(low, 4), 1);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

template <class Out>
TSP_READER inline void store_block(__m256i values, uint16_t scale, Out* out) {
  const float factor = _cvtsh_ss(scale);
  store_scaled(_mm256_castsi256_si128(values), factor, out);
  store_scaled(_mm256_extracti128_si256(values, 1), factor, out + 16);
}

template <class Out>
TSP_READER void read_q4_0(const void* packed, Out* out, int64_t count) {
  const auto* block = static_cast<const Q4_0*>(packed);
  for (const Q4_0* end = block + count / 32; block < end; ++block, out += 32) {
    store_block(_mm256_sub_epi8(halves(block->low), _mm256_set1_epi8(8)), block->scale, out);
  }
}

template <class Out>
TSP_READER void read_q5_0(const void* packed, Out* out, int64_t count) {
  const auto* block = static_cast<const Q5_0*>(packed);
  const __m256i sixteen = _mm256_set1_epi8(16);
  for (const Q5_0* end = block + count / 32; block < end; ++block, out += 32) {
    uint32_t high;
    memcpy(&high, block->high, sizeof high);
    // The fifth bit adds 16 and all values lose 16: subtract where it is not set.
    const __m256i low = halves(block->low);
    store_block(_mm256_mask_sub_epi8(low, ~high, low, sixteen), block->scale, out);
  }
}

template <class Out>
TSP_READER void read_q8_0(const void* packed, Out* out, int64_t count) {
  const auto* block = static_cast<const Q8_0*>(packed);
  for (const Q8_0* end = block + count / 32; block < end; ++block, out += 32) {
    store_block(load32(block->values), block->scale, out);
  }
}

template <class Out>
TSP_READER inline void store_above_minimum(__m128i values, float scale, float minimum, Out* out) {
  const __m512 wide = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(values));
  store(_mm512_fmsub_ps(wide, _mm512_set1_ps(scale), _mm512_set1_ps(minimum)), out);
}

struct RunFactors {
  int step, minimum;
};

/// Runs 0 to 3 have bytes of their own; the other four share four bytes and the upper two bits of
/// the first eight.
TSP_READER inline RunFactors factors_of(const uint8_t* s, int run) {
  if (run < 4) return {s[run] & 63, s[run + 4] & 63};
  return {(s[run + 4] & 15) | (s[run - 4] >> 6 << 4), s[run + 4] >> 4 | (s[run] >> 6 << 4)};
}

template <class Out>
TSP_READER void read_q4_k(const void* packed, Out* out, int64_t count) {
  const auto* block = static_cast<const Q4K*>(packed);
  for (const Q4K* end = block + count / 256; block < end; ++block) {
    const float scale = _cvtsh_ss(block->scale), min_scale = _cvtsh_ss(block->min_scale);
    for (int run = 0; run < 8; ++run, out += 32) {
      const RunFactors factors = factors_of(block->scales, run);
      const __m256i pair = load32(block->low + 32 * (run / 2));
      const __m256i values =
          _mm256_and_si256(_mm256_srli_epi16(pair, 4 * (run % 2)), _mm256_set1_epi8(15));
      const float step = scale * static_cast<float>(factors.step);
      const float minimum = min_scale * static_cast<float>(factors.minimum);
      store_above_minimum(_mm256_castsi256_si128(values), step, minimum, out);
      store_above_minimum(_mm256_extracti128_si256(values, 1), step, minimum, out + 16);
    }
  }
}

template <class Out>
TSP_READER void read_q5_k(const void* packed, Out* out, int64_t count) {
  const auto* block = static_cast<const Q5K*>(packed);
  for (const Q5K* end = block + count / 256; block < end; ++block) {
    const float scale = _cvtsh_ss(block->scale), min_scale = _cvtsh_ss(block->min_scale);
    const __m256i high_bits = load32(block->high);
    for (int run = 0; run < 8; ++run, out += 32) {
      const RunFactors factors = factors_of(block->scales, run);
      const __m256i pair = load32(block->low + 32 * (run / 2));
      const __m256i low =
          _mm256_and_si256(_mm256_srli_epi16(pair, 4 * (run % 2)), _mm256_set1_epi8(15));
      const __m256i bit = _mm256_and_si256(_mm256_srli_epi16(high_bits, run), _mm256_set1_epi8(1));
      const __m256i values = _mm256_or_si256(low, _mm256_slli_epi16(bit, 4));
      const float step = scale * static_cast<float>(factors.step);
      const float minimum = min_scale * static_cast<float>(factors.minimum);
      store_above_minimum(_mm256_castsi256_si128(values), step, minimum, out);
      store_above_minimum(_mm256_extracti128_si256(values, 1), step, minimum, out + 16);
    }
  }
}

template <class Out>
TSP_READER void read_q6_k(const void* packed, Out* out, int64_t count) {
  const auto* block = static_cast<const Q6K*>(packed);
  const __m256i four_bits = _mm256_set1_epi8(15), two_bits = _mm256_set1_epi8(0x30);
  for (const Q6K* end = block + count / 256; block < end; ++block) {
    const float scale = _cvtsh_ss(block->scale);
    for (int run = 0; run < 8; ++run, out += 32) {  // 32 values
      const int half = run / 4, quarter = run % 4;
      const __m256i low_pair = load32(block->low + 64 * half + 32 * (quarter % 2));
      const __m256i high_four = load32(block->high + 32 * half);
      const __m256i low =
          _mm256_and_si256(_mm256_srli_epi16(low_pair, 4 * (quarter / 2)), four_bits);
      // Two bits to the places 4 and 5.
      const __m256i moved = quarter < 2 ? _mm256_slli_epi16(high_four, 4 - 2 * quarter)
                                        : _mm256_srli_epi16(high_four, 2 * quarter - 4);
      const __m256i values = _mm256_sub_epi8(
          _mm256_or_si256(low, _mm256_and_si256(moved, two_bits)), _mm256_set1_epi8(32));
      const int8_t* scales = block->scales + 2 * run;
      store_scaled(_mm256_castsi256_si128(values), scale * static_cast<float>(scales[0]), out);
      store_scaled(_mm256_extracti128_si256(values, 1), scale * static_cast<float>(scales[1]),
                   out + 16);
    }
  }
}

/// Dequantises `count` values, whole blocks.
template <class Out>
using ReadBlocks = void (*)(const void* packed, Out* out, int64_t count);

/// Null for types without a reader.
template <class Out>
ReadBlocks<Out> block_reader(ggml_type type) {
  switch (type) {
    case GGML_TYPE_Q4_0:
      return read_q4_0<Out>;
    case GGML_TYPE_Q5_0:
      return read_q5_0<Out>;
    case GGML_TYPE_Q8_0:
      return read_q8_0<Out>;
    case GGML_TYPE_Q4_K:
      return read_q4_k<Out>;
    case GGML_TYPE_Q5_K:
      return read_q5_k<Out>;
    case GGML_TYPE_Q6_K:
      return read_q6_k<Out>;
    default:
      return nullptr;
  }
}

}  // namespace
}  // namespace tsp::ggml_adapter
