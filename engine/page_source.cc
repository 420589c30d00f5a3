#include "engine/page_source.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/document_source.h"

namespace mneme {
namespace {

// A segment may be replaced, or its pages leave the host tier again, while we derive it.
constexpr int kRederiveMax = 3;
// Segments derived at one time, so that what waits to be stored stays small.
constexpr size_t kRederiveBatch = 64;

void LogGivenUp(DocumentId document, int64_t segment_index, const absl::Status& status) {
  LogWarning("engine", "pages of a segment could not be derived again",
             {{"document", absl::StrCat(static_cast<uint64_t>(document))},
              {"segment", absl::StrCat(segment_index)},
              {"status", status.ToString()}});
}

}  // namespace

absl::StatusOr<ReaderPages> PageSource::Pin(absl::Span<const ChunkAddress> chunks,
                                            absl::Span<const float> mass) {
  ReaderPages result;
  result.pages.assign(chunks.size(), nullptr);
  // Positions in `chunks` of what can be had.
  std::vector<size_t> wanted(chunks.size());
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = i;
  int rederived = 0;
  while (!wanted.empty()) {
    std::vector<ChunkAddress> addresses;
    std::vector<float> masses;
    addresses.reserve(wanted.size());
    masses.reserve(wanted.size());
    for (size_t i : wanted) {
      addresses.push_back(chunks[i]);
      masses.push_back(mass[i]);
    }
    absl::StatusOr<PinnedPages> pinned = store_.Pin(addresses, masses);
    if (absl::IsNotFound(pinned.status())) {
      const size_t before = wanted.size();
      std::erase_if(wanted, [&](size_t i) { return !store_.GetDocument(chunks[i].document).ok(); });
      if (wanted.size() == before) return pinned.status();
      continue;
    }
    if (!pinned.ok()) return pinned.status();
    if (!pinned->missing().empty() && rederived < kRederiveMax) {
      // The pins of this try are gone before the next: the pages must fit once, not twice.
      const std::vector<ChunkAddress> missing(pinned->missing().begin(), pinned->missing().end());
      pinned = absl::UnknownError("let go");
      RETURN_IF_ERROR(Rederive(missing));
      ++rederived;
      continue;
    }
    for (size_t at = 0; at < wanted.size(); ++at) result.pages[wanted[at]] = pinned->pages()[at];
    result.pinned = *std::move(pinned);
    break;
  }
  for (const uint8_t* page : result.pages) {
    if (page == nullptr) metrics_.pages_unavailable.Increment();
  }
  return result;
}

struct PageSource::Rederivation {
  DocumentId document{};
  int64_t segment_index = 0;
  PageRange pages;  // of the segment's chunks
  int64_t segment_byte_end = 0;
  std::vector<TokenId> ids;  // empty: not to be had
};

absl::Status PageSource::ReadTokens(Rederivation* work) const {
  ASSIGN_OR_RETURN(const SegmentDerived segment,
                   store_.GetSegment(work->document, work->segment_index));
  const auto chunks = static_cast<int>(segment.chunk_byte_begin.size());
  // Where they are kept, all: so that the disk has either all of a segment's pages or none.
  if (store_.KeepsPages(work->document)) work->pages = {0, chunks};
  if (work->pages.end > chunks) {
    return absl::FailedPreconditionError(
        absl::StrCat("the segment has ", chunks, " chunks now: no chunk ", work->pages.end - 1));
  }
  work->segment_byte_end = segment.byte_end;
  const int seen = std::min(work->pages.end + model_.config().halo_chunks(), chunks);
  ASSIGN_OR_RETURN(work->ids, ReadFirstTokens(model_, shape_, store_, segment, seen));
  return absl::OkStatus();
}

void PageSource::TryReadTokens(Rederivation* work) const {
  StageTimer timer(metrics_.rederive_read_seconds);
  const absl::Status status = ReadTokens(work);
  if (status.ok()) return;
  LogGivenUp(work->document, work->segment_index, status);
}

absl::Status PageSource::Derive(absl::Span<Rederivation> batch) {
  const auto end = std::stable_partition(batch.begin(), batch.end(),
                                         [](const Rederivation& one) { return !one.ids.empty(); });
  batch = batch.subspan(0, end - batch.begin());
  if (batch.empty()) return absl::OkStatus();
  std::vector<absl::Span<const TokenId>> ids;
  std::vector<PageRange> pages;
  for (const Rederivation& work : batch) {
    ids.push_back(work.ids);
    pages.push_back(work.pages);
    metrics_.tokens_rederived.Increment(work.ids.size());
  }
  std::vector<SegmentChunks> chunks;
  {
    StageTimer timer(metrics_.rederive_seconds);
    RETURN_IF_ERROR(model_.ForwardLower(ids, pages, &chunks));
  }
  StageTimer timer(metrics_.rederive_put_seconds);
  for (size_t i = 0; i < batch.size(); ++i) {
    const Rederivation& work = batch[i];
    const absl::Status put = store_.PutPages(work.document, work.segment_index, chunks[i].pages,
                                             work.segment_byte_end, work.pages.begin);
    if (put.ok()) {
      metrics_.pages_rederived.Increment(work.pages.end - work.pages.begin);
    } else {
      LogGivenUp(work.document, work.segment_index, put);
    }
  }
  return absl::OkStatus();
}

absl::Status PageSource::Rederive(absl::Span<const ChunkAddress> missing) {
  const int64_t segment_chunks = shape_.segment_tokens / shape_.chunk_tokens;
  std::map<std::pair<DocumentId, int64_t>, PageRange> segments;
  for (const ChunkAddress& chunk : missing) {
    const auto index = static_cast<int>(chunk.chunk_index % segment_chunks);
    const auto [it, is_new] = segments.try_emplace(
        {chunk.document, chunk.chunk_index / segment_chunks}, PageRange{index, index + 1});
    it->second.begin = std::min(it->second.begin, index);
    it->second.end = std::max(it->second.end, index + 1);
  }
  std::vector<Rederivation> work;
  work.reserve(segments.size());
  for (const auto& [segment, pages] : segments) {
    work.push_back({.document = segment.first, .segment_index = segment.second, .pages = pages});
  }
  // While a batch is derived the next one's text is read and encoded.
  absl::Span<Rederivation> read;
  for (size_t begin = 0; begin < work.size() || !read.empty(); begin += kRederiveBatch) {
    const absl::Span<Rederivation> next =
        absl::MakeSpan(work).subspan(std::min(begin, work.size()), kRederiveBatch);
    absl::Status derived;
    pool_.ParallelFor(static_cast<int64_t>(next.size()) + 1, [&](int64_t i) {
      if (i == 0) {
        derived = Derive(read);
      } else {
        TryReadTokens(&next[i - 1]);
      }
    });
    RETURN_IF_ERROR(derived);
    read = next;
  }
  return absl::OkStatus();
}

}  // namespace mneme
