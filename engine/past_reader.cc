#include "engine/past_reader.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/document_source.h"

namespace mneme {
namespace {

// Views asked for until one is whole, at most: documents may change while their tails are derived.
constexpr int kRoundsMax = 100;
// How often a wait looks whether its caller has gone.
constexpr absl::Duration kCancelTick = absl::Milliseconds(10);

// Deleted, cut off or damaged meanwhile: the view is asked for again, and goes on without the
// document.
bool IsOfDocument(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsAborted(status) || absl::IsDataLoss(status);
}

}  // namespace

absl::StatusOr<LandmarkView> PastReader::View(absl::Span<const ReadSource> sources,
                                              const CallContext& context) {
  std::vector<TailHandle> held;  // so that they stay until the view has them
  for (int round = 0; round < kRoundsMax; ++round) {
    RETURN_IF_ERROR(context.Check());
    ASSIGN_OR_RETURN(PastView past, store_.ViewPast(sources));
    if (past.view.has_value()) return *std::move(past.view);
    RETURN_IF_ERROR(AwaitVisible(past.lagging, context));
    if (past.wanting.empty()) continue;
    RETURN_IF_ERROR(TakeTurn(context));
    const absl::Cleanup end_turn = [this] { EndTurn(); };
    // Another question may have derived them while this one waited.
    ASSIGN_OR_RETURN(past, store_.ViewPast(sources));
    held.insert(held.end(), past.tails.begin(), past.tails.end());
    RETURN_IF_ERROR(Derive(past.wanting, context, &held));
  }
  return absl::UnavailableError("documents changed too often while their past was read; try again");
}

absl::Status PastReader::AwaitVisible(absl::Span<const DocumentCut> lagging,
                                      const CallContext& context) {
  for (const DocumentCut& cut : lagging) {
    const absl::Status status = visibility_.Wait(
        cut.document, absl::StrCat("document ", static_cast<uint64_t>(cut.document)), cut.cut_bytes,
        MissingText::kRefuse, scheduler_, context);
    if (!status.ok() && !IsOfDocument(status)) return status;
  }
  return absl::OkStatus();
}

absl::Status PastReader::TakeTurn(const CallContext& context) {
  absl::MutexLock lock(&mutex_);
  while (deriving_) {
    RETURN_IF_ERROR(context.Check());
    turn_ended_.WaitWithTimeout(&mutex_, kCancelTick);
  }
  deriving_ = true;
  return absl::OkStatus();
}

void PastReader::EndTurn() {
  absl::MutexLock lock(&mutex_);
  deriving_ = false;
  turn_ended_.Signal();
}

absl::StatusOr<PastReader::TailText> PastReader::ReadTail(const DocumentCut& cut) const {
  // Segments that end at or before the cut: [0, low).
  int64_t low = 0;
  if (const absl::StatusOr<SegmentDerived> last = store_.GetSegment(cut.document, -1); last.ok()) {
    int64_t high = last->segment_index + 1;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      ASSIGN_OR_RETURN(const SegmentDerived segment, store_.GetSegment(cut.document, middle));
      if (segment.byte_end <= cut.cut_bytes) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
  }
  // Begins with the last of them, or before it while the text up to the cut does not settle where
  // it begins.
  for (int64_t from = low - 1;; --from) {
    SegmentDerived stored;
    if (from >= 0) {
      ASSIGN_OR_RETURN(stored, store_.GetSegment(cut.document, from));
    }
    Segmenter segmenter = from >= 0 ? Segmenter(model_.tokenizer(), shape_, stored)
                                    : Segmenter(model_.tokenizer(), shape_, cut.document);
    TailText tail{.cut = cut, .shared_segments = std::max<int64_t>(from, 0)};
    while (segmenter.fed_bytes() < cut.cut_bytes) {
      RETURN_IF_ERROR(FeedText(store_, cut.document, cut.cut_bytes, &segmenter));
      while (segmenter.has_whole()) tail.segments.push_back(segmenter.TakeWhole());
    }
    if (!segmenter.start_settled() && from > 0) continue;
    // The first one is the document's own if nothing that follows could change it.
    if (from >= 0 && !tail.segments.empty()) {
      const Segment& first = tail.segments.front();
      const bool same = first.index == from && first.byte_end == stored.byte_end &&
                        first.chunk_byte_begin == stored.chunk_byte_begin &&
                        static_cast<int64_t>(first.ids.size()) == stored.token_count;
      if (same) {
        tail.segments.erase(tail.segments.begin());
        ++tail.shared_segments;
      }
    }
    for (Segment& segment : segmenter.OpenSegments()) tail.segments.push_back(std::move(segment));
    return tail;
  }
}

absl::Status PastReader::Derive(absl::Span<const DocumentCut> wanting, const CallContext& context,
                                std::vector<TailHandle>* tails) {
  std::vector<TailText> batch;
  size_t segments = 0;
  const auto flush = [&] {
    const absl::Status status = DeriveBatch(batch, tails);
    batch.clear();
    segments = 0;
    return status;
  };
  for (const DocumentCut& cut : wanting) {
    RETURN_IF_ERROR(context.Check());
    absl::StatusOr<TailText> tail = ReadTail(cut);
    if (!tail.ok()) {
      if (IsOfDocument(tail.status())) continue;
      return tail.status();
    }
    if (segments > 0 &&
        segments + tail->segments.size() > static_cast<size_t>(options_.batch_segments_max)) {
      RETURN_IF_ERROR(flush());
    }
    segments += tail->segments.size();
    batch.push_back(*std::move(tail));
  }
  return flush();
}

absl::Status PastReader::DeriveBatch(absl::Span<const TailText> batch,
                                     std::vector<TailHandle>* tails) {
  std::vector<absl::Span<const TokenId>> ids;
  for (const TailText& tail : batch) {
    for (const Segment& segment : tail.segments) ids.push_back(segment.ids);
  }
  std::vector<SegmentChunks> chunks;
  if (!ids.empty()) RETURN_IF_ERROR(model_.ForwardLower(ids, &chunks));
  MNEME_CHECK(chunks.size() == ids.size());
  size_t next = 0;
  for (const TailText& tail : batch) {
    std::vector<SegmentDerived> derived;
    for (const Segment& segment : tail.segments) {
      derived.push_back(
          DerivedFrom(segment, model_.derivation_fingerprint(), std::move(chunks[next++])));
    }
    absl::StatusOr<TailHandle> put = store_.PutTail(tail.cut, tail.shared_segments, derived);
    if (put.ok()) {
      tails->push_back(*std::move(put));
    } else if (!IsOfDocument(put.status()) && !absl::IsFailedPrecondition(put.status())) {
      return put.status();
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme
