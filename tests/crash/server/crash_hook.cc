// What makes mneme-crash-server another program than mneme-server: CRASH_AT=N:POINT in its
// environment ends it, as a kill would, when it passes that point (common/crash_point.h) for the
// N-th time.

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "common/crash_point.h"
#include "tests/crash/crash_status.h"

namespace mneme {
namespace {

const char* wanted_point = nullptr;
std::atomic<int> passes_left{0};

void EndAtPoint(const char* point) {
  if (std::strcmp(point, wanted_point) != 0) return;
  if (passes_left.fetch_sub(1) == 1) _exit(kCrashStatus);
}

const bool is_set = [] {
  const char* const at = std::getenv("CRASH_AT");
  if (at == nullptr) return false;
  char* end = nullptr;
  const long passes = std::strtol(at, &end, 10);
  if (passes < 1 || *end != ':') std::abort();
  wanted_point = end + 1;
  passes_left = static_cast<int>(passes);
  crash_hook = &EndAtPoint;
  return true;
}();

}  // namespace
}  // namespace mneme
