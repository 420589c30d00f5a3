#include "memory_store/view_cache.h"

#include <algorithm>
#include <utility>

namespace mneme {

std::shared_ptr<const PastPart> ViewCache::Find(const Key& key, uint64_t version, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  const auto it = std::find_if(entries_.begin(), entries_.end(),
                               [&key](const Entry& entry) { return entry.key == key; });
  if (it == entries_.end()) return nullptr;
  if (it->version != version || it->expire_time <= now) {
    entries_.erase(it);
    return nullptr;
  }
  entries_.splice(entries_.begin(), entries_, it);
  return it->part;
}

uint64_t ViewCache::generation() const {
  absl::MutexLock lock(&mutex_);
  return generation_;
}

void ViewCache::Put(Key key, uint64_t version, absl::Time expire_time,
                    std::shared_ptr<const PastPart> part, uint64_t generation) {
  absl::MutexLock lock(&mutex_);
  if (generation != generation_ || parts_max_ <= 0) return;
  std::erase_if(entries_, [&key](const Entry& entry) { return entry.key == key; });
  entries_.push_front({std::move(key), version, expire_time, std::move(part)});
  if (static_cast<int64_t>(entries_.size()) > parts_max_) entries_.pop_back();
}

void ViewCache::Clear() {
  std::list<Entry> gone;  // what they hold goes after the lock
  absl::MutexLock lock(&mutex_);
  ++generation_;
  gone.swap(entries_);
}

}  // namespace mneme
