#include "server/stall_watch.h"

#include <utility>

#include <grpcpp/alarm.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "server/error.h"

namespace mneme {

// One alarm serves many writes: it goes off at the first one's time, and is set anew for the one
// that is under way then.
struct StallWatch::State {
  const absl::Duration stall_max;
  grpc::CallbackServerContext& context;

  absl::Mutex mutex;
  absl::Time write_end ABSL_GUARDED_BY(mutex) = absl::InfiniteFuture();  // infinite: no write
  bool stalled ABSL_GUARDED_BY(mutex) = false;
  std::unique_ptr<grpc::Alarm> alarm ABSL_GUARDED_BY(mutex);  // null: not set

  static void Set(const std::shared_ptr<State>& state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mutex) {
    state->alarm = std::make_unique<grpc::Alarm>();
    state->alarm->Set(absl::ToChronoTime(state->write_end), [state](bool expired) {
      if (expired) GoesOff(state);
    });
  }

  static void GoesOff(const std::shared_ptr<State>& state) {
    absl::MutexLock lock(&state->mutex);
    if (state->write_end == absl::InfiniteFuture()) {
      state->alarm.reset();
    } else if (absl::Now() < state->write_end) {
      Set(state);
    } else {
      state->stalled = true;
      state->context.TryCancel();
    }
  }
};

StallWatch::StallWatch(absl::Duration stall_max, grpc::CallbackServerContext& context)
    : state_(new State{.stall_max = stall_max, .context = context}) {}

StallWatch::~StallWatch() {
  absl::MutexLock lock(&state_->mutex);
  state_->alarm.reset();
}

void StallWatch::WriteBegins() {
  absl::MutexLock lock(&state_->mutex);
  state_->write_end = absl::Now() + state_->stall_max;
  if (state_->alarm == nullptr) State::Set(state_);
}

void StallWatch::WriteDone() {
  absl::MutexLock lock(&state_->mutex);
  state_->write_end = absl::InfiniteFuture();
}

absl::Status StallWatch::Gone() const {
  absl::MutexLock lock(&state_->mutex);
  if (!state_->stalled) return absl::CancelledError("the client is gone");
  return WithReason(absl::CancelledError(absl::StrCat("the client took nothing for ",
                                                      absl::FormatDuration(state_->stall_max))),
                    "CLIENT_STALLED");
}

}  // namespace mneme
