// CallContext (engine.h).

#include "absl/time/clock.h"
#include "engine/engine.h"

namespace mneme {

absl::Status CallContext::Check() const {
  if (cancelled && cancelled()) return absl::CancelledError("the caller cancelled the call");
  if (deadline != absl::InfiniteFuture() && absl::Now() >= deadline) {
    return absl::DeadlineExceededError("the call's deadline has passed");
  }
  return absl::OkStatus();
}

}  // namespace mneme
