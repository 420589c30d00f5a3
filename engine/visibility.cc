#include "engine/visibility.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// How often a wait looks whether its caller has gone, and whether more text has come.
constexpr absl::Duration kCancelTick = absl::Milliseconds(10);

}  // namespace

void VisibilityBoard::Notify() {
  absl::MutexLock lock(&mutex_);
  ++notices_;
  notified_.SignalAll();
}

absl::Status VisibilityBoard::Wait(DocumentId document, absl::string_view name,
                                   int64_t visible_bytes, MissingText missing, Scheduler& scheduler,
                                   const CallContext& context) {
  for (;;) {
    int64_t notices = 0;
    {
      absl::MutexLock lock(&mutex_);
      notices = notices_;
    }
    const absl::StatusOr<DocumentInfo> info = store_.GetDocument(document);
    if (!info.ok()) return info.status();
    if (info->visible_bytes >= visible_bytes) return absl::OkStatus();
    if (info->damaged) {
      return absl::DataLossError(absl::StrCat(name, ": its stored text is damaged; ",
                                              info->visible_bytes, " bytes are visible, ",
                                              visible_bytes, " were asked for"));
    }
    if (info->sealed && visible_bytes > info->durable_bytes) {
      return absl::FailedPreconditionError(absl::StrCat(name, " is sealed and ends at byte ",
                                                        info->durable_bytes, "; ", visible_bytes,
                                                        " were asked for"));
    }
    if (missing == MissingText::kRefuse && visible_bytes > info->durable_bytes) {
      return absl::AbortedError(absl::StrCat(name, " was cut off at byte ", info->durable_bytes,
                                             "; ", visible_bytes, " were asked for"));
    }
    RETURN_IF_ERROR(context.Check());
    if (scheduler.stopping()) {
      return absl::UnavailableError(absl::StrCat("the engine is draining; ", name,
                                                 " is visible up to byte ", info->visible_bytes,
                                                 ", ", visible_bytes, " were asked for"));
    }
    scheduler.Flush(document, std::min(visible_bytes, info->durable_bytes));
    absl::MutexLock lock(&mutex_);
    if (notices == notices_) notified_.WaitWithTimeout(&mutex_, kCancelTick);
  }
}

}  // namespace mneme
