// The kinds of keys that a configuration has: what each takes as text, and the field that it sets.

#ifndef MNEME_SERVER_CONFIG_KEY_KINDS_H_
#define MNEME_SERVER_CONFIG_KEY_KINDS_H_

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
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
// The largest double below 2^63 worth of nanoseconds, with room: 10 years.
inline constexpr double kConfigSecondsMax = 10 * 365.0 * 86400;

// The field of a ServerConfig that a key sets.
#define MNEME_CONFIG_FIELD(member) \
  [](ServerConfig & c) -> auto& { return c.member; }

// INVALID_ARGUMENT.
absl::Status NotAllowed(absl::string_view value, absl::string_view allowed);

// "65536", "64KiB", "4 MiB", "1GiB", "2TiB".
bool ParseBytes(absl::string_view text, int64_t* bytes);

template <typename Field>  // std::string& (*)(ServerConfig&)
ConfigKey TextKey(std::string section, std::string name, std::string allowed, std::string help,
                  std::function<bool(absl::string_view)> valid, Field field) {
  return {section,
          name,
          ConfigKey::Type::kText,
          allowed,
          std::move(help),
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            if (!valid(value)) return NotAllowed(value, allowed);
            field(config) = std::string(value);
            return absl::OkStatus();
          },
          [=](const ServerConfig& config) { return field(const_cast<ServerConfig&>(config)); }};
}

template <typename Field>
ConfigKey ChoiceKey(std::string section, std::string name, std::vector<std::string> choices,
                    std::string help, Field field) {
  std::string allowed = absl::StrJoin(choices, ", ");
  return TextKey(
      std::move(section), std::move(name), std::move(allowed), std::move(help),
      [choices](absl::string_view value) {
        for (const std::string& choice : choices) {
          if (value == choice) return true;
        }
        return false;
      },
      field);
}

template <typename Field>  // int& or int64_t& (*)(ServerConfig&)
ConfigKey IntegerKey(std::string section, std::string name, int64_t min, int64_t max,
                     std::string help, Field field) {
  std::string allowed = absl::StrCat(min, " .. ", max);
  return {section,
          name,
          ConfigKey::Type::kInteger,
          allowed,
          std::move(help),
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            int64_t number;
            if (!absl::SimpleAtoi(value, &number) || number < min || number > max) {
              return NotAllowed(value, allowed);
            }
            field(config) = static_cast<std::decay_t<decltype(field(config))>>(number);
            return absl::OkStatus();
          },
          [=](const ServerConfig& config) {
            return absl::StrCat(field(const_cast<ServerConfig&>(config)));
          }};
}

template <typename Field>  // int64_t& (*)(ServerConfig&)
ConfigKey BytesKey(std::string section, std::string name, int64_t min, int64_t max,
                   std::string help, Field field) {
  std::string allowed = absl::StrCat(min, " .. ", max, ", or with KiB, MiB, GiB, TiB");
  return {section,
          name,
          ConfigKey::Type::kBytes,
          allowed,
          std::move(help),
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            int64_t bytes;
            if (!ParseBytes(value, &bytes) || bytes < min || bytes > max) {
              return NotAllowed(value, allowed);
            }
            field(config) = bytes;
            return absl::OkStatus();
          },
          [=](const ServerConfig& config) {
            return absl::StrCat(field(const_cast<ServerConfig&>(config)));
          }};
}

template <typename Field>  // absl::Duration& (*)(ServerConfig&)
ConfigKey SecondsKey(std::string section, std::string name, double min, std::string help,
                     Field field) {
  std::string allowed = absl::StrFormat("%g or more", min);
  return {section,
          name,
          ConfigKey::Type::kSeconds,
          allowed,
          std::move(help),
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            double seconds;
            if (!absl::SimpleAtod(value, &seconds) || !(seconds >= min) ||
                seconds > kConfigSecondsMax) {
              return NotAllowed(value, allowed);
            }
            field(config) = absl::Seconds(seconds);
            return absl::OkStatus();
          },
          [=](const ServerConfig& config) {
            return absl::StrFormat("%.9g",
                                   absl::ToDoubleSeconds(field(const_cast<ServerConfig&>(config))));
          }};
}

// A percentage kept as a share.
template <typename Field>  // double& (*)(ServerConfig&)
ConfigKey PercentKey(std::string section, std::string name, std::string help, Field field) {
  const std::string allowed = "1 .. 100";
  return {section,
          name,
          ConfigKey::Type::kInteger,
          allowed,
          std::move(help),
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            int percent;
            if (!absl::SimpleAtoi(value, &percent) || percent < 1 || percent > 100) {
              return NotAllowed(value, allowed);
            }
            field(config) = percent / 100.0;
            return absl::OkStatus();
          },
          [=](const ServerConfig& config) {
            return absl::StrCat(std::lround(100 * field(const_cast<ServerConfig&>(config))));
          }};
}

}  // namespace mneme

#endif  // MNEME_SERVER_CONFIG_KEY_KINDS_H_
