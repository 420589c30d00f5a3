#include "engine/recovery.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// Documents handed to the scheduler at one time.
constexpr size_t kInFlightMax = 64;

}  // namespace

Recovery::Recovery(MemoryStore& store, Scheduler& scheduler, EngineMetrics& metrics, Clock& clock)
    : store_(store),
      scheduler_(scheduler),
      metrics_(metrics),
      clock_(clock),
      thread_("recovery", metrics.registry, clock,
              [this](BackgroundThread& thread) { return Loop(thread); }) {}

Recovery::~Recovery() {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.SignalAll();
}

absl::Status Recovery::Health(absl::Duration stall_max) const {
  RETURN_IF_ERROR(thread_.Health(stall_max));
  if (over_.load()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("recovery: ", documents_left_.load(),
                                             " documents are still being derived again"));
}

absl::Status Recovery::Loop(BackgroundThread& thread) {
  const absl::Time start = clock_.Now();
  std::vector<DocumentInfo> waiting;  // newest last, so the newest are done first
  for (DocumentInfo& document : store_.AllDocuments()) {
    if (!document.damaged && document.visible_bytes < document.durable_bytes) {
      waiting.push_back(std::move(document));
    }
  }
  const size_t total = waiting.size();
  metrics_.recovery_documents.Set(static_cast<double>(total));
  std::vector<DocumentId> in_flight;
  for (;;) {
    std::erase_if(in_flight, [&](DocumentId document) { return scheduler_.Done(document); });
    while (in_flight.size() < kInFlightMax && !waiting.empty()) {
      const DocumentInfo& document = waiting.back();
      scheduler_.TextDurable(document.uid, document.durable_bytes, document.sealed);
      scheduler_.Flush(document.uid, document.durable_bytes);
      in_flight.push_back(document.uid);
      waiting.pop_back();
    }
    const size_t left = waiting.size() + in_flight.size();
    documents_left_.store(static_cast<int64_t>(left));
    metrics_.recovery_documents_left.Set(static_cast<double>(left));
    if (left == 0 && !over_.exchange(true) && total > 0) {
      LogInfo("engine", "recovered",
              {{"documents", absl::StrCat(total)},
               {"seconds", absl::StrCat(absl::ToDoubleSeconds(clock_.Now() - start))}});
    }
    thread.Beat();
    absl::MutexLock lock(&mutex_);
    if (stopping_) return absl::OkStatus();
    changed_.WaitWithTimeout(&mutex_,
                             left > 0 ? absl::Milliseconds(50) : BackgroundThread::kBeatEvery);
    if (stopping_) return absl::OkStatus();
  }
}

}  // namespace mneme
