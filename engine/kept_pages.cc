#include "engine/kept_pages.h"

#include <algorithm>
#include <utility>

#include "common/status_macros.h"

namespace mneme {

absl::Status KeptPages::Find(absl::Span<const ChunkAddress> chunks, absl::Span<const float> weights,
                             std::vector<const uint8_t*>* pages) {
  ++calls_;
  DropChanged();
  while (!groups_.empty() &&
         (groups_.front().call <= calls_ - kCalls || found_.size() > kPagesMax)) {
    DropOldest();
  }
  absl::Status status = FindMissing(chunks, weights, pages);
  if (absl::IsResourceExhausted(status) && !groups_.empty()) {
    // What is kept takes the room.
    Drop();
    status = FindMissing(chunks, weights, pages);
  }
  return status;
}

absl::Status KeptPages::FindMissing(absl::Span<const ChunkAddress> chunks,
                                    absl::Span<const float> weights,
                                    std::vector<const uint8_t*>* pages) {
  pages->clear();
  missing_.clear();
  for (const ChunkAddress& chunk : chunks) {
    const auto [entry, fresh] = found_.try_emplace(chunk, nullptr);
    if (fresh) missing_.push_back(chunk);
    pages->push_back(entry->second);
  }
  if (missing_.empty()) return absl::OkStatus();
  // A page that is kept has told its tier of its readers when it was pinned, and tells it again
  // when it is found anew.
  absl::flat_hash_map<ChunkAddress, float> mass;
  for (size_t i = 0; i < chunks.size(); ++i) {
    if ((*pages)[i] == nullptr) mass[chunks[i]] += weights[i];
  }
  missing_mass_.clear();
  for (const ChunkAddress& chunk : missing_) missing_mass_.push_back(mass.at(chunk));
  absl::StatusOr<ReaderPages> pinned = source_.Pin(missing_, missing_mass_);
  if (!pinned.ok()) {
    for (const ChunkAddress& chunk : missing_) found_.erase(chunk);
    return pinned.status();
  }
  resident_ = pinned->pinned.resident();
  Group group = {.pinned = std::move(pinned->pinned), .call = calls_};
  for (size_t i = 0; i < missing_.size(); ++i) found_[missing_[i]] = pinned->pages[i];
  for (size_t i = 0; i < chunks.size(); ++i) {
    if ((*pages)[i] == nullptr) (*pages)[i] = found_.at(chunks[i]);
  }
  for (size_t i = 0; i < missing_.size(); ++i) {
    if (pinned->pages[i] != nullptr) {
      group.chunks.push_back(missing_[i]);
    } else {
      found_.erase(missing_[i]);  // the next call looks for it again
    }
  }
  groups_.push_back(std::move(group));
  return absl::OkStatus();
}

void KeptPages::DropChanged() {
  // Read first: what changes while pages are pinned is seen by the next call.
  const uint64_t changes = source_.changes().count();
  const uint64_t seen = std::exchange(changes_seen_, changes);
  if (changes == seen || groups_.empty()) return;
  const auto changed = source_.changes().Since(seen);
  if (!changed.has_value()) {
    Drop();
    return;
  }
  std::erase_if(groups_, [&](const Group& group) {
    const bool drop =
        std::any_of(group.chunks.begin(), group.chunks.end(),
                    [&](const ChunkAddress& chunk) { return changed->contains(chunk.document); });
    if (drop) {
      for (const ChunkAddress& chunk : group.chunks) found_.erase(chunk);
    }
    return drop;
  });
}

void KeptPages::DropOldest() {
  for (const ChunkAddress& chunk : groups_.front().chunks) found_.erase(chunk);
  groups_.pop_front();
}

void KeptPages::Drop() {
  found_.clear();
  groups_.clear();
}

}  // namespace mneme
