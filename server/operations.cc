#include "server/operations.h"

#include <atomic>
#include <deque>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "server/error.h"

namespace mneme {
namespace {

constexpr absl::string_view kPrefix = "operations/";

}  // namespace

google::protobuf::Any Packed(const google::protobuf::Message& message) {
  google::protobuf::Any any;
  any.PackFrom(message);
  return any;
}

// Guarded by its core's mutex, but for what is atomic.
struct RunningOperation::State {
  std::shared_ptr<OperationRegistry::Core> core;
  std::string kind;
  std::string tenant;
  google::longrunning::Operation operation;  // no name: not published
  int64_t sequence = 0;
  bool cancellable = false;
  std::atomic<bool> cancelled{false};
  std::map<int64_t, std::function<void()>> watches;
};

struct OperationRegistry::Core {
  Core(const Options& options_in, Clock& clock_in, Metrics& metrics)
      : options(options_in),
        clock(clock_in),
        boot(absl::StrCat(absl::Hex(absl::ToUnixMicros(clock_in.Now())))),
        running_gauge(metrics.AddGauge("operations_running", "Long-running operations under way.")),
        succeeded(metrics.AddCounter("operations_finished_total",
                                     "Long-running operations that ended, by result.",
                                     {{"result", "ok"}})),
        failed(metrics.AddCounter("operations_finished_total",
                                  "Long-running operations that ended, by result.",
                                  {{"result", "error"}})) {
    metrics.AddGauge("operations_limit", "Long-running operations under way, at most.")
        .Set(options_in.operations_max);
  }

  void CountRunning(int by) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    running += by;
    if (!closed) running_gauge.Set(running);
  }

  // Forgets what finished too long ago.
  void Prune() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (closed) return;
    const absl::Time now = clock.Now();
    while (!finished.empty() && (finished.size() > static_cast<size_t>(options.operations_max) ||
                                 now - finished.front().time >= options.keep)) {
      const auto it = by_sequence.find(finished.front().sequence);
      by_name.erase(it->second->operation.name());
      by_sequence.erase(it);
      finished.pop_front();
    }
  }

  absl::StatusOr<std::shared_ptr<RunningOperation::State>> Find(absl::string_view name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    Prune();
    const auto it = by_name.find(name);
    if (it != by_name.end()) return it->second;
    return absl::NotFoundError(
        absl::StrCat("no operation ", Quoted(name), ": it never was, or ended more than ",
                     absl::FormatDuration(options.keep), " ago or before the server's last start"));
  }

  struct Finished {
    absl::Time time;
    int64_t sequence = 0;
  };

  const Options options;
  Clock& clock;
  const std::string boot;
  Gauge& running_gauge;
  Counter& succeeded;
  Counter& failed;
  absl::Mutex mutex;
  // Published ones; the states are shared with who does their work.
  absl::btree_map<int64_t, std::shared_ptr<RunningOperation::State>> by_sequence
      ABSL_GUARDED_BY(mutex);
  absl::flat_hash_map<std::string, std::shared_ptr<RunningOperation::State>> by_name
      ABSL_GUARDED_BY(mutex);
  std::deque<Finished> finished ABSL_GUARDED_BY(mutex);  // oldest first
  int running ABSL_GUARDED_BY(mutex) = 0;                // reserved ones too
  int64_t last_sequence ABSL_GUARDED_BY(mutex) = 0;
  int64_t last_watch ABSL_GUARDED_BY(mutex) = 0;
  bool waits_ended ABSL_GUARDED_BY(mutex) = false;
  // The registry is gone, and with it perhaps the clock and the metrics.
  bool closed ABSL_GUARDED_BY(mutex) = false;
};

RunningOperation::RunningOperation(std::shared_ptr<State> state) : state_(std::move(state)) {}

RunningOperation::~RunningOperation() {
  {
    absl::MutexLock lock(&state_->core->mutex);
    if (state_->operation.name().empty()) {
      if (!state_->operation.done()) state_->core->CountRunning(-1);
      return;
    }
  }
  Finish(absl::AbortedError("the operation was given up"));
}

google::longrunning::Operation RunningOperation::Publish(OperationStart start) {
  OperationRegistry::Core& core = *state_->core;
  absl::MutexLock lock(&core.mutex);
  MNEME_CHECK(state_->operation.name().empty());
  state_->sequence = ++core.last_sequence;
  const std::string id =
      start.id.empty() ? absl::StrCat(start.kind, "-", core.boot, "-", state_->sequence) : start.id;
  state_->operation.set_name(absl::StrCat(kPrefix, id));
  // SetMetadata may have come before.
  if (!state_->operation.has_metadata()) *state_->operation.mutable_metadata() = start.metadata;
  state_->kind = std::move(start.kind);
  state_->tenant = std::move(start.tenant);
  state_->cancellable = start.cancellable;
  const google::longrunning::Operation answer = state_->operation;
  if (core.closed) return answer;
  core.by_sequence[state_->sequence] = state_;
  core.by_name[state_->operation.name()] = state_;
  if (answer.done()) {
    core.finished.push_back({core.clock.Now(), state_->sequence});
    core.Prune();
  }
  return answer;
}

void RunningOperation::SetMetadata(const google::protobuf::Message& metadata) {
  absl::MutexLock lock(&state_->core->mutex);
  *state_->operation.mutable_metadata() = Packed(metadata);
}

bool RunningOperation::cancelled() const {
  return state_->cancelled.load(std::memory_order_relaxed);
}

void RunningOperation::Finish(absl::StatusOr<google::protobuf::Any> result) {
  OperationRegistry::Core& core = *state_->core;
  std::map<int64_t, std::function<void()>> watches;
  {
    absl::MutexLock lock(&core.mutex);
    google::longrunning::Operation& operation = state_->operation;
    if (operation.done()) return;
    operation.set_done(true);
    if (result.ok()) {
      *operation.mutable_response() = *std::move(result);
    } else {
      *operation.mutable_error() = ToRpcStatus(result.status(), "", operation.name());
    }
    if (!core.closed) (operation.has_response() ? core.succeeded : core.failed).Increment();
    core.CountRunning(-1);
    watches.swap(state_->watches);
    if (!operation.name().empty() && !core.closed) {
      core.finished.push_back({core.clock.Now(), state_->sequence});
      core.Prune();
    }
  }
  for (const auto& [id, wake] : watches) wake();
}

OperationRegistry::OperationRegistry(const Options& options, Clock& clock, Metrics& metrics)
    : core_(std::make_shared<Core>(options, clock, metrics)) {}

OperationRegistry::~OperationRegistry() {
  // The states know their core, and it knows them.
  absl::MutexLock lock(&core_->mutex);
  core_->closed = true;
  core_->by_name.clear();
  core_->by_sequence.clear();
  core_->finished.clear();
}

absl::StatusOr<std::shared_ptr<RunningOperation>> OperationRegistry::Reserve() {
  absl::MutexLock lock(&core_->mutex);
  if (core_->running >= core_->options.operations_max) {
    return WithRetryAfter(
        WithReason(absl::ResourceExhaustedError(absl::StrCat(core_->running,
                                                             " operations are under way: at most ",
                                                             core_->options.operations_max)),
                   "TOO_MANY_OPERATIONS", {{"limit", absl::StrCat(core_->options.operations_max)}}),
        absl::Seconds(1));
  }
  auto state = std::make_shared<RunningOperation::State>();
  state->core = core_;
  core_->CountRunning(1);
  return std::shared_ptr<RunningOperation>(new RunningOperation(std::move(state)));
}

absl::StatusOr<google::longrunning::Operation> OperationRegistry::Run(
    OperationStart start, WorkerPool& pool,
    std::function<absl::StatusOr<google::protobuf::Any>(RunningOperation&)> work) {
  ASSIGN_OR_RETURN(std::shared_ptr<RunningOperation> operation, Reserve());
  RETURN_IF_ERROR(
      pool.Submit([operation, work = std::move(work)] { operation->Finish(work(*operation)); }));
  return operation->Publish(std::move(start));
}

absl::StatusOr<google::longrunning::Operation> OperationRegistry::Get(
    absl::string_view name) const {
  absl::MutexLock lock(&core_->mutex);
  ASSIGN_OR_RETURN(const auto state, core_->Find(name));
  return state->operation;
}

std::vector<OperationRegistry::Listed> OperationRegistry::List(absl::string_view tenant,
                                                               int64_t after_sequence,
                                                               int limit) const {
  absl::MutexLock lock(&core_->mutex);
  core_->Prune();
  std::vector<Listed> listed;
  for (auto it = core_->by_sequence.upper_bound(after_sequence);
       it != core_->by_sequence.end() && static_cast<int>(listed.size()) < limit; ++it) {
    if (!tenant.empty() && it->second->tenant != tenant) continue;
    listed.push_back({it->first, it->second->operation});
  }
  return listed;
}

absl::Status OperationRegistry::Cancel(absl::string_view name) {
  absl::MutexLock lock(&core_->mutex);
  ASSIGN_OR_RETURN(const auto state, core_->Find(name));
  if (state->operation.done()) return absl::OkStatus();
  if (!state->cancellable) {
    return WithReason(absl::FailedPreconditionError(
                          absl::StrCat("operation ", Quoted(name), " cannot be cancelled")),
                      "NOT_CANCELLABLE", {{"kind", state->kind}});
  }
  state->cancelled.store(true, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> OperationRegistry::Watch(absl::string_view name,
                                                 std::function<void()> wake) {
  absl::MutexLock lock(&core_->mutex);
  ASSIGN_OR_RETURN(const auto state, core_->Find(name));
  if (state->operation.done() || core_->waits_ended) return 0;
  state->watches.emplace(++core_->last_watch, std::move(wake));
  return core_->last_watch;
}

void OperationRegistry::Unwatch(absl::string_view name, int64_t watch) {
  absl::MutexLock lock(&core_->mutex);
  const auto it = core_->by_name.find(name);
  if (it != core_->by_name.end()) it->second->watches.erase(watch);
}

void OperationRegistry::EndWaits() {
  std::vector<std::function<void()>> wakes;
  {
    absl::MutexLock lock(&core_->mutex);
    core_->waits_ended = true;
    for (const auto& [sequence, state] : core_->by_sequence) {
      if (state->cancellable) state->cancelled.store(true, std::memory_order_relaxed);
      for (auto& [id, wake] : state->watches) wakes.push_back(std::move(wake));
      state->watches.clear();
    }
  }
  for (const auto& wake : wakes) wake();
}

}  // namespace mneme
