// ReaderGate: how many readers run at one time, and how many wait for their turn.

#ifndef MNEME_ENGINE_READER_GATE_H_
#define MNEME_ENGINE_READER_GATE_H_

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "engine/engine_metrics.h"

namespace mneme {

// Thread-safe. Must outlive its tickets.
class ReaderGate {
 public:
  // The right to run until it goes. Move-only.
  class Ticket {
   public:
    explicit Ticket(ReaderGate* gate) : gate_(gate) {}
    ~Ticket();
    Ticket(Ticket&& other) noexcept : gate_(other.gate_) { other.gate_ = nullptr; }
    Ticket& operator=(Ticket&&) = delete;

   private:
    ReaderGate* gate_;
  };

  ReaderGate(int running_max, int waiting_max, EngineMetrics& metrics)
      : running_max_(running_max), waiting_max_(waiting_max), metrics_(metrics) {}

  // Waits for a turn. RESOURCE_EXHAUSTED when too many wait already; CANCELLED, DEADLINE_EXCEEDED.
  absl::StatusOr<Ticket> Enter(const CallContext& context);
  // Waits until nobody runs or waits; false at the deadline (real time).
  bool WaitIdle(absl::Time deadline);

 private:
  void Leave();
  void Count() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int running_max_;
  const int waiting_max_;
  EngineMetrics& metrics_;
  absl::Mutex mutex_;
  absl::CondVar changed_;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  int waiting_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme

#endif  // MNEME_ENGINE_READER_GATE_H_
