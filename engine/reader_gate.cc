#include "engine/reader_gate.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// How often a wait looks whether its caller has gone.
constexpr absl::Duration kCancelTick = absl::Milliseconds(10);

}  // namespace

ReaderGate::Ticket::~Ticket() {
  if (gate_ != nullptr) gate_->Leave();
}

absl::StatusOr<ReaderGate::Ticket> ReaderGate::Enter(const CallContext& context) {
  RETURN_IF_ERROR(context.Check());
  absl::MutexLock lock(&mutex_);
  if (running_ >= running_max_) {
    if (waiting_ >= waiting_max_) {
      return absl::ResourceExhaustedError(absl::StrCat(running_, " readers run (limit ",
                                                       running_max_, ") and ", waiting_,
                                                       " wait (limit ", waiting_max_, ")"));
    }
    ++waiting_;
    Count();
    absl::Status status;
    while (running_ >= running_max_ && status.ok()) {
      changed_.WaitWithTimeout(&mutex_, kCancelTick);
      status = context.Check();
    }
    --waiting_;
    Count();
    changed_.SignalAll();
    RETURN_IF_ERROR(status);
  }
  ++running_;
  Count();
  return Ticket(this);
}

bool ReaderGate::WaitIdle(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  while (running_ + waiting_ > 0) {
    if (changed_.WaitWithDeadline(&mutex_, deadline)) return running_ + waiting_ == 0;
  }
  return true;
}

void ReaderGate::Leave() {
  absl::MutexLock lock(&mutex_);
  --running_;
  Count();
  changed_.SignalAll();
}

void ReaderGate::Count() {
  metrics_.readers_running.Set(running_);
  metrics_.readers_waiting.Set(waiting_);
}

}  // namespace mneme
