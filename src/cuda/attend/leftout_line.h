// SPDX-License-Identifier: MIT
// The keys of a tile of left-out rows in one line: the first ones, then the band from the first
// row's first key to the last row. A key that is first and in the band comes once. Plain C++, so
// that g++ tests it.
#pragma once

#include "cuda/attend/attend_config.h"
#include "cuda/views.h"

namespace tsp::cuda {

/// Places of a line. `sink` and `band` are at most Tk, so nothing here overflows.
struct KeyLine {
  int32_t sinks;  // place n is key n for n < sinks, then key n + shift
  int32_t shift;
  int32_t count;

  TSP_HOST_DEVICE int32_t key(int32_t n) const { return n < sinks ? n : n + shift; }
  /// Every row of positions [first, last] sees place n and the ones after it up to a tile.
  TSP_HOST_DEVICE bool all_see(int32_t n, int32_t first, int32_t last, int32_t sink,
                               int32_t band) const {
    const int32_t end = n + kLeftOutKeys;
    return end <= first - shift + 1 && (end <= sink || n > last - band - shift);
  }
  /// No row of those positions sees one of them.
  TSP_HOST_DEVICE bool none_sees(int32_t n, int32_t first, int32_t last, int32_t sink,
                                 int32_t band) const {
    return n > last - shift || (n >= sink && n + kLeftOutKeys <= first - band - shift + 1);
  }
};

/// Of rows whose positions lie in [first, last].
TSP_HOST_DEVICE inline KeyLine make_key_line(int32_t first, int32_t last, int32_t sink,
                                             int32_t band) {
  const int32_t band_begin = first >= band ? first - band + 1 : 0;
  const bool apart = sink < band_begin;
  KeyLine line;
  line.sinks = apart ? (sink + kLeftOutKeys - 1) / kLeftOutKeys * kLeftOutKeys : 0;
  line.shift = apart ? band_begin - line.sinks : 0;
  line.count = last + 1 - line.shift;
  return line;
}

/// Whether a row sees a place: `own` is its own, those below `sink` are first keys. All three from
/// the same origin.
TSP_HOST_DEVICE inline bool sees(int32_t place, int32_t own, int32_t sink, int32_t band) {
  return place < (sink < own + 1 ? sink : own + 1) ||
         static_cast<uint32_t>(place - own + band - 1) < static_cast<uint32_t>(band);
}

}  // namespace tsp::cuda
