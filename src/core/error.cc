// SPDX-License-Identifier: MIT
#include "core/error.h"

#include <cstdarg>
#include <cstdio>

#include "tokensparse/version.h"

namespace tsp {
namespace {
thread_local char last_error[512] = "no error";
}  // namespace

tsp_status_t fail(tsp_status_t code, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return code;
}

}  // namespace tsp

extern "C" {
const char* tsp_last_error(void) { return tsp::last_error; }
const char* tsp_version(void) { return TSP_VERSION_STRING; }
uint32_t tsp_abi_version(void) { return TSP_ABI_VERSION; }
}
