// SPDX-License-Identifier: MIT
// JSON leaves open which value counts where an object has a key twice, and readers differ: ours
// refuse it.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace tsp {

/// Sees what a parser meets, from its callback.
template <class Json>
class RepeatedKey {
 public:
  void see(typename Json::parse_event_t event, const Json& parsed) {
    using Event = typename Json::parse_event_t;
    if (event == Event::object_start) open_.emplace_back();
    if (event == Event::object_end) open_.pop_back();
    if (event != Event::key || found_.has_value()) return;
    std::string key = parsed.template get<std::string>();
    if (!open_.back().insert(key).second) found_ = std::move(key);
  }
  /// The first key that an object had before.
  const std::optional<std::string>& found() const { return found_; }

 private:
  std::vector<std::set<std::string>> open_;  // keys of the objects that are open
  std::optional<std::string> found_;
};

/// The text as JSON; discarded where it is none.
template <class Json>
Json parse_json(const std::string& text, std::optional<std::string>& repeated) {
  RepeatedKey<Json> keys;
  const auto callback = [&](int, typename Json::parse_event_t event, Json& parsed) {
    keys.see(event, parsed);
    return true;
  };
  Json json = Json::parse(text, callback, /*allow_exceptions=*/false);
  repeated = keys.found();
  return json;
}

}  // namespace tsp
