// The engine put together: catalog calls, writers, and the parts that do the work.

#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/admission.h"
#include "engine/creation_quota.h"
#include "engine/document_writer.h"
#include "engine/engine_metrics.h"
#include "engine/page_source.h"
#include "engine/past_reader.h"
#include "engine/purger.h"
#include "engine/read_batcher.h"
#include "engine/reader_gate.h"
#include "engine/readers.h"
#include "engine/recovery.h"
#include "engine/scheduler.h"
#include "engine/scrubber.h"
#include "engine/segment_restorer.h"
#include "engine/segmenter.h"
#include "engine/text_committer.h"
#include "engine/visibility.h"
#include "kernels/landmark_topk.h"

namespace mneme {
namespace {

constexpr int64_t kReadTextBytesMax = int64_t{4} << 20;
// Expired documents deleted at one go, and deletions not purged from which on none more are.
constexpr int kExpiredAtOnce = 1000;
constexpr size_t kPendingDeletionsMax = 10'000;
// How long OpenWriter waits for a dropped writer whose last text is on its way.
constexpr absl::Duration kDroppedWriterPatience = absl::Seconds(10);

absl::Status CheckEngineOptions(const EngineOptions& options, const Model& model) {
  const auto positive = [](int64_t value, absl::string_view name) {
    return value > 0 ? absl::OkStatus()
                     : absl::InvalidArgumentError(
                           absl::StrCat(name, " is ", value, "; it must be above 0"));
  };
  RETURN_IF_ERROR(positive(options.encode_threads, "encode_threads"));
  RETURN_IF_ERROR(positive(options.put_threads, "put_threads"));
  RETURN_IF_ERROR(positive(options.batch_segments_max, "batch_segments_max"));
  RETURN_IF_ERROR(positive(options.batch_tokens_max, "batch_tokens_max"));
  RETURN_IF_ERROR(positive(options.queue_segments_max, "queue_segments_max"));
  RETURN_IF_ERROR(positive(options.commit_bytes_max, "commit_bytes_max"));
  RETURN_IF_ERROR(positive(options.commit_queue_bytes_max, "commit_queue_bytes_max"));
  RETURN_IF_ERROR(positive(options.writer_pending_bytes_max, "writer_pending_bytes_max"));
  RETURN_IF_ERROR(positive(options.document_bytes_max, "document_bytes_max"));
  RETURN_IF_ERROR(positive(options.documents_per_memory_max, "documents_per_memory_max"));
  RETURN_IF_ERROR(positive(options.memories_per_tenant_max, "memories_per_tenant_max"));
  RETURN_IF_ERROR(positive(options.memories_per_read_max, "memories_per_read_max"));
  RETURN_IF_ERROR(positive(options.generate_tokens_max, "generate_tokens_max"));
  RETURN_IF_ERROR(positive(options.readers_max, "readers_max"));
  RETURN_IF_ERROR(CheckAdmissionOptions(options.admission));
  if (options.retrieve_k_max < 1 || options.retrieve_k_max > kLandmarkTopKMax) {
    return absl::InvalidArgumentError(absl::StrCat("retrieve_k_max is ", options.retrieve_k_max,
                                                   "; it must be 1 to ", kLandmarkTopKMax));
  }
  if (model.config().chunks_per_read > kLandmarkTopKMax) {
    return absl::InvalidArgumentError(absl::StrCat("the network reads ",
                                                   model.config().chunks_per_read,
                                                   " chunks a token; limit ", kLandmarkTopKMax));
  }
  return absl::OkStatus();
}

// Tokens of one prompt step: as many as can have all their pages pinned in a small part of the host
// tier.
int StepTokensMax(const Model& model, const MemoryStore& store) {
  int64_t host_bytes = 0;
  for (const TierUse& tier : store.tiers()) {
    if (tier.name == "host") host_bytes = tier.limit_bytes;
  }
  if (host_bytes == 0) return ReadBatcher::kStepTokensMax;
  const int64_t row_bytes =
      model.page_layout().page_bytes() * std::max(model.config().chunks_per_read, 1);
  return static_cast<int>(
      std::clamp<int64_t>(host_bytes / 4 / row_bytes, 1, ReadBatcher::kStepTokensMax));
}

// What the watermarks are of.
std::vector<ResourceUse> Resources(const AdmissionOptions& options, const MemoryStore& store) {
  const int64_t landmark_bytes = store.landmark_bytes();
  std::vector<ResourceUse> uses;
  uses.push_back({.resource = "disk",
                  .used_bytes = store.disk_used_bytes(),
                  .limit_bytes = options.disk_bytes_max,
                  .free_bytes = store.disk_free_bytes()});
  uses.push_back({.resource = "host",
                  .used_bytes = landmark_bytes,
                  .limit_bytes = options.host_landmark_bytes_max});
  uses.push_back({.resource = "device",
                  .used_bytes = landmark_bytes,
                  .limit_bytes = options.device_landmark_bytes_max});
  return uses;
}

// The handle that the caller owns.
class WriterHandle : public Writer {
 public:
  WriterHandle(WriterRegistry& registry, std::shared_ptr<DocumentWriter> writer,
               Admission::Ticket ticket)
      : registry_(registry), writer_(std::move(writer)), ticket_(std::move(ticket)) {}
  ~WriterHandle() override {
    registry_.Leave(*writer_);
    writer_->Detach();
  }

  absl::Status Append(int64_t byte_offset, absl::string_view text) override {
    return Noted(writer_->Append(byte_offset, text));
  }
  absl::Status Seal() override { return Noted(writer_->Seal()); }
  absl::Status Flush() override { return Noted(writer_->Flush()); }
  bool ready() const override { return writer_->ready(); }
  IngestProgress progress() const override { return writer_->progress(); }
  int64_t accepted_bytes() const override { return writer_->accepted_bytes(); }
  int64_t settled_bytes() const override { return writer_->settled_bytes(); }

 private:
  absl::Status Noted(absl::Status status) {
    if (!status.ok()) writer_->NoteRefusal(status);
    return status;
  }

  WriterRegistry& registry_;
  const std::shared_ptr<DocumentWriter> writer_;  // shared as told in document_writer.h
  const Admission::Ticket ticket_;                // of an Ingest stream
};

class EngineImpl : public Engine {
 public:
  EngineImpl(const EngineOptions& options, const Model& model, Backend& backend, MemoryStore& store,
             Metrics& metrics, Clock& clock)
      : options_(options),
        store_(store),
        clock_(clock),
        own_supervisor_(options.supervisor == nullptr
                            ? std::make_unique<Supervisor>(metrics, clock, options.thread_stall_max)
                            : nullptr),
        supervisor_(options.supervisor == nullptr ? *own_supervisor_ : *options.supervisor),
        shape_(SegmentShape::Of(model)),
        metrics_(metrics, options_),
        visibility_(store),
        admission_(
            options_.admission, store, [this] { return Resources(options_.admission, store_); },
            supervisor_, [this] { OnRoom(); }),
        committer_({.batch_bytes_max = options.commit_bytes_max,
                    .queue_bytes_max = options.commit_queue_bytes_max,
                    .wait_max = options.commit_wait_max,
                    .room = [this] { OnRoom(); }},
                   store, metrics_, supervisor_),
        scheduler_({.encode_threads = options.encode_threads,
                    .put_threads = options.put_threads,
                    .batch_segments_max = options.batch_segments_max,
                    .batch_tokens_max = options.batch_tokens_max,
                    .queue_segments_max = options.queue_segments_max,
                    .idle_flush = options.idle_flush,
                    .skip_pages_not_kept = backend.has_own_memory()},
                   model, shape_, store, metrics_, supervisor_,
                   {.visible = [this](const DocumentInfo& info) { OnVisible(info); },
                    .failed = [this](DocumentId document,
                                     const absl::Status& status) { OnFailed(document, status); },
                    .room = [this] { OnRoom(); }}),
        past_({.batch_segments_max = options.batch_segments_max}, model, shape_, store, scheduler_,
              visibility_),
        gate_(options.readers_max, options.readers_waiting_max, metrics_),
        pages_(model, shape_, store, metrics_, options.encode_threads),
        batcher_(model, backend, store, pages_, metrics_, supervisor_),
        read_{.options = options_,
              .model = model,
              .store = store,
              .scheduler = scheduler_,
              .batcher = batcher_,
              .gate = gate_,
              .visibility = visibility_,
              .past = past_,
              .metrics = metrics_,
              .step_tokens_max = StepTokensMax(model, store)},
        recovery_(store, scheduler_, metrics_, supervisor_),
        scrubber_(
            {.bytes_per_second = options.scrub_bytes_per_second,
             .interval = options.scrub_interval,
             .first_after = options.scrub_first_after},
            store,
            [this, &model](DocumentId document, int64_t segment, bool with_pages) {
              return RestoreSegment(model, shape_, store_, document, segment, with_pages);
            },
            [this] { DeriveWhatIsNotVisible(); }, supervisor_),
        purger_(store, metrics_, supervisor_, [this] { ForgetExpired(); }) {}

  ~EngineImpl() override {
    admission_.Stop();
    scrubber_.StopSoon();
    purger_.Stop();
    committer_.Stop();
    scheduler_.Stop();
  }

  absl::StatusOr<MemoryStat> CreateMemory(absl::string_view name, absl::string_view display_name,
                                          const MemoryPolicy& policy) override {
    RETURN_IF_ERROR(CheckTakesWork());
    ASSIGN_OR_RETURN(const ResourceName parsed, ResourceName::ParseMemory(name));
    if (store_.GetMemory(parsed.tenant, parsed.memory).ok()) {
      return absl::AlreadyExistsError(absl::StrCat("memory ", name, " exists"));
    }
    absl::StatusOr<MemoryInfo> info = CreateWithinLimit(parsed.tenant, [&] {
      return store_.CreateMemory(parsed.tenant, parsed.memory, std::string(display_name), policy);
    });
    if (!info.ok()) return info.status();
    MemoryStat stat{.info = *std::move(info)};
    stat.totals.memories = 1;
    return stat;
  }

  absl::StatusOr<MemoryStat> ForkMemory(absl::string_view name, absl::string_view source_name,
                                        absl::string_view display_name, absl::Time as_of) override {
    RETURN_IF_ERROR(CheckTakesWork());
    ASSIGN_OR_RETURN(const ResourceName parsed, ResourceName::ParseMemory(name));
    ASSIGN_OR_RETURN(const NamedSource source, ResolveSource(store_, source_name, as_of));
    if (source.name.tenant != parsed.tenant) {
      return absl::InvalidArgumentError(absl::StrCat("source ", source_name, " is not of tenant ",
                                                     parsed.tenant, ", as the fork is to be"));
    }
    absl::StatusOr<MemoryInfo> info = CreateWithinLimit(parsed.tenant, [&] {
      return store_.ForkMemory(source.source, parsed.memory, std::string(display_name));
    });
    if (!info.ok()) return info.status();
    return MemoryStat{.info = *std::move(info)};
  }

  absl::StatusOr<SnapshotInfo> CreateSnapshot(absl::string_view name, absl::Time as_of) override {
    RETURN_IF_ERROR(CheckTakesWork());
    ASSIGN_OR_RETURN(const ResourceName parsed, ResourceName::ParseSnapshot(name));
    ASSIGN_OR_RETURN(const MemoryInfo memory, FindMemory(parsed.tenant, parsed.memory));
    return store_.CreateSnapshot({memory.uid, as_of}, parsed.snapshot);
  }

  absl::StatusOr<std::vector<SnapshotInfo>> ListSnapshots(absl::string_view memory_name,
                                                          absl::string_view after_id,
                                                          int limit) override {
    ASSIGN_OR_RETURN(const MemoryInfo memory, FindMemory(memory_name));
    return store_.ListSnapshots(memory.uid, std::string(after_id), limit);
  }

  absl::Status DeleteSnapshot(absl::string_view name) override {
    ASSIGN_OR_RETURN(const ResourceName parsed, ResourceName::ParseSnapshot(name));
    ASSIGN_OR_RETURN(const MemoryInfo memory, FindMemory(parsed.tenant, parsed.memory));
    const absl::Status status = store_.DeleteSnapshot(memory.uid, parsed.snapshot);
    if (!absl::IsNotFound(status)) return status;
    return absl::NotFoundError(absl::StrCat("snapshot ", name, " does not exist"));
  }

  absl::StatusOr<MemoryStat> UpdateMemory(absl::string_view name,
                                          const MemoryUpdate& update) override {
    RETURN_IF_ERROR(CheckTakesWork());
    ASSIGN_OR_RETURN(const MemoryInfo before, FindMemory(name));
    ASSIGN_OR_RETURN(MemoryInfo info, store_.UpdateMemory(before.uid, update));
    purger_.Notify();
    ASSIGN_OR_RETURN(const MemoryStore::Totals totals, store_.totals(info.uid));
    return MemoryStat{.info = std::move(info), .totals = totals};
  }

  absl::StatusOr<MemoryStat> GetMemory(absl::string_view name) override {
    ASSIGN_OR_RETURN(MemoryInfo info, FindMemory(name));
    ASSIGN_OR_RETURN(const MemoryStore::Totals totals, store_.totals(info.uid));
    return MemoryStat{.info = std::move(info), .totals = totals};
  }

  absl::StatusOr<std::vector<MemoryStat>> ListMemories(absl::string_view tenant_name,
                                                       absl::string_view after_id,
                                                       int limit) override {
    ASSIGN_OR_RETURN(const ResourceName parsed, ResourceName::ParseTenant(tenant_name));
    std::vector<MemoryStat> stats;
    std::string after(after_id);
    while (static_cast<int>(stats.size()) < limit) {
      const int wanted = limit - static_cast<int>(stats.size());
      std::vector<MemoryInfo> infos = store_.ListMemories(parsed.tenant, after, wanted);
      if (infos.empty()) break;
      after = infos.back().id;
      for (MemoryInfo& info : infos) {
        const absl::StatusOr<MemoryStore::Totals> totals = store_.totals(info.uid);
        if (absl::IsNotFound(totals.status())) continue;  // gone by now: another takes its place
        RETURN_IF_ERROR(totals.status());
        stats.push_back({.info = std::move(info), .totals = *totals});
      }
    }
    return stats;
  }

  absl::StatusOr<Deletion> DeleteMemory(absl::string_view name, bool everywhere) override {
    ASSIGN_OR_RETURN(const MemoryInfo info, FindMemory(name));
    ASSIGN_OR_RETURN(Deletion deletion, store_.DeleteMemory(info.uid, everywhere));
    for (const auto& writer : registry_.Of(info.uid)) {
      EndWriter(writer, absl::NotFoundError(absl::StrCat("memory ", name, " was deleted")));
    }
    DocumentsDropped(deletion, absl::NotFoundError(absl::StrCat("memory ", name, " was deleted")));
    visibility_.Notify();
    purger_.Notify();
    return deletion;
  }

  absl::StatusOr<DocumentInfo> GetDocument(absl::string_view name) override {
    return FindDocument(name);
  }

  absl::StatusOr<std::vector<DocumentInfo>> ListDocuments(absl::string_view memory_name,
                                                          DocumentId after, int limit) override {
    ASSIGN_OR_RETURN(const MemoryInfo info, FindMemory(memory_name));
    return store_.ListDocuments(info.uid, after, limit);
  }

  absl::StatusOr<Deletion> DeleteDocument(absl::string_view name, bool everywhere) override {
    ASSIGN_OR_RETURN(const DocumentInfo info, FindDocument(name));
    ASSIGN_OR_RETURN(Deletion deletion, store_.DeleteDocument(info.memory, info.uid, everywhere));
    const absl::Status status =
        absl::NotFoundError(absl::StrCat("document ", name, " was deleted"));
    for (const DocumentId document : deletion.deleted_documents) DocumentGone(document, status);
    DocumentsDropped(deletion, status);
    if (!deletion.pending) purger_.NothingToPurge(deletion);
    purger_.Notify();
    return deletion;
  }

  std::vector<Deletion> PendingDeletions() const override { return store_.PendingDeletions(); }
  void WhenPurged(PurgeId id, PurgedCallback purged) override {
    purger_.WhenPurged(id, std::move(purged));
  }

  absl::StatusOr<std::string> ReadText(absl::string_view document_name, int64_t byte_begin,
                                       int64_t byte_end) override {
    ASSIGN_OR_RETURN(const DocumentInfo info, FindDocument(document_name));
    if (byte_begin < 0 || byte_end < byte_begin) {
      return absl::InvalidArgumentError(
          absl::StrCat("byte range ", byte_begin, " to ", byte_end, " is none"));
    }
    if (byte_end - byte_begin > kReadTextBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat(
          byte_end - byte_begin, " bytes are asked for; limit ", kReadTextBytesMax, " a call"));
    }
    if (byte_end > info.durable_bytes) {
      return absl::OutOfRangeError(absl::StrCat("byte_end ", byte_end, " is beyond the ",
                                                info.durable_bytes, " durable bytes of ",
                                                document_name));
    }
    absl::StatusOr<std::string> text = store_.ReadText(info.uid, byte_begin, byte_end);
    if (!absl::IsDataLoss(text.status())) return text;
    return absl::DataLossError(absl::StrCat(document_name,
                                            ": its stored text is damaged, somewhere in bytes ",
                                            byte_begin, " to ", byte_end));
  }

  absl::StatusOr<std::unique_ptr<Writer>> OpenWriter(absl::string_view document_name,
                                                     WriterCallbacks callbacks,
                                                     absl::Duration ttl) override {
    RETURN_IF_ERROR(CheckTakesWork());
    ASSIGN_OR_RETURN(const ResourceName parsed, ResourceName::ParseDocument(document_name));
    ASSIGN_OR_RETURN(const MemoryInfo memory, FindMemory(parsed.tenant, parsed.memory));
    ASSIGN_OR_RETURN(Admission::Ticket ticket,
                     admission_.Enter(Quota::kIngestStreams, parsed.tenant));
    const WriterRegistry::Name name(memory.uid, parsed.document);
    RETURN_IF_ERROR(registry_.Claim(name, kDroppedWriterPatience));
    // Nobody else creates it meanwhile: its name is claimed.
    const bool is_new = absl::IsNotFound(store_.GetDocument(memory.uid, parsed.document).status());
    absl::StatusOr<DocumentInfo> info = GetOrCreateDocument(memory, parsed.document, ttl);
    if (info.ok() && info->damaged) {
      info = absl::DataLossError(
          absl::StrCat(document_name, ": its stored text is damaged; it takes no more"));
    }
    if (!info.ok()) {
      registry_.Unclaim(name);
      return info.status();
    }
    const DocumentId document = info->uid;
    IngestAccount account{parsed.tenant, memory.uid,
                          ResourceName{parsed.tenant, parsed.memory, ""}.ToString()};
    auto writer =
        std::make_shared<DocumentWriter>(WriterEnvironment{.options = options_,
                                                           .store = store_,
                                                           .committer = committer_,
                                                           .scheduler = scheduler_,
                                                           .metrics = metrics_,
                                                           .draining = draining_,
                                                           .admission = admission_},
                                         *std::move(info), std::move(account), std::move(callbacks),
                                         [this, is_new](const DocumentWriter& released) {
                                           if (is_new && released.refused_empty())
                                             TakeBack(released);
                                           scheduler_.Release(released.document());
                                           metrics_.writers.Decrement();
                                           registry_.Free(released);
                                         });
    scheduler_.Hold(document);
    metrics_.writers.Increment();
    registry_.Set(writer);
    // What became visible before the writer was known, it has not been told.
    if (const absl::StatusOr<DocumentInfo> now = store_.GetDocument(document); now.ok()) {
      writer->OnVisible(*now);
    }
    return std::make_unique<WriterHandle>(registry_, std::move(writer), std::move(ticket));
  }

  absl::StatusOr<RetrieveResult> Retrieve(const RetrieveOptions& options,
                                          const CallContext& context) override {
    RETURN_IF_ERROR(CheckTakesWork());
    ASSIGN_OR_RETURN(const Admission::Ticket ticket, EnterReader(options.memories));
    return mneme::Retrieve(read_, options, context);
  }
  absl::StatusOr<GenerateResult> Generate(const GenerateOptions& options,
                                          const CallContext& context,
                                          const std::function<bool(GeneratePiece)>& emit) override {
    RETURN_IF_ERROR(CheckTakesWork());
    ASSIGN_OR_RETURN(const Admission::Ticket ticket, EnterReader(options.memories));
    return mneme::Generate(read_, options, context, emit);
  }
  absl::StatusOr<ScoreResult> Score(const ScoreOptions& options,
                                    const CallContext& context) override {
    RETURN_IF_ERROR(CheckTakesWork());
    ASSIGN_OR_RETURN(const Admission::Ticket ticket, EnterReader(options.memories));
    return mneme::Score(read_, options, context);
  }

  absl::StatusOr<StoreCheckReport> CheckStore(
      absl::string_view memory_name, bool heal,
      const std::function<absl::Status(const StoreCheckReport&)>& step) override {
    RETURN_IF_ERROR(CheckTakesWork());
    std::optional<MemoryId> memory;
    if (!memory_name.empty()) {
      ASSIGN_OR_RETURN(const MemoryInfo info, FindMemory(memory_name));
      memory = info.uid;
    }
    return scrubber_.CheckNow(memory, heal, step);
  }

  absl::StatusOr<BackupInfo> CreateBackup(BackupDirectory& directory, const std::string& version,
                                          const BackupStep& step) override {
    RETURN_IF_ERROR(CheckTakesWork());
    return store_.Backup(directory, version, step);
  }

  AdmissionStatus admission() const override { return admission_.status(); }

  absl::Status Ready() const override {
    RETURN_IF_ERROR(CheckTakesWork());
    return supervisor_.Health();
  }

  absl::Status Drain(absl::Time deadline) override {
    if (!draining_.exchange(true)) LogInfo("engine", "draining");
    scrubber_.StopSoon();
    bool done = committer_.WaitIdle(deadline);
    scheduler_.StopSoon();
    purger_.Stop();
    visibility_.Notify();
    done = gate_.WaitIdle(deadline) && done;
    for (const auto& writer : registry_.All()) {
      writer->Fail(absl::UnavailableError("the engine is draining and takes no more text"));
    }
    const absl::Status flushed = store_.Flush();
    LogInfo("engine", "drained", {{"complete", done ? "true" : "false"}});
    RETURN_IF_ERROR(flushed);
    if (!done) {
      return absl::DeadlineExceededError(
          "the deadline passed before all accepted text was durable and all readers had ended; "
          "nothing that was acked is lost");
    }
    return absl::OkStatus();
  }

 private:
  absl::Status CheckTakesWork() const {
    if (!draining_.load(std::memory_order_relaxed)) return absl::OkStatus();
    return absl::UnavailableError("the engine is draining");
  }

  // A question to these memories, which are of one tenant, begins.
  absl::StatusOr<Admission::Ticket> EnterReader(const std::vector<std::string>& memories) {
    // A name that is none the question itself will find.
    absl::StatusOr<ResourceName> first = absl::NotFoundError("none");
    if (!memories.empty()) first = ResourceName::ParseSource(memories.front());
    return admission_.Enter(Quota::kReaders, first.ok() ? first->tenant : "");
  }

  // Documents that can be read again, after damage, go on where they were.
  void DeriveWhatIsNotVisible() {
    for (const DocumentInfo& document : store_.AllDocuments()) {
      scheduler_.DeriveStored(document.uid);
    }
  }

  absl::StatusOr<MemoryInfo> FindMemory(absl::string_view name) const {
    ASSIGN_OR_RETURN(const ResourceName parsed, ResourceName::ParseMemory(name));
    return FindMemory(parsed.tenant, parsed.memory);
  }
  absl::StatusOr<MemoryInfo> FindMemory(const std::string& tenant,
                                        const std::string& memory) const {
    absl::StatusOr<MemoryInfo> info = store_.GetMemory(tenant, memory);
    if (!absl::IsNotFound(info.status())) return info;
    return absl::NotFoundError(
        absl::StrCat("memory ", ResourceName{tenant, memory, ""}.ToString(), " does not exist"));
  }
  absl::StatusOr<DocumentInfo> FindDocument(absl::string_view name) const {
    ASSIGN_OR_RETURN(const ResourceName parsed, ResourceName::ParseDocument(name));
    ASSIGN_OR_RETURN(const MemoryInfo memory, FindMemory(parsed.tenant, parsed.memory));
    absl::StatusOr<DocumentInfo> info = store_.GetDocument(memory.uid, parsed.document);
    if (!absl::IsNotFound(info.status())) return info;
    return absl::NotFoundError(absl::StrCat("document ", name, " does not exist"));
  }

  absl::StatusOr<DocumentInfo> GetOrCreateDocument(const MemoryInfo& memory, const std::string& id,
                                                   absl::Duration ttl) {
    absl::StatusOr<DocumentInfo> info = store_.GetDocument(memory.uid, id);
    if (info.ok() && info->shared) {
      return absl::FailedPreconditionError(absl::StrCat(
          "document ", ResourceName{memory.tenant, memory.id, id}.ToString(),
          " is shared with the memory that this one is a fork of, and takes no text here; deleted "
          "here, it can be written anew"));
    }
    if (!absl::IsNotFound(info.status())) return info;
    if (const auto expired = store_.ExpiredDocument(memory.uid, id); expired.has_value()) {
      RETURN_IF_ERROR(ForgetExpired(*expired));
    }
    ASSIGN_OR_RETURN(const Admission::Ticket ticket,
                     admission_.Enter(Quota::kDocuments, memory.tenant));
    info = creations_.Create<DocumentInfo>(
        absl::StrCat("memory ", ResourceName{memory.tenant, memory.id, ""}.ToString()), "documents",
        options_.documents_per_memory_max,
        [&] {
          const absl::StatusOr<MemoryStore::Totals> totals = store_.own_totals(memory.uid);
          return totals.ok() ? totals->documents : 0;
        },
        [&] { return store_.CreateDocument(memory.uid, id, clock_.Now() + ttl); });
    if (!absl::IsAlreadyExists(info.status())) return info;
    // Of a document that is not found: it expires, as the clock goes, in this moment.
    return absl::UnavailableError(
        absl::StrCat("document ", ResourceName{memory.tenant, memory.id, id}.ToString(),
                     " has expired and its name is not free yet; try again"));
  }

  // Deletes the document that a writer created and has no text of: what was refused leaves nothing
  // behind, not even a name.
  void TakeBack(const DocumentWriter& writer) {
    const auto deletion = store_.DeleteDocument(writer.memory(), writer.document());
    if (deletion.ok()) {
      scheduler_.Forget(writer.document());
      visibility_.Notify();
      purger_.Notify();
    } else if (!absl::IsNotFound(deletion.status())) {
      LogWarning("engine", "a document whose text was refused stays, empty",
                 {{"status", deletion.status().ToString()}});
    }
  }

  // Deletes documents that have expired, a bounded number.
  void ForgetExpired() {
    if (store_.PendingDeletions().size() >= kPendingDeletionsMax) return;
    for (const DocumentInfo& info : store_.ExpiredDocuments(kExpiredAtOnce)) {
      if (const absl::Status status = ForgetExpired(info); !status.ok()) {
        LogWarning("engine", "an expired document could not be deleted; trying again",
                   {{"status", status.ToString()}});
        return;
      }
    }
  }
  // OK when somebody was faster, too.
  absl::Status ForgetExpired(const DocumentInfo& info) {
    const auto deletion = store_.DeleteDocument(info.uid, /*everywhere=*/true);
    if (absl::IsNotFound(deletion.status())) return absl::OkStatus();
    RETURN_IF_ERROR(deletion.status());
    metrics_.expired_documents.Increment();
    DocumentGone(info.uid, absl::NotFoundError(absl::StrCat("document ", info.id, " has expired")));
    purger_.Notify();
    return absl::OkStatus();
  }

  // Runs `create` unless the tenant has as many memories as it may.
  absl::StatusOr<MemoryInfo> CreateWithinLimit(
      const std::string& tenant, const std::function<absl::StatusOr<MemoryInfo>()>& create) {
    const auto limit = static_cast<int>(options_.memories_per_tenant_max);
    return creations_.Create<MemoryInfo>(
        absl::StrCat("tenant ", tenant), "memories", limit,
        [&] { return static_cast<int64_t>(store_.ListMemories(tenant, "", limit).size()); },
        create);
  }

  // Ends the writers of documents that their memory let go of, and goes on with what forks hold of
  // them, which may be less than was being derived.
  void DocumentsDropped(const Deletion& deletion, const absl::Status& status) {
    for (const DocumentId document : deletion.dropped_documents) {
      DocumentGone(document, status);
      scheduler_.DeriveStored(document);
    }
  }

  // Ends what goes on with a document that was deleted.
  void DocumentGone(DocumentId document, const absl::Status& status) {
    scheduler_.Forget(document);
    if (const auto writer = registry_.Find(document)) EndWriter(writer, status);
    visibility_.Notify();
  }

  void EndWriter(const std::shared_ptr<DocumentWriter>& writer, const absl::Status& status) {
    scheduler_.Forget(writer->document());
    registry_.Free(*writer);
    writer->Fail(status);
  }

  void OnVisible(const DocumentInfo& info) {
    if (const auto writer = registry_.Find(info.uid)) writer->OnVisible(info);
    visibility_.Notify();
  }
  void OnFailed(DocumentId document, const absl::Status& status) {
    if (const auto writer = registry_.Find(document)) writer->Fail(status);
    visibility_.Notify();
  }
  void OnRoom() {
    for (const auto& writer : registry_.All()) writer->PokeReady();
  }

  const EngineOptions options_;
  MemoryStore& store_;
  Clock& clock_;
  const std::unique_ptr<Supervisor> own_supervisor_;  // unless the caller has one
  Supervisor& supervisor_;
  const SegmentShape shape_;
  EngineMetrics metrics_;
  std::atomic<bool> draining_{false};
  CreationQuota creations_;
  WriterRegistry registry_;
  VisibilityBoard visibility_;
  Admission admission_;
  // These two call each other through the writers: the destructor stops both before either goes.
  TextCommitter committer_;
  Scheduler scheduler_;
  PastReader past_;
  ReaderGate gate_;
  PageSource pages_;
  ReadBatcher batcher_;
  const ReadEnvironment read_;
  Recovery recovery_;
  Scrubber scrubber_;
  Purger purger_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Open(const EngineOptions& options,
                                                     const Model& model, Backend& backend,
                                                     MemoryStore& store, Metrics& metrics,
                                                     Clock& clock) {
  RETURN_IF_ERROR(CheckEngineOptions(options, model));
  return std::make_unique<EngineImpl>(options, model, backend, store, metrics, clock);
}

}  // namespace mneme
