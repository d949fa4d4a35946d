// SPDX-License-Identifier: MIT
#include "bench/ggml_peer.h"

namespace tsp::bench {

std::unique_ptr<GgmlPeer> GgmlPeer::create(const Workload&, int, int64_t) { return nullptr; }

}  // namespace tsp::bench
