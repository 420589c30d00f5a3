#include "memory_store/page_changes.h"

namespace mneme {

void PageChanges::Add(const absl::flat_hash_set<DocumentId>& documents) {
  if (documents.empty()) return;
  absl::MutexLock lock(&mutex_);
  const uint64_t number = count_.load(std::memory_order_relaxed) + 1;
  for (const DocumentId document : documents) documents_.emplace_back(number, document);
  while (documents_.size() > kDocumentsMax) {
    forgotten_ = documents_.front().first;
    documents_.pop_front();
  }
  count_.store(number, std::memory_order_release);
}

std::optional<absl::flat_hash_set<DocumentId>> PageChanges::Since(uint64_t count) const {
  absl::MutexLock lock(&mutex_);
  if (count < forgotten_) return std::nullopt;
  absl::flat_hash_set<DocumentId> documents;
  for (auto it = documents_.rbegin(); it != documents_.rend() && it->first > count; ++it) {
    documents.insert(it->second);
  }
  return documents;
}

}  // namespace mneme
