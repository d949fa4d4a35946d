// SPDX-License-Identifier: MIT
// What compute-sanitizer's racecheck follows of a hand-over by mbarrier: a warp reads shared memory
// and arrives, another waits for that and overwrites it.
// usage: compute-sanitizer --tool racecheck cuda_racecheck_probe each | one | none
//   each  every lane arrives for itself
//   one   one lane arrives for its warp behind __syncwarp: as well ordered
//   none  lanes arrive before they read: a race
#include <cuda_runtime_api.h>

#include <cstdio>
#include <string>

#include "cuda/sm90/mbarrier.cuh"

namespace {

constexpr int kRounds = 8;

enum class Arrival { kEach, kOne, kNone };

template <Arrival kArrival>
__global__ void __launch_bounds__(64) probe_kernel(int* out) {
  using namespace tsp::cuda;
  __shared__ int s_word[32];
  __shared__ uint64_t s_full, s_empty;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    init_barrier(&s_full, 32);
    init_barrier(&s_empty, kArrival == Arrival::kOne ? 1 : 32);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    for (int round = 0; round < kRounds; ++round) {
      wait_for(&s_empty, (round & 1) ^ 1);
      s_word[lane] = round;
      arrive(&s_full);
    }
    return;
  }
  int sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    wait_for(&s_full, round & 1);
    if (kArrival == Arrival::kNone) arrive(&s_empty);
    sum += static_cast<volatile int*>(s_word)[lane ^ 1];
    if (kArrival == Arrival::kOne) __syncwarp();
    if (kArrival == Arrival::kEach || (kArrival == Arrival::kOne && lane == 0)) arrive(&s_empty);
  }
  out[lane] = sum;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc == 2 ? argv[1] : "";
  int* out = nullptr;
  if (cudaMalloc(&out, 32 * sizeof(int)) != cudaSuccess) return 2;
  if (mode == "each") {
    probe_kernel<Arrival::kEach><<<1, 64>>>(out);
  } else if (mode == "one") {
    probe_kernel<Arrival::kOne><<<1, 64>>>(out);
  } else if (mode == "none") {
    probe_kernel<Arrival::kNone><<<1, 64>>>(out);
  } else {
    std::fprintf(stderr, "usage: %s each | one | none\n", argv[0]);
    return 2;
  }
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}
