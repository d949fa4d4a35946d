// SPDX-License-Identifier: MIT
// Ctrl-C as a question that long work asks, so that it can end with one sentence.
#pragma once

#include <csignal>

namespace tsp::cli {

inline constexpr int kExitInterrupted = 130;  // as shells report it

/// Catches SIGINT while it lives; a second Ctrl-C ends the program at once.
class CatchInterrupt {
 public:
  CatchInterrupt();
  ~CatchInterrupt();
  CatchInterrupt(const CatchInterrupt&) = delete;
  CatchInterrupt& operator=(const CatchInterrupt&) = delete;

 private:
  struct sigaction before_;
};

bool interrupted();
/// Throws Failure with kExitInterrupted after a Ctrl-C.
void stop_if_interrupted();

}  // namespace tsp::cli
