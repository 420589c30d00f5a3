#include "engine/read_batcher.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/chunk_weights.h"

namespace mneme {
namespace {

// How long a batch waits for decode loops that are between two steps.
constexpr absl::Duration kDecodeGather = absl::Microseconds(200);
// With a device, whose steps are shorter than what it takes to put a thread to sleep and wake it:
// how long the batch thread looks for the next step of a decode loop before it sleeps, and a reader
// for its result, as long as there are few readers.
constexpr absl::Duration kBatchSpin = absl::Microseconds(300);
constexpr absl::Duration kReaderSpin = absl::Milliseconds(2);
constexpr int kSpinningReadersMax = 4;
// Waiting ones that one of them tells, with itself.
constexpr size_t kToldTogether = 16;
// Readers of streams that the batch thread wakes in one step. Of more, each finds the tokens of
// several steps.
constexpr size_t kToldInStep = 64;

// True as soon as `done` is, false after `longest`.
bool SpinUntil(absl::FunctionRef<bool()> done, absl::Duration longest) {
  const absl::Time end = absl::Now() + longest;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
    }
  } while (absl::Now() < end);
  return false;
}

bool SameSlabs(const LandmarkView& a, const LandmarkView& b) {
  const auto same = [](const LandmarkSlab& x, const LandmarkSlab& y) {
    return x.rows == y.rows && x.row_count == y.row_count;
  };
  return std::equal(a.slabs().begin(), a.slabs().end(), b.slabs().begin(), b.slabs().end(), same);
}

// First row of a step that chooses chunks, counted from the step's first row.
int64_t FirstSelected(const ReadStep& step) {
  const auto rows = static_cast<int64_t>(step.ids.size());
  switch (step.select) {
    case ReadStep::Rows::kNone:
      return rows;
    case ReadStep::Rows::kLast:
      return rows - 1;
    case ReadStep::Rows::kAll:
      break;
  }
  return 0;
}

// All of them have been looked at.
bool HasScores(absl::Span<const ChunkHit> hits) {
  return std::all_of(hits.begin(), hits.end(),
                     [](const ChunkHit& hit) { return hit.rerank_score.has_value(); });
}

// The network's own selection of a row: the first `chunks_per_read` of it, most recent first.
void NetworkSelection(absl::Span<ChunkHit> best_first, int chunks_per_read,
                      std::vector<ChunkHit*>* selection) {
  selection->clear();
  for (ChunkHit& hit : best_first.subspan(0, static_cast<size_t>(chunks_per_read))) {
    selection->push_back(&hit);
  }
  std::sort(selection->begin(), selection->end(),
            [](const ChunkHit* a, const ChunkHit* b) { return a->index > b->index; });
}

}  // namespace

ReadBatcher::ReadBatcher(const Model& model, Backend& backend, MemoryStore& store,
                         PageSource& pages, EngineMetrics& metrics, Supervisor& supervisor)
    : model_(model),
      backend_(backend),
      store_(store),
      metrics_(metrics),
      pages_(pages),
      thread_("read", supervisor, [this](BackgroundThread& thread) { return Loop(thread); }) {}

ReadBatcher::~ReadBatcher() {
  thread_.MayEnd();
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.SignalAll();
}

absl::Status ReadBatcher::Run(ReadStep& step) {
  MNEME_CHECK(!step.ids.empty() && step.ids.size() <= kStepTokensMax);
  MNEME_CHECK(!step.upper || step.select == ReadStep::Rows::kAll);
  MNEME_CHECK(!step.rerank || (!step.upper && step.select != ReadStep::Rows::kNone));
  MNEME_CHECK(step.told == nullptr || step.upper);
  Waiting waiting;
  waiting.batched.step = &step;
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return absl::UnavailableError("the engine stops");
    queue_.push_back(&waiting);
    const auto queued = static_cast<int>(queue_.size());
    queued_ = queued;
    metrics_.read_steps.Set(queued);
    // Of many readers the first one wakes the batch thread, and the one for whom it waits.
    if (queued == 1 || queued >= decoding_) changed_.SignalAll();
  }
  return Await(waiting);
}

absl::Status ReadBatcher::Await(Waiting& waiting) {
  const absl::Cleanup awaited = [this] { --awaiting_; };
  if (++awaiting_ <= kSpinningReadersMax && decoding_ <= kSpinningReadersMax &&
      backend_.has_own_memory()) {
    SpinUntil([&] { return waiting.done.HasBeenNotified(); }, kReaderSpin);
  }
  while (!waiting.done.WaitForNotificationWithTimeout(BackgroundThread::kBeatEvery)) {
    // Should the thread have died, nobody will ever finish this step.
    const absl::Status health = thread_.failure();
    absl::MutexLock lock(&mutex_);
    if (waiting.done.HasBeenNotified() || health.ok()) continue;
    std::erase(queue_, &waiting);
    return absl::InternalError(health.message());
  }
  for (Waiting* other : waiting.tells) other->done.Notify();
  return waiting.batched.status;
}

void ReadBatcher::TellAll(absl::Span<Waiting* const> batch) {
  std::vector<Waiting*> first;  // of each group; what is told may be gone
  for (size_t i = 0; i < batch.size(); i += kToldTogether) {
    const absl::Span<Waiting* const> others = batch.subspan(i + 1, kToldTogether - 1);
    batch[i]->tells.assign(others.begin(), others.end());
    first.push_back(batch[i]);
  }
  for (Waiting* waiting : first) waiting->done.Notify();
}

void ReadBatcher::BeginDecode() {
  absl::MutexLock lock(&mutex_);
  ++decoding_;
}

void ReadBatcher::EndDecode() {
  absl::MutexLock lock(&mutex_);
  --decoding_;
  changed_.SignalAll();
}

absl::Status ReadBatcher::BeginStream(const std::shared_ptr<TokenStream>& stream) {
  absl::MutexLock lock(&mutex_);
  if (stopping_) return absl::UnavailableError("the engine stops");
  streams_.push_back(stream);
  changed_.SignalAll();
  return absl::OkStatus();
}

absl::StatusOr<TokenId> ReadBatcher::NextToken(TokenStream& stream) {
  while (!stream.Wait(BackgroundThread::kBeatEvery)) {
    // Should the thread have died, nobody will ever put a token.
    const absl::Status health = thread_.failure();
    if (!health.ok()) return absl::InternalError(health.message());
  }
  if (!stream.ready()) return stream.end_status();
  const TokenId token = stream.Take();
  if (stream.TakeStalled()) {
    absl::MutexLock lock(&mutex_);
    changed_.SignalAll();
  }
  return token;
}

void ReadBatcher::EndStream(const TokenStream& stream) {
  absl::MutexLock lock(&mutex_);
  std::erase_if(streams_, [&](const auto& other) { return other.get() == &stream; });
}

absl::Status ReadBatcher::Loop(BackgroundThread& thread) {
  while (AwaitBatch(thread)) {
    thread.Beat();
    RunBatch(batch_.steps);
    TellAll(batch_.waiting);
    FinishStreams();
    // With a device there is time while it works.
    if (!backend_.has_own_memory()) TellReaders(kToldInStep);
  }
  return absl::OkStatus();
}

bool ReadBatcher::HasWork() {
  return !queue_.empty() || std::any_of(streams_.begin(), streams_.end(),
                                        [](const auto& stream) { return stream->HasRoom(); });
}

bool ReadBatcher::AwaitBatch(BackgroundThread& thread) {
  const bool spin = backend_.has_own_memory() && decoding_ > 0;
  if (spin) {
    SpinUntil([&] { return queued_ > 0 && queued_ >= decoding_; }, kBatchSpin);
  }
  absl::MutexLock lock(&mutex_);
  while (!stopping_ && !HasWork()) {
    TellReaders(to_tell_.size());
    pages_.Drop();
    changed_.WaitWithTimeout(&mutex_, BackgroundThread::kBeatEvery);
    thread.Beat();
  }
  const absl::Time gather_until = spin ? absl::InfinitePast() : absl::Now() + kDecodeGather;
  while (!stopping_ && static_cast<int>(queue_.size()) < decoding_ &&
         !changed_.WaitWithDeadline(&mutex_, gather_until)) {
  }
  if (stopping_) {
    StopAll();
  } else {
    TakeBatch();
  }
  return !stopping_;
}

void ReadBatcher::TakeBatch() {
  batch_.waiting.clear();
  batch_.streams.clear();
  batch_.steps.clear();
  int64_t rows = 0;
  for (const std::shared_ptr<TokenStream>& stream : streams_) {
    if (!stream->HasRoom()) continue;
    ++rows;
    batch_.streams.push_back(stream);
    batch_.steps.push_back(&stream->next_step());
  }
  while (!queue_.empty()) {
    rows += static_cast<int64_t>(queue_.front()->batched.step->ids.size());
    if (!batch_.waiting.empty() && rows > kBatchRowsMax) break;
    batch_.waiting.push_back(queue_.front());
    batch_.steps.push_back(&queue_.front()->batched);
    queue_.pop_front();
  }
  queued_ = static_cast<int>(queue_.size());
  metrics_.read_steps.Set(static_cast<double>(queue_.size()));
}

void ReadBatcher::StopAll() {
  const absl::Status status = absl::UnavailableError("the engine stops");
  for (Waiting* waiting : queue_) {
    waiting->batched.status = status;
    waiting->done.Notify();
  }
  for (const std::shared_ptr<TokenStream>& stream : streams_) {
    stream->End(status);
    stream->Tell();
  }
  queue_.clear();
  streams_.clear();
}

void ReadBatcher::FinishStreams() {
  if (batch_.streams.empty()) return;
  absl::flat_hash_set<const TokenStream*> ended;
  for (std::shared_ptr<TokenStream>& stream : batch_.streams) {
    if (!stream->PutStep()) ended.insert(stream.get());
    if (std::exchange(stream->to_tell, true)) continue;
    to_tell_.push_back(std::move(stream));
  }
  if (!ended.empty()) {
    absl::MutexLock lock(&mutex_);
    std::erase_if(streams_, [&](const auto& stream) { return ended.contains(stream.get()); });
  }
  batch_.streams.clear();  // who left meanwhile is gone for good
}

void ReadBatcher::TellReaders(size_t count) {
  for (count = std::min(count, to_tell_.size()); count > 0; --count) {
    to_tell_.front()->to_tell = false;
    to_tell_.front()->Tell();
    to_tell_.pop_front();
  }
}

void ReadBatcher::RunBatch(absl::Span<BatchedStep* const> batch) {
  pages_.DropChanged();
  const auto passes = {&lower_only_, &best_tokens_, &last_logits_, &all_logits_};
  for (Pass* pass : passes) {
    pass->steps.clear();
    pass->row_count = 0;
  }
  // Steps of one pass want the same of the upper half.
  for (BatchedStep* batched : batch) {
    const ReadStep& step = *batched->step;
    Pass& pass = !step.upper                                 ? lower_only_
                 : step.logit_rows == LogitRows::kBestOfStep ? best_tokens_
                 : step.logit_rows == LogitRows::kLastOfStep ? last_logits_
                                                             : all_logits_;
    pass.steps.push_back(batched);
  }
  if (!lower_only_.steps.empty()) {
    metrics_.question_batch.Observe(static_cast<double>(lower_only_.steps.size()));
  }
  if (const size_t decoding = best_tokens_.steps.size() + last_logits_.steps.size(); decoding > 0) {
    metrics_.decode_batch.Observe(static_cast<double>(decoding));
  }
  for (Pass* pass : passes) RunLower(*pass);
  if (backend_.has_own_memory()) TellReaders(kToldInStep);
  Select(passes);
  RunLooks(lower_only_);
  for (Pass* pass : {&best_tokens_, &last_logits_, &all_logits_}) RunUpper(*pass);
  // The next step of a reader may run on another thread.
  const absl::Status status = backend_.Synchronize();
  for (BatchedStep* batched : batch) {
    if (batched->status.ok()) batched->status = status;
  }
}

void ReadBatcher::RunLower(Pass& pass) {
  if (pass.steps.empty()) return;
  StageTimer timer(metrics_.read_lower_seconds);
  reader_steps_.clear();
  for (BatchedStep* batched : pass.steps) {
    batched->first_row = pass.row_count;
    pass.row_count += static_cast<int64_t>(batched->step->ids.size());
    reader_steps_.push_back({.state = batched->step->state, .ids = batched->step->ids});
  }
  const absl::Status status = model_.ReadLower(reader_steps_, &pass.rows);
  for (BatchedStep* batched : pass.steps) {
    batched->status = status;
    batched->step->lower_seconds = timer.seconds();
  }
}

void ReadBatcher::Select(absl::Span<Pass* const> passes) {
  // By memories, those that have no view yet; they all get the same one.
  std::vector<std::pair<const Pass*, BatchedStep*>>& steps = scanned_;
  steps.clear();
  std::vector<ReadScope*> fresh;
  for (const Pass* pass : passes) {
    for (BatchedStep* batched : pass->steps) {
      ReadStep& step = *batched->step;
      if (step.told != nullptr) step.told->BeginStep(step.ids);
      const int64_t first = FirstSelected(step);
      // The rows of the step before stay for now: the next token mostly reads the same chunks.
      step.rows.resize(step.ids.size() - static_cast<size_t>(first));
      if (!batched->status.ok() || step.rows.empty() || step.scope->memories.empty()) {
        for (std::vector<ChunkHit>& row : step.rows) row.clear();
        continue;
      }
      ReadScope& scope = *step.scope;
      if (!scope.view.has_value()) {
        const auto same = std::find_if(fresh.begin(), fresh.end(), [&](const ReadScope* other) {
          return other->memories == scope.memories;
        });
        if (same != fresh.end()) {
          scope.view = (*same)->view;
        } else if (absl::StatusOr<LandmarkView> view = store_.View(scope.memories); view.ok()) {
          scope.view = *std::move(view);
          fresh.push_back(&scope);
        } else {
          batched->status = view.status();
          continue;
        }
      }
      if (scope.view->chunk_count() > 0) {
        steps.emplace_back(pass, batched);
      } else {
        for (std::vector<ChunkHit>& row : step.rows) row.clear();
      }
    }
  }
  while (!steps.empty()) {
    const LandmarkView view = *steps.front().second->step->scope->view;
    const auto others = std::stable_partition(steps.begin(), steps.end(), [&](const auto& step) {
      LandmarkView& other = *step.second->step->scope->view;
      if (other.slabs().data() == view.slabs().data()) return true;
      if (!SameSlabs(view, other)) return false;
      other = view;  // from now on at a glance
      return true;
    });
    Scan(view, {steps.data(), static_cast<size_t>(others - steps.begin())});
    steps.erase(steps.begin(), others);
  }
}

void ReadBatcher::Scan(const LandmarkView& view,
                       absl::Span<const std::pair<const Pass*, BatchedStep*>> steps) {
  StageTimer timer(metrics_.scan_seconds);
  const PageLayout layout = model_.page_layout();
  const int64_t dim = layout.landmark_dim;
  const int chunks_per_read = model_.config().chunks_per_read;
  ranges_.clear();
  int64_t query_count = 0;
  int64_t k = chunks_per_read;
  for (const auto& [pass, batched] : steps) {
    const ReadStep& step = *batched->step;
    const int64_t first = FirstSelected(step);
    const int64_t count = static_cast<int64_t>(step.ids.size()) - first;
    ranges_.push_back({pass->rows.queries.as<float>() + (batched->first_row + first) * dim, count});
    query_count += count;
    k = std::max<int64_t>(k, step.k);
  }
  k = std::min(k, view.chunk_count());
  indices_.resize(static_cast<size_t>(query_count * k));
  scores_.resize(indices_.size());
  const absl::StatusOr<const float*> queries = Gather(ranges_, dim, &queries_);
  const absl::Status status = !queries.ok()
                                  ? queries.status()
                                  : backend_.LandmarkTopK({.queries = *queries,
                                                           .n_queries = query_count,
                                                           .dim = layout.landmark_dim,
                                                           .dtype = layout.dtype,
                                                           .slabs = view.slabs(),
                                                           .slabs_resident = view.slabs_resident(),
                                                           .k = k,
                                                           .indices = indices_.data(),
                                                           .scores = scores_.data()});
  metrics_.landmarks_scanned.Increment(static_cast<double>(view.chunk_count()));
  size_t at = 0;
  for (const auto& [pass, batched] : steps) {
    ReadStep& step = *batched->step;
    batched->status = status;
    if (!status.ok()) continue;
    for (std::vector<ChunkHit>& row : step.rows) {
      const int wanted = std::max(&row == &step.rows.back() ? step.k : 0, chunks_per_read);
      const auto hits = static_cast<size_t>(std::min<int64_t>(k, wanted));
      ChooseChunks(view, absl::MakeConstSpan(indices_).subspan(at, hits),
                   absl::MakeConstSpan(scores_).subspan(at, hits), step.told, &row);
      at += static_cast<size_t>(k);
    }
    step.scan_seconds = timer.seconds();
  }
}

void ReadBatcher::ChooseChunks(const LandmarkView& view, absl::Span<const int64_t> indices,
                               absl::Span<const float> scores, const ToldChunks* told,
                               std::vector<ChunkHit>* row) {
  std::swap(*row, row_before_);
  row->clear();
  row->reserve(indices.size());
  for (size_t i = 0; i < indices.size() && indices[i] >= 0; ++i) {
    const int64_t index = indices[i];
    const auto before = std::find_if(row_before_.begin(), row_before_.end(),
                                     [index](const ChunkHit& hit) { return hit.index == index; });
    row->push_back({.index = index,
                    .text = before != row_before_.end() ? before->text : view.Locate(index),
                    .score = scores[i],
                    .told = told != nullptr && told->Contains(index)});
  }
  Weigh(absl::MakeSpan(*row), /*reranked=*/false);
}

float ReadBatcher::LandmarkScore(const ChunkHit& hit) const {
  return static_cast<float>(hit.told ? hit.score - model_.config().told_penalty : hit.score);
}

void ReadBatcher::Weigh(absl::Span<ChunkHit> best_first, bool reranked) {
  NetworkSelection(best_first, model_.config().chunks_per_read, &selection_);
  if (reranked) {
    for (ChunkHit* hit : selection_) hit->weight = 0;
    std::erase_if(selection_, [](const ChunkHit* hit) { return !hit->rerank_score.has_value(); });
  }
  chosen_scores_.clear();
  for (const ChunkHit* hit : selection_) {
    chosen_scores_.push_back(reranked ? static_cast<float>(*hit->rerank_score)
                                      : LandmarkScore(*hit));
  }
  weights_.resize(chosen_scores_.size());
  ChunkWeights(chosen_scores_, model_.config().newest_margin, absl::MakeSpan(weights_));
  for (size_t i = 0; i < selection_.size(); ++i) selection_[i]->weight = weights_[i];
}

void ReadBatcher::RunLooks(const Pass& pass) {
  const auto together = static_cast<size_t>(model_.config().chunks_per_read);
  looks_.clear();
  for (BatchedStep* batched : pass.steps) {
    if (!batched->step->rerank || !batched->status.ok()) continue;
    const absl::Span<ChunkHit> row = absl::MakeSpan(batched->step->rows.back());
    for (size_t begin = 0; begin < row.size(); begin += together) {
      looks_.push_back({.batched = batched, .hits = row.subspan(begin, together)});
    }
  }
  if (looks_.empty()) return;
  const absl::Time start = absl::Now();
  const absl::Status status = Look(pass, looks_);
  // Pages of all looks may be more than fit at one time where those of one do: they cannot be
  // pinned, or of those that were derived again the first left before the last were there.
  const bool exhausted = absl::IsResourceExhausted(status);
  for (const RowLook& look : looks_) {
    const bool again = exhausted || (status.ok() && !HasScores(look.hits));
    const bool alone = again && looks_.size() > 1;
    look.batched->status.Update(alone ? Look(pass, absl::MakeConstSpan(&look, 1)) : status);
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  for (const BatchedStep* batched : pass.steps) {
    ReadStep& step = *batched->step;
    if (!step.rerank || !batched->status.ok()) continue;
    step.look_seconds = seconds;
    Weigh(absl::MakeSpan(step.rows.back()), /*reranked=*/true);
  }
}

absl::Status ReadBatcher::Look(const Pass& pass, absl::Span<const RowLook> looks) {
  const int64_t width = model_.config().d_model;
  ClearReads();
  ranges_.clear();
  for (const RowLook& look : looks) {
    AddRead(look.hits);
    const auto rows = static_cast<int64_t>(look.batched->step->ids.size());
    const int64_t last = look.batched->first_row + rows - 1;
    ranges_.push_back({pass.rows.hidden.as<float>() + last * width, 1});
  }
  RETURN_IF_ERROR(FindReads());
  StageTimer timer(metrics_.look_seconds);
  ASSIGN_OR_RETURN(const float* const hidden, Gather(ranges_, width, &looked_rows_));
  RETURN_IF_ERROR(model_.CorrectScores(hidden, selections_, &corrected_));
  const auto kept = static_cast<size_t>(model_.config().chunks_per_read);
  auto hit = chunk_hits_.begin();
  for (size_t r = 0; r < selections_.size(); ++r) {
    for (size_t i = 0; i < selections_[r].pages.size(); ++i) {
      (*hit++)->rerank_score = corrected_[r * kept + i];
    }
  }
  return absl::OkStatus();
}

void ReadBatcher::RunUpper(const Pass& pass) {
  std::vector<BatchedStep*> steps;
  for (BatchedStep* batched : pass.steps) {
    if (batched->status.ok()) steps.push_back(batched);
  }
  if (steps.empty()) return;
  const absl::Status found = FindReadsOf(steps);
  // Pages of all steps may be more than fit at one time where those of one do.
  if (absl::IsResourceExhausted(found) && steps.size() > 1) {
    for (BatchedStep* batched : steps) {
      const absl::Span<BatchedStep* const> alone = absl::MakeConstSpan(&batched, 1);
      batched->status = FindReadsOf(alone);
      if (batched->status.ok()) batched->status = Upper(pass, alone);
    }
    return;
  }
  // A step of which the upper half may have run is not run again: its reader has moved on.
  const absl::Status status = found.ok() ? Upper(pass, steps) : found;
  for (BatchedStep* batched : steps) batched->status = status;
}

absl::StatusOr<const float*> ReadBatcher::Gather(absl::Span<const RowRange> ranges, int64_t width,
                                                 Buffer* room) {
  int64_t rows = 0;
  bool together = true;
  for (const RowRange& range : ranges) {
    together &= range.first == ranges[0].first + rows * width;
    rows += range.count;
  }
  if (together) return ranges[0].first;
  if (room->bytes() < rows * width * 4) {
    ASSIGN_OR_RETURN(*room, backend_.Allocate(rows * width * 4));
  }
  float* next = room->as<float>();
  for (const RowRange& range : ranges) {
    RETURN_IF_ERROR(backend_.Copy(next, range.first, range.count * width * 4));
    next += range.count * width;
  }
  return room->as<float>();
}

void ReadBatcher::ClearReads() {
  chunks_.clear();
  chunk_hits_.clear();
  chunk_weights_.clear();
  chunk_scores_.clear();
  row_chunks_.clear();
}

void ReadBatcher::AddRead(absl::Span<ChunkHit> best_first) {
  NetworkSelection(best_first, model_.config().chunks_per_read, &selection_);
  for (ChunkHit* hit : selection_) {
    chunks_.push_back(hit->text.address);
    chunk_hits_.push_back(hit);
    chunk_weights_.push_back(static_cast<float>(hit->weight));
    chunk_scores_.push_back(LandmarkScore(*hit));
  }
  row_chunks_.push_back(selection_.size());
}

absl::Status ReadBatcher::FindReads() {
  chunk_pages_.clear();
  if (!chunks_.empty()) {
    StageTimer timer(metrics_.pin_seconds);
    // Where the network looks again, a page's mass is still by landmark scores: the tiers want it
    // when the page is looked for, the corrected weight is known when it has been read.
    RETURN_IF_ERROR(pages_.Find(chunks_, chunk_weights_, &chunk_pages_));
  }
  selections_.clear();
  size_t from = 0, to = 0;  // rows close up where chunks have no page
  for (const size_t chunks : row_chunks_) {
    const size_t begin = to, end = from + chunks;
    for (; from < end; ++from) {
      if (chunk_pages_[from] == nullptr) continue;
      chunk_pages_[to] = chunk_pages_[from];
      chunk_hits_[to] = chunk_hits_[from];
      chunk_scores_[to] = chunk_scores_[from];
      chunk_weights_[to++] = chunk_weights_[from];
    }
    selections_.push_back(
        {.pages = absl::MakeConstSpan(chunk_pages_).subspan(begin, to - begin),
         .weights = absl::MakeConstSpan(chunk_weights_).subspan(begin, to - begin),
         .scores = absl::MakeConstSpan(chunk_scores_).subspan(begin, to - begin),
         .pages_resident = pages_.resident()});
  }
  return absl::OkStatus();
}

void ReadBatcher::KeepLookedWeights() {
  if (upper_.weights.empty()) return;
  const auto kept = static_cast<size_t>(model_.config().chunks_per_read);
  auto hit = chunk_hits_.begin();
  for (size_t r = 0; r < selections_.size(); ++r) {
    for (size_t i = 0; i < selections_[r].pages.size(); ++i) {
      (*hit++)->weight = upper_.weights[r * kept + i];
    }
  }
}

void ReadBatcher::CountReads(absl::Span<BatchedStep* const> steps) const {
  if (model_.config().told_penalty == 0) return;
  auto selection = selections_.begin();
  auto hit = chunk_hits_.begin();
  for (const BatchedStep* batched : steps) {
    const ReadStep& step = *batched->step;
    for (size_t row = 0; row < step.rows.size(); ++row, ++selection) {
      for (size_t i = 0; i < selection->pages.size(); ++i, ++hit) {
        if (step.told != nullptr) step.told->Count(row, (*hit)->index, (*hit)->weight);
      }
    }
  }
}

absl::Status ReadBatcher::FindReadsOf(absl::Span<BatchedStep* const> steps) {
  ClearReads();
  for (const BatchedStep* batched : steps) {
    for (std::vector<ChunkHit>& row : batched->step->rows) AddRead(absl::MakeSpan(row));
  }
  return FindReads();
}

absl::Status ReadBatcher::Upper(const Pass& pass, absl::Span<BatchedStep* const> steps) {
  StageTimer timer(metrics_.read_upper_seconds);
  const bool all = steps.size() == pass.steps.size();
  const int64_t width = model_.config().d_model;
  reader_steps_.clear();
  ranges_.clear();  // the rows of `steps`, when these are not all of the pass
  for (const BatchedStep* batched : steps) {
    const ReadStep& step = *batched->step;
    reader_steps_.push_back({.state = step.state, .ids = step.ids});
    if (all) continue;
    ranges_.push_back({pass.rows.hidden.as<float>() + batched->first_row * width,
                       static_cast<int64_t>(step.ids.size())});
  }
  if (!all) {
    regrouped_.row_count = static_cast<int64_t>(selections_.size());
    ASSIGN_OR_RETURN(const float* const first, Gather(ranges_, width, &regrouped_.hidden));
    if (first != regrouped_.hidden.as<float>()) {
      // They lie together where they are.
      if (regrouped_.hidden.bytes() < regrouped_.row_count * width * 4) {
        ASSIGN_OR_RETURN(regrouped_.hidden, backend_.Allocate(regrouped_.row_count * width * 4));
      }
      RETURN_IF_ERROR(
          backend_.Copy(regrouped_.hidden.data(), first, regrouped_.row_count * width * 4));
    }
  }
  const LogitRows which = steps.front()->step->logit_rows;
  RETURN_IF_ERROR(
      model_.ReadUpper(reader_steps_, all ? pass.rows : regrouped_, selections_, which, &upper_));
  KeepLookedWeights();
  CountReads(steps);
  auto from = upper_.logits.begin();
  for (size_t i = 0; i < steps.size(); ++i) {
    ReadStep& step = *steps[i]->step;
    step.upper_seconds = timer.seconds();
    step.logits.clear();
    if (which == LogitRows::kBestOfStep) {
      step.best = upper_.best[i];
      continue;
    }
    const size_t rows = which == LogitRows::kAll ? step.ids.size() : 1;
    const auto count = static_cast<ptrdiff_t>(rows) * model_.config().vocab_size;
    step.logits.assign(from, from + count);
    from += count;
  }
  return absl::OkStatus();
}

}  // namespace mneme
