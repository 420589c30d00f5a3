// The kinds of keys that a configuration has: what each takes as text, and the field that it sets.

#ifndef MNEME_SERVER_CONFIG_KEY_KINDS_H_
#define MNEME_SERVER_CONFIG_KEY_KINDS_H_

#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/config.h"

namespace mneme {

// Most that keys of these kinds take.
inline constexpr int64_t kConfigBytesMax = int64_t{1} << 50;
inline constexpr int kConfigThreadsMax = 1024;
inline constexpr int kConfigQueueMax = 1'000'000;
// 10 years: what comes of it in nanoseconds, or added to a time, stays far within 64 bits.
inline constexpr double kConfigSecondsMax = 10 * 365.0 * 86400;

// The field of a ServerConfig that a key sets.
#define MNEME_CONFIG_FIELD(member) \
  [](ServerConfig & c) -> auto& { return c.member; }

// INVALID_ARGUMENT.
absl::Status NotAllowed(absl::string_view value, absl::string_view allowed);

// Nothing of what is no number, or not within [min, max].
std::optional<int64_t> ParseInteger(absl::string_view text, int64_t min, int64_t max);
// "65536", "64KiB", "4 MiB", "1GiB", "2TiB".
std::optional<int64_t> ParseBytes(absl::string_view text, int64_t min, int64_t max);
std::optional<absl::Duration> ParseSeconds(absl::string_view text, double min, double max);

// Of a text key that takes any text.
inline bool IsAnything(absl::string_view) { return true; }

// Any kind: `parse` makes a value of text, or nothing of text that is not allowed; `print` is the
// way back.
//   parse: std::optional<Value> (*)(absl::string_view)
//   print: std::string (*)(const Value&)
//   field: Value& (*)(ServerConfig&), where Value may be a narrower integer
template <typename Parse, typename Print, typename Field>
ConfigKey FieldKey(std::string section, std::string name, ConfigKey::Type type, std::string allowed,
                   std::string help, Parse parse, Print print, Field field) {
  return {.section = std::move(section),
          .name = std::move(name),
          .type = type,
          .allowed = allowed,
          .help = std::move(help),
          .set = [=](ServerConfig& config, absl::string_view text) -> absl::Status {
            auto value = parse(text);
            if (!value.has_value()) return NotAllowed(text, allowed);
            field(config) = static_cast<std::decay_t<decltype(field(config))>>(*std::move(value));
            return absl::OkStatus();
          },
          .get = [=](const ServerConfig& config) -> std::string {
            return print(field(const_cast<ServerConfig&>(config)));
          }};
}

template <typename Field>  // std::string& (*)(ServerConfig&)
ConfigKey TextKey(std::string section, std::string name, std::string allowed, std::string help,
                  std::function<bool(absl::string_view)> valid, Field field) {
  return FieldKey(
      std::move(section), std::move(name), ConfigKey::Type::kText, std::move(allowed),
      std::move(help),
      [valid = std::move(valid)](absl::string_view text) {
        return valid(text) ? std::make_optional<std::string>(text) : std::nullopt;
      },
      [](const std::string& value) { return value; }, field);
}

template <typename Field>  // std::string& (*)(ServerConfig&)
ConfigKey ChoiceKey(std::string section, std::string name, std::vector<std::string> choices,
                    std::string help, Field field) {
  std::string allowed = absl::StrJoin(choices, ", ");
  return TextKey(
      std::move(section), std::move(name), std::move(allowed), std::move(help),
      [choices = std::move(choices)](absl::string_view text) {
        return absl::c_linear_search(choices, text);
      },
      field);
}

template <typename Field>  // int& or int64_t& (*)(ServerConfig&)
ConfigKey IntegerKey(std::string section, std::string name, int64_t min, int64_t max,
                     std::string help, Field field) {
  return FieldKey(
      std::move(section), std::move(name), ConfigKey::Type::kInteger,
      absl::StrCat(min, " .. ", max), std::move(help),
      [=](absl::string_view text) { return ParseInteger(text, min, max); },
      [](int64_t value) { return absl::StrCat(value); }, field);
}

template <typename Field>  // int64_t& (*)(ServerConfig&)
ConfigKey BytesKey(std::string section, std::string name, int64_t min, int64_t max,
                   std::string help, Field field) {
  return FieldKey(
      std::move(section), std::move(name), ConfigKey::Type::kBytes,
      absl::StrCat(min, " .. ", max, ", or with KiB, MiB, GiB, TiB"), std::move(help),
      [=](absl::string_view text) { return ParseBytes(text, min, max); },
      [](int64_t value) { return absl::StrCat(value); }, field);
}

template <typename Field>  // absl::Duration& (*)(ServerConfig&)
ConfigKey SecondsKey(std::string section, std::string name, double min, std::string help,
                     Field field) {
  return FieldKey(
      std::move(section), std::move(name), ConfigKey::Type::kSeconds,
      absl::StrFormat("%g .. %.0f", min, kConfigSecondsMax), std::move(help),
      [=](absl::string_view text) { return ParseSeconds(text, min, kConfigSecondsMax); },
      [](absl::Duration value) { return absl::StrFormat("%.9g", absl::ToDoubleSeconds(value)); },
      field);
}

// A percentage kept as a share.
template <typename Field>  // double& (*)(ServerConfig&)
ConfigKey PercentKey(std::string section, std::string name, std::string help, Field field) {
  return FieldKey(
      std::move(section), std::move(name), ConfigKey::Type::kInteger, "1 .. 100", std::move(help),
      [](absl::string_view text) -> std::optional<double> {
        const std::optional<int64_t> percent = ParseInteger(text, 1, 100);
        if (!percent.has_value()) return std::nullopt;
        return static_cast<double>(*percent) / 100;
      },
      [](double share) { return absl::StrCat(std::lround(100 * share)); }, field);
}

}  // namespace mneme

#endif  // MNEME_SERVER_CONFIG_KEY_KINDS_H_
