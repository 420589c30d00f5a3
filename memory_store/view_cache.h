// What questions see of memories that they do not see whole, kept from one question to the next: to
// find out which documents a fork has of its base, and where each ended, takes time for every one
// of them.
//
// A view is kept of each memory that a question goes through (a fork, its base, the base of that),
// so that what is written into a fork costs it nothing but its own part. It is used again as long
// as nothing has changed that it shows: each memory notes (change_log.h) how far back its changes
// reach, so that a base that is written on does not disturb a fork that was made before. Whatever
// is deleted ends all of them at once: a view holds the landmarks that it shows.

#ifndef MNEME_MEMORY_STORE_VIEW_CACHE_H_
#define MNEME_MEMORY_STORE_VIEW_CACHE_H_

#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "memory_store/ids.h"
#include "memory_store/landmark_list.h"
#include "memory_store/memory_store.h"

namespace mneme {

// A part of one memory as a question sees it. Immutable.
struct PastPart {
  std::shared_ptr<const LandmarkSnapshot> landmarks;  // shared with the views that show it
  // Where documents end that are shown as they were, but for those that were sealed then; and tails
  // of those that have grown since, which are among the landmarks.
  absl::flat_hash_map<DocumentId, int64_t> cuts;
  std::vector<TailHandle> tails;
};

// Thread-safe.
class ViewCache {
 public:
  // What is shown of `memory` by these sources together, which are forks of it or itself.
  struct Key {
    MemoryId memory{};
    std::vector<ReadSource> sources;  // ascending, each once

    friend bool operator==(const Key&, const Key&) = default;
  };

  explicit ViewCache(int64_t parts_max) : parts_max_(parts_max) {}

  // Null when there is none of this version, or some of it has expired.
  std::shared_ptr<const PastPart> Find(const Key& key, uint64_t version, absl::Time now)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // To be asked for before a part is made, and told when it is put: nothing is put that was begun
  // before a Clear.
  uint64_t generation() const ABSL_LOCKS_EXCLUDED(mutex_);
  // `expire_time`: when the first of its documents expires.
  void Put(Key key, uint64_t version, absl::Time expire_time, std::shared_ptr<const PastPart> part,
           uint64_t generation) ABSL_LOCKS_EXCLUDED(mutex_);
  void Clear() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entry {
    Key key;
    uint64_t version = 0;
    absl::Time expire_time;
    std::shared_ptr<const PastPart> part;
  };

  const int64_t parts_max_;
  mutable absl::Mutex mutex_;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);  // used last first; few
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_VIEW_CACHE_H_
