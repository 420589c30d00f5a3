#include "engine/read_batcher.h"

#include <algorithm>
#include <limits>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// Rows of one batch, at most (one step always fits).
constexpr int64_t kBatchRowsMax = 1024;
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

// The network's own selection of a row: its best `chunks_per_read` chunks, most recent first.
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
                         PageSource& pages, EngineMetrics& metrics, Clock& clock)
    : model_(model),
      backend_(backend),
      store_(store),
      pages_(pages),
      metrics_(metrics),
      thread_("read", metrics.registry, clock,
              [this](BackgroundThread& thread) { return Loop(thread); }) {}

ReadBatcher::~ReadBatcher() {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.SignalAll();
}

absl::Status ReadBatcher::Run(ReadStep& step) {
  MNEME_CHECK(!step.ids.empty() && step.ids.size() <= kStepTokensMax);
  MNEME_CHECK(!step.upper || step.select == ReadStep::Rows::kAll);
  Waiting waiting;
  waiting.step = &step;
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
  if (backend_.has_own_memory() && decoding_ <= kSpinningReadersMax) {
    SpinUntil([&] { return waiting.done.HasBeenNotified(); }, kReaderSpin);
  }
  while (!waiting.done.WaitForNotificationWithTimeout(BackgroundThread::kBeatEvery)) {
    // Should the thread have died, nobody will ever finish this step.
    const absl::Status health = thread_.Health(absl::InfiniteDuration());
    absl::MutexLock lock(&mutex_);
    if (waiting.done.HasBeenNotified() || health.ok()) continue;
    std::erase(queue_, &waiting);
    return absl::InternalError(health.message());
  }
  for (Waiting* other : waiting.tells) other->done.Notify();
  return waiting.status;
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

absl::Status ReadBatcher::Loop(BackgroundThread& thread) {
  for (;;) {
    const bool spin = backend_.has_own_memory() && decoding_ > 0;
    if (spin) {
      SpinUntil([&] { return queued_ > 0 && queued_ >= decoding_; }, kBatchSpin);
    }
    std::vector<Waiting*> batch;
    {
      absl::MutexLock lock(&mutex_);
      while (queue_.empty() && !stopping_) {
        changed_.WaitWithTimeout(&mutex_, BackgroundThread::kBeatEvery);
        thread.Beat();
      }
      const absl::Time gather_until = spin ? absl::InfinitePast() : absl::Now() + kDecodeGather;
      while (!stopping_ && static_cast<int>(queue_.size()) < decoding_ &&
             !changed_.WaitWithDeadline(&mutex_, gather_until)) {
      }
      if (stopping_) {
        for (Waiting* waiting : queue_) {
          waiting->status = absl::UnavailableError("the engine stops");
          waiting->done.Notify();
        }
        queue_.clear();
        return absl::OkStatus();
      }
      batch = TakeBatch();
    }
    thread.Beat();
    RunBatch(batch);
    TellAll(batch);
  }
}

std::vector<ReadBatcher::Waiting*> ReadBatcher::TakeBatch() {
  std::vector<Waiting*> batch;
  int64_t rows = 0;
  while (!queue_.empty()) {
    rows += static_cast<int64_t>(queue_.front()->step->ids.size());
    if (!batch.empty() && rows > kBatchRowsMax) break;
    batch.push_back(queue_.front());
    queue_.pop_front();
  }
  queued_ = static_cast<int>(queue_.size());
  metrics_.read_steps.Set(static_cast<double>(queue_.size()));
  return batch;
}

void ReadBatcher::RunBatch(absl::Span<Waiting* const> batch) {
  const auto passes = {&lower_only_, &best_tokens_, &last_logits_, &all_logits_};
  for (Pass* pass : passes) {
    pass->steps.clear();
    pass->row_count = 0;
  }
  // Steps of one pass want the same of the upper half.
  for (Waiting* waiting : batch) {
    const ReadStep& step = *waiting->step;
    Pass& pass = !step.upper                                 ? lower_only_
                 : step.logit_rows == LogitRows::kBestOfStep ? best_tokens_
                 : step.logit_rows == LogitRows::kLastOfStep ? last_logits_
                                                             : all_logits_;
    pass.steps.push_back(waiting);
  }
  if (!lower_only_.steps.empty()) {
    metrics_.question_batch.Observe(static_cast<double>(lower_only_.steps.size()));
  }
  if (const size_t decoding = best_tokens_.steps.size() + last_logits_.steps.size(); decoding > 0) {
    metrics_.decode_batch.Observe(static_cast<double>(decoding));
  }
  for (Pass* pass : passes) RunLower(*pass);
  Select(passes);
  for (Pass* pass : {&best_tokens_, &last_logits_, &all_logits_}) RunUpper(*pass);
  // The next step of a reader may run on another thread.
  const absl::Status status = backend_.Synchronize();
  for (Waiting* waiting : batch) {
    if (waiting->status.ok()) waiting->status = status;
  }
}

void ReadBatcher::RunLower(Pass& pass) {
  if (pass.steps.empty()) return;
  StageTimer timer(metrics_.read_lower_seconds);
  std::vector<ReaderStep> steps;
  for (Waiting* waiting : pass.steps) {
    waiting->first_row = pass.row_count;
    pass.row_count += static_cast<int64_t>(waiting->step->ids.size());
    steps.push_back({.state = waiting->step->state, .ids = waiting->step->ids});
  }
  const absl::Status status = model_.ReadLower(steps, &pass.rows);
  for (Waiting* waiting : pass.steps) {
    waiting->status = status;
    waiting->step->lower_seconds = timer.seconds();
  }
}

void ReadBatcher::Select(absl::Span<Pass* const> passes) {
  // By memories, those that have no view yet; they all get the same one.
  std::vector<std::pair<const Pass*, Waiting*>> steps;
  std::vector<ReadScope*> fresh;
  for (const Pass* pass : passes) {
    for (Waiting* waiting : pass->steps) {
      ReadStep& step = *waiting->step;
      const int64_t first = FirstSelected(step);
      // The rows of the step before stay for now: the next token mostly reads the same chunks.
      step.rows.resize(step.ids.size() - static_cast<size_t>(first));
      if (!waiting->status.ok() || step.rows.empty() || step.scope->memories.empty()) {
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
          waiting->status = view.status();
          continue;
        }
      }
      if (scope.view->chunk_count() > 0) {
        steps.emplace_back(pass, waiting);
      } else {
        for (std::vector<ChunkHit>& row : step.rows) row.clear();
      }
    }
  }
  while (!steps.empty()) {
    const LandmarkView view = *steps.front().second->step->scope->view;
    const auto others = std::stable_partition(steps.begin(), steps.end(), [&](const auto& step) {
      return SameSlabs(view, *step.second->step->scope->view);
    });
    Scan(view, {steps.data(), static_cast<size_t>(others - steps.begin())});
    steps.erase(steps.begin(), others);
  }
}

void ReadBatcher::Scan(const LandmarkView& view,
                       absl::Span<const std::pair<const Pass*, Waiting*>> steps) {
  StageTimer timer(metrics_.scan_seconds);
  const PageLayout layout = model_.page_layout();
  const int64_t dim = layout.landmark_dim;
  const int chunks_per_read = model_.config().chunks_per_read;
  std::vector<RowRange> query_ranges;
  int64_t query_count = 0;
  int64_t k = chunks_per_read;
  for (const auto& [pass, waiting] : steps) {
    const ReadStep& step = *waiting->step;
    const int64_t first = FirstSelected(step);
    const int64_t count = static_cast<int64_t>(step.ids.size()) - first;
    query_ranges.push_back(
        {pass->rows.queries.as<float>() + (waiting->first_row + first) * dim, count});
    query_count += count;
    k = std::max<int64_t>(k, step.k);
  }
  k = std::min(k, view.chunk_count());
  std::vector<int64_t> indices(static_cast<size_t>(query_count * k));
  std::vector<float> scores(indices.size());
  const absl::StatusOr<const float*> queries = Gather(query_ranges, dim, &queries_);
  const absl::Status status = !queries.ok()
                                  ? queries.status()
                                  : backend_.LandmarkTopK({.queries = *queries,
                                                           .n_queries = query_count,
                                                           .dim = layout.landmark_dim,
                                                           .dtype = layout.dtype,
                                                           .slabs = view.slabs(),
                                                           .slabs_resident = view.slabs_resident(),
                                                           .k = k,
                                                           .indices = indices.data(),
                                                           .scores = scores.data()});
  metrics_.landmarks_scanned.Increment(static_cast<double>(view.chunk_count()));
  std::vector<ChunkHit*> selection;
  std::vector<float> chosen_scores, weights;
  size_t query = 0;
  for (const auto& [pass, waiting] : steps) {
    ReadStep& step = *waiting->step;
    waiting->status = status;
    if (!status.ok()) continue;
    const auto hits = static_cast<size_t>(std::min<int64_t>(k, std::max(step.k, chunks_per_read)));
    for (std::vector<ChunkHit>& row : step.rows) {
      const size_t at = query++ * static_cast<size_t>(k);
      size_t found = 0;
      row.reserve(hits);
      for (; found < hits && indices[at + found] >= 0; ++found) {
        const int64_t index = indices[at + found];
        if (found == row.size()) row.emplace_back().index = -1;
        ChunkHit& hit = row[found];
        if (hit.index != index) hit.text = view.Locate(index);
        hit.index = index;
        hit.score = scores[at + found];
        hit.weight = 0;
      }
      row.resize(found);
      NetworkSelection(absl::MakeSpan(row), chunks_per_read, &selection);
      chosen_scores.clear();
      for (const ChunkHit* hit : selection) {
        chosen_scores.push_back(static_cast<float>(hit->score));
      }
      weights.resize(chosen_scores.size());
      StickBreakingWeights(chosen_scores, absl::MakeSpan(weights));
      for (size_t i = 0; i < selection.size(); ++i) selection[i]->weight = weights[i];
    }
    step.scan_seconds = timer.seconds();
  }
}

void ReadBatcher::RunUpper(const Pass& pass) {
  std::vector<Waiting*> steps;
  for (Waiting* waiting : pass.steps) {
    if (waiting->status.ok()) steps.push_back(waiting);
  }
  if (steps.empty()) return;
  const absl::Status status = Upper(pass, steps);
  for (Waiting* waiting : steps) {
    // Pages of all steps may be more than fit at one time where those of one do.
    const bool alone = absl::IsResourceExhausted(status) && steps.size() > 1;
    waiting->status = alone ? Upper(pass, absl::MakeConstSpan(&waiting, 1)) : status;
  }
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

absl::Status ReadBatcher::Upper(const Pass& pass, absl::Span<Waiting* const> steps) {
  // Every chunk once, whoever reads it.
  absl::flat_hash_map<ChunkAddress, size_t> place;
  std::vector<ChunkAddress> chunks;
  std::vector<float> mass;  // of each chunk, over all rows that read it
  std::vector<ChunkHit*> selection;
  const int chunks_per_read = model_.config().chunks_per_read;
  for (const Waiting* waiting : steps) {
    for (std::vector<ChunkHit>& row : waiting->step->rows) {
      NetworkSelection(absl::MakeSpan(row), chunks_per_read, &selection);
      for (const ChunkHit* hit : selection) {
        const auto [at, is_new] = place.try_emplace(hit->text.address, chunks.size());
        if (is_new) {
          chunks.push_back(hit->text.address);
          mass.push_back(0);
        }
        mass[at->second] += static_cast<float>(hit->weight);
      }
    }
  }
  ReaderPages pages;
  if (!chunks.empty()) {
    StageTimer timer(metrics_.pin_seconds);
    ASSIGN_OR_RETURN(pages, pages_.Pin(chunks, mass));
  }
  StageTimer timer(metrics_.read_upper_seconds);
  struct RowRead {
    std::vector<const uint8_t*> pages;
    std::vector<float> weights;
  };
  std::vector<RowRead> reads;
  std::vector<ReaderStep> reader_steps;
  std::vector<RowRange> hidden;  // the rows of `steps`, when these are not all of the pass
  const bool all = steps.size() == pass.steps.size();
  const int64_t width = model_.config().d_model;
  for (const Waiting* waiting : steps) {
    const ReadStep& step = *waiting->step;
    reader_steps.push_back({.state = step.state, .ids = step.ids});
    for (std::vector<ChunkHit>& row : waiting->step->rows) {
      RowRead& read = reads.emplace_back();
      NetworkSelection(absl::MakeSpan(row), chunks_per_read, &selection);
      for (const ChunkHit* hit : selection) {
        const uint8_t* page = pages.pages[place.at(hit->text.address)];
        if (page == nullptr) continue;
        read.pages.push_back(page);
        read.weights.push_back(static_cast<float>(hit->weight));
      }
    }
    if (all) continue;
    hidden.push_back({pass.rows.hidden.as<float>() + waiting->first_row * width,
                      static_cast<int64_t>(step.ids.size())});
  }
  if (!all) {
    regrouped_.row_count = static_cast<int64_t>(reads.size());
    ASSIGN_OR_RETURN(const float* const first, Gather(hidden, width, &regrouped_.hidden));
    if (first != regrouped_.hidden.as<float>()) {
      // They lie together where they are.
      if (regrouped_.hidden.bytes() < regrouped_.row_count * width * 4) {
        ASSIGN_OR_RETURN(regrouped_.hidden, backend_.Allocate(regrouped_.row_count * width * 4));
      }
      RETURN_IF_ERROR(
          backend_.Copy(regrouped_.hidden.data(), first, regrouped_.row_count * width * 4));
    }
  }
  std::vector<RowSelection> selections;
  selections.reserve(reads.size());
  for (const RowRead& read : reads) {
    selections.push_back(
        {.pages = read.pages, .weights = read.weights, .pages_resident = pages.pinned.resident()});
  }
  const LogitRows which = steps.front()->step->logit_rows;
  UpperRows upper;
  RETURN_IF_ERROR(
      model_.ReadUpper(reader_steps, all ? pass.rows : regrouped_, selections, which, &upper));
  auto from = upper.logits.begin();
  for (size_t i = 0; i < steps.size(); ++i) {
    ReadStep& step = *steps[i]->step;
    step.upper_seconds = timer.seconds();
    step.logits.clear();
    if (which == LogitRows::kBestOfStep) {
      step.best = upper.best[i];
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
