#include "engine/document_source.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "common/utf8.h"

namespace mneme {
namespace {

// Text read from the store at a time, in bytes.
constexpr int64_t kReadBytes = 64 << 10;

// Text read behind what is wanted, so that the tokens before it are settled, in bytes.
constexpr int64_t kSettleBytes = 1 << 10;

// Reads and feeds the next piece of [fed_bytes, byte_end), about piece_bytes long.
absl::Status FeedPiece(const MemoryStore& store, DocumentId document, int64_t byte_end,
                       Segmenter* segmenter, int64_t piece_bytes = kReadBytes) {
  const int64_t begin = segmenter->fed_bytes();
  const int64_t end = std::min(byte_end, begin + piece_bytes);
  ASSIGN_OR_RETURN(const std::string text, store.ReadText(document, begin, end));
  absl::string_view piece = text;
  if (end < byte_end) {
    // May have been cut inside a character; the text itself is well-formed.
    size_t last = piece.size();
    while (last > 0 && IsUtf8Continuation(piece[last - 1])) --last;
    if (last > 0) piece = piece.substr(0, last - 1);
  }
  if (piece.empty()) {
    return absl::DataLossError(absl::StrCat("document ", static_cast<uint64_t>(document),
                                            ": no text where bytes ", begin, " to ", end,
                                            " should be"));
  }
  segmenter->Feed(piece);
  return absl::OkStatus();
}

}  // namespace

int64_t SegmentGroup::token_count() const {
  int64_t count = 0;
  for (const Segment& segment : segments) count += static_cast<int64_t>(segment.ids.size());
  return count;
}

absl::StatusOr<std::unique_ptr<DocumentSource>> DocumentSource::Open(const Model& model,
                                                                     const SegmentShape& shape,
                                                                     const MemoryStore& store,
                                                                     DocumentId document) {
  auto source = std::unique_ptr<DocumentSource>(new DocumentSource(model, shape, store, document));
  ASSIGN_OR_RETURN(const DocumentInfo info, store.GetDocument(document));
  if (info.damaged) {
    return absl::DataLossError(absl::StrCat("document ", info.id, ": its stored text is damaged"));
  }
  source->taken_bytes_ = info.visible_bytes;
  RETURN_IF_ERROR(source->BeginAt(-1));
  return source;
}

absl::Status DocumentSource::BeginAt(int64_t segment_index) {
  absl::StatusOr<SegmentDerived> from = store_.GetSegment(document_, segment_index);
  if (from.ok()) {
    segmenter_ = std::make_unique<Segmenter>(model_.tokenizer(), shape_, *from);
    return absl::OkStatus();
  }
  if (!absl::IsNotFound(from.status())) return from.status();
  // Nothing derived yet (or the document is gone, which the first read of its text will tell).
  segmenter_ = std::make_unique<Segmenter>(model_.tokenizer(), shape_, document_);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<SegmentGroup>> DocumentSource::Next(int64_t durable_bytes,
                                                                 bool take_open) {
  for (;;) {
    while (segmenter_->has_whole()) {
      held_.push_back(segmenter_->TakeWhole());
      if (held_.back().byte_end < taken_bytes_) continue;
      SegmentGroup group{.document = document_, .segments = std::exchange(held_, {})};
      taken_bytes_ = group.byte_end();
      return std::optional<SegmentGroup>(std::move(group));
    }
    if (segmenter_->fed_bytes() < durable_bytes) {
      RETURN_IF_ERROR(FeedPiece(store_, document_, durable_bytes, segmenter_.get()));
      continue;
    }
    if (!segmenter_->start_settled() && segmenter_->first_segment_index() > 0) {
      MNEME_CHECK(held_.empty());
      RETURN_IF_ERROR(BeginAt(segmenter_->first_segment_index() - 1));
      continue;
    }
    break;
  }
  if (held_.empty() && (!take_open || taken_bytes_ >= durable_bytes)) {
    return std::optional<SegmentGroup>();
  }
  // All text is read. Held segments go with the open rest even when nobody asked for it, lest what
  // is visible shrink.
  SegmentGroup group{.document = document_, .open = true};
  group.segments = segmenter_->OpenSegments();
  group.segments.insert(group.segments.begin(), std::make_move_iterator(held_.begin()),
                        std::make_move_iterator(held_.end()));
  held_.clear();
  if (group.segments.empty()) return std::optional<SegmentGroup>();
  taken_bytes_ = group.byte_end();
  return std::optional<SegmentGroup>(std::move(group));
}

absl::StatusOr<std::vector<TokenId>> ReadSegmentTokens(const Model& model,
                                                       const SegmentShape& shape,
                                                       const MemoryStore& store,
                                                       const SegmentDerived& segment) {
  const auto matches = [&](const Segment& found) {
    return found.index == segment.segment_index && found.byte_end == segment.byte_end &&
           static_cast<int64_t>(found.ids.size()) == segment.token_count;
  };
  // A whole segment was most likely cut with more text behind it, an open one as though the text
  // ended at byte_end.
  if (segment.token_count == shape.segment_tokens) {
    ASSIGN_OR_RETURN(const DocumentInfo info, store.GetDocument(segment.document));
    Segmenter segmenter(model.tokenizer(), shape, segment);
    while (!segmenter.has_whole() && segmenter.fed_bytes() < info.durable_bytes) {
      const int64_t left = segment.byte_end - segmenter.fed_bytes();
      RETURN_IF_ERROR(FeedPiece(store, segment.document, info.durable_bytes, &segmenter,
                                std::max<int64_t>(left, 0) + kSettleBytes));
    }
    if (segmenter.has_whole()) {
      Segment found = segmenter.TakeWhole();
      if (matches(found)) return std::move(found.ids);
    }
  }
  Segmenter segmenter(model.tokenizer(), shape, segment);
  // A whole segment that was cut behind tokens not yet settled (see DocumentSource::held_) ends
  // before the text that it was cut from; look as far as its followers went.
  std::vector<int64_t> ends = {segment.byte_end};
  absl::StatusOr<SegmentDerived> last = store.GetSegment(segment.document, -1);
  if (last.ok() && last->byte_end > segment.byte_end) ends.push_back(last->byte_end);
  for (int64_t end : ends) {
    while (segmenter.fed_bytes() < end) {
      RETURN_IF_ERROR(FeedPiece(store, segment.document, end, &segmenter));
    }
    std::vector<Segment> found = segmenter.OpenSegments();
    if (segmenter.has_whole()) found.insert(found.begin(), segmenter.TakeWhole());
    if (!found.empty() && matches(found.front())) return std::move(found.front().ids);
  }
  return absl::DataLossError(absl::StrCat("document ", static_cast<uint64_t>(segment.document),
                                          ", segment ", segment.segment_index,
                                          ": its text does not give the ", segment.token_count,
                                          " tokens that end at byte ", segment.byte_end));
}

absl::StatusOr<std::vector<TokenId>> ReadFirstTokens(const Model& model, const SegmentShape& shape,
                                                     const MemoryStore& store,
                                                     const SegmentDerived& segment,
                                                     int64_t chunks) {
  const auto stored_chunks = static_cast<int64_t>(segment.chunk_byte_begin.size());
  MNEME_CHECK(chunks > 0 && chunks <= stored_chunks);
  if (chunks < stored_chunks) {
    // The first chunks alone are a whole segment of a shorter shape.
    SegmentShape first = shape;
    first.segment_tokens = static_cast<int>(chunks * shape.chunk_tokens);
    const int64_t first_end = segment.chunk_byte_begin[chunks];
    Segmenter segmenter(model.tokenizer(), first, segment);
    while (!segmenter.has_whole() && segmenter.fed_bytes() < segment.byte_end) {
      const int64_t left = first_end - segmenter.fed_bytes();
      RETURN_IF_ERROR(FeedPiece(store, segment.document, segment.byte_end, &segmenter,
                                std::max<int64_t>(left, 0) + kSettleBytes));
    }
    if (segmenter.has_whole()) {
      Segment found = segmenter.TakeWhole();
      if (std::equal(found.chunk_byte_begin.begin(), found.chunk_byte_begin.end(),
                     segment.chunk_byte_begin.begin(), segment.chunk_byte_begin.begin() + chunks) &&
          found.byte_end == first_end) {
        return std::move(found.ids);
      }
    }
  }
  return ReadSegmentTokens(model, shape, store, segment);
}

}  // namespace mneme
