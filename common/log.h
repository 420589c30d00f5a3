// Log lines for operators: one line per state change, "time level component message key=value ...",
// on stderr.
//
//   LogInfo("engine", "recovered", {{"documents", "12"}, {"segments_rederived", "1"}});
//
// Thread-safe. A line is written with one write(2), so lines of several threads do not mix. Never
// user text, never secrets.

#ifndef MNEME_COMMON_LOG_H_
#define MNEME_COMMON_LOG_H_

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace mneme {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// One key=value of a line. Values with spaces, quotes or control characters are quoted and escaped.
using LogField = std::pair<absl::string_view, std::string>;

// Lines below `level` are dropped from now on. Default: kInfo.
void SetLogLevel(LogLevel level);

// "debug", "info", "warning" or "error" -> level; false for anything else.
bool ParseLogLevel(absl::string_view name, LogLevel* level);

void Log(LogLevel level, absl::string_view component, absl::string_view message,
         std::initializer_list<LogField> fields = {});

inline void LogInfo(absl::string_view component, absl::string_view message,
                    std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kInfo, component, message, fields);
}
inline void LogWarning(absl::string_view component, absl::string_view message,
                       std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kWarning, component, message, fields);
}
inline void LogError(absl::string_view component, absl::string_view message,
                     std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kError, component, message, fields);
}

}  // namespace mneme

#endif  // MNEME_COMMON_LOG_H_
