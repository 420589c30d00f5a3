#include "memory_store/rocksdb/forwarding_logger.h"

#include <cstdio>

#include "absl/strings/ascii.h"
#include "common/log.h"

namespace mneme {

void ForwardingLogger::Logv(const char* format, va_list arguments) {
  Logv(rocksdb::InfoLogLevel::INFO_LEVEL, format, arguments);
}

void ForwardingLogger::Logv(rocksdb::InfoLogLevel level, const char* format, va_list arguments) {
  if (level < GetInfoLogLevel()) return;
  char message[1024];
  std::vsnprintf(message, sizeof message, format, arguments);
  const bool error =
      level == rocksdb::InfoLogLevel::ERROR_LEVEL || level == rocksdb::InfoLogLevel::FATAL_LEVEL;
  Log(error ? LogLevel::kWarning : LogLevel::kDebug, "rocksdb",
      absl::StripTrailingAsciiWhitespace(message));
}

}  // namespace mneme
