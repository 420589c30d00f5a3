// What goes on while the server is killed: clients that stream, ask, change and delete memories and
// make backups, all through every crash, and tell the model what was acked. Each runs in a thread
// of its own until it is told to stop.

#ifndef MNEME_TESTS_CRASH_ACTORS_H_
#define MNEME_TESTS_CRASH_ACTORS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "client/admin_client.h"
#include "client/client.h"
#include "tests/crash/acked.h"

namespace mneme {

// The memory that is always there.
inline constexpr char kCrashMemory[] = "tenants/default/memories/crash";

struct KeptBackup {
  int64_t id = 0;
  AckedNow begun;  // what was acked before it began ..
  AckedNow ended;  // .. and when it had ended
};

// What the actors share. Thread-safe.
struct Stage {
  Client& client;
  AdminClient& admin;
  const std::atomic<bool>& stop;
  Acked& acked;
  // Chunks of a document of this text.
  const std::function<int64_t(absl::string_view)>& chunks_of;
  std::atomic<int> questions{0}, backups{0}, deletions{0}, updates{0}, expiries{0};
  std::atomic<int> forks{0}, snapshots{0}, drops{0}, past_questions{0};

  absl::Mutex mutex;
  std::vector<KeptBackup> kept_backups ABSL_GUARDED_BY(mutex);  // oldest first
};

// Document after document of kCrashMemory, some with a time to live, some deleted again.
void StreamDocuments(Stage& stage, int index, uint32_t seed);
// Memories that come, get documents, change their policy and go.
void ChangeMemories(Stage& stage, uint32_t seed);
// Questions and generated text over kCrashMemory: nothing in an answer was gone before it was
// asked.
void AskQuestions(Stage& stage);
// Trees of memories, forks and forks of forks, with snapshots, whose documents grow and are deleted
// here, there or everywhere, and questions about now and earlier: one step after the other, so that
// the model knows all that each memory holds, and held at any moment.
void GrowForkTrees(Stage& stage, int index, uint32_t seed);
// Forks of kCrashMemory while others write it and delete from it: what a fork has held once it
// holds for good.
void ForkWhatChanges(Stage& stage, uint32_t seed);
// Backups, each on top of the ones before; the last few are kept.
void MakeBackups(Stage& stage, uint32_t seed);

}  // namespace mneme

#endif  // MNEME_TESTS_CRASH_ACTORS_H_
