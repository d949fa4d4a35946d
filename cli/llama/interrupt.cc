// SPDX-License-Identifier: MIT
#include "cli/llama/interrupt.h"

#include "cli/verbs.h"

namespace tsp::cli {
namespace {

volatile std::sig_atomic_t caught = 0;

void on_interrupt(int) { caught = 1; }

}  // namespace

CatchInterrupt::CatchInterrupt() {
  caught = 0;
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, &before_);
}

CatchInterrupt::~CatchInterrupt() { sigaction(SIGINT, &before_, nullptr); }

bool interrupted() { return caught != 0; }

void stop_if_interrupted() {
  if (interrupted()) throw Failure("interrupted", kExitInterrupted);
}

}  // namespace tsp::cli
