// SPDX-License-Identifier: MIT
#include "tests/support/backends.h"

#include <sstream>

namespace tsp::test {

#ifndef TSP_WITH_CUDA
std::vector<Backend> cuda_backends() { return {}; }
#endif

std::vector<Backend> all_backends() {
  std::vector<Backend> backends = {{"ref", TSP_BACKEND_REF, "", nullptr}};
  std::istringstream isas(tsp_cpu_isas());
  for (std::string isa; isas >> isa;)
    backends.push_back({"cpu_" + isa, TSP_BACKEND_CPU, isa, nullptr});
  for (Backend& backend : cuda_backends()) backends.push_back(std::move(backend));
  return backends;
}

}  // namespace tsp::test
