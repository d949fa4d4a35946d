// SPDX-License-Identifier: MIT
#include "bench/torch_peer.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

#include "bench/torch_sdpa.h"  // kTorchSdpaScript, written by bench.cmake

namespace tsp::bench {
namespace {

/// Runs a program and returns what it wrote to stdout; its stderr is dropped. `*exit_status` is 0
/// only when it ran and ended well.
std::string output_of(const std::vector<std::string>& command, int* exit_status) {
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  *exit_status = -1;
  int ends[2];
  if (pipe(ends) != 0) return "";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addclose(&actions, ends[0]);
  posix_spawn_file_actions_addclose(&actions, ends[1]);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  const bool started =
      posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ) == 0;
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t got; started && (got = read(ends[0], buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(got));
  }
  close(ends[0]);
  if (started) waitpid(child, exit_status, 0);
  return text;
}

}  // namespace

std::string run_torch_peer(const Shape& shape, bool bf16, int threads, const Budget& budget,
                           std::string* why) {
  const char* const python = std::getenv("TOKENSPARSE_PEER_PYTHON");
  if (python == nullptr || *python == '\0') {
    *why =
        "no torch beside it: set TOKENSPARSE_PEER_PYTHON to a Python that has it "
        "(bench/peers/install torch makes one)";
    return "";
  }
  if (shape.q_tokens != shape.tokens) {
    *why = "no torch beside it: its causal mask is for whole prompts only (--q-tokens)";
    return "";
  }
  int status = 0;
  std::string text = output_of(
      {python, "-c", kTorchSdpaScript, std::to_string(shape.tokens), std::to_string(shape.heads),
       std::to_string(shape.kv_heads), std::to_string(shape.dim), bf16 ? "bf16" : "f32",
       std::to_string(threads), std::to_string(budget.repeat), std::to_string(budget.max_time)},
      &status);
  if (status == 0) return text;
  *why = std::string("no torch beside it: ") + python + " failed; has it torch?";
  return "";
}

}  // namespace tsp::bench
