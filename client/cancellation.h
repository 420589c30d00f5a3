// Cancellation: one switch that ends the calls of a Client from another thread, for Ctrl-C or a
// closed window.

#ifndef MNEME_CLIENT_CANCELLATION_H_
#define MNEME_CLIENT_CANCELLATION_H_

#include <grpcpp/client_context.h>

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace mneme {

// Thread-safe. Must outlive the calls that were given it. Cannot be undone.
class Cancellation {
 public:
  // Ends calls in progress with CANCELLED, and every later one at once. Not for use inside a signal
  // handler.
  void Cancel();
  bool cancelled() const;
  // Sleeps for `duration` or until Cancel(); true when cancelled.
  bool WaitFor(absl::Duration duration) const;

  // While it lives, Cancel() also cancels `context`. `cancellation` may be null.
  class Watch {
   public:
    Watch(Cancellation* cancellation, grpc::ClientContext* context);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Cancellation* const cancellation_;
    grpc::ClientContext* const context_;
  };

 private:
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<grpc::ClientContext*> contexts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_CLIENT_CANCELLATION_H_
