// How mneme-crash-server says that it ended at a crash point.

#ifndef MNEME_TESTS_CRASH_CRASH_STATUS_H_
#define MNEME_TESTS_CRASH_CRASH_STATUS_H_

namespace mneme {

inline constexpr int kCrashStatus = 77;

}  // namespace mneme

#endif  // MNEME_TESTS_CRASH_CRASH_STATUS_H_
