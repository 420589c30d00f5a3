#include "tests/engine/fake_model.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

#include "common/check.h"
#include "kernels/chunk_weights.h"

namespace mneme {
namespace {

constexpr int kChunkTokens = 8;
constexpr int kLandmarkDim = 256;

class FakeReaderState : public ReaderState {
 public:
  std::unique_ptr<ReaderState> Clone() const override {
    return std::make_unique<FakeReaderState>(*this);
  }

  std::vector<float> bag = std::vector<float>(kLandmarkDim, 0.0f);
  TokenId last_word = -1;             // last token that is no special one
  std::vector<TokenId> last_of_rows;  // of the rows between the lower and the upper half
};

size_t Dimension(TokenId id) {
  return (static_cast<uint32_t>(id) * 2654435761u >> 16) % kLandmarkDim;
}

Buffer HostBuffer(const std::vector<float>& values) {
  const size_t bytes = std::max<size_t>(values.size() * sizeof(float), 1);
  void* const data = std::malloc(bytes);
  std::memcpy(data, values.data(), values.size() * sizeof(float));
  return Buffer(
      data, static_cast<int64_t>(bytes), [](void*, void* memory) { std::free(memory); }, nullptr);
}

}  // namespace

FakeModel::FakeModel(int kv_dim) : kv_dim_(kv_dim), bundle_(std::make_unique<Bundle>()) {
  std::ifstream file(MNEME_SOURCE_DIR "/models/mneme-small/tokenizer.model", std::ios::binary);
  std::stringstream contents;
  contents << file.rdbuf();
  auto tokenizer = Tokenizer::Load(contents.str());
  MNEME_CHECK(tokenizer.ok());
  bundle_->tokenizer = *std::move(tokenizer);
  ModelConfig& config = bundle_->config;
  config.vocab_size = bundle_->tokenizer->vocab_size();
  config.d_model = 1;
  config.n_heads = 1;
  config.n_kv_heads = 1;
  config.chunk_size = kChunkTokens;
  config.chunks_per_read = 4;
  config.landmark_dim = kLandmarkDim;
  config.segment_size = 64;
  bundle_->document_id = bundle_->tokenizer->PieceToId("<doc>");
  bundle_->pad_id = bundle_->document_id;
  bundle_->question_id = bundle_->tokenizer->PieceToId("<q>");
  bundle_->answer_id = bundle_->tokenizer->PieceToId("<a>");
}

void FakeModel::set_told_penalty(int penalty) {
  bundle_->config.told_penalty = penalty;
  bundle_->line_end_id = bundle_->tokenizer->PieceToId("<0x0A>");
}

PageLayout FakeModel::page_layout() const {
  return {.dtype = DType::kF32,
          .chunk_tokens = kChunkTokens,
          .kv_dim = kv_dim_,
          .landmark_dim = kLandmarkDim};
}

void FakeModel::OnForward(std::function<absl::Status(Segments)> hook) {
  absl::MutexLock lock(&mutex_);
  on_forward_ = std::move(hook);
}

void FakeModel::OnRead(std::function<absl::Status()> hook) {
  absl::MutexLock lock(&mutex_);
  on_read_ = std::move(hook);
}

void FakeModel::OnUpper(std::function<absl::Status()> hook) {
  absl::MutexLock lock(&mutex_);
  on_upper_ = std::move(hook);
}

absl::Status FakeModel::ForwardLower(Segments segments, absl::Span<const PageRange> pages,
                                     std::vector<SegmentChunks>* out) const {
  std::function<absl::Status(Segments)> hook;
  {
    absl::MutexLock lock(&mutex_);
    forward_batches_.push_back(segments.size());
    hook = on_forward_;
  }
  if (hook) {
    const absl::Status status = hook(segments);
    if (!status.ok()) return status;
  }
  const PageLayout layout = page_layout();
  out->clear();
  for (const absl::Span<const TokenId> ids : segments) {
    if (ids.empty() || ids.size() > static_cast<size_t>(config().segment_size)) {
      return absl::InvalidArgumentError("segment of a wrong size");
    }
    const PageRange wanted = pages.empty() ? PageRange{} : pages[out->size()];
    SegmentChunks& chunks = out->emplace_back();
    for (size_t first = 0; first < ids.size(); first += kChunkTokens) {
      std::vector<float> landmark(kLandmarkDim, 0.0f);
      std::vector<float> page(static_cast<size_t>(2 * kChunkTokens * kv_dim_), -1.0f);
      const absl::Span<const TokenId> chunk = ids.subspan(first, kChunkTokens);
      const absl::Span<const TokenId> halo =
          ids.subspan(first + chunk.size(), static_cast<size_t>(config().encoder_halo));
      for (size_t i = 0; i < halo.size() && page.size() / 2 + i < page.size(); ++i) {
        page[page.size() / 2 + i] = static_cast<float>(halo[i]);
      }
      for (size_t i = 0; i < chunk.size(); ++i) {
        page[i] = static_cast<float>(chunk[i]);
        if (chunk[i] != bundle_->document_id) landmark[Dimension(chunk[i])] += 1.0f;
      }
      const auto append = [](const std::vector<float>& from, std::vector<uint8_t>* to) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(from.data());
        to->insert(to->end(), bytes, bytes + from.size() * sizeof(float));
      };
      append(landmark, &chunks.landmarks);
      const int chunk_index = chunks.chunk_count++;
      if (chunk_index >= wanted.begin && chunk_index < wanted.end) append(page, &chunks.pages);
    }
    MNEME_CHECK(static_cast<int64_t>(chunks.pages.size()) % layout.page_bytes() == 0);
  }
  return absl::OkStatus();
}

std::unique_ptr<ReaderState> FakeModel::NewReaderState() const {
  return std::make_unique<FakeReaderState>();
}

absl::Status FakeModel::ReadLower(absl::Span<const ReaderStep> steps, LowerRows* out) const {
  std::function<absl::Status()> hook;
  {
    absl::MutexLock lock(&mutex_);
    read_batches_.push_back(steps.size());
    hook = on_read_;
  }
  if (hook) {
    const absl::Status status = hook();
    if (!status.ok()) return status;
  }
  std::vector<float> hidden, queries;
  for (const ReaderStep& step : steps) {
    auto& state = static_cast<FakeReaderState&>(*step.state);
    state.last_of_rows.clear();
    for (TokenId id : step.ids) {
      if (id != bundle_->question_id && id != bundle_->answer_id && id != bundle_->document_id) {
        state.last_word = id;
        state.bag[Dimension(id)] += 0.25f;
      }
      state.last_of_rows.push_back(state.last_word);
      hidden.push_back(static_cast<float>(id));
      queries.insert(queries.end(), state.bag.begin(), state.bag.end());
    }
  }
  out->row_count = static_cast<int64_t>(hidden.size());
  out->hidden = HostBuffer(hidden);
  out->queries = HostBuffer(queries);
  return absl::OkStatus();
}

absl::Status FakeModel::ReadUpper(absl::Span<const ReaderStep> steps, const LowerRows& lower,
                                  absl::Span<const RowSelection> selections, LogitRows which,
                                  UpperRows* out) const {
  std::function<absl::Status()> hook;
  {
    absl::MutexLock lock(&mutex_);
    upper_batches_.push_back(steps.size());
    hook = on_upper_;
  }
  if (hook) {
    const absl::Status status = hook();
    if (!status.ok()) return status;
  }
  out->weights.clear();
  if (const float newest = looked_weight_; newest > 0) {
    for (const RowSelection& selection : selections) {
      // Scores and weights of the same chunks.
      std::vector<float> weights(selection.scores.size());
      ChunkWeights(selection.scores, config().newest_margin, absl::MakeSpan(weights));
      if (selection.weights != absl::MakeConstSpan(weights)) {
        return absl::InternalError("scores of other chunks");
      }
      out->weights.resize(out->weights.size() + static_cast<size_t>(config().chunks_per_read));
      if (!weights.empty()) out->weights.end()[-config().chunks_per_read] = newest;
    }
  }
  const TokenId end = tokenizer().PieceToId("</s>");
  const auto vocab_size = static_cast<size_t>(config().vocab_size);
  out->logits.clear();
  out->best.clear();
  size_t row = 0;
  for (const ReaderStep& step : steps) {
    auto& state = static_cast<FakeReaderState&>(*step.state);
    for (size_t i = 0; i < step.ids.size(); ++i, ++row) {
      // The rows handed on must be the ones that came out of the lower half.
      if (lower.hidden.as<float>()[row] != static_cast<float>(step.ids[i])) {
        return absl::InternalError("rows of another step");
      }
      if (which != LogitRows::kAll && i + 1 < step.ids.size()) continue;
      TokenId next = end;
      float best = -1.0f;
      const RowSelection& selection = selections[row];
      for (size_t c = 0; c < selection.pages.size(); ++c) {
        const auto* page = reinterpret_cast<const float*>(selection.pages[c]);
        for (int t = 0; t + 1 < kChunkTokens; ++t) {
          if (static_cast<TokenId>(page[t]) != state.last_of_rows[i] || page[t + 1] < 0) continue;
          if (selection.weights[c] > best) {
            best = selection.weights[c];
            next = static_cast<TokenId>(page[t + 1]);
          }
        }
      }
      if (which == LogitRows::kBestOfStep) {
        out->best.push_back(next);
        continue;
      }
      out->logits.resize(out->logits.size() + vocab_size, 0.0f);
      out->logits[out->logits.size() - vocab_size + static_cast<size_t>(next)] = 10.0f;
    }
  }
  if (static_cast<int64_t>(row) != lower.row_count || row != selections.size()) {
    return absl::InternalError("as many rows as selections are needed");
  }
  return absl::OkStatus();
}

void FakeModel::LookFor(const std::string& word) {
  std::vector<Token> tokens;
  tokenizer().Encode(word, &tokens);
  looked_for_ = tokens.back().id;
  bundle_->config.look_heads = 1;
}

absl::Status FakeModel::CorrectScores(const float* hidden,
                                      absl::Span<const RowSelection> selections,
                                      std::vector<float>* scores) const {
  const auto kept = static_cast<size_t>(config().chunks_per_read);
  scores->assign(selections.size() * kept, -std::numeric_limits<float>::infinity());
  size_t pages = 0;
  for (size_t r = 0; r < selections.size(); ++r) {
    const RowSelection& selection = selections[r];
    if (hidden[r] != static_cast<float>(bundle_->answer_id)) {
      return absl::InternalError("rows of other tokens");
    }
    if (selection.pages.size() != selection.scores.size() || selection.pages.size() > kept) {
      return absl::InternalError("not a score of each page, or too many");
    }
    for (size_t i = 0; i < selection.pages.size(); ++i, ++pages) {
      const auto* page = reinterpret_cast<const float*>(selection.pages[i]);
      const bool found = std::find(page, page + kChunkTokens, static_cast<float>(looked_for_)) !=
                         page + kChunkTokens;
      (*scores)[r * kept + i] = selection.scores[i] + (found ? kLookBonus : 0);
    }
  }
  absl::MutexLock lock(&mutex_);
  looked_pages_.push_back(pages);
  return absl::OkStatus();
}

std::vector<size_t> FakeModel::looked_pages() const {
  absl::MutexLock lock(&mutex_);
  return looked_pages_;
}

std::vector<size_t> FakeModel::forward_batches() const {
  absl::MutexLock lock(&mutex_);
  return forward_batches_;
}

std::vector<size_t> FakeModel::read_batches() const {
  absl::MutexLock lock(&mutex_);
  return read_batches_;
}

std::vector<size_t> FakeModel::upper_batches() const {
  absl::MutexLock lock(&mutex_);
  return upper_batches_;
}

}  // namespace mneme
