// Strict reading of one JSON object from outside bytes (config.json, the safetensors header).

#ifndef MNEME_MODEL_JSON_OBJECT_H_
#define MNEME_MODEL_JSON_OBJECT_H_

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

// The JSON object in `text`. INVALID_ARGUMENT, beginning with `what`, when the text is not JSON
// (with the byte where it stops being JSON), is not an object, or has a key of its own level twice.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, absl::string_view what);

}  // namespace mneme

#endif  // MNEME_MODEL_JSON_OBJECT_H_
