// ForwardingLogger: RocksDB's own log, as lines of ours. Its usual log file would be one more file
// that grows, and a full disk under that file ends the process (Debian builds RocksDB with
// assertions, and RocksDB 7.8 asserts that nobody appends to a file after an error).

#ifndef MNEME_MEMORY_STORE_ROCKSDB_FORWARDING_LOGGER_H_
#define MNEME_MEMORY_STORE_ROCKSDB_FORWARDING_LOGGER_H_

#include <cstdarg>

#include <rocksdb/env.h>

namespace mneme {

// Its errors become warnings and its warnings debug lines; what is less is dropped. Thread-safe.
class ForwardingLogger : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  ForwardingLogger() : rocksdb::Logger(rocksdb::InfoLogLevel::WARN_LEVEL) {}

  void Logv(const char* format, va_list arguments) override;
  void Logv(rocksdb::InfoLogLevel level, const char* format, va_list arguments) override;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_FORWARDING_LOGGER_H_
