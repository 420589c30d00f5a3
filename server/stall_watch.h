// StallWatch: ends a streaming call whose client takes no response. A write is done once gRPC's
// flow control has let it through; one that is stuck would hold the call, and what it holds, for
// ever.

#ifndef MNEME_SERVER_STALL_WATCH_H_
#define MNEME_SERVER_STALL_WATCH_H_

#include <memory>

#include <grpcpp/server_context.h>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace mneme {

// Thread-safe. `context` is touched only between WriteBegins and WriteDone, and must live then.
class StallWatch {
 public:
  StallWatch(absl::Duration stall_max, grpc::CallbackServerContext& context);
  ~StallWatch();
  StallWatch(const StallWatch&) = delete;
  StallWatch& operator=(const StallWatch&) = delete;

  // Before StartWrite: when no WriteDone follows within stall_max, the call is cancelled.
  void WriteBegins();
  // From OnWriteDone.
  void WriteDone();
  // Why a cancelled call, or one whose write failed, ends: CANCELLED, with reason CLIENT_STALLED if
  // it was for this.
  absl::Status Gone() const;

 private:
  struct State;
  const std::shared_ptr<State> state_;  // with the alarm
};

}  // namespace mneme

#endif  // MNEME_SERVER_STALL_WATCH_H_
