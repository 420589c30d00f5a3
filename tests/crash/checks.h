// What must hold of a server, by the model of what was acked.

#ifndef MNEME_TESTS_CRASH_CHECKS_H_
#define MNEME_TESTS_CRASH_CHECKS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "tests/crash/acked.h"
#include "tests/crash/actors.h"

namespace mneme {

// With what hangs: a slow machine is no failure.
inline constexpr absl::Duration kCrashPatience = absl::Minutes(12);

// Every memory, snapshot and document that a server lists: each once.
struct Listed {
  std::map<std::string, v1::Memory> memories;
  std::map<std::string, v1::Snapshot> snapshots;
  std::map<std::string, v1::Document> documents;
};
void List(Client& client, Listed* listed);

// Everything acked before a crash is on the server that has started since, but for what was deleted
// meanwhile (`acked` goes on); and what was deleted before is gone.
void ExpectAckedIsThere(Client& client, const AckedNow& before, const Acked& acked);

// With nothing going on any more: every document equals its source and is visible to the end, no
// chunk is missing or doubled, and nothing else is there.
void ExpectExactly(Client& client, const AckedNow& acked,
                   const std::function<int64_t(absl::string_view)>& chunks_of);

// A restored backup holds what was acked before it began, and nothing that was gone by then; all
// text in it is of its document.
void ExpectBackupHolds(Client& client, const KeptBackup& backup);

}  // namespace mneme

#endif  // MNEME_TESTS_CRASH_CHECKS_H_
