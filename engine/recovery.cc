#include "engine/recovery.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// Documents handed to the scheduler at one time.
constexpr size_t kInFlightMax = 64;

std::vector<DocumentId> DocumentsToDerive(const MemoryStore& store, EngineMetrics& metrics) {
  std::vector<DocumentId> documents;
  for (const DocumentInfo& document : store.AllDocuments()) {
    if (document.damaged || document.visible_bytes >= document.durable_bytes) continue;
    documents.push_back(document.uid);
  }
  metrics.recovery_documents.Set(static_cast<double>(documents.size()));
  metrics.recovery_documents_left.Set(static_cast<double>(documents.size()));
  return documents;
}

}  // namespace

Recovery::Recovery(const MemoryStore& store, Scheduler& scheduler, EngineMetrics& metrics,
                   Supervisor& supervisor)
    : scheduler_(scheduler),
      metrics_(metrics),
      clock_(supervisor.clock()),
      waiting_(DocumentsToDerive(store, metrics)),
      thread_("recovery", supervisor, [this](BackgroundThread& thread) { return Loop(thread); }) {}

Recovery::~Recovery() {
  thread_.MayEnd();
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.SignalAll();
}

absl::Status Recovery::Loop(BackgroundThread& thread) {
  const absl::Time start = clock_.Now();
  const size_t total = waiting_.size();
  bool over = false;
  std::vector<DocumentId> in_flight;
  for (;;) {
    std::erase_if(in_flight, [&](DocumentId document) { return scheduler_.Done(document); });
    while (in_flight.size() < kInFlightMax && !waiting_.empty()) {
      scheduler_.DeriveStored(waiting_.back());
      in_flight.push_back(waiting_.back());
      waiting_.pop_back();
    }
    const size_t left = waiting_.size() + in_flight.size();
    metrics_.recovery_documents_left.Set(static_cast<double>(left));
    if (left == 0 && !std::exchange(over, true) && total > 0) {
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
