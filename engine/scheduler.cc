#include "engine/scheduler.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// Bytes of text that count as one token while it waits on disk: about the mean of English text.
constexpr int64_t kBytesPerToken = 4;
// Times at which durable_bytes grew that are remembered to measure the lag, at most.
constexpr size_t kLagMarksMax = 64;
// How often a wait for a point in time looks at the clock, which need not be the real one.
constexpr absl::Duration kClockTick = absl::Milliseconds(20);
// Text that never pauses waits this many times idle_flush at most.
constexpr int kBusyFlushFactor = 10;
// Batches that are derived and wait to be stored, at most.
constexpr size_t kDerivedBatchesMax = 2;

std::string Name(DocumentId document) { return absl::StrCat(static_cast<uint64_t>(document)); }

// How long to wait on a condition variable for something that is due at `due`.
absl::Duration WaitFor(absl::Time now, absl::Time due) {
  if (due == absl::InfiniteFuture()) return BackgroundThread::kBeatEvery;
  return std::clamp(due - now, absl::Milliseconds(1), kClockTick);
}

}  // namespace

// One document with text to derive, or held by a writer. Guarded by the scheduler's mutex; `source`
// is used outside of it by the one step for which `encoding` is set.
struct Scheduler::Document {
  int holds = 0;
  int64_t durable_bytes = 0;
  bool sealed = false;
  int64_t flush_bytes = 0;  // derived without waiting up to here
  int64_t read_bytes = 0;   // of `source`, once there is one
  int64_t taken_bytes = 0;  // of `source`, once there is one
  bool more_whole = false;  // the last step found a group: there may be another
  bool encoding = false;
  std::unique_ptr<DocumentSource> source;

  std::deque<SegmentGroup> queue;
  int deriving = 0;  // groups taken from the queue that are not visible yet
  bool deriving_open = false;

  absl::Time text_time = absl::InfinitePast();        // when durable_bytes last grew
  absl::Time untaken_since = absl::InfiniteFuture();  // when it grew beyond taken_bytes
  // The open segment rests as long as deriving it last took, so that text that drips in costs at
  // most half of the derive thread.
  absl::Time open_rests_until = absl::InfinitePast();
  int failures = 0;
  absl::Time retry_at = absl::InfinitePast();
  std::deque<std::pair<int64_t, absl::Time>> lag_marks;  // durable_bytes, and when it became so

  bool open_waits() const { return deriving_open || (!queue.empty() && queue.back().open); }
  int64_t unread_bytes() const { return source == nullptr ? 0 : durable_bytes - read_bytes; }
};

Scheduler::Scheduler(const SchedulerOptions& options, const Model& model, const SegmentShape& shape,
                     MemoryStore& store, EngineMetrics& metrics, Supervisor& supervisor,
                     SchedulerHooks hooks)
    : options_(options),
      model_(model),
      shape_(shape),
      store_(store),
      metrics_(metrics),
      clock_(supervisor.clock()),
      hooks_(std::move(hooks)),
      put_pool_(options.put_threads) {
  for (int i = 0; i < options.encode_threads; ++i) {
    encode_threads_.push_back(std::make_unique<BackgroundThread>(
        i == 0 ? "encode" : absl::StrCat("encode_", i), supervisor,
        [this](BackgroundThread& thread) { return EncodeLoop(thread); }));
  }
  derive_thread_ = std::make_unique<BackgroundThread>(
      "derive", supervisor, [this](BackgroundThread& thread) { return DeriveLoop(thread); });
  put_thread_ = std::make_unique<BackgroundThread>(
      "put", supervisor, [this](BackgroundThread& thread) { return PutLoop(thread); });
}

Scheduler::~Scheduler() { Stop(); }

void Scheduler::StopSoon() {
  for (const auto& thread : encode_threads_) thread->MayEnd();
  if (derive_thread_ != nullptr) derive_thread_->MayEnd();
  if (put_thread_ != nullptr) put_thread_->MayEnd();
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.SignalAll();
}

bool Scheduler::stopping() const {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void Scheduler::Stop() {
  StopSoon();
  encode_threads_.clear();
  derive_thread_.reset();
  put_thread_.reset();
}

Scheduler::Document& Scheduler::At(DocumentId document) {
  std::shared_ptr<Document>& entry = documents_[document];
  if (entry == nullptr) entry = std::make_shared<Document>();
  return *entry;
}

void Scheduler::TextDurable(DocumentId id, int64_t durable_bytes, bool sealed) {
  absl::MutexLock lock(&mutex_);
  Document& document = At(id);
  document.sealed |= sealed;
  if (durable_bytes > document.durable_bytes) {
    const absl::Time now = clock_.Now();
    const int64_t unread_before = document.unread_bytes();
    if (document.taken_bytes >= document.durable_bytes) document.untaken_since = now;
    document.durable_bytes = durable_bytes;
    document.text_time = now;
    if (document.lag_marks.size() < kLagMarksMax) {
      document.lag_marks.emplace_back(durable_bytes, now);
    }
    unread_bytes_ += document.unread_bytes() - unread_before;
  }
  DropIfDone(id);
  CountQueue();
  changed_.SignalAll();
}

void Scheduler::Flush(DocumentId id, int64_t byte_end) {
  absl::MutexLock lock(&mutex_);
  const auto it = documents_.find(id);
  if (it == documents_.end()) return;
  it->second->flush_bytes = std::max(it->second->flush_bytes, byte_end);
  changed_.SignalAll();
}

void Scheduler::DeriveStored(DocumentId id) {
  const absl::StatusOr<DocumentInfo> info = store_.GetDocument(id);
  if (!info.ok() || info->damaged || info->visible_bytes >= info->durable_bytes) return;
  TextDurable(id, info->durable_bytes, info->sealed);
  Flush(id, info->durable_bytes);
}

void Scheduler::Hold(DocumentId id) {
  absl::MutexLock lock(&mutex_);
  ++At(id).holds;
}

void Scheduler::Release(DocumentId id) {
  absl::MutexLock lock(&mutex_);
  const auto it = documents_.find(id);
  if (it == documents_.end()) return;  // forgotten meanwhile
  --it->second->holds;
  DropIfDone(id);
}

void Scheduler::Forget(DocumentId id) {
  absl::MutexLock lock(&mutex_);
  Erase(id);
}

bool Scheduler::full() const {
  absl::MutexLock lock(&mutex_);
  return Full();
}

bool Scheduler::Full() const {
  const int64_t bytes = accepted_bytes_.load(std::memory_order_relaxed) + unread_bytes_;
  return queued_segments_ + bytes / (kBytesPerToken * shape_.segment_tokens) >=
         options_.queue_segments_max;
}

bool Scheduler::Done(DocumentId id) const {
  absl::MutexLock lock(&mutex_);
  const auto it = documents_.find(id);
  return it == documents_.end() || !HasWork(*it->second);
}

bool Scheduler::HasWork(const Document& document) const {
  if (document.encoding || document.deriving > 0 || !document.queue.empty()) return true;
  if (document.source == nullptr) return document.durable_bytes > 0;
  return document.taken_bytes < document.durable_bytes;
}

absl::Duration Scheduler::RetryWait(int failures) const {
  absl::Duration wait = options_.retry_wait_min;
  for (int i = 1; i < failures && wait < options_.retry_wait_max; ++i) wait *= 2;
  return std::min(wait, options_.retry_wait_max);
}

void Scheduler::CountQueue() {
  metrics_.segment_queue.Set(static_cast<double>(queued_segments_));
  metrics_.segment_backlog_bytes.Set(
      static_cast<double>(unread_bytes_ + accepted_bytes_.load(std::memory_order_relaxed)));
}

void Scheduler::DropIfDone(DocumentId id) {
  const auto it = documents_.find(id);
  if (it != documents_.end() && it->second->holds <= 0 && !HasWork(*it->second)) Erase(id);
}

void Scheduler::Erase(DocumentId id) {
  const auto it = documents_.find(id);
  if (it == documents_.end()) return;
  for (const SegmentGroup& group : it->second->queue) {
    queued_segments_ -= static_cast<int64_t>(group.segments.size());
  }
  unread_bytes_ -= it->second->unread_bytes();
  documents_.erase(it);
  CountQueue();
  changed_.SignalAll();
}

absl::Status Scheduler::EncodeLoop(BackgroundThread& thread) {
  for (;;) {
    std::optional<Step> step;
    DocumentId id{};
    {
      absl::MutexLock lock(&mutex_);
      for (;;) {
        if (stopping_) return absl::OkStatus();
        thread.Beat();
        const absl::Time now = clock_.Now();
        absl::Time due = absl::InfiniteFuture();
        if (queued_segments_ < options_.queue_segments_max) step = NextStep(now, &due);
        if (step) break;
        changed_.WaitWithTimeout(&mutex_, WaitFor(now, due));
      }
      id = last_encoded_;
      step->document->encoding = true;
    }
    absl::StatusOr<std::optional<SegmentGroup>> group{std::optional<SegmentGroup>()};
    {
      StageTimer timer(metrics_.encode_seconds);
      // A source that is being opened is published by FinishStep, under the lock.
      std::unique_ptr<DocumentSource>& source = step->document->source;
      if (source == nullptr) {
        absl::StatusOr<std::unique_ptr<DocumentSource>> opened =
            DocumentSource::Open(model_, shape_, store_, id);
        if (opened.ok()) {
          absl::MutexLock lock(&mutex_);
          source = *std::move(opened);
          // Nothing is counted as unread before FinishStep, neither is text that came since the
          // step was taken.
          step->document->read_bytes = step->document->durable_bytes;
          step->document->taken_bytes = source->taken_bytes();
        } else {
          group = opened.status();
        }
      }
      if (group.ok()) group = source->Next(step->durable_bytes, step->take_open);
    }
    FinishStep(id, *step, std::move(group));
  }
}

std::optional<Scheduler::Step> Scheduler::NextStep(absl::Time now, absl::Time* due) {
  // Two passes over the ids in order, beginning behind the last one served.
  auto it = documents_.upper_bound(last_encoded_);
  for (size_t seen = 0; seen < documents_.size(); ++seen, ++it) {
    if (it == documents_.end()) it = documents_.begin();
    const Document& document = *it->second;
    if (document.encoding || document.durable_bytes == 0) continue;
    if (document.retry_at > now) {
      *due = std::min(*due, document.retry_at);
      continue;
    }
    const bool unread = document.source == nullptr || document.more_whole ||
                        document.read_bytes < document.durable_bytes;
    bool take_open = false;
    if (document.taken_bytes < document.durable_bytes && !document.open_waits()) {
      const absl::Time open_due =
          std::max(std::min(document.text_time + options_.idle_flush,
                            document.untaken_since + kBusyFlushFactor * options_.idle_flush),
                   document.open_rests_until);
      take_open = document.sealed || document.flush_bytes > document.taken_bytes || open_due <= now;
      if (!take_open) *due = std::min(*due, open_due);
    }
    if (!unread && !take_open) continue;
    last_encoded_ = it->first;
    return Step{
        .document = it->second, .durable_bytes = document.durable_bytes, .take_open = take_open};
  }
  return std::nullopt;
}

std::optional<int64_t> Scheduler::EndLeft(DocumentId id, const absl::Status& status) const {
  if (!absl::IsOutOfRange(status)) return std::nullopt;
  const absl::StatusOr<DocumentInfo> info = store_.GetDocument(id);
  return info.ok() ? std::optional<int64_t>(info->durable_bytes) : std::nullopt;
}

void Scheduler::FinishStep(DocumentId id, const Step& step,
                           absl::StatusOr<std::optional<SegmentGroup>> group) {
  const absl::Status status = group.status();
  const bool lost = absl::IsDataLoss(status) || absl::IsNotFound(status);
  const std::optional<int64_t> end_left = EndLeft(id, status);
  bool room = false;
  {
    absl::MutexLock lock(&mutex_);
    const bool was_full = Full();
    Document& document = *step.document;
    document.encoding = false;
    const auto it = documents_.find(id);
    if (it == documents_.end() || it->second != step.document) return;  // forgotten meanwhile
    if (lost) {
      Erase(id);
    } else if (end_left.has_value() && *end_left < step.durable_bytes) {
      // Cut at its end after what is to be derived was told.
      unread_bytes_ -= document.unread_bytes();
      document.durable_bytes = *end_left;
      document.read_bytes = document.source->read_bytes();
      unread_bytes_ += document.unread_bytes();
      document.more_whole = true;
      DropIfDone(id);
    } else if (!status.ok()) {
      document.retry_at = clock_.Now() + RetryWait(++document.failures);
      document.more_whole = true;  // whatever was read, there is something to ask for
    } else {
      const absl::Time now = clock_.Now();
      document.failures = 0;
      unread_bytes_ -= document.unread_bytes();
      document.read_bytes = document.source->read_bytes();
      unread_bytes_ += document.unread_bytes();
      document.more_whole = group->has_value();
      if (group->has_value()) {
        document.taken_bytes = document.source->taken_bytes();
        document.untaken_since = now;
        const int64_t first_index = (*group)->segments.front().index;
        // An open segment that has not begun to be derived makes way for what replaces it.
        if (!document.queue.empty() && document.queue.back().open &&
            document.queue.back().segments.front().index >= first_index) {
          queued_segments_ -= static_cast<int64_t>(document.queue.back().segments.size());
          document.queue.pop_back();
        }
        queued_segments_ += static_cast<int64_t>((*group)->segments.size());
        document.queue.push_back(*std::move(*group));
      }
      DropIfDone(id);
    }
    CountQueue();
    room = was_full && !Full();
    changed_.SignalAll();
  }
  if (room) hooks_.room();
  if (status.ok()) return;
  metrics_.derive_failures.Increment();
  LogWarning("engine", "text of a document could not be read back",
             {{"document", Name(id)}, {"status", status.ToString()}});
  if (lost) hooks_.failed(id, status);
}

absl::Status Scheduler::DeriveLoop(BackgroundThread& thread) {
  for (;;) {
    std::vector<SegmentGroup> batch;
    {
      absl::MutexLock lock(&mutex_);
      for (;;) {
        if (stopping_) return absl::OkStatus();
        thread.Beat();
        const absl::Time now = clock_.Now();
        absl::Time due = absl::InfiniteFuture();
        if (derived_.size() < kDerivedBatchesMax) batch = TakeBatch(now, &due);
        if (!batch.empty()) break;
        changed_.WaitWithTimeout(&mutex_, WaitFor(now, due));
      }
      CountQueue();
      changed_.SignalAll();
    }
    DerivedBatch derived = DeriveBatch(std::move(batch), thread);
    hooks_.room();
    if (derived.groups.empty()) continue;
    absl::MutexLock lock(&mutex_);
    derived_.push_back(std::move(derived));
    changed_.SignalAll();
  }
}

absl::Status Scheduler::PutLoop(BackgroundThread& thread) {
  for (;;) {
    DerivedBatch batch;
    {
      absl::MutexLock lock(&mutex_);
      while (derived_.empty()) {
        if (stopping_) return absl::OkStatus();
        thread.Beat();
        changed_.WaitWithTimeout(&mutex_, BackgroundThread::kBeatEvery);
      }
      if (stopping_) return absl::OkStatus();
      batch = std::move(derived_.front());
      derived_.pop_front();
      changed_.SignalAll();
    }
    thread.Beat();
    PutBatch(batch, thread);
  }
}

std::vector<SegmentGroup> Scheduler::TakeBatch(absl::Time now, absl::Time* due) {
  std::vector<SegmentGroup> batch;
  int64_t segments = 0, tokens = 0;
  bool room = true;
  // In turn, one group of a document at a time, until the batch is full or nothing waits.
  for (bool found = true; found && room;) {
    found = false;
    auto it = documents_.upper_bound(last_derived_);
    for (size_t seen = 0; seen < documents_.size() && room; ++seen, ++it) {
      if (it == documents_.end()) it = documents_.begin();
      Document& document = *it->second;
      if (document.queue.empty()) continue;
      if (document.retry_at > now) {
        *due = std::min(*due, document.retry_at);
        continue;
      }
      const SegmentGroup& group = document.queue.front();
      const auto group_segments = static_cast<int64_t>(group.segments.size());
      room = batch.empty() || (segments + group_segments <= options_.batch_segments_max &&
                               tokens + group.token_count() <= options_.batch_tokens_max);
      if (!room) break;
      segments += group_segments;
      tokens += group.token_count();
      queued_segments_ -= group_segments;
      ++document.deriving;
      document.deriving_open |= group.open;
      batch.push_back(std::move(document.queue.front()));
      document.queue.pop_front();
      last_derived_ = it->first;
      found = true;
    }
  }
  return batch;
}

absl::Status Scheduler::Forward(const std::vector<SegmentGroup>& groups,
                                std::vector<SegmentDerived>* derived) {
  std::vector<absl::Span<const TokenId>> ids;
  for (const SegmentGroup& group : groups) {
    for (const Segment& segment : group.segments) ids.push_back(segment.ids);
  }
  // Pages that nobody keeps are not fetched from a device's memory.
  std::vector<PageRange> pages;
  if (options_.skip_pages_not_kept) {
    for (const SegmentGroup& group : groups) {
      const PageRange range = store_.KeepsPages(group.document) ? PageRange{} : PageRange{0, 0};
      pages.insert(pages.end(), group.segments.size(), range);
    }
  }
  std::vector<SegmentChunks> chunks;
  RETURN_IF_ERROR(model_.ForwardLower(ids, pages, &chunks));
  MNEME_CHECK(chunks.size() == ids.size());
  size_t next = 0;
  for (const SegmentGroup& group : groups) {
    for (const Segment& segment : group.segments) {
      derived->push_back(
          DerivedFrom(segment, model_.derivation_fingerprint(), std::move(chunks[next++])));
    }
  }
  return absl::OkStatus();
}

Scheduler::DerivedBatch Scheduler::DeriveBatch(std::vector<SegmentGroup> batch,
                                               BackgroundThread& thread) {
  DerivedBatch result{.groups = {}, .derived = {}, .start = clock_.Now()};
  std::vector<SegmentDerived>& derived = result.derived;
  size_t segments = 0;
  for (const SegmentGroup& group : batch) segments += group.segments.size();
  metrics_.segment_batch.Observe(static_cast<double>(segments));
  {
    StageTimer timer(metrics_.derive_seconds);
    if (Forward(batch, &derived).ok()) {
      result.groups = std::move(batch);
    } else {
      // One at a time, so that a segment that cannot be derived stops its own document only.
      derived.clear();
      std::map<DocumentId, std::vector<SegmentGroup>> failed;
      for (SegmentGroup& group : batch) {
        absl::Status status = absl::AbortedError("the segment before it failed");
        std::vector<SegmentGroup> one;
        one.push_back(std::move(group));
        if (!failed.contains(one[0].document)) {
          status = Forward(one, &derived);
          if (!status.ok()) {
            metrics_.derive_failures.Increment();
            LogError("engine", "segment could not be derived",
                     {{"document", Name(one[0].document)}, {"status", status.ToString()}});
          }
        }
        thread.Beat();
        std::vector<SegmentGroup>& to = status.ok() ? result.groups : failed[one[0].document];
        to.push_back(std::move(one[0]));
      }
      for (auto& [id, groups] : failed) Requeue(id, std::move(groups));
    }
  }
  // In turn becomes by document, each one's segments in order.
  std::stable_sort(
      derived.begin(), derived.end(),
      [](const SegmentDerived& a, const SegmentDerived& b) { return a.document < b.document; });
  thread.Beat();
  return result;
}

void Scheduler::PutBatch(const DerivedBatch& batch, BackgroundThread& thread) {
  std::map<DocumentId, DocumentInfo> before;
  for (const SegmentGroup& group : batch.groups) {
    absl::StatusOr<DocumentInfo> info = store_.GetDocument(group.document);
    if (info.ok()) before[group.document] = *std::move(info);
  }
  if (Put(batch.derived, thread).ok()) {
    FinishGroups(batch.groups, before, clock_.Now() - batch.start);
  }
}

absl::Status Scheduler::Put(absl::Span<const SegmentDerived> derived, BackgroundThread& thread) {
  StageTimer timer(metrics_.put_seconds);
  // Parts of about equal size that begin with a document each: segments of one document stay
  // together and in order.
  std::vector<absl::Span<const SegmentDerived>> parts;
  const size_t part_segments =
      (derived.size() + static_cast<size_t>(put_pool_.threads()) - 1) / put_pool_.threads();
  for (size_t begin = 0, end = 0; begin < derived.size(); begin = end) {
    end = std::min(begin + part_segments, derived.size());
    while (end < derived.size() && derived[end].document == derived[end - 1].document) ++end;
    parts.push_back(derived.subspan(begin, end - begin));
  }
  std::vector<absl::Status> results(parts.size());
  put_pool_.ParallelFor(static_cast<int64_t>(parts.size()),
                        [&](int64_t i) { results[i] = PutWithRetries(parts[i], thread); });
  for (const absl::Status& status : results) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::Status Scheduler::PutWithRetries(absl::Span<const SegmentDerived> derived,
                                       BackgroundThread& thread) {
  for (int failures = 1;; ++failures) {
    const absl::Status status = store_.PutSegments(derived);
    if (status.ok()) return status;
    metrics_.derive_failures.Increment();
    LogWarning("engine", "derived segments could not be stored; trying again",
               {{"segments", absl::StrCat(derived.size())}, {"status", status.ToString()}});
    const absl::Time retry_at = clock_.Now() + RetryWait(failures);
    absl::MutexLock lock(&mutex_);
    for (absl::Time now = clock_.Now(); now < retry_at; now = clock_.Now()) {
      if (stopping_) return status;
      thread.Beat();
      changed_.WaitWithTimeout(&mutex_, WaitFor(now, retry_at));
    }
  }
}

void Scheduler::FinishGroups(const std::vector<SegmentGroup>& groups,
                             const std::map<DocumentId, DocumentInfo>& before,
                             absl::Duration took) {
  struct Finished {
    int groups = 0;
    bool open = false;
  };
  std::map<DocumentId, Finished> finished;
  for (const SegmentGroup& group : groups) {
    ++finished[group.document].groups;
    finished[group.document].open |= group.open;
    const double whole = static_cast<double>(group.segments.size()) - (group.open ? 1 : 0);
    metrics_.derived_whole_segments.Increment(whole);
    if (group.open) metrics_.derived_open_segments.Increment();
    metrics_.derived_tokens.Increment(static_cast<double>(group.token_count()));
  }
  for (const auto& [id, done] : finished) {
    const absl::StatusOr<DocumentInfo> info = store_.GetDocument(id);
    {
      absl::MutexLock lock(&mutex_);
      const auto it = documents_.find(id);
      if (it == documents_.end()) continue;
      if (!info.ok()) {
        Erase(id);
        continue;
      }
      Document& document = *it->second;
      const absl::Time now = clock_.Now();
      document.deriving = std::max(0, document.deriving - done.groups);
      document.failures = 0;
      if (done.open) {
        document.deriving_open = false;
        document.open_rests_until = now + took;
      }
      while (!document.lag_marks.empty() &&
             document.lag_marks.front().first <= info->visible_bytes) {
        metrics_.visible_lag_seconds.Observe(
            absl::ToDoubleSeconds(now - document.lag_marks.front().second));
        document.lag_marks.pop_front();
      }
      DropIfDone(id);
      changed_.SignalAll();
    }
    if (const auto old = before.find(id); old != before.end()) {
      const auto growth = [](int64_t from, int64_t to) {
        return static_cast<double>(std::max<int64_t>(to - from, 0));
      };
      metrics_.ingest_tokens.Increment(growth(old->second.token_count, info->token_count));
      metrics_.ingest_chunks.Increment(growth(old->second.chunk_count, info->chunk_count));
    }
    hooks_.visible(*info);
  }
}

void Scheduler::Requeue(DocumentId id, std::vector<SegmentGroup> groups) {
  absl::MutexLock lock(&mutex_);
  const auto it = documents_.find(id);
  if (it == documents_.end()) return;
  Document& document = *it->second;
  document.deriving = std::max(0, document.deriving - static_cast<int>(groups.size()));
  for (const SegmentGroup& group : groups) {
    if (group.open) document.deriving_open = false;
  }
  document.retry_at = clock_.Now() + RetryWait(++document.failures);
  for (auto group = groups.rbegin(); group != groups.rend(); ++group) {
    queued_segments_ += static_cast<int64_t>(group->segments.size());
    document.queue.push_front(std::move(*group));
  }
  CountQueue();
  changed_.SignalAll();
}

}  // namespace mneme
