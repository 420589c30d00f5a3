#include "tests/crash/acked.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace mneme {

void Acked::AddMemory(const std::string& memory, AckedPolicy policy) {
  absl::MutexLock lock(&mutex_);
  now_.memories[memory].policies = {policy};
}

void Acked::BeginUpdate(const std::string& memory, AckedPolicy policy) {
  absl::MutexLock lock(&mutex_);
  AckedNow::Memory& state = now_.memories[memory];
  state.policies.push_back(policy);
  ++state.updates;
}

void Acked::Updated(const std::string& memory) {
  absl::MutexLock lock(&mutex_);
  std::vector<AckedPolicy>& policies = now_.memories[memory].policies;
  policies = {policies.back()};
}

void Acked::AddDocument(const std::string& document, std::string text, bool may_go) {
  absl::MutexLock lock(&mutex_);
  now_.documents[document] = {.text = std::make_shared<const std::string>(std::move(text)),
                              .may_go = may_go};
}

void Acked::Raise(const std::string& document, int64_t durable_bytes) {
  absl::MutexLock lock(&mutex_);
  int64_t& acked = now_.documents[document].durable_bytes;
  acked = std::max(acked, durable_bytes);
}

void Acked::Mark(const std::string& name, bool gone) {
  const std::string inside = absl::StrCat(name, "/");
  for (auto it = now_.documents.lower_bound(name); it != now_.documents.end(); ++it) {
    if (!absl::StartsWith(it->first, name)) break;
    if (it->first != name && !absl::StartsWith(it->first, inside)) continue;
    it->second.may_go = true;
    it->second.gone |= gone;
  }
}

void Acked::BeginDelete(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  Mark(name, /*gone=*/false);
  if (const auto it = now_.memories.find(name); it != now_.memories.end()) it->second.may_go = true;
}

void Acked::Deleted(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  Mark(name, /*gone=*/true);
  if (const auto it = now_.memories.find(name); it != now_.memories.end()) it->second.gone = true;
}

void Acked::BeginExpire(const std::string& memory) {
  absl::MutexLock lock(&mutex_);
  Mark(memory, /*gone=*/false);
}

void Acked::Expired(const std::string& memory) {
  absl::MutexLock lock(&mutex_);
  Mark(memory, /*gone=*/true);
}

AckedNow Acked::Now() const {
  absl::MutexLock lock(&mutex_);
  return now_;
}

}  // namespace mneme
