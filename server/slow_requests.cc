#include "server/slow_requests.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace mneme {
namespace {

bool Slower(const SlowRequests::Request& a, const SlowRequests::Request& b) {
  return a.took > b.took;
}

}  // namespace

void SlowRequests::Add(Request request) {
  absl::MutexLock lock(&mutex_);
  if (request.end >= window_begin_ + kWindow) {
    // After a silence of more than a window the one before it is of no interest.
    before_.clear();
    if (request.end < window_begin_ + 2 * kWindow) before_.swap(present_);
    present_.clear();
    window_begin_ = request.end;
  }
  if (present_.size() == kKept && !Slower(request, present_.back())) return;
  present_.insert(std::upper_bound(present_.begin(), present_.end(), request, Slower),
                  std::move(request));
  if (present_.size() > kKept) present_.pop_back();
}

std::vector<SlowRequests::Request> SlowRequests::List(size_t limit, absl::Time now) const {
  std::vector<Request> requests;
  {
    absl::MutexLock lock(&mutex_);
    std::merge(present_.begin(), present_.end(), before_.begin(), before_.end(),
               std::back_inserter(requests), Slower);
  }
  std::erase_if(requests, [now](const Request& r) { return r.end < now - 2 * kWindow; });
  if (requests.size() > limit) requests.resize(limit);
  return requests;
}

}  // namespace mneme
