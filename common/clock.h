// Time as a parameter: components take a Clock, so tests run without waiting and runs repeat.

#ifndef MNEME_COMMON_CLOCK_H_
#define MNEME_COMMON_CLOCK_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace mneme {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() = 0;
};

// The machine's clock; lives for the whole process.
Clock& RealClock();

// A clock that moves only when told. Thread-safe.
class SimulatedClock : public Clock {
 public:
  explicit SimulatedClock(absl::Time start) : now_(start) {}
  absl::Time Now() override;
  void Advance(absl::Duration by);

 private:
  absl::Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_COMMON_CLOCK_H_
