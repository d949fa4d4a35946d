// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>

#include "cli/bench/options.h"

namespace tsp::cli {
namespace {

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string now_utc() {
  char text[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return text;
}

std::string time_text(double seconds) {
  char text[32];
  if (seconds >= 1) {
    std::snprintf(text, sizeof text, "%.3f s", seconds);
  } else if (seconds >= 1e-3) {
    std::snprintf(text, sizeof text, "%.2f ms", seconds * 1e3);
  } else {
    std::snprintf(text, sizeof text, "%.1f us", seconds * 1e6);
  }
  return text;
}

double gflops(const BenchRow& row) { return row.work.flops / row.time.median / 1e9; }
double gbs(const BenchRow& row) { return row.work.bytes / row.time.median / 1e9; }

}  // namespace

nlohmann::json spread_json(const bench::Spread& spread) {
  return {{"min", spread.min},
          {"p25", spread.p25},
          {"p75", spread.p75},
          {"max", spread.max},
          {"samples", spread.samples}};
}

BenchReport::BenchReport(bool json) : json_(json) {
  document_ = {{"version", tsp_version()},
               {"date", now_utc()},
               {"machine", {{"processor", processor_name()}}},
               {"floors", nlohmann::json::array()},
               {"rows", nlohmann::json::array()},
               {"notes", nlohmann::json::array()}};
}

void BenchReport::floor(const bench::Floor& f, const std::string& gpu) {
  if (!gpu.empty()) document_["machine"]["gpu"] = gpu;
  if (!json_ && document_["floors"].empty()) {
    std::printf("%s, %s\n", gpu.empty() ? processor_name().c_str() : gpu.c_str(),
                now_utc().c_str());
  }
  document_["floors"].push_back({{"isa", f.isa},
                                 {"threads", f.threads},
                                 {"f32_gflops", f.f32_gflops},
                                 {"bf16_gflops", f.bf16_gflops},
                                 {"copy_gbs", f.copy_gbs},
                                 {"cached_copy_gbs", f.cached_gbs}});
  if (json_) return;
  std::printf("at most (%s, %d threads): %.0f GFLOP/s f32, ", f.isa.c_str(), f.threads,
              f.f32_gflops);
  if (f.bf16_gflops > 0) std::printf("%.0f bf16, ", f.bf16_gflops);
  std::printf("copy %.1f GB/s, in cache %.0f\n", f.copy_gbs, f.cached_gbs);
  std::fflush(stdout);
}

void BenchReport::row(const BenchRow& row) {
  nlohmann::json peers = nlohmann::json::object();
  for (const BenchRow::Peer& peer : row.peers) peers[peer.name] = peer.result;
  document_["rows"].push_back({{"op", row.op},
                               {"backend", row.backend},
                               {"isa", row.isa},
                               {"dtype", row.dtype},
                               {"q_dtype", row.q_dtype},
                               {"precision", row.precision},
                               {"tokens", row.shape.tokens},
                               {"q_tokens", row.shape.q_tokens},
                               {"heads", row.shape.heads},
                               {"kv_heads", row.shape.kv_heads},
                               {"dim", row.shape.dim},
                               {"threads", row.threads},
                               {"share", row.share},
                               {"coverage", row.coverage},
                               {"kept", row.kept},
                               {"served", row.served},
                               {"median_s", row.time.median},
                               {"spread", spread_json(row.time)},
                               {"gflops", gflops(row)},
                               {"gbs", gbs(row)},
                               {"floor_s", row.floor_s},
                               {"floor_share", row.floor_s / row.time.median},
                               {"pairs", row.pairs},
                               {"peers", peers}});
  for (const BenchRow::Part& part : row.parts) {
    document_["rows"].back()["parts"][part.name] = {{"median_s", part.time.median},
                                                    {"spread", spread_json(part.time)}};
  }
  if (json_) return;
  if (!header_printed_) {
    std::printf("\n%-8s %7s %7s %6s %4s %-4s %-4s %-11s %3s %5s %5s  %10s %-23s %8s %6s %6s  %s\n",
                "op", "tokens", "queries", "heads", "dim", "kv", "math", "isa", "thr", "kept",
                "pairs", "median", "(min .. max)", "GFLOP/s", "GB/s", "floor", "beside it");
    header_printed_ = true;
  }
  const std::string range = "(" + time_text(row.time.min) + " .. " + time_text(row.time.max) + ")";
  const std::string heads =
      std::to_string(row.shape.heads) + "/" + std::to_string(row.shape.kv_heads);
  std::printf(
      "%-8s %7lld %7lld %6s %4lld %-4s %-4s %-11s %3d %5.3f %5.3f  %10s %-23s %8.1f %6.1f %5.1f%%",
      row.op.c_str(), static_cast<long long>(row.shape.tokens),
      static_cast<long long>(row.shape.q_tokens), heads.c_str(),
      static_cast<long long>(row.shape.dim), row.dtype.c_str(), row.precision.c_str(),
      row.isa.c_str(), row.threads, row.kept, row.pairs, time_text(row.time.median).c_str(),
      range.c_str(), gflops(row), gbs(row), 100 * row.floor_s / row.time.median);
  for (const BenchRow::Peer& peer : row.peers) {
    const double median = peer.result.at("median_s");
    std::printf("  %s %s (%.2fx)", peer.name.c_str(), time_text(median).c_str(),
                median / row.time.median);
  }
  std::printf("\n");
  for (const BenchRow::Part& part : row.parts) {
    std::printf("  %s %s", part.name.c_str(), time_text(part.time.median).c_str());
  }
  if (!row.parts.empty()) std::printf("\n");
  std::fflush(stdout);
}

void BenchReport::note(const std::string& sentence) {
  if (std::find(notes_.begin(), notes_.end(), sentence) != notes_.end()) return;
  notes_.push_back(sentence);
  document_["notes"].push_back(sentence);
  std::fprintf(stderr, "tokensparse: %s\n", sentence.c_str());
}

void BenchReport::finish() {
  if (json_) std::printf("%s\n", document_.dump(2).c_str());
}

}  // namespace tsp::cli
