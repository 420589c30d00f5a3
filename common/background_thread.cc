#include "common/background_thread.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"

namespace mneme {

BackgroundThread::BackgroundThread(std::string name, Supervisor& supervisor,
                                   std::function<absl::Status(BackgroundThread&)> body)
    : watched_(std::move(name), supervisor, supervisor.beat_limit()) {
  thread_ = std::thread([this, body = std::move(body)] { Run(body); });
}

BackgroundThread::~BackgroundThread() { thread_.join(); }

void BackgroundThread::Run(const std::function<absl::Status(BackgroundThread&)>& body) {
  absl::Status status;
  // Our own code throws nothing; a library below (or an allocation that fails) may.
  try {
    status = body(*this);
  } catch (const std::exception& e) {
    status = absl::InternalError(absl::StrCat("exception: ", e.what()));
  } catch (...) {
    status = absl::InternalError("exception of unknown type");
  }
  if (status.ok() && !may_end_.load(std::memory_order_relaxed)) {
    status = absl::InternalError("it ended without being asked to");
  }
  watched_.Ended(status);
}

}  // namespace mneme
