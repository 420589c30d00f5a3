// MNEME_CHECK: aborts with file and line when an invariant of our own is broken. Never for input,
// disk or network.

#ifndef MNEME_COMMON_CHECK_H_
#define MNEME_COMMON_CHECK_H_

namespace mneme {

// Writes "CHECK failed: <condition> at <file>:<line>" to stderr and aborts.
[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);

}  // namespace mneme

#define MNEME_CHECK(condition)                              \
  do {                                                      \
    if (!(condition)) [[unlikely]]                          \
      ::mneme::CheckFailed(#condition, __FILE__, __LINE__); \
  } while (false)

#endif  // MNEME_COMMON_CHECK_H_
