// SPDX-License-Identifier: MIT
#include "cli/output_file.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <system_error>

#include "cli/verbs.h"

namespace tsp::cli {

OutputFile::OutputFile(const std::string& path, const std::vector<std::string>& inputs)
    : path_(path), target_(path) {
  struct stat info;
  const bool there = stat(path.c_str(), &info) == 0;
  // NOTE: a rename over /dev/null would replace the device.
  if (there && !S_ISREG(info.st_mode)) {
    throw Failure(path + ": cannot be written: it is there and not a regular file");
  }
  for (const std::string& input : inputs) {
    struct stat other;
    if (there && stat(input.c_str(), &other) == 0 && other.st_dev == info.st_dev &&
        other.st_ino == info.st_ino) {
      throw Failure(path + ": cannot be written: it is an input (" + input + ")");
    }
  }
  std::error_code error;
  const std::filesystem::path target = std::filesystem::canonical(path, error);
  if (!error) target_ = target;
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&stop_signals, signal);
  pthread_sigmask(SIG_BLOCK, &stop_signals, &old_signals_);
  open_temporary();
  if (descriptor_ < 0) {
    const int error_of_open = errno;
    pthread_sigmask(SIG_SETMASK, &old_signals_, nullptr);
    errno = error_of_open;
    fail("be written");
  }
}

/// Under a name that no other run takes: in containers every run may have the same number.
void OutputFile::open_temporary() {
  std::random_device random;
  for (int attempt = 0; attempt < 16 && descriptor_ < 0; ++attempt) {
    const std::string name = target_ + ".tmp-" + std::to_string(random());
    descriptor_ = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ >= 0) temporary_ = name;
    if (descriptor_ < 0 && errno != EEXIST) return;
  }
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
  pthread_sigmask(SIG_SETMASK, &old_signals_, nullptr);
}

void OutputFile::write(const void* data, size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor_, at, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("be written");
    at += written;
    bytes -= static_cast<size_t>(written);
  }
}

void OutputFile::commit() {
  // A disk that fills up late tells it here, not at write().
  if (fsync(descriptor_) != 0 && errno != EINVAL && errno != EROFS) fail("be written");
  const int closed = close(descriptor_);
  descriptor_ = -1;
  if (closed != 0) fail("be written");
  if (std::rename(temporary_.c_str(), target_.c_str()) != 0) fail("be put in place");
  temporary_.clear();
}

void OutputFile::fail(const char* step) const {
  throw Failure(path_ + ": cannot " + step + ": " + std::strerror(errno));
}

}  // namespace tsp::cli
