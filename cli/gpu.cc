// SPDX-License-Identifier: MIT
#include "cli/gpu.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <fstream>
#include <iterator>
#include <sstream>

#ifdef TSP_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include "cli/device_memory.h"
#include "cli/verbs.h"

namespace tsp::cli {

int tensor_flops_per_clock(int major, int minor) {
  if (major == 8) return minor == 0 ? 2048 : 1024;
  if (major == 9) return 4096;
  return major >= 10 ? 8192 : 0;
}

std::string driver_version(const std::string& text) {
  const std::string mark = "Kernel Module";
  const size_t at = text.find(mark);
  if (at == std::string::npos) return "";
  // "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build ..."
  std::istringstream words(text.substr(at + mark.size()));
  for (std::string word; words >> word;) {
    const bool number = std::all_of(
        word.begin(), word.end(), [](unsigned char c) { return std::isdigit(c) != 0 || c == '.'; });
    if (number && word.find('.') != std::string::npos) return word;
  }
  return "";
}

#ifdef TSP_WITH_CUDA
namespace {

constexpr double kSampleSeconds = 2e-3;
constexpr int kMostCalls = 200;

void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw Failure(std::string("GPU: ") + what + ": " + cudaGetErrorString(error));
  }
}

struct Event {
  Event() { require(cudaEventCreate(&event), "event"); }
  ~Event() { (void)cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t event = nullptr;
};

double seconds_of_calls(const std::function<void()>& call, int count) {
  const Event start, end;
  require(cudaEventRecord(start.event), "event");
  for (int i = 0; i < count; ++i) call();
  require(cudaEventRecord(end.event), "event");
  require(cudaEventSynchronize(end.event), "kernel");
  float milliseconds = 0;
  require(cudaEventElapsedTime(&milliseconds, start.event, end.event), "event");
  return milliseconds * 1e-3 / count;
}

double copy_gbs(size_t bytes) {
  const DeviceMemory from(true, nullptr, bytes), to(true, nullptr, bytes);
  const auto copy = [&] {
    require(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice), "copy");
  };
  copy();
  double best = gpu_seconds(copy);
  for (int i = 0; i < 5; ++i) best = std::min(best, gpu_seconds(copy));
  return 2.0 * static_cast<double>(bytes) / best / 1e9;
}

cudaDeviceProp current_gpu() {
  int device = 0;
  cudaDeviceProp properties{};
  require(cudaGetDevice(&device), "device");
  require(cudaGetDeviceProperties(&properties, device), "device");
  return properties;
}

}  // namespace

std::vector<Gpu> list_gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return {};
  }
  std::ifstream file("/proc/driver/nvidia/version");
  std::string driver = driver_version({std::istreambuf_iterator<char>(file), {}});
  int cuda = 0;
  if (driver.empty() && cudaDriverGetVersion(&cuda) == cudaSuccess) {
    driver = "for CUDA " + std::to_string(cuda / 1000) + "." + std::to_string(cuda % 1000 / 10);
  }
  std::vector<Gpu> gpus;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
    gpus.push_back(
        {properties.name, properties.totalGlobalMem, properties.major, properties.minor, driver});
  }
  return gpus;
}

std::string gpu_name() { return current_gpu().name; }

double gpu_seconds(const std::function<void()>& call) {
  const double once = seconds_of_calls(call, 1);
  if (once >= kSampleSeconds) return once;
  return seconds_of_calls(
      call, std::clamp(static_cast<int>(std::ceil(kSampleSeconds / once)), 2, kMostCalls));
}

bench::Floor gpu_floor(const std::string& isa) {
  const cudaDeviceProp gpu = current_gpu();
  int kilohertz = 0;
  require(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, 0), "clock");
  bench::Floor floor;
  floor.isa = isa;
  floor.threads = 1;
  floor.bf16_gflops =
      1e-6 * kilohertz * gpu.multiProcessorCount * tensor_flops_per_clock(gpu.major, gpu.minor);
  floor.f32_gflops = floor.bf16_gflops;
  floor.copy_gbs = copy_gbs(size_t{1} << 30);
  floor.cached_gbs = std::max(floor.copy_gbs, copy_gbs(static_cast<size_t>(gpu.l2CacheSize) / 4));
  return floor;
}
#else
std::vector<Gpu> list_gpus() { return {}; }
// A context on a GPU does not open in this build, so nobody gets here.
std::string gpu_name() { return ""; }
double gpu_seconds(const std::function<void()>&) { return 0; }
bench::Floor gpu_floor(const std::string&) { return {}; }
#endif

}  // namespace tsp::cli
