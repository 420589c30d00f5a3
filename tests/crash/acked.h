// The model of the crash test: what its clients were told, which must hold whatever happens to the
// server after. A fork is a copy: each memory has its own documents, which say what they are copies
// of.

#ifndef MNEME_TESTS_CRASH_ACKED_H_
#define MNEME_TESTS_CRASH_ACKED_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace mneme {

struct AckedPolicy {
  bool keeps_pages = true;
  absl::Duration ttl = absl::InfiniteDuration();

  friend bool operator==(const AckedPolicy&, const AckedPolicy&) = default;
};

// The memory that a document, or a snapshot, of this full name is in.
std::string MemoryOf(const std::string& name);

// What was acked up to one moment. Names are full names. What has a name that something deleted had
// before has another incarnation.
struct AckedNow {
  struct Document {
    std::shared_ptr<const std::string> text;  // shared by all moments, and by copies
    int64_t text_bytes = 0;                   // of it: all that it has or will have
    int64_t durable_bytes = 0;                // acked; 0: nothing
    std::string origin;                       // names and incarnations of what was written
    int incarnation = 0;
    bool is_copy = false;  // a fork's, of what its base has
    // A deletion, or the end of its time, is on its way: it may be there or not.
    bool may_go = false;
    bool gone = false;     // that was acked
    bool expires = false;  // it has a time to live of its own, which copies share
    bool expired = false;
  };
  struct Snapshot {
    int incarnation = 0;
    bool made = false;  // that was acked
    bool may_go = false;
    bool gone = false;
  };
  struct Memory {
    bool made = false;     // that was acked
    std::string base;      // of a fork; while it is made of a memory that changes meanwhile ..
    bool forming = false;  // .. nobody knows what it has
    std::set<std::string> bases;  // all that it comes from: names and incarnations
    // What it may be found with: more than one while a change is not acked.
    std::vector<AckedPolicy> policies;
    int updates = 0;  // begun
    int incarnation = 0;
    bool may_go = false;
    bool gone = false;
  };
  std::map<std::string, Document> documents;
  std::map<std::string, Memory> memories;
  std::map<std::string, Snapshot> snapshots;
  // Of documents whose names others have now.
  std::vector<std::shared_ptr<const std::string>> replaced_texts;

  // Of a memory, without its copies of what is gone: by name.
  std::vector<std::pair<std::string, Document>> DocumentsOf(const std::string& memory) const;
};

// Thread-safe.
class Acked {
 public:
  // It may be there from now on, and must be once it is added.
  void BeginMemory(const std::string& memory, AckedPolicy policy);
  void AddMemory(const std::string& memory, AckedPolicy policy);
  void BeginUpdate(const std::string& memory, AckedPolicy policy);
  void Updated(const std::string& memory);

  // A fork that will hold these of its base's documents, by name, with so much of their text; and
  // holds them.
  void BeginFork(const std::string& fork, const std::string& base,
                 const std::map<std::string, int64_t>& bytes);
  void Forked(const std::string& fork);
  // A fork of a memory that changes meanwhile; and what it was then found to hold, by the names of
  // the fork's documents.
  void BeginForming(const std::string& fork, const std::string& base);
  void Formed(const std::string& fork, const std::map<std::string, int64_t>& bytes);
  // Leaves out the documents of a fork that is gone, so that the model does not grow.
  void Forget(const std::string& fork);

  void BeginSnapshot(const std::string& snapshot);
  void Snapped(const std::string& snapshot);

  // A new document, or more text of one that is there: `text` begins with what it has.
  void AddDocument(const std::string& document, std::string text, bool expires = false);
  void GrowDocument(const std::string& document, std::string text);
  // 0 bytes are what the server says of a document before its first commit: nothing is acked yet.
  void Raise(const std::string& document, int64_t durable_bytes);
  // From now on the document, the snapshot, or the memory and all that is in it, may be there or
  // not ..
  void BeginDelete(const std::string& name);
  // .. and from now on they are gone.
  void Deleted(const std::string& name);
  // The same of a document, or a memory, and of the copies of its documents that its forks have.
  void BeginDeleteEverywhere(const std::string& name);
  void DeletedEverywhere(const std::string& name);
  // The time of a document, or of all that was written into a memory, may end from now on, wherever
  // copies of it are; and has ended.
  void BeginExpire(const std::string& name);
  void Expired(const std::string& name);

  AckedNow Now() const;

 private:
  // Of a document or snapshot of that name and of all in a memory of that name.
  void Mark(const std::string& name, bool gone) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MarkEverywhere(const std::string& name, bool gone) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MarkExpired(const std::string& name, bool gone) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  AckedNow::Document& NewDocument(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  AckedNow::Memory& NewMemory(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  AckedNow::Memory& NewFork(const std::string& fork, const std::string& base)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Name and incarnation of a memory.
  std::string IdOf(const std::string& memory) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  AckedNow now_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_TESTS_CRASH_ACKED_H_
