#include "tests/crash/acked.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace mneme {
namespace {

bool IsIn(const std::string& name, const std::string& within) {
  return name == within || absl::StartsWith(name, absl::StrCat(within, "/"));
}

// Visits the entries of that name and below it.
template <typename Entry, typename Visit>
void ForEachIn(std::map<std::string, Entry>& entries, const std::string& within, Visit visit) {
  for (auto it = entries.lower_bound(within); it != entries.end(); ++it) {
    if (!absl::StartsWith(it->first, within)) break;
    if (IsIn(it->first, within)) visit(it->first, it->second);
  }
}

}  // namespace

std::string MemoryOf(const std::string& name) {
  size_t end = 0;  // tenants/{t}/memories/{m}
  for (int parts = 0; parts < 4 && end != std::string::npos; ++parts) {
    end = name.find('/', end + (parts > 0));
  }
  return name.substr(0, end);
}

std::vector<std::pair<std::string, AckedNow::Document>> AckedNow::DocumentsOf(
    const std::string& memory) const {
  std::vector<std::pair<std::string, Document>> list;
  const std::string within = absl::StrCat(memory, "/");
  for (auto it = documents.lower_bound(within); it != documents.end(); ++it) {
    if (!absl::StartsWith(it->first, within)) break;
    if (!it->second.gone) list.emplace_back(*it);
  }
  return list;
}

AckedNow::Memory& Acked::NewMemory(const std::string& name) {
  const auto [it, is_new] = now_.memories.try_emplace(name);
  const int incarnation = is_new ? 0 : it->second.incarnation + 1;
  it->second = {.incarnation = incarnation};
  return it->second;
}

AckedNow::Document& Acked::NewDocument(const std::string& name) {
  const auto [it, is_new] = now_.documents.try_emplace(name);
  const int incarnation = is_new ? 0 : it->second.incarnation + 1;
  if (!is_new) now_.replaced_texts.push_back(it->second.text);
  const std::string memory = MemoryOf(name);
  it->second = {
      .origin = absl::StrCat(IdOf(memory), absl::StripPrefix(name, memory), "#", incarnation),
      .incarnation = incarnation};
  return it->second;
}

std::string Acked::IdOf(const std::string& memory) const {
  const auto it = now_.memories.find(memory);
  return absl::StrCat(memory, "#", it == now_.memories.end() ? 0 : it->second.incarnation);
}

AckedNow::Memory& Acked::NewFork(const std::string& fork, const std::string& base) {
  const AckedNow::Memory of = now_.memories.at(base);
  AckedNow::Memory& memory = NewMemory(fork);
  memory.base = base;
  memory.bases = of.bases;
  memory.bases.insert(absl::StrCat(base, "#", of.incarnation));
  memory.policies = of.policies;
  return memory;
}

void Acked::BeginMemory(const std::string& memory, AckedPolicy policy) {
  absl::MutexLock lock(&mutex_);
  NewMemory(memory).policies = {policy};
}

void Acked::AddMemory(const std::string& memory, AckedPolicy policy) {
  absl::MutexLock lock(&mutex_);
  AckedNow::Memory& state = now_.memories[memory];
  state.made = true;
  state.policies = {policy};
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

void Acked::BeginFork(const std::string& fork, const std::string& base,
                      const std::map<std::string, int64_t>& bytes) {
  absl::MutexLock lock(&mutex_);
  NewFork(fork, base);
  for (const auto& [name, count] : bytes) {
    const AckedNow::Document of = now_.documents.at(name);
    AckedNow::Document& copy = NewDocument(absl::StrCat(fork, absl::StripPrefix(name, base)));
    copy.text = of.text;
    copy.text_bytes = count;
    copy.origin = of.origin;
    copy.is_copy = true;
    copy.may_go = of.expires;
    copy.expires = of.expires;
  }
}

void Acked::Forked(const std::string& fork) {
  absl::MutexLock lock(&mutex_);
  now_.memories[fork].made = true;
  ForEachIn(now_.documents, fork, [](const std::string&, AckedNow::Document& document) {
    if (!document.gone) document.durable_bytes = document.text_bytes;
  });
}

void Acked::BeginForming(const std::string& fork, const std::string& base) {
  absl::MutexLock lock(&mutex_);
  NewFork(fork, base).forming = true;
}

void Acked::Formed(const std::string& fork, const std::map<std::string, int64_t>& bytes) {
  absl::MutexLock lock(&mutex_);
  AckedNow::Memory& memory = now_.memories[fork];
  memory.forming = false;
  memory.made = true;
  for (const auto& [name, count] : bytes) {
    const AckedNow::Document of =
        now_.documents.at(absl::StrCat(memory.base, absl::StripPrefix(name, fork)));
    AckedNow::Document& copy = NewDocument(name);
    copy.text = of.text;
    copy.text_bytes = count;
    copy.durable_bytes = count;
    copy.origin = of.origin;
    copy.is_copy = true;
    copy.may_go = of.expires;
    copy.gone = of.expired;
    copy.expires = of.expires;
  }
}

void Acked::Forget(const std::string& fork) {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> names;
  ForEachIn(now_.documents, fork,
            [&names](const std::string& name, const auto&) { names.push_back(name); });
  for (const std::string& name : names) now_.documents.erase(name);
}

void Acked::BeginSnapshot(const std::string& snapshot) {
  absl::MutexLock lock(&mutex_);
  const auto [it, is_new] = now_.snapshots.try_emplace(snapshot);
  it->second = {.incarnation = is_new ? 0 : it->second.incarnation + 1};
}

void Acked::Snapped(const std::string& snapshot) {
  absl::MutexLock lock(&mutex_);
  now_.snapshots[snapshot].made = true;
}

void Acked::AddDocument(const std::string& document, std::string text, bool expires) {
  absl::MutexLock lock(&mutex_);
  AckedNow::Document& added = NewDocument(document);
  added.text_bytes = static_cast<int64_t>(text.size());
  added.text = std::make_shared<const std::string>(std::move(text));
  added.may_go = expires;
  added.expires = expires;
}

void Acked::GrowDocument(const std::string& document, std::string text) {
  absl::MutexLock lock(&mutex_);
  AckedNow::Document& grown = now_.documents.at(document);
  grown.text_bytes = static_cast<int64_t>(text.size());
  grown.text = std::make_shared<const std::string>(std::move(text));
}

void Acked::Raise(const std::string& document, int64_t durable_bytes) {
  absl::MutexLock lock(&mutex_);
  int64_t& acked = now_.documents[document].durable_bytes;
  acked = std::max(acked, durable_bytes);
}

void Acked::Mark(const std::string& name, bool gone) {
  const auto mark = [gone](const std::string&, auto& entry) {
    entry.may_go = true;
    entry.gone |= gone;
  };
  ForEachIn(now_.documents, name, mark);
  ForEachIn(now_.snapshots, name, mark);
  if (const auto it = now_.memories.find(name); it != now_.memories.end()) mark(name, it->second);
}

void Acked::MarkEverywhere(const std::string& name, bool gone) {
  std::set<std::string> origins;
  ForEachIn(now_.documents, name, [&](const std::string&, const AckedNow::Document& document) {
    if (!document.gone) origins.insert(document.origin);
  });
  Mark(name, gone);
  const std::string base = IdOf(MemoryOf(name));
  for (auto& [copy, document] : now_.documents) {
    if (!origins.contains(document.origin)) continue;
    const auto memory = now_.memories.find(MemoryOf(copy));
    if (memory == now_.memories.end() || !memory->second.bases.contains(base)) continue;
    document.may_go = true;
    document.gone |= gone;
  }
}

void Acked::BeginDelete(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  Mark(name, /*gone=*/false);
}

void Acked::Deleted(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  Mark(name, /*gone=*/true);
}

void Acked::BeginDeleteEverywhere(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  MarkEverywhere(name, /*gone=*/false);
}

void Acked::DeletedEverywhere(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  MarkEverywhere(name, /*gone=*/true);
}

void Acked::MarkExpired(const std::string& name, bool gone) {
  const bool is_memory = now_.memories.contains(name);
  const std::string of = is_memory ? absl::StrCat(IdOf(name), "/") : now_.documents.at(name).origin;
  for (auto& [copy, document] : now_.documents) {
    if (is_memory ? !absl::StartsWith(document.origin, of) : document.origin != of) continue;
    document.may_go = true;
    document.gone |= gone;
    document.expires = true;
    document.expired |= gone;
  }
}

void Acked::BeginExpire(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  MarkExpired(name, /*gone=*/false);
}

void Acked::Expired(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  MarkExpired(name, /*gone=*/true);
}

AckedNow Acked::Now() const {
  absl::MutexLock lock(&mutex_);
  return now_;
}

}  // namespace mneme
