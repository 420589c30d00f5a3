#include "engine/told_chunks.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace mneme {

std::unique_ptr<ToldChunks> ToldChunks::Of(const Bundle& bundle) {
  if (bundle.config.told_penalty == 0) return nullptr;
  return std::unique_ptr<ToldChunks>(new ToldChunks(bundle));
}

ToldChunks::ToldChunks(const Bundle& bundle)
    : question_id_(bundle.question_id),
      answer_id_(bundle.answer_id),
      document_id_(bundle.document_id),
      line_end_id_(bundle.line_end_id) {}

bool ToldChunks::IsMark(TokenId id) const {
  return id == answer_id_ || id == question_id_ || id == document_id_ || id == line_end_id_;
}

bool ToldChunks::InAnswer(bool before, TokenId id) const {
  return id == answer_id_ || (before && id != question_id_ && id != document_id_);
}

size_t ToldChunks::StepTokens(absl::Span<const TokenId> ids) const {
  bool in_answer = in_answer_;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0 && in_answer && IsMark(ids[i])) return i;
    in_answer = InAnswer(in_answer, ids[i]);
  }
  return ids.size();
}

void ToldChunks::BeginStep(absl::Span<const TokenId> ids) {
  MNEME_CHECK(StepTokens(ids) == ids.size());
  first_counted_ = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool before = std::exchange(in_answer_, InAnswer(in_answer_, ids[i]));
    if (in_answer_ && ids[i] == line_end_id_) EndValue();
    if (ids[i] == answer_id_ || !in_answer_) Forget();
    if (in_answer_ && !before) first_counted_ = i;
  }
  if (!in_answer_) first_counted_ = ids.size();
}

void ToldChunks::Count(size_t row, int64_t chunk, double weight) {
  if (row >= first_counted_ && weight > 0) totals_[chunk] += weight;
}

void ToldChunks::EndValue() {
  std::pair<double, int64_t> most = {0, -1};  // of equal ones the newest
  for (const auto& [chunk, total] : totals_) {
    most = std::max(most, std::pair(total, chunk));
  }
  if (most.second >= 0) told_.insert(most.second);
  totals_.clear();
}

void ToldChunks::Forget() {
  told_.clear();
  totals_.clear();
}

}  // namespace mneme
