// CrashPoint: a named place where a test may let the process end, as if it had been killed just
// there. No program can be told to: what happens at a point is a hook that only the server of
// tests/crash links in (tests/crash/server/crash_hook.cc); everywhere else it is null, and a point
// is one load.

#ifndef MNEME_COMMON_CRASH_POINT_H_
#define MNEME_COMMON_CRASH_POINT_H_

#include <atomic>

namespace mneme {

using CrashHook = void (*)(const char* point);

// Set before main, or not at all.
inline std::atomic<CrashHook> crash_hook{nullptr};

// `point`: what has just been done, as tests name it. Not for hot loops. Thread-safe.
inline void CrashPoint(const char* point) {
  if (const CrashHook hook = crash_hook.load(std::memory_order_relaxed)) hook(point);
}

}  // namespace mneme

#endif  // MNEME_COMMON_CRASH_POINT_H_
