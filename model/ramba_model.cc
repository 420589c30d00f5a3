#include "model/ramba_model.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// Part of the derivation fingerprint: change it when the same bundle would derive other chunks.
constexpr uint64_t kDerivationVersion = 1;

// Of the key of a repeated decode step: which half, and memory that is not the workspace's.
constexpr int64_t kLowerHalf = 0, kUpperHalf = 1;
int64_t KeyOf(const float* memory) {
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(memory));
}

// Keeps the first error of passes that run side by side. Thread-safe.
class FirstError {
 public:
  void Add(absl::Status status) {
    if (status.ok()) return;
    absl::MutexLock lock(&mutex_);
    if (status_.ok()) status_ = std::move(status);
  }
  absl::Status Take() {
    absl::MutexLock lock(&mutex_);
    return std::move(status_);
  }

 private:
  absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

uint64_t Mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// Chunks [begin, end) of a segment.
struct ChunkRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return std::max<int64_t>(0, end - begin); }
};

// Those of segment `i`, which has `chunks`, whose pages are wanted (see ForwardLower).
ChunkRange RangeOf(absl::Span<const PageRange> pages, size_t i, int64_t chunks) {
  if (pages.empty()) return {0, chunks};
  const int64_t begin = std::clamp<int64_t>(pages[i].begin, 0, chunks);
  return {begin, std::clamp<int64_t>(pages[i].end, begin, chunks)};
}

}  // namespace

// Layers one after the other, lower first; of each: conv state, then SSM state.
class RambaModel::State : public ReaderState {
 public:
  State(Backend& backend, Buffer memory) : backend_(backend), memory_(std::move(memory)) {}

  std::unique_ptr<ReaderState> Clone() const override {
    absl::StatusOr<Buffer> copy = backend_.Allocate(memory_.bytes());
    if (!copy.ok() || !backend_.Copy(copy->data(), memory_.data(), memory_.bytes()).ok()) {
      return nullptr;
    }
    auto clone = std::make_unique<State>(backend_, *std::move(copy));
    clone->begun_ = begun_;
    return clone;
  }

  float* data() const { return memory_.as<float>(); }
  // Zeroed by the thread that runs the reader's first step, so that no other has to do with the
  // backend.
  absl::Status Begin() {
    if (begun_) return absl::OkStatus();
    begun_ = true;
    return backend_.Zero(memory_.data(), memory_.bytes());
  }

 private:
  Backend& backend_;
  Buffer memory_;
  bool begun_ = false;
};

struct RambaModel::StepRange {
  int64_t begin = 0, end = 0;
  int64_t first_row = 0;
  bool decode = false;
  bool alone = false;  // the call's only range: it runs on the caller's thread
};

absl::StatusOr<std::unique_ptr<Model>> Model::Create(std::unique_ptr<Bundle> bundle,
                                                     Backend& backend,
                                                     const ModelOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<RambaModel> model,
                   RambaModel::Create(std::move(bundle), backend, options));
  return std::unique_ptr<Model>(std::move(model));
}

RambaModel::RambaModel(std::unique_ptr<Bundle> bundle, Backend& backend,
                       const ModelOptions& options)
    : bundle_(std::move(bundle)),
      backend_(backend),
      compute_dtype_(options.precision == Precision::kBf16 ? backend.fast_dtype() : DType::kF32),
      activation_dtype_(backend.activation_dtype(compute_dtype_)),
      storage_dtype_(options.precision == Precision::kBf16 ? DType::kBf16 : DType::kF32) {}

absl::StatusOr<std::unique_ptr<RambaModel>> RambaModel::Create(std::unique_ptr<Bundle> bundle,
                                                               Backend& backend,
                                                               const ModelOptions& options) {
  std::unique_ptr<RambaModel> model(new RambaModel(std::move(bundle), backend, options));
  ASSIGN_OR_RETURN(model->weights_,
                   PackNetworkWeights(*model->bundle_, backend, model->compute_dtype_));
  model->shape_ = PassShape::For(model->config(), model->weights_, backend.pass_rows());
  model->workspaces_ = std::make_unique<WorkspacePool>(
      model->config(), model->weights_, model->shape_, model->storage_dtype_, backend);
  // The first one now: a device without room for it is found out before anything is served.
  ASSIGN_OR_RETURN(const WorkspacePool::Lease first, model->workspaces_->Take());
  model->pass_bytes_ = (*first).memory.bytes();
  return model;
}

PageLayout RambaModel::page_layout() const {
  return {.dtype = storage_dtype_,
          .chunk_tokens = config().chunk_size,
          .kv_dim = config().head_dim(),
          .landmark_dim = config().landmark_dim};
}

uint64_t RambaModel::derivation_fingerprint() const {
  return Mix(bundle_->fingerprint +
             Mix(kDerivationVersion * 16 + static_cast<uint64_t>(storage_dtype_)));
}

int64_t RambaModel::reader_bytes() const {
  return (int64_t{config().n_lower_layers} + config().n_upper_layers) * LayerStateFloats() * 4;
}

int64_t RambaModel::LayerStateFloats() const {
  return int64_t{config().conv_kernel - 1} * config().conv_dim() +
         int64_t{config().inner()} * config().ssm_state_size;
}

absl::Status RambaModel::CheckIds(absl::Span<const TokenId> ids) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config().vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token ", i, " has id ", ids[i], ", outside the vocabulary of ", config().vocab_size));
    }
  }
  return absl::OkStatus();
}

// ---- ingest ------------------------------------------------------------------------------------

absl::Status RambaModel::ForwardLower(absl::Span<const absl::Span<const TokenId>> segments,
                                      absl::Span<const PageRange> pages,
                                      std::vector<SegmentChunks>* out) const {
  if (!pages.empty() && pages.size() != segments.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(pages.size(), " ranges of pages for ", segments.size(), " segments"));
  }
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].empty() || static_cast<int64_t>(segments[i].size()) > config().segment_size) {
      return absl::InvalidArgumentError(absl::StrCat("segment ", i, " has ", segments[i].size(),
                                                     " tokens, allowed are 1 to ",
                                                     config().segment_size));
    }
    RETURN_IF_ERROR(CheckIds(segments[i]));
  }
  out->resize(segments.size());
  const int64_t count = static_cast<int64_t>(segments.size());
  const int64_t passes = (count + shape_.sequences - 1) / shape_.sequences;
  FirstError error;
  backend_.RunPasses(passes, [&](int64_t pass) {
    const int64_t begin = pass * shape_.sequences;
    const int64_t length = std::min(shape_.sequences, count - begin);
    error.Add(LowerPass(segments.subspan(begin, length),
                        pages.empty() ? pages : pages.subspan(begin, length),
                        absl::MakeSpan(*out).subspan(begin, length), nullptr));
  });
  return error.Take();
}

absl::Status RambaModel::TraceSegment(absl::Span<const TokenId> segment, SegmentChunks* chunks,
                                      std::vector<LayerTrace>* layers) const {
  RETURN_IF_ERROR(CheckIds(segment));
  if (segment.empty() || static_cast<int64_t>(segment.size()) > config().segment_size) {
    return absl::InvalidArgumentError(absl::StrCat("segment has ", segment.size(), " tokens"));
  }
  layers->assign(config().n_lower_layers, {});
  return LowerPass(absl::MakeConstSpan(&segment, 1), {}, absl::MakeSpan(chunks, 1), layers);
}

absl::Status RambaModel::LowerPass(absl::Span<const absl::Span<const TokenId>> segments,
                                   absl::Span<const PageRange> pages, absl::Span<SegmentChunks> out,
                                   std::vector<LayerTrace>* trace) const {
  const PageLayout layout = page_layout();
  const int64_t S = config().chunk_size, tile = shape_.rows / shape_.sequences;
  const int64_t kept = shape_.hidden_rows / shape_.sequences;
  ASSIGN_OR_RETURN(const WorkspacePool::Lease lease, workspaces_->Take());
  Workspace& ws = *lease;
  RETURN_IF_ERROR(
      backend_.Zero(ws.state, static_cast<int64_t>(segments.size()) * shape_.state_floats * 4));
  int64_t longest = 0;  // padded
  for (size_t i = 0; i < segments.size(); ++i) {
    const int64_t chunks = (static_cast<int64_t>(segments[i].size()) + S - 1) / S;
    longest = std::max(longest, chunks * S);
    out[i].chunk_count = static_cast<int>(chunks);
    out[i].pages.resize(RangeOf(pages, i, chunks).size() * layout.page_bytes());
    out[i].landmarks.resize(chunks * layout.landmark_bytes());
  }
  for (int64_t first = 0; first < longest; first += kept) {
    const int64_t end = std::min(first + kept, longest);
    for (int64_t begin = first; begin < end; begin += tile) {
      ws.MoveTo(begin - first);
      RETURN_IF_ERROR(LowerTile(ws, segments, begin, trace));
    }
    for (int64_t begin = first; begin < end; begin += tile) {
      ws.MoveTo(begin - first);
      RETURN_IF_ERROR(EncodeTile(ws, pages, begin, out));
    }
  }
  return absl::OkStatus();
}

absl::Status RambaModel::LowerTile(Workspace& ws,
                                   absl::Span<const absl::Span<const TokenId>> segments,
                                   int64_t begin, std::vector<LayerTrace>* trace) const {
  const ModelConfig& c = config();
  const int64_t S = c.chunk_size, tile = shape_.rows / shape_.sequences;
  ws.sequences.clear();
  ws.host_ids.clear();
  for (size_t i = 0; i < segments.size(); ++i) {
    const int64_t length = static_cast<int64_t>(segments[i].size());
    const int64_t padded = (length + S - 1) / S * S;
    const int64_t rows = std::clamp<int64_t>(padded - begin, 0, tile);
    if (rows == 0) continue;
    ws.sequences.push_back({.row_begin = static_cast<int64_t>(ws.host_ids.size()),
                            .row_count = rows,
                            .state = ws.state + static_cast<int64_t>(i) * shape_.state_floats});
    for (int64_t t = begin; t < begin + rows; ++t) {
      ws.host_ids.push_back(t < length ? segments[i][t] : bundle_->pad_id);
    }
  }
  const int64_t rows = static_cast<int64_t>(ws.host_ids.size());
  RETURN_IF_ERROR(UploadIds(ws));
  ws.stream = !norms_ahead()     ? Workspace::Stream::kHidden
              : trace == nullptr ? Workspace::Stream::kScaled
                                 : Workspace::Stream::kScaledAndCopied;
  RETURN_IF_ERROR(EmbedIds(ws, /*per_row=*/false));
  for (int i = 0; i < c.n_lower_layers; ++i) {
    RETURN_IF_ERROR(MambaLayer(ws, weights_.lower[i], rows, i, /*per_row=*/false));
    if (trace != nullptr) {
      LayerTrace& layer = (*trace)[i];
      layer.hidden.resize(layer.hidden.size() + rows * c.d_model);
      RETURN_IF_ERROR(RowsOut(ws.hidden, shape_.hidden_stride, c.d_model, rows,
                              &*layer.hidden.end() - rows * c.d_model));
      layer.conv_state.resize(int64_t{c.conv_kernel - 1} * c.conv_dim());
      layer.ssm_state.resize(int64_t{c.inner()} * c.ssm_state_size);
      const float* state = ws.state + i * LayerStateFloats();
      const int64_t conv = static_cast<int64_t>(layer.conv_state.size());
      RETURN_IF_ERROR(backend_.CopyOut(layer.conv_state.data(), state, conv * 4));
      RETURN_IF_ERROR(backend_.CopyOut(layer.ssm_state.data(), state + conv,
                                       static_cast<int64_t>(layer.ssm_state.size()) * 4));
    }
  }
  return absl::OkStatus();
}

absl::Status RambaModel::EncodeTile(Workspace& ws, absl::Span<const PageRange> pages, int64_t begin,
                                    absl::Span<SegmentChunks> out) const {
  const PageLayout layout = page_layout();
  const int64_t S = config().chunk_size, tile_chunks = shape_.rows / shape_.sequences / S;
  const int64_t first = begin / S;
  const auto chunks_of = [&](const SegmentChunks& segment) {
    return std::clamp<int64_t>(segment.chunk_count - first, 0, tile_chunks);
  };
  int64_t chunks = 0;
  ws.host_sequence_ends.clear();
  for (const SegmentChunks& segment : out) {
    const int64_t count = chunks_of(segment);
    // A segment that goes on behind the tile is the pass's only one.
    const int64_t end = (chunks + segment.chunk_count - first) * S;
    ws.host_sequence_ends.insert(ws.host_sequence_ends.end(), count, static_cast<int32_t>(end));
    chunks += count;
  }
  if (config().encoder_halo > 0) {
    RETURN_IF_ERROR(
        backend_.Upload(ws.sequence_ends, ws.host_sequence_ends.data(),
                        static_cast<int64_t>(ws.host_sequence_ends.size() * sizeof(int32_t))));
  }
  RETURN_IF_ERROR(EncodeChunks(ws, chunks));
  int64_t chunk = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t count = chunks_of(out[i]);
    if (count == 0) continue;
    const ChunkRange wanted = RangeOf(pages, i, out[i].chunk_count);
    const ChunkRange here{std::max(first, wanted.begin), std::min(first + count, wanted.end)};
    if (here.size() > 0) {
      RETURN_IF_ERROR(backend_.CopyOut(
          out[i].pages.data() + (here.begin - wanted.begin) * layout.page_bytes(),
          static_cast<const char*>(ws.pages) + (chunk + here.begin - first) * layout.page_bytes(),
          here.size() * layout.page_bytes()));
    }
    RETURN_IF_ERROR(
        backend_.CopyOut(out[i].landmarks.data() + first * layout.landmark_bytes(),
                         static_cast<const char*>(ws.landmarks) + chunk * layout.landmark_bytes(),
                         count * layout.landmark_bytes()));
    chunk += count;
  }
  return absl::OkStatus();
}

// ---- readers -----------------------------------------------------------------------------------

std::unique_ptr<ReaderState> RambaModel::NewReaderState() const {
  absl::StatusOr<Buffer> memory = backend_.Allocate(reader_bytes());
  if (!memory.ok()) return nullptr;
  return std::make_unique<State>(backend_, *std::move(memory));
}

absl::Status RambaModel::CheckSteps(absl::Span<const ReaderStep> steps, int64_t* rows) const {
  *rows = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].state == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("step ", i, " has no reader state"));
    }
    if (steps[i].ids.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("step ", i, " has no tokens"));
    }
    RETURN_IF_ERROR(CheckIds(steps[i].ids));
    *rows += static_cast<int64_t>(steps[i].ids.size());
  }
  return absl::OkStatus();
}

absl::Status RambaModel::CheckSelections(absl::Span<const RowSelection> selections) const {
  const bool looks = config().look_heads > 0;
  for (const RowSelection& selection : selections) {
    const size_t values = (looks ? selection.scores : selection.weights).size();
    if (selection.pages.size() != values ||
        static_cast<int>(selection.pages.size()) > config().chunks_per_read) {
      return absl::InvalidArgumentError(
          absl::StrCat("a row has ", selection.pages.size(), " pages and ", values,
                       looks ? " scores" : " weights", ", allowed are up to ",
                       config().chunks_per_read, " of both"));
    }
  }
  return absl::OkStatus();
}

// Steps of one token that stand together make one decode range (as many as a pass has rows); every
// other step is a range of its own. So what a reader computes depends on its own steps alone.
absl::Status RambaModel::ForStepRanges(absl::Span<const ReaderStep> steps,
                                       absl::FunctionRef<absl::Status(const StepRange&)> fn) const {
  const int64_t count = static_cast<int64_t>(steps.size());
  const auto range_at = [&](int64_t begin, int64_t first_row) {
    StepRange range = {.begin = begin, .end = begin + 1, .first_row = first_row};
    if (steps[begin].ids.size() > 1) return range;
    range.decode = true;
    while (range.end < count && steps[range.end].ids.size() == 1 &&
           range.end - begin < shape_.rows) {
      ++range.end;
    }
    return range;
  };
  if (count == 0) return absl::OkStatus();
  const StepRange first = range_at(0, 0);
  if (first.end == count) {  // the decode step: nothing to allocate
    StepRange all = first;
    all.alone = true;
    return fn(all);
  }
  std::vector<StepRange> ranges;
  int64_t row = 0;
  for (int64_t begin = 0; begin < count; begin = ranges.back().end) {
    ranges.push_back(range_at(begin, row));
    for (int64_t i = begin; i < ranges.back().end; ++i) {
      row += static_cast<int64_t>(steps[i].ids.size());
    }
  }
  // The passes begin with what this thread asked for, and what they leave is for this thread again.
  RETURN_IF_ERROR(backend_.Synchronize());
  FirstError error;
  backend_.RunPasses(static_cast<int64_t>(ranges.size()),
                     [&](int64_t i) { error.Add(fn(ranges[i])); });
  return error.Take();
}

absl::Status RambaModel::CopyRows(const float* from, int64_t from_stride, float* to,
                                  int64_t to_stride, int64_t width, int64_t rows) const {
  if (from_stride == width && to_stride == width) {
    return backend_.Copy(to, from, rows * width * 4);
  }
  for (int64_t r = 0; r < rows; ++r) {
    RETURN_IF_ERROR(backend_.Copy(to + r * to_stride, from + r * from_stride, width * 4));
  }
  return absl::OkStatus();
}

absl::Status RambaModel::RowsOut(const float* rows_begin, int64_t stride, int64_t width,
                                 int64_t rows, float* host) const {
  if (width == stride) return backend_.CopyOut(host, rows_begin, rows * width * 4);
  for (int64_t r = 0; r < rows; ++r) {
    RETURN_IF_ERROR(backend_.CopyOut(host + r * width, rows_begin + r * stride, width * 4));
  }
  return absl::OkStatus();
}

absl::Status RambaModel::ReadLower(absl::Span<const ReaderStep> steps, LowerRows* out) const {
  int64_t rows = 0;
  RETURN_IF_ERROR(CheckSteps(steps, &rows));
  for (const ReaderStep& step : steps) RETURN_IF_ERROR(static_cast<State*>(step.state)->Begin());
  const auto make_room = [&](Buffer& buffer, int64_t width) -> absl::Status {
    if (buffer.bytes() >= rows * width * 4) return absl::OkStatus();
    ASSIGN_OR_RETURN(buffer, backend_.Allocate(rows * width * 4));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(make_room(out->hidden, config().d_model));
  RETURN_IF_ERROR(make_room(out->queries, config().landmark_dim));
  out->row_count = rows;
  return ForStepRanges(steps,
                       [&](const StepRange& range) { return ReadLowerRange(steps, range, out); });
}

absl::Status RambaModel::ReadLowerRange(absl::Span<const ReaderStep> steps, const StepRange& range,
                                        LowerRows* out) const {
  const ModelConfig& c = config();
  const bool per_row = range.decode;
  ASSIGN_OR_RETURN(WorkspacePool::Lease lease, workspaces_->Take());
  Workspace& ws = *lease;
  ws.stream = Workspace::Stream::kHidden;
  const int64_t total =
      per_row ? range.end - range.begin : static_cast<int64_t>(steps[range.begin].ids.size());
  for (int64_t begin = 0; begin < total; begin += shape_.rows) {
    const int64_t rows = std::min(shape_.rows, total - begin);
    ws.sequences.clear();
    ws.host_ids.clear();
    if (per_row) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        ws.sequences.push_back({.row_begin = i - range.begin,
                                .row_count = 1,
                                .state = static_cast<State*>(steps[i].state)->data()});
        ws.host_ids.push_back(steps[i].ids[0]);
      }
    } else {
      const ReaderStep& step = steps[range.begin];
      ws.sequences.push_back(
          {.row_begin = 0, .row_count = rows, .state = static_cast<State*>(step.state)->data()});
      ws.host_ids.assign(step.ids.begin() + begin, step.ids.begin() + begin + rows);
    }
    const int64_t first_row = range.first_row + begin;
    float* const hidden = out->hidden.as<float>() + first_row * c.d_model;
    float* const queries = out->queries.as<float>() + first_row * c.landmark_dim;
    RETURN_IF_ERROR(UploadIds(ws));
    if (!per_row) {
      RETURN_IF_ERROR(LowerHalf(ws, rows, per_row, hidden, queries));
      continue;
    }
    RETURN_IF_ERROR(UploadSequences(ws));
    const int64_t key[] = {ws.repeat_id, kLowerHalf, rows, KeyOf(hidden), KeyOf(queries)};
    RETURN_IF_ERROR(
        backend_.Repeat(key, [&] { return LowerHalf(ws, rows, per_row, hidden, queries); }));
  }
  if (!range.alone) return backend_.Synchronize();
  lease.LeaveWorkUnderWay();
  return absl::OkStatus();
}

absl::Status RambaModel::LowerHalf(Workspace& ws, int64_t rows, bool per_row, float* hidden,
                                   float* queries) const {
  const ModelConfig& c = config();
  RETURN_IF_ERROR(EmbedIds(ws, per_row));
  RETURN_IF_ERROR(LowerLayers(ws, rows, per_row));
  RETURN_IF_ERROR(CopyRows(ws.hidden, shape_.hidden_stride, hidden, c.d_model, c.d_model, rows));
  RETURN_IF_ERROR(backend_.Matmul({.a = ws.hidden,
                                   .a_stride = shape_.hidden_stride,
                                   .rows = rows,
                                   .row_capacity = ws.row_capacity,
                                   .norm = {.weight = weights_.retrieval_norm.as<float>(),
                                            .eps = static_cast<float>(c.norm_eps),
                                            .normed = ws.operand},
                                   .weight = weights_.retrieval_proj.get(),
                                   .out = ws.product,
                                   .per_row = per_row}));
  return backend_.RmsNorm({.in = static_cast<const float*>(ws.product),
                           .in_stride = weights_.retrieval_proj->out_columns(),
                           .weight = weights_.retrieval_scale.as<float>(),
                           .eps = kHeadNormEps,
                           .rows = rows,
                           .width = c.landmark_dim,
                           .out = queries,
                           .out_stride = c.landmark_dim});
}

absl::Status RambaModel::ReadUpper(absl::Span<const ReaderStep> steps, const LowerRows& lower,
                                   absl::Span<const RowSelection> selections, LogitRows which,
                                   UpperRows* out) const {
  int64_t rows = 0;
  RETURN_IF_ERROR(CheckSteps(steps, &rows));
  if (lower.row_count != rows) {
    return absl::InvalidArgumentError(absl::StrCat("steps have ", rows, " rows, but ",
                                                   lower.row_count, " lower hidden states came"));
  }
  if (static_cast<int64_t>(selections.size()) != rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("steps have ", rows, " rows, but ", selections.size(), " selections came"));
  }
  RETURN_IF_ERROR(CheckSelections(selections));
  const auto count = static_cast<int64_t>(steps.size());
  const bool best = which == LogitRows::kBestOfStep;
  out->best.resize(best ? count : 0);
  out->logits.resize(best ? 0 : (which == LogitRows::kAll ? rows : count) * config().vocab_size);
  out->weights.resize(static_cast<size_t>(WeightsOut(rows)));
  return ForStepRanges(steps, [&](const StepRange& range) {
    return ReadUpperRange(steps, range, lower, selections, which, out);
  });
}

absl::Status RambaModel::UploadSequences(Workspace& ws) const {
  const auto same = [](const SequenceRows& a, const SequenceRows& b) {
    return a.row_begin == b.row_begin && a.row_count == b.row_count && a.state == b.state;
  };
  if (std::equal(ws.sequences.begin(), ws.sequences.end(), ws.sequences_there.begin(),
                 ws.sequences_there.end(), same)) {
    return absl::OkStatus();
  }
  ws.sequences_there.clear();
  RETURN_IF_ERROR(
      backend_.Upload(ws.backend_sequences, ws.sequences.data(),
                      static_cast<int64_t>(ws.sequences.size() * sizeof(SequenceRows))));
  ws.sequences_there.assign(ws.sequences.begin(), ws.sequences.end());
  return absl::OkStatus();
}

absl::Status RambaModel::UploadSelections(Workspace& ws,
                                          absl::Span<const RowSelection> selections) const {
  const size_t kept = config().chunks_per_read, rows = selections.size(), cells = rows * kept;
  const bool looks = config().look_heads > 0;
  // Where a pass of so many rows has its pointers, its weights or scores, and its counts: one after
  // the other, here as there.
  const size_t values_at = cells * sizeof(void*);
  const size_t counts_at = values_at + cells * sizeof(float);
  const size_t bytes = counts_at + rows * sizeof(int32_t);
  ws.page_scores = reinterpret_cast<float*>(ws.selections + values_at);
  ws.page_weights = looks ? ws.results : ws.page_scores;
  ws.page_counts = reinterpret_cast<int32_t*>(ws.selections + counts_at);
  char* const host = ws.host_selections.data();
  auto* const pointers = reinterpret_cast<const void**>(host);
  auto* const values = reinterpret_cast<float*>(host + values_at);
  auto* const counts = reinterpret_cast<int32_t*>(host + counts_at);
  std::memset(host, 0, bytes);
  ws.pages_resident = true;
  for (size_t r = 0; r < rows; ++r) {
    const RowSelection& selection = selections[r];
    ws.pages_resident &= selection.pages.empty() || selection.pages_resident;
    counts[r] = static_cast<int32_t>(selection.pages.size());
    std::copy(selection.pages.begin(), selection.pages.end(), pointers + r * kept);
    const absl::Span<const float> row = looks ? selection.scores : selection.weights;
    std::copy(row.begin(), row.end(), values + r * kept);
  }
  return backend_.Upload(ws.selections, host, static_cast<int64_t>(bytes));
}

absl::Status RambaModel::ReadUpperRange(absl::Span<const ReaderStep> steps, const StepRange& range,
                                        const LowerRows& lower,
                                        absl::Span<const RowSelection> selections, LogitRows which,
                                        UpperRows* out) const {
  const ModelConfig& c = config();
  const bool per_row = range.decode;
  ASSIGN_OR_RETURN(const WorkspacePool::Lease lease, workspaces_->Take());
  Workspace& ws = *lease;
  ws.stream = Workspace::Stream::kHidden;
  const int64_t total =
      per_row ? range.end - range.begin : static_cast<int64_t>(steps[range.begin].ids.size());
  for (int64_t begin = 0; begin < total; begin += shape_.rows) {
    const int64_t rows = std::min(shape_.rows, total - begin);
    const int64_t first_row = range.first_row + begin;
    ws.sequences.clear();
    if (per_row) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        ws.sequences.push_back({.row_begin = i - range.begin,
                                .row_count = 1,
                                .state = static_cast<State*>(steps[i].state)->data()});
      }
    } else {
      ws.sequences.push_back({.row_begin = 0,
                              .row_count = rows,
                              .state = static_cast<State*>(steps[range.begin].state)->data()});
    }
    const float* const hidden = lower.hidden.as<float>() + first_row * c.d_model;
    RETURN_IF_ERROR(UploadSelections(ws, selections.subspan(first_row, rows)));
    const bool last = begin + rows == total;
    const int64_t logit_rows = which == LogitRows::kAll || per_row ? rows : last ? 1 : 0;
    const auto half = [&] { return UpperHalf(ws, rows, per_row, hidden, which, logit_rows); };
    if (per_row) {
      RETURN_IF_ERROR(UploadSequences(ws));
      const int64_t key[] = {ws.repeat_id,  kUpperHalf,        rows,
                             KeyOf(hidden), ws.pages_resident, which == LogitRows::kBestOfStep};
      RETURN_IF_ERROR(backend_.Repeat(key, half));
    } else {
      RETURN_IF_ERROR(half());
    }
    const int64_t first_out = which == LogitRows::kAll ? first_row : range.begin;
    const bool best = which == LogitRows::kBestOfStep;
    RETURN_IF_ERROR(ResultsOut(ws, rows, logit_rows, out->weights.data() + WeightsOut(first_row),
                               best ? out->best.data() + first_out : nullptr));
    if (logit_rows == 0 || best) continue;
    RETURN_IF_ERROR(LogitsOut(ws, logit_rows, out->logits.data() + first_out * c.vocab_size));
  }
  return absl::OkStatus();
}

absl::Status RambaModel::UpperHalf(Workspace& ws, int64_t rows, bool per_row, const float* hidden,
                                   LogitRows which, int64_t logit_rows) const {
  const ModelConfig& c = config();
  RETURN_IF_ERROR(CopyRows(hidden, c.d_model, ws.hidden, shape_.hidden_stride, c.d_model, rows));
  if (c.look_heads > 0) RETURN_IF_ERROR(SecondLook(ws, rows, per_row));
  RETURN_IF_ERROR(UpperLayers(ws, rows, per_row));
  if (logit_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(Logits(ws, rows - logit_rows, logit_rows, per_row || which != LogitRows::kAll));
  if (which != LogitRows::kBestOfStep) return absl::OkStatus();
  return backend_.ArgMax({.in = ws.logits,
                          .in_stride = weights_.embedding->out_columns(),
                          .rows = logit_rows,
                          .columns = c.vocab_size,
                          .out = reinterpret_cast<int32_t*>(ws.results + WeightsOut(rows))});
}

absl::Status RambaModel::ResultsOut(Workspace& ws, int64_t rows, int64_t logit_rows, float* weights,
                                    TokenId* best) const {
  static_assert(sizeof(TokenId) == sizeof(float));
  const int64_t weight_count = WeightsOut(rows), best_count = best != nullptr ? logit_rows : 0;
  const int64_t bytes = (weight_count + best_count) * 4;
  if (bytes == 0) return absl::OkStatus();
  float* const host = ws.host_results.data();
  RETURN_IF_ERROR(backend_.CopyOut(host, ws.results, bytes));
  std::copy(host, host + weight_count, weights);
  if (best_count > 0) {
    std::memcpy(best, host + weight_count, static_cast<size_t>(best_count) * sizeof(TokenId));
  }
  return absl::OkStatus();
}

absl::Status RambaModel::CorrectScores(const float* hidden,
                                       absl::Span<const RowSelection> selections,
                                       std::vector<float>* scores) const {
  const ModelConfig& c = config();
  if (c.look_heads == 0) {
    return absl::FailedPreconditionError("the bundle has look_heads 0: no second look at chunks");
  }
  RETURN_IF_ERROR(CheckSelections(selections));
  const auto total = static_cast<int64_t>(selections.size());
  scores->resize(static_cast<size_t>(total * c.chunks_per_read));
  ASSIGN_OR_RETURN(const WorkspacePool::Lease lease, workspaces_->Take());
  Workspace& ws = *lease;
  for (int64_t begin = 0; begin < total; begin += shape_.rows) {
    const int64_t rows = std::min(shape_.rows, total - begin);
    RETURN_IF_ERROR(UploadSelections(ws, selections.subspan(begin, rows)));
    RETURN_IF_ERROR(CopyRows(hidden + begin * c.d_model, c.d_model, ws.hidden, shape_.hidden_stride,
                             c.d_model, rows));
    RETURN_IF_ERROR(SecondLook(ws, rows, /*per_row=*/false));
    RETURN_IF_ERROR(backend_.CopyOut(scores->data() + begin * c.chunks_per_read, ws.look_scores,
                                     rows * c.chunks_per_read * 4));
  }
  return absl::OkStatus();
}

absl::Status RambaModel::Logits(Workspace& ws, int64_t first_row, int64_t rows,
                                bool per_row) const {
  const ModelConfig& c = config();
  return backend_.Matmul({.a = ws.hidden + first_row * shape_.hidden_stride,
                          .a_stride = shape_.hidden_stride,
                          .rows = rows,
                          .row_capacity = ws.row_capacity,
                          .norm = {.weight = weights_.norm.as<float>(),
                                   .eps = static_cast<float>(c.norm_eps),
                                   .normed = ws.operand},
                          .weight = weights_.embedding.get(),
                          .out = ws.logits,
                          .per_row = per_row});
}

absl::Status RambaModel::LogitsOut(Workspace& ws, int64_t rows, float* host) const {
  return RowsOut(ws.logits, weights_.embedding->out_columns(), config().vocab_size, rows, host);
}

}  // namespace mneme
