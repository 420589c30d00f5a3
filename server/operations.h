// Long-running operations: the work that goes on after the call that asked for it was answered, and
// what google.longrunning.Operations tells of it.
//
// A handler that begins one:
//
//   ASSIGN_OR_RETURN(auto operation, operations.Reserve());  // RESOURCE_EXHAUSTED when full
//   ... what may still fail ...
//   google::longrunning::Operation answer = operation->Publish({.kind = "backup", ...});
//   // From any thread, as the work goes on:
//   operation->SetMetadata(progress);
//   operation->Finish(Packed(response));  // or an absl::Status
//
// or, for work that blocks, OperationRegistry::Run, which does all of this on a worker thread.

#ifndef MNEME_SERVER_OPERATIONS_H_
#define MNEME_SERVER_OPERATIONS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <google/protobuf/any.pb.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "google/longrunning/operations.pb.h"
#include "server/worker_pool.h"

namespace mneme {

google::protobuf::Any Packed(const google::protobuf::Message& message);

struct OperationStart {
  // Of the name operations/{id}; empty: kind, the time of the server's start and a count. One that
  // is given must never have been published before.
  std::string id;
  std::string kind;    // in ids and error details, like "purge"
  std::string tenant;  // whose list it is in
  google::protobuf::Any metadata;
  // CancelOperation may ask for its end; whoever does the work asks cancelled() then.
  bool cancellable = false;
};

// One operation, in the hands of who does its work. Thread-safe. May outlive its registry.
class RunningOperation {
 public:
  // Finishes an operation that is still running with ABORTED; one that was never published leaves
  // no trace.
  ~RunningOperation();
  RunningOperation(const RunningOperation&) = delete;
  RunningOperation& operator=(const RunningOperation&) = delete;

  // From now on it is found by its name. Once.
  google::longrunning::Operation Publish(OperationStart start);
  void SetMetadata(const google::protobuf::Message& metadata);
  bool cancelled() const;
  // The first call counts; it may come before Publish.
  void Finish(absl::StatusOr<google::protobuf::Any> result);

 private:
  friend class OperationRegistry;
  struct State;
  explicit RunningOperation(std::shared_ptr<State> state);

  const std::shared_ptr<State> state_;  // shared with the registry once published
};

// Thread-safe. `clock` and `metrics` must outlive it; its operations need neither after it.
class OperationRegistry {
 public:
  struct Options {
    int operations_max = 10'000;  // running, and as many that have finished
    absl::Duration keep = absl::Hours(1);
  };

  OperationRegistry(const Options& options, Clock& clock, Metrics& metrics);
  ~OperationRegistry();

  // Room for one operation. RESOURCE_EXHAUSTED, with RetryInfo, when too many run.
  absl::StatusOr<std::shared_ptr<RunningOperation>> Reserve();
  // Publishes an operation whose `work` runs on a thread of `pool`, and finishes with what it
  // returns. RESOURCE_EXHAUSTED when too many run or wait.
  absl::StatusOr<google::longrunning::Operation> Run(
      OperationStart start, WorkerPool& pool,
      std::function<absl::StatusOr<google::protobuf::Any>(RunningOperation&)> work);

  // NOT_FOUND: never published, or finished too long ago.
  absl::StatusOr<google::longrunning::Operation> Get(absl::string_view name) const;
  struct Listed {
    int64_t sequence = 0;  // of the order in which they began
    google::longrunning::Operation operation;
  };
  // Of a tenant (empty: of all), begun after `after_sequence`, at most `limit`.
  std::vector<Listed> List(absl::string_view tenant, int64_t after_sequence, int limit) const;
  // NOT_FOUND as Get; FAILED_PRECONDITION: it cannot be cancelled. OK for one that has finished.
  absl::Status Cancel(absl::string_view name);

  // Calls `wake` once, when the operation has finished or EndWaits came, unless Unwatch comes
  // first; 0: that was before, and `wake` is not kept. It may come from any thread, and even a
  // little after Unwatch; it must not block.
  absl::StatusOr<int64_t> Watch(absl::string_view name, std::function<void()> wake);
  void Unwatch(absl::string_view name, int64_t watch);

  // The server stops: wakes all watches, and asks what can be cancelled to end.
  void EndWaits();

 private:
  friend class RunningOperation;
  struct Core;

  const std::shared_ptr<Core> core_;  // shared with the operations
};

}  // namespace mneme

#endif  // MNEME_SERVER_OPERATIONS_H_
