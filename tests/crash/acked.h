// The model of the crash test: what its clients were told, which must hold whatever happens to the
// server after.

#ifndef MNEME_TESTS_CRASH_ACKED_H_
#define MNEME_TESTS_CRASH_ACKED_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
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

// What was acked up to one moment. Names are full names.
struct AckedNow {
  struct Document {
    std::shared_ptr<const std::string> text;  // shared by all moments
    int64_t durable_bytes = 0;                // acked; 0: nothing
    // A deletion, or the end of its time, is on its way: it may be there or not.
    bool may_go = false;
    bool gone = false;  // that was acked
  };
  struct Memory {
    // What it may be found with: more than one while a change is not acked.
    std::vector<AckedPolicy> policies;
    int updates = 0;  // begun
    bool may_go = false;
    bool gone = false;
  };
  std::map<std::string, Document> documents;
  std::map<std::string, Memory> memories;
};

// Thread-safe.
class Acked {
 public:
  void AddMemory(const std::string& memory, AckedPolicy policy);
  void BeginUpdate(const std::string& memory, AckedPolicy policy);
  void Updated(const std::string& memory);

  void AddDocument(const std::string& document, std::string text, bool may_go = false);
  // 0 bytes are what the server says of a document before its first commit: nothing is acked yet.
  void Raise(const std::string& document, int64_t durable_bytes);
  // From now on the document, or the memory and all its documents, may be there or not ..
  void BeginDelete(const std::string& name);
  // .. and from now on they are gone.
  void Deleted(const std::string& name);
  // The documents of a memory may go from now on; and are gone.
  void BeginExpire(const std::string& memory);
  void Expired(const std::string& memory);

  AckedNow Now() const;

 private:
  // Of a document of that name and of all in a memory of that name.
  void Mark(const std::string& name, bool gone) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  AckedNow now_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_TESTS_CRASH_ACKED_H_
