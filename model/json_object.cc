#include "model/json_object.h"

#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace mneme {

absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, absl::string_view what) {
  std::set<std::string> keys;
  std::string twice;
  const auto note_keys = [&](int depth, nlohmann::json::parse_event_t event,
                             nlohmann::json& parsed) {
    if (event == nlohmann::json::parse_event_t::key && depth == 1) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.insert(key).second && twice.empty()) twice = key;
    }
    return true;
  };
  nlohmann::json object;
  try {
    object = nlohmann::json::parse(text.begin(), text.end(), note_keys);
  } catch (const nlohmann::json::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": not valid JSON at byte ", error.byte, " of ", text.size()));
  } catch (const nlohmann::json::exception&) {
    // All that is left while parsing: out_of_range, for a number beyond a double.
    return absl::InvalidArgumentError(absl::StrCat(what, ": holds a number out of range"));
  }
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": expected a JSON object, found ", object.type_name()));
  }
  if (!twice.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": key \"", twice, "\" appears twice"));
  }
  return object;
}

}  // namespace mneme
