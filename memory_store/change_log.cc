#include "memory_store/change_log.h"

#include <iterator>
#include <utility>

namespace mneme {

void ChangeLog::Add(absl::Time from) {
  versions_.erase(versions_.lower_bound(from), versions_.end());
  versions_.emplace(from, ++last_);
  if (versions_.size() <= kEntriesMax) return;
  // The older half becomes one change that reaches back as far as any of them.
  const auto half = std::next(versions_.begin(), kEntriesMax / 2);
  const auto merged = std::make_pair(versions_.begin()->first, std::prev(half)->second);
  versions_.erase(versions_.begin(), half);
  versions_.insert(merged);
}

uint64_t ChangeLog::Version(absl::Time until) const {
  const auto after = versions_.upper_bound(until);
  return after == versions_.begin() ? 0 : std::prev(after)->second;
}

}  // namespace mneme
