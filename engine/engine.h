// Engine: memories, writers and readers over the model and the store; the service without the
// network. The only place where model and store meet. Knows no gRPC.
//
// Text goes in through a Writer: made durable by a group commit, encoded, cut into segments,
// derived by the scheduler in batches, then visible. Questions run as readers: lower half, landmark
// scan, pages pinned, upper half.

#ifndef MNEME_ENGINE_ENGINE_H_
#define MNEME_ENGINE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/supervisor.h"
#include "engine/quota.h"
#include "memory_store/memory_store.h"
#include "memory_store/store_checker.h"
#include "model/model.h"

namespace mneme {

struct EngineOptions {
  // Segments derived in one batch, at most, and segments waiting, at most: beyond it writers stop
  // taking text.
  int batch_segments_max = 8;
  int queue_segments_max = 64;
  // Threads that turn text into tokens: one follows the CPU's network with ease, a GPU wants more.
  int encode_threads = 1;
  // Threads that store what was derived, each other documents.
  int put_threads = 1;
  // Tokens of one batch, at most (one segment always fits): bounds how long a short text waits
  // behind long ones.
  int batch_tokens_max = 16384;
  // Idle time after which the open segment of a document is derived as it stands; text that never
  // pauses waits ten times as long at most.
  absl::Duration idle_flush = absl::Milliseconds(200);
  // Group commit: bytes and time gathered into one synced write, at most.
  int64_t commit_bytes_max = int64_t{8} << 20;
  absl::Duration commit_wait_max = absl::ZeroDuration();
  // Bytes one writer may have accepted but not yet durable; beyond it Append must not be called
  // (see Writer::ready).
  int64_t writer_pending_bytes_max = int64_t{4} << 20;
  // Text of one document that may wait to be derived even when queue_segments_max is reached, so
  // that a short text never waits for somebody else's long one to be taken. It waits on disk.
  int64_t document_share_bytes = int64_t{64} << 10;
  // Bytes of all writers that may wait for the group commit; beyond it no writer is ready.
  int64_t commit_queue_bytes_max = int64_t{64} << 20;
  // Watches the engine's threads; must outlive it. Null: one of its own, with this limit to their
  // silence.
  Supervisor* supervisor = nullptr;
  absl::Duration thread_stall_max = absl::Minutes(2);
  int64_t document_bytes_max = int64_t{1} << 40;
  int64_t documents_per_memory_max = 1'000'000;
  int64_t memories_per_tenant_max = 10'000;
  int memories_per_read_max = 64;
  int retrieve_k_max = 256;
  int generate_tokens_max = 4096;
  // Readers running at one time, and waiting, at most; beyond it RESOURCE_EXHAUSTED.
  int readers_max = 64;
  int readers_waiting_max = 1024;
  // What tenants may do, and what holds ingest back.
  AdmissionOptions admission;
  // The scrubber, which reads the whole store in the background and heals it: bytes a second that
  // it reads, at most (0: it does not), the time from the beginning of a pass to that of the next,
  // at least, and from the start to the first.
  int64_t scrub_bytes_per_second = 0;
  absl::Duration scrub_interval = absl::Hours(24);
  absl::Duration scrub_first_after = absl::Minutes(1);
};

// tenants/{tenant}/memories/{memory}[/documents/{document} or /snapshots/{snapshot}], parsed and
// checked. INVALID_ARGUMENT names the part.
struct ResourceName {
  std::string tenant;
  std::string memory;    // empty: a tenant
  std::string document;  // empty: a memory, or a snapshot of it
  std::string snapshot = {};

  static absl::StatusOr<ResourceName> ParseTenant(absl::string_view name);
  static absl::StatusOr<ResourceName> ParseMemory(absl::string_view name);
  static absl::StatusOr<ResourceName> ParseDocument(absl::string_view name);
  static absl::StatusOr<ResourceName> ParseSnapshot(absl::string_view name);
  // What may be read: a memory, or a snapshot.
  static absl::StatusOr<ResourceName> ParseSource(absl::string_view name);
  std::string ToString() const;
};
// 1 to 128 of [A-Za-z0-9._~-], first a letter or digit.
absl::Status CheckResourceId(absl::string_view id, absl::string_view what);

// Checked at every step of long work. Thread-safe.
struct CallContext {
  absl::Time deadline = absl::InfiniteFuture();
  std::function<bool()> cancelled;  // empty: never
  // CANCELLED or DEADLINE_EXCEEDED, or OK.
  absl::Status Check() const;
};

struct IngestProgress {
  int64_t durable_bytes = 0;
  int64_t visible_bytes = 0;
  int64_t token_count = 0;
  // Durably sealed: after Seal, only this (not durable_bytes alone) says that the seal survives a
  // crash.
  bool sealed = false;
};

// The one writer of one document. Callbacks come from the engine's threads (or from inside a
// DeleteDocument, DeleteMemory or Drain of another caller), one at a time, and must not block.
// Dropping the Writer ends it: no callback runs or comes after its destructor (which may itself be
// called from inside a callback); what is durable gets derived all the same. Thread-compatible.
// Must be dropped before the engine.
class Writer {
 public:
  virtual ~Writer() = default;
  // Takes a piece of text at its offset. Bytes already stored are compared and skipped. Returns at
  // once with what is wrong: OUT_OF_RANGE (gap), ALREADY_EXISTS (other bytes stored),
  // INVALID_ARGUMENT (not UTF-8, offset named; the bytes before it are kept), FAILED_PRECONDITION
  // (sealed), RESOURCE_EXHAUSTED (document too long, or called while not ready; with a QuotaFact: a
  // quota or a watermark stands against it).
  virtual absl::Status Append(int64_t byte_offset, absl::string_view text) = 0;
  // No more text, ever. INVALID_ARGUMENT when the text ends inside a UTF-8 sequence or is empty.
  virtual absl::Status Seal() = 0;
  // No more text for now: derive the open segment without waiting for it to be idle.
  // INVALID_ARGUMENT when the text ends inside a UTF-8 sequence (the bytes before it are kept).
  virtual absl::Status Flush() = 0;
  // False while more than writer_pending_bytes_max are pending, the segment queue is full, or text
  // comes faster than the tenant's quota or a watermark lets it: stop reading the stream until the
  // `ready` callback of OpenWriter comes.
  virtual bool ready() const = 0;
  virtual IngestProgress progress() const = 0;
  // Bytes accepted so far: the offset at which new text goes.
  virtual int64_t accepted_bytes() const = 0;
  // Bytes that become durable without more text: accepted_bytes less the beginning of a UTF-8
  // sequence at their end.
  virtual int64_t settled_bytes() const = 0;
};

struct WriterCallbacks {
  // Durable or visible bytes grew.
  absl::AnyInvocable<void(const IngestProgress&)> progress;
  // The writer can take text again.
  absl::AnyInvocable<void()> ready;
  // The writer is broken: commit failed (RESOURCE_EXHAUSTED: disk full; ...), or the document was
  // deleted (NOT_FOUND).
  absl::AnyInvocable<void(absl::Status)> failed;
};

struct ReadBarrier {
  std::string document;  // full name
  int64_t visible_bytes = 0;
};

struct Passage {
  std::string document;  // full name
  int64_t chunk_index = 0;
  int64_t byte_begin = 0;
  int64_t byte_end = 0;
  double score = 0;
  double weight = 0;
  // With RetrieveOptions::rerank: the score after the second look, unless the page that it looks at
  // is not to be had.
  std::optional<double> rerank_score;
  // With RetrieveOptions::keywords.
  std::optional<double> keyword_score;
  std::string text;
};

struct StageSeconds {
  double encode = 0, scan = 0, read = 0, generate = 0, total = 0;
};

struct RetrieveOptions {
  std::vector<std::string> memories;  // full names, of snapshots too, one tenant
  // The moment at which memories (not snapshots) are read; infinite future: as they are.
  absl::Time as_of = absl::InfiniteFuture();
  std::string question;
  int k = 8;
  bool explain = false;
  // Order by the score after a second look at the chunks' pages. FAILED_PRECONDITION where the
  // bundle's look_heads is 0.
  bool rerank = false;
  // Of a rerank only: best chunks by landmark that are looked at, of which the best `k` are found;
  // k to retrieve_k_max. 0: k, or 64 if that is more, within retrieve_k_max.
  int rerank_candidates = 0;
  // Of a rerank only: order by the score after the look and BM25 of the candidates' texts together.
  bool keywords = false;
  int context_bytes = 0;
  std::vector<ReadBarrier> barriers;
};

struct TokenExplanation {
  std::string text;
  std::vector<double> weights;  // one per passage of the result
};

struct RetrieveResult {
  std::vector<Passage> passages;  // best first
  std::vector<TokenExplanation> explanation;
  int64_t chunks_scanned = 0;
  // Left out, for their text is damaged: without them they would be among `passages`.
  int64_t damaged_passages = 0;
  StageSeconds seconds;
};

struct GenerateOptions {
  std::vector<std::string> memories;  // as in RetrieveOptions
  absl::Time as_of = absl::InfiniteFuture();
  std::string question;
  int max_tokens = 64;
  double temperature = 0;
  double top_p = 1;
  uint64_t seed = 0;
  std::vector<ReadBarrier> barriers;
  bool omit_passages = false;
  bool ignore_eos = false;  // go on behind tokens that end an answer
};

struct GeneratePiece {
  std::string text;
  int token_count = 0;
  std::vector<Passage> passages;
};

enum class FinishReason { kStop, kLength };

struct GenerateResult {
  FinishReason reason = FinishReason::kStop;
  // Chunks that the answer read and no piece names, for their text is damaged.
  int64_t damaged_passages = 0;
  StageSeconds seconds;
};

struct ScoreOptions {
  std::vector<std::string> memories;  // as in RetrieveOptions; may be empty
  absl::Time as_of = absl::InfiniteFuture();
  // Put to the network as a question that `text` answers; empty: `text` begins a document.
  std::string prompt;
  std::string text;
  std::vector<ReadBarrier> barriers;
};

struct ScoreResult {
  double log_likelihood = 0;
  std::vector<std::pair<std::string, double>> tokens;
};

// Gets what a deletion removed, once no byte of it is left. Must not block.
using PurgedCallback = std::function<void(const DeletionReceipt&)>;

struct MemoryStat {
  MemoryInfo info;
  MemoryStore::Totals totals;
};

// Thread-safe. Calls block unless they say otherwise: the server runs them on its own worker
// threads.
class Engine {
 public:
  // Loads nothing itself; recovery (re-deriving what was durable but not visible) begins at once,
  // in the background. All arguments must outlive the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Open(const EngineOptions& options,
                                                      const Model& model, Backend& backend,
                                                      MemoryStore& store, Metrics& metrics,
                                                      Clock& clock);
  virtual ~Engine() = default;

  virtual absl::StatusOr<MemoryStat> CreateMemory(absl::string_view name,
                                                  absl::string_view display_name,
                                                  const MemoryPolicy& policy = {}) = 0;
  // Documents that a new ttl ends at once are gone when it returns, as if deleted. Pages that are
  // kept no more leave the disk behind; pages that are to be kept come back as they are read.
  virtual absl::StatusOr<MemoryStat> UpdateMemory(absl::string_view name,
                                                  const MemoryUpdate& update) = 0;
  virtual absl::StatusOr<MemoryStat> GetMemory(absl::string_view name) = 0;
  // At most `limit` memories with id > after_id.
  virtual absl::StatusOr<std::vector<MemoryStat>> ListMemories(absl::string_view tenant_name,
                                                               absl::string_view after_id,
                                                               int limit) = 0;
  // Deletions are durable when they return; what was deleted is taken out of every file and tier
  // behind (see WhenPurged).
  // `everywhere`: also from forks; see MemoryStore::DeleteMemory.
  virtual absl::StatusOr<Deletion> DeleteMemory(absl::string_view name,
                                                bool everywhere = false) = 0;
  // Forks `source`, a memory or a snapshot, as it was at `as_of` (not of a snapshot, which has its
  // own moment); see MemoryStore::ForkMemory. Its totals are not counted here: see GetMemory.
  // NOT_FOUND; INVALID_ARGUMENT: two tenants.
  virtual absl::StatusOr<MemoryStat> ForkMemory(absl::string_view name, absl::string_view source,
                                                absl::string_view display_name,
                                                absl::Time as_of = absl::InfiniteFuture()) = 0;
  // `name`: tenants/{t}/memories/{m}/snapshots/{s}. See MemoryStore::CreateSnapshot.
  virtual absl::StatusOr<SnapshotInfo> CreateSnapshot(
      absl::string_view name, absl::Time as_of = absl::InfiniteFuture()) = 0;
  virtual absl::StatusOr<std::vector<SnapshotInfo>> ListSnapshots(absl::string_view memory_name,
                                                                  absl::string_view after_id,
                                                                  int limit) = 0;
  virtual absl::Status DeleteSnapshot(absl::string_view name) = 0;
  virtual absl::StatusOr<DocumentInfo> GetDocument(absl::string_view name) = 0;
  virtual absl::StatusOr<std::vector<DocumentInfo>> ListDocuments(absl::string_view memory_name,
                                                                  DocumentId after, int limit) = 0;
  virtual absl::StatusOr<Deletion> DeleteDocument(absl::string_view name,
                                                  bool everywhere = false) = 0;
  // Deletions of which something is left, also those of earlier starts.
  virtual std::vector<Deletion> PendingDeletions() const = 0;
  // Calls `purged` once, from any thread (this one, when it is over), when nothing is left of the
  // deletion; not at all if the engine ends before: then its next start goes on.
  virtual void WhenPurged(PurgeId id, PurgedCallback purged) = 0;
  // Text [begin, end) of a document, at most 4 MiB a call. OUT_OF_RANGE beyond durable_bytes.
  virtual absl::StatusOr<std::string> ReadText(absl::string_view document_name, int64_t byte_begin,
                                               int64_t byte_end) = 0;

  // Becomes the one writer of a document, creating it if need be. ABORTED while another writer has
  // it; NOT_FOUND without the memory. A sealed document opens too, so that sending the same bytes
  // again changes nothing.
  // FAILED_PRECONDITION: a fork shares it with the memory that it was made of.
  // RESOURCE_EXHAUSTED with a QuotaFact: a quota of streams or documents, or a watermark.
  // UNAVAILABLE: a document of this name has just expired, and is not forgotten yet.
  // A document that it creates expires after `ttl`, if that is finite, whatever its memory says. It
  // is taken back when the writer is dropped with an error and none of its text is durable: what
  // was refused leaves no document.
  virtual absl::StatusOr<std::unique_ptr<Writer>> OpenWriter(
      absl::string_view document_name, WriterCallbacks callbacks,
      absl::Duration ttl = absl::InfiniteDuration()) = 0;

  // Questions: RESOURCE_EXHAUSTED with a QuotaFact when the tenant has too many under way.
  virtual absl::StatusOr<RetrieveResult> Retrieve(const RetrieveOptions& options,
                                                  const CallContext& context) = 0;
  // Calls `emit` for each piece as it comes; `emit` may block for flow control and returns false to
  // stop.
  virtual absl::StatusOr<GenerateResult> Generate(
      const GenerateOptions& options, const CallContext& context,
      const std::function<bool(GeneratePiece)>& emit) = 0;
  virtual absl::StatusOr<ScoreResult> Score(const ScoreOptions& options,
                                            const CallContext& context) = 0;

  // Reads everything that is stored, or one memory alone (`memory_name` not empty), and says what
  // is damaged; with `heal`, mends what can be mended (see StoreChecker, which says what `step`
  // is). Goes on for as long as the disk takes. ABORTED while another such call runs.
  virtual absl::StatusOr<StoreCheckReport> CheckStore(
      absl::string_view memory_name, bool heal,
      const std::function<absl::Status(const StoreCheckReport&)>& step) = 0;

  // Adds a backup of everything to a directory, while all goes on; see MemoryStore::Backup.
  virtual absl::StatusOr<BackupInfo> CreateBackup(BackupDirectory& directory,
                                                  const std::string& version,
                                                  const BackupStep& step) = 0;

  // Use and limit of every quota, and the watermarks.
  virtual AdmissionStatus admission() const = 0;

  // OK while every background thread lives and recovery is over; otherwise UNAVAILABLE with the
  // reason (readiness).
  virtual absl::Status Ready() const = 0;
  // Stops taking text and questions (UNAVAILABLE), finishes what was accepted up to the deadline,
  // flushes the store.
  virtual absl::Status Drain(absl::Time deadline) = 0;
};

}  // namespace mneme

#endif  // MNEME_ENGINE_ENGINE_H_
