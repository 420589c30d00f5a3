// DocumentWriter: the state behind one engine Writer, and WriterRegistry, which keeps a document to
// one writer at a time.
//
// A Writer handle may be dropped while its last pieces are on their way to the log; the
// DocumentWriter lives on until they are through, and only then may the next writer begin.

#ifndef MNEME_ENGINE_DOCUMENT_WRITER_H_
#define MNEME_ENGINE_DOCUMENT_WRITER_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/admission.h"
#include "engine/engine.h"
#include "engine/engine_metrics.h"
#include "engine/scheduler.h"
#include "engine/text_committer.h"
#include "memory_store/memory_store.h"

namespace mneme {

// What all writers of an engine share. Borrowed by each.
struct WriterEnvironment {
  const EngineOptions& options;
  MemoryStore& store;
  TextCommitter& committer;
  Scheduler& scheduler;
  EngineMetrics& metrics;
  const std::atomic<bool>& draining;
  Admission& admission;
};

// Thread-safe, but Append, Seal, Flush and Detach come from one thread at a time. Shared by the
// Writer handle, the registry, and the pieces on their way through the committer.
class DocumentWriter : public std::enable_shared_from_this<DocumentWriter> {
 public:
  // `released` is called once, when the writer is detached and nothing of it is on its way.
  DocumentWriter(const WriterEnvironment& environment, DocumentInfo info, IngestAccount account,
                 WriterCallbacks callbacks, std::function<void(const DocumentWriter&)> released);

  DocumentId document() const { return info_.uid; }
  MemoryId memory() const { return info_.memory; }
  const std::string& id() const { return info_.id; }

  absl::Status Append(int64_t byte_offset, absl::string_view text);
  absl::Status Seal();
  absl::Status Flush();
  // One of these three was answered with an error.
  void NoteRefusal(const absl::Status& status);
  // After false, one ready callback comes.
  bool ready();
  IngestProgress progress() const;
  int64_t accepted_bytes() const;
  int64_t settled_bytes() const;
  // Text or a seal of this writer was refused, or could not be stored, and the document has none.
  bool refused_empty() const;

  // The handle is gone: no callback runs or comes after this.
  void Detach();

  // From the scheduler.
  void OnVisible(const DocumentInfo& info);
  // The writer is broken: Append fails with `status` from now on.
  void Fail(const absl::Status& status);
  // Whoever waits for ready() looks again.
  void PokeReady();

 private:
  // A piece on its way to the log, or already in it but not yet told.
  struct Pending {
    int64_t byte_offset = 0;
    // Shared with the committer (see TextPiece).
    std::shared_ptr<const std::string> text;
  };

  // Compares `text` at `byte_offset`, all of it below accepted_bytes, with what was accepted
  // before. ALREADY_EXISTS names the first byte that differs; else errors of the store.
  absl::Status CompareStored(int64_t byte_offset, absl::string_view text) const;
  // A piece that ends at byte_end.
  TextPiece NewPiece(std::string text, int64_t byte_end, bool seal)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnCommitted(int64_t byte_end, int64_t text_bytes, bool seal, const absl::Status& status);
  // No room for more text: in the commit queue, or in the derive queue, of which every document has
  // a share to itself; or it comes faster than it may.
  bool Crowded() const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Usable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Runs the callbacks that are due, unless another thread is at it: then that one does.
  void Dispatch() ABSL_LOCKS_EXCLUDED(mutex_);
  bool ReleaseNow() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const WriterEnvironment environment_;
  const DocumentInfo info_;
  const IngestAccount account_;
  WriterCallbacks callbacks_;  // used by one dispatching thread at a time
  const std::function<void(const DocumentWriter&)> released_;

  mutable absl::Mutex mutex_;
  absl::CondVar dispatched_;
  // accepted_bytes_ = durable_bytes + pending_ + tail_.
  int64_t accepted_bytes_ ABSL_GUARDED_BY(mutex_);
  std::deque<Pending> pending_ ABSL_GUARDED_BY(mutex_);
  int64_t pending_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string tail_ ABSL_GUARDED_BY(mutex_);  // the beginning of a UTF-8 sequence, 0 to 3 bytes
  bool sealing_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t flush_at_ ABSL_GUARDED_BY(mutex_) = 0;
  IngestProgress progress_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  bool refused_ ABSL_GUARDED_BY(mutex_) = false;
  bool detached_ ABSL_GUARDED_BY(mutex_) = false;
  bool release_done_ ABSL_GUARDED_BY(mutex_) = false;
  bool waits_for_ready_ ABSL_GUARDED_BY(mutex_) = false;

  // Callbacks that are due.
  bool progress_due_ ABSL_GUARDED_BY(mutex_) = false;
  bool ready_due_ ABSL_GUARDED_BY(mutex_) = false;
  bool failed_due_ ABSL_GUARDED_BY(mutex_) = false;
  bool dispatching_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread::id dispatcher_ ABSL_GUARDED_BY(mutex_);
};

// Which documents have a writer. Thread-safe.
class WriterRegistry {
 public:
  using Name = std::pair<MemoryId, std::string>;

  // Claims a name for a writer to be. ABORTED while another has it; waits up to `patience` for one
  // that was dropped and has text on its way.
  absl::Status Claim(const Name& name, absl::Duration patience);
  // The claimed name has its writer.
  void Set(std::shared_ptr<DocumentWriter> writer);
  // There will be no writer for the claimed name.
  void Unclaim(const Name& name);
  // The writer's handle is being dropped, but its last text may be on its way.
  void Leave(const DocumentWriter& writer);
  // The name is free again, if this writer still has it.
  void Free(const DocumentWriter& writer);

  std::shared_ptr<DocumentWriter> Find(DocumentId document) const;
  std::vector<std::shared_ptr<DocumentWriter>> All() const;
  // Writers of a memory.
  std::vector<std::shared_ptr<DocumentWriter>> Of(MemoryId memory) const;

 private:
  struct Entry {
    std::shared_ptr<DocumentWriter> writer;  // null: claimed, being opened
    bool left = false;
  };

  mutable absl::Mutex mutex_;
  absl::CondVar freed_;
  std::map<Name, Entry> by_name_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<DocumentId, std::shared_ptr<DocumentWriter>> by_document_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_ENGINE_DOCUMENT_WRITER_H_
