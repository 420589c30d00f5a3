// FakeEngine: an Engine in memory whose moments a test controls: when text becomes durable, when
// writers are ready, how long a question runs. For tests of the server alone.

#ifndef MNEME_TESTS_SERVER_FAKE_ENGINE_H_
#define MNEME_TESTS_SERVER_FAKE_ENGINE_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"

namespace mneme {

// Thread-safe.
class FakeEngine : public Engine {
 public:
  // What Retrieve, Generate and Score do; called without a lock.
  std::function<absl::StatusOr<RetrieveResult>(const RetrieveOptions&, const CallContext&)>
      retrieve = [](const RetrieveOptions&, const CallContext&) { return RetrieveResult(); };
  std::function<absl::StatusOr<GenerateResult>(const GenerateOptions&, const CallContext&,
                                               const std::function<bool(GeneratePiece)>&)>
      generate = [](const GenerateOptions&, const CallContext&,
                    const std::function<bool(GeneratePiece)>&) { return GenerateResult(); };
  std::function<absl::StatusOr<ScoreResult>(const ScoreOptions&, const CallContext&)> score =
      [](const ScoreOptions&, const CallContext&) { return ScoreResult(); };
  // What CheckStore does; called without a lock.
  std::function<absl::StatusOr<StoreCheckReport>(
      absl::string_view memory_name, bool heal,
      const std::function<absl::Status(const StoreCheckReport&)>& step)>
      check_store =
          [](absl::string_view, bool, const std::function<absl::Status(const StoreCheckReport&)>&) {
            return StoreCheckReport();
          };
  // Called by GetMemory, without a lock, before it answers.
  std::function<void()> on_get_memory = [] {};

  void SetReady(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    ready_ = std::move(status);
  }
  // While held, accepted text does not become durable; letting go makes it so.
  void HoldDurable(bool hold) {
    Settle([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { hold_durable_ = hold; });
  }
  void HoldVisible(bool hold) {
    Settle([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { hold_visible_ = hold; });
  }
  // While not ready, Writer::ready() is false.
  void SetWritersReady(bool ready) {
    std::vector<std::shared_ptr<State>> writers;
    {
      absl::MutexLock lock(&mutex_);
      writers_ready_ = ready;
      for (const auto& [name, state] : writers_) writers.push_back(state);
    }
    if (!ready) return;
    for (const auto& state : writers) state->Call([](WriterCallbacks& c) { c.ready(); });
  }
  // Breaks all writers.
  void FailWriters(const absl::Status& status) {
    std::vector<std::shared_ptr<State>> writers;
    {
      absl::MutexLock lock(&mutex_);
      for (const auto& [name, state] : writers_) writers.push_back(state);
    }
    for (const auto& state : writers) {
      state->Call([&](WriterCallbacks& c) { c.failed(status); });
    }
  }
  int writer_count() {
    absl::MutexLock lock(&mutex_);
    return static_cast<int>(writers_.size());
  }
  // Waits until so many writers are open.
  void AwaitWriterCount(int count) {
    const auto reached = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return static_cast<int>(writers_.size()) == count;
    };
    absl::MutexLock lock(&mutex_, absl::Condition(&reached));
  }
  int append_count() {
    absl::MutexLock lock(&mutex_);
    return append_count_;
  }
  void AwaitAppendCount(int count) {
    const auto reached = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return append_count_ >= count;
    };
    absl::MutexLock lock(&mutex_, absl::Condition(&reached));
  }
  std::string Text(const std::string& document) {
    absl::MutexLock lock(&mutex_);
    return documents_[document].text;
  }

  absl::StatusOr<MemoryStat> CreateMemory(absl::string_view name, absl::string_view display_name,
                                          const MemoryPolicy& policy = {}) override {
    absl::MutexLock lock(&mutex_);
    const auto [it, is_new] = memories_.try_emplace(std::string(name), display_name);
    if (!is_new) return absl::AlreadyExistsError(absl::StrCat("memory ", name, " exists"));
    policies_[it->first] = policy;
    return Stat(it->first);
  }
  absl::StatusOr<MemoryStat> UpdateMemory(absl::string_view name,
                                          const MemoryUpdate& update) override {
    absl::MutexLock lock(&mutex_);
    const std::string key(name);
    if (!memories_.contains(key)) return NoMemory(name);
    if (update.display_name.has_value()) memories_[key] = *update.display_name;
    if (update.retention.has_value()) policies_[key].retention = *update.retention;
    if (update.ttl.has_value()) policies_[key].ttl = *update.ttl;
    return Stat(key);
  }
  absl::StatusOr<MemoryStat> GetMemory(absl::string_view name) override {
    on_get_memory();
    absl::MutexLock lock(&mutex_);
    if (!memories_.contains(std::string(name))) return NoMemory(name);
    return Stat(std::string(name));
  }
  absl::StatusOr<std::vector<MemoryStat>> ListMemories(absl::string_view tenant_name,
                                                       absl::string_view after_id,
                                                       int limit) override {
    absl::MutexLock lock(&mutex_);
    std::vector<MemoryStat> stats;
    for (const auto& [name, display_name] : memories_) {
      const ResourceName parsed = *ResourceName::ParseMemory(name);
      if (absl::StrCat("tenants/", parsed.tenant) != tenant_name || parsed.memory <= after_id) {
        continue;
      }
      if (static_cast<int>(stats.size()) == limit) break;
      stats.push_back(Stat(name));
    }
    return stats;
  }
  absl::StatusOr<Deletion> DeleteMemory(absl::string_view name) override {
    absl::MutexLock lock(&mutex_);
    if (memories_.erase(std::string(name)) == 0) return NoMemory(name);
    return NewDeletion();
  }
  std::vector<Deletion> PendingDeletions() const override {
    absl::MutexLock lock(&mutex_);
    return pending_;
  }
  void WhenPurged(PurgeId id, PurgedCallback purged) override {
    absl::MutexLock lock(&mutex_);
    purged_[id] = std::move(purged);
  }
  // The purge of all deletions so far ends.
  void FinishPurges() {
    std::map<PurgeId, PurgedCallback> calls;
    std::vector<Deletion> done;
    {
      absl::MutexLock lock(&mutex_);
      calls.swap(purged_);
      done.swap(pending_);
    }
    for (Deletion& deletion : done) {
      deletion.receipt.purge_time = deletion.receipt.delete_time + absl::Seconds(1);
      if (calls.contains(deletion.id)) calls[deletion.id](deletion.receipt);
    }
  }
  absl::StatusOr<DocumentInfo> GetDocument(absl::string_view name) override {
    absl::MutexLock lock(&mutex_);
    const auto it = documents_.find(std::string(name));
    if (it == documents_.end()) return NoDocument(name);
    return it->second.info;
  }
  absl::StatusOr<std::vector<DocumentInfo>> ListDocuments(absl::string_view memory_name,
                                                          DocumentId after, int limit) override {
    absl::MutexLock lock(&mutex_);
    if (!memories_.contains(std::string(memory_name))) return NoMemory(memory_name);
    std::map<DocumentId, DocumentInfo> found;
    for (const auto& [name, document] : documents_) {
      if (name.rfind(absl::StrCat(memory_name, "/"), 0) == 0 && document.info.uid > after) {
        found[document.info.uid] = document.info;
      }
    }
    std::vector<DocumentInfo> infos;
    for (const auto& [uid, info] : found) {
      if (static_cast<int>(infos.size()) < limit) infos.push_back(info);
    }
    return infos;
  }
  absl::StatusOr<Deletion> DeleteDocument(absl::string_view name) override {
    absl::MutexLock lock(&mutex_);
    if (documents_.erase(std::string(name)) == 0) return NoDocument(name);
    return NewDeletion();
  }
  absl::StatusOr<std::string> ReadText(absl::string_view document_name, int64_t byte_begin,
                                       int64_t byte_end) override {
    absl::MutexLock lock(&mutex_);
    const auto it = documents_.find(std::string(document_name));
    if (it == documents_.end()) return NoDocument(document_name);
    return it->second.text.substr(byte_begin, byte_end - byte_begin);
  }
  absl::StatusOr<std::unique_ptr<Writer>> OpenWriter(
      absl::string_view document_name, WriterCallbacks callbacks,
      absl::Duration ttl = absl::InfiniteDuration()) override {
    absl::MutexLock lock(&mutex_);
    const std::string name(document_name);
    const ResourceName parsed = *ResourceName::ParseDocument(name);
    const std::string memory = ResourceName{parsed.tenant, parsed.memory, ""}.ToString();
    if (!memories_.contains(memory)) return NoMemory(memory);
    if (writers_.contains(name)) return absl::AbortedError(absl::StrCat(name, " has a writer"));
    Document& document = documents_[name];
    if (document.info.id.empty()) {
      document.info.id = parsed.document;
      document.info.uid = DocumentId{next_uid_++};
      document.info.expire_time = absl::UnixEpoch() + ttl;
    }
    auto state = std::make_shared<State>(std::move(callbacks));
    writers_[name] = state;
    return std::unique_ptr<Writer>(new FakeWriter(*this, name, std::move(state)));
  }
  absl::StatusOr<RetrieveResult> Retrieve(const RetrieveOptions& options,
                                          const CallContext& context) override {
    return retrieve(options, context);
  }
  absl::StatusOr<GenerateResult> Generate(const GenerateOptions& options,
                                          const CallContext& context,
                                          const std::function<bool(GeneratePiece)>& emit) override {
    return generate(options, context, emit);
  }
  absl::StatusOr<ScoreResult> Score(const ScoreOptions& options,
                                    const CallContext& context) override {
    return score(options, context);
  }
  absl::StatusOr<StoreCheckReport> CheckStore(
      absl::string_view memory_name, bool heal,
      const std::function<absl::Status(const StoreCheckReport&)>& step) override {
    return check_store(memory_name, heal, step);
  }
  absl::StatusOr<BackupInfo> CreateBackup(BackupDirectory& directory, const std::string& version,
                                          const BackupStep& step) override {
    BackupInfo info;
    info.version = version;
    return directory.Create(StoreFiles(), info, step);
  }
  absl::Status Ready() const override {
    absl::MutexLock lock(&mutex_);
    return ready_;
  }
  absl::Status Drain(absl::Time) override { return absl::OkStatus(); }

 private:
  struct Document {
    DocumentInfo info;
    std::string text;  // accepted
  };

  // A writer's callbacks; none runs after Close.
  struct State {
    explicit State(WriterCallbacks c) : callbacks(std::move(c)) {}
    void Call(const std::function<void(WriterCallbacks&)>& call) {
      absl::MutexLock lock(&mutex);
      if (open) call(callbacks);
    }
    void Close() {
      absl::MutexLock lock(&mutex);
      open = false;
    }
    absl::Mutex mutex;
    bool open ABSL_GUARDED_BY(mutex) = true;
    WriterCallbacks callbacks ABSL_GUARDED_BY(mutex);
  };

  class FakeWriter : public Writer {
   public:
    FakeWriter(FakeEngine& engine, std::string name, std::shared_ptr<State> state)
        : engine_(engine), name_(std::move(name)), state_(std::move(state)) {}
    ~FakeWriter() override {
      state_->Close();
      absl::MutexLock lock(&engine_.mutex_);
      engine_.writers_.erase(name_);
    }
    absl::Status Append(int64_t byte_offset, absl::string_view text) override {
      absl::Status status;
      engine_.Settle([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(engine_.mutex_) {
        ++engine_.append_count_;
        Document& document = engine_.documents_[name_];
        if (document.info.sealed) {
          status = absl::FailedPreconditionError("sealed");
        } else if (byte_offset != static_cast<int64_t>(document.text.size())) {
          status = absl::OutOfRangeError(absl::StrCat("gap at ", byte_offset));
        } else {
          document.text.append(text.data(), text.size());
        }
      });
      return status;
    }
    absl::Status Seal() override {
      engine_.Settle([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(engine_.mutex_) {
        engine_.documents_[name_].info.sealed = true;
      });
      return absl::OkStatus();
    }
    absl::Status Flush() override { return absl::OkStatus(); }
    bool ready() const override {
      absl::MutexLock lock(&engine_.mutex_);
      return engine_.writers_ready_;
    }
    IngestProgress progress() const override {
      absl::MutexLock lock(&engine_.mutex_);
      return engine_.Progress(name_);
    }
    int64_t accepted_bytes() const override {
      absl::MutexLock lock(&engine_.mutex_);
      return static_cast<int64_t>(engine_.documents_[name_].text.size());
    }
    int64_t settled_bytes() const override { return accepted_bytes(); }

   private:
    FakeEngine& engine_;
    const std::string name_;
    const std::shared_ptr<State> state_;
  };

  Deletion NewDeletion() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Deletion deletion;
    deletion.id.memory = MemoryId{next_purge_++};
    deletion.tenant = "default";
    deletion.receipt.documents = 1;
    deletion.receipt.delete_time = absl::FromUnixSeconds(1'700'000'000);
    pending_.push_back(deletion);
    return deletion;
  }
  static absl::Status NoMemory(absl::string_view name) {
    return absl::NotFoundError(absl::StrCat("no memory ", name));
  }
  static absl::Status NoDocument(absl::string_view name) {
    return absl::NotFoundError(absl::StrCat("no document ", name));
  }

  MemoryStat Stat(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const ResourceName parsed = *ResourceName::ParseMemory(name);
    MemoryStat stat;
    stat.info.tenant = parsed.tenant;
    stat.info.id = parsed.memory;
    stat.info.display_name = memories_[name];
    stat.info.policy = policies_[name];
    return stat;
  }

  IngestProgress Progress(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const DocumentInfo& info = documents_[name].info;
    IngestProgress progress;
    progress.durable_bytes = info.durable_bytes;
    progress.visible_bytes = info.visible_bytes;
    progress.sealed = info.sealed;
    return progress;
  }

  // Changes something under the lock, then moves text on and tells the writers.
  void Settle(const std::function<void()>& change) {
    std::vector<std::pair<std::shared_ptr<State>, IngestProgress>> news;
    {
      absl::MutexLock lock(&mutex_);
      change();
      for (auto& [name, document] : documents_) {
        DocumentInfo& info = document.info;
        if (!hold_durable_) info.durable_bytes = static_cast<int64_t>(document.text.size());
        if (!hold_visible_) info.visible_bytes = info.durable_bytes;
      }
      for (const auto& [name, state] : writers_) news.emplace_back(state, Progress(name));
    }
    for (const auto& [state, progress] : news) {
      state->Call([&progress = progress](WriterCallbacks& c) { c.progress(progress); });
    }
  }

  mutable absl::Mutex mutex_;
  absl::Status ready_ ABSL_GUARDED_BY(mutex_);
  bool hold_durable_ ABSL_GUARDED_BY(mutex_) = false;
  bool hold_visible_ ABSL_GUARDED_BY(mutex_) = false;
  bool writers_ready_ ABSL_GUARDED_BY(mutex_) = true;
  int append_count_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_uid_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<std::string, MemoryPolicy> policies_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_purge_ ABSL_GUARDED_BY(mutex_) = 1;
  std::vector<Deletion> pending_ ABSL_GUARDED_BY(mutex_);
  std::map<PurgeId, PurgedCallback> purged_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> memories_ ABSL_GUARDED_BY(mutex_);  // name -> display name
  std::map<std::string, Document> documents_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<State>> writers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_TESTS_SERVER_FAKE_ENGINE_H_
