// LandmarkView: the landmarks that a question scans, and the chunks behind them; and the view of
// memories as they are. See memory_store_impl.h for the locks.

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "memory_store/memory_store.h"
#include "memory_store/memory_store_impl.h"

namespace mneme {

LandmarkView::LandmarkView() = default;
LandmarkView::~LandmarkView() = default;
LandmarkView::LandmarkView(const LandmarkView&) = default;
LandmarkView& LandmarkView::operator=(const LandmarkView&) = default;

int64_t LandmarkView::chunk_count() const { return impl_ ? impl_->snapshot->chunk_count : 0; }

absl::Span<const LandmarkSlab> LandmarkView::slabs() const {
  if (impl_ == nullptr) return {};
  return impl_->device.has_value() ? impl_->device->slabs : impl_->snapshot->slabs;
}

bool LandmarkView::slabs_resident() const {
  return impl_ != nullptr && impl_->device.has_value() && impl_->device->resident;
}

ChunkText LandmarkView::Locate(int64_t index) const {
  MNEME_CHECK(index >= 0 && index < chunk_count());
  const std::vector<LandmarkRun>& runs = impl_->snapshot->runs;
  const LandmarkRun& run =
      *(std::partition_point(runs.begin(), runs.end(),
                             [index](const LandmarkRun& r) { return r.first_index <= index; }) -
        1);
  const LandmarkBlock& block = *run.block;
  const int64_t row = block.segments[run.segment_begin].first_row + index - run.first_index;
  const LandmarkBlock::Segment& segment = *(
      std::partition_point(block.segments.begin(), block.segments.end(),
                           [row](const LandmarkBlock::Segment& s) { return s.first_row <= row; }) -
      1);
  const bool last_of_segment = row + 1 == segment.first_row + segment.row_count;
  ChunkText text;
  text.address = {run.tail == DocumentId{} ? segment.document : run.tail,
                  segment.first_chunk + row - segment.first_row};
  text.document = segment.document;
  text.byte_begin = block.byte_begin[row];
  text.byte_end = last_of_segment ? segment.byte_end : block.byte_begin[row + 1];
  for (const auto& part : impl_->parts) {
    const auto cut = part->cuts.find(segment.document);
    if (cut != part->cuts.end()) text.document_end = cut->second;
  }
  return text;
}

absl::StatusOr<LandmarkView> MemoryStore::View(absl::Span<const MemoryId> memories) const {
  const absl::btree_set<MemoryId> distinct(memories.begin(), memories.end());
  std::vector<std::shared_ptr<const LandmarkSnapshot>> snapshots;
  absl::flat_hash_set<DocumentId> left_out;  // expired, or dropped
  const absl::Time now = impl_->clock.Now();
  {
    absl::MutexLock lock(&impl_->mutex_);  // a snapshot may have to be made
    for (const MemoryId memory : distinct) {
      MemoryEntry* entry = impl_->catalog.FindLiveMemory(memory);
      if (entry == nullptr) return NoMemory(memory);
      if (entry->info.base.has_value()) {
        return absl::FailedPreconditionError(
            absl::StrCat("memory ", static_cast<uint64_t>(memory), " is a fork: see ViewPast"));
      }
      snapshots.push_back(entry->landmarks.Snapshot());
      for (const auto& [time, document] : entry->expiring) {
        if (time > now) break;
        left_out.insert(document);
      }
      for (const auto& [id, documents] : entry->dropped_by_id) {
        for (const DocumentEntry* document : documents) left_out.insert(document->key.document);
      }
    }
  }
  if (!left_out.empty()) {
    for (auto& snapshot : snapshots) {
      snapshot = std::make_shared<const LandmarkSnapshot>(FilterSnapshot(
          *snapshot, [&left_out](const auto& s) { return !left_out.contains(s.document); },
          impl_->options.landmark_bytes));
    }
  }
  LandmarkView view;
  view.impl_ = impl_->ShowTogether(snapshots, {});
  return view;
}

std::shared_ptr<const LandmarkView::Impl> MemoryStore::Impl::ShowTogether(
    const std::vector<std::shared_ptr<const LandmarkSnapshot>>& snapshots,
    std::vector<std::shared_ptr<const PastPart>> parts) const {
  auto view = std::make_shared<LandmarkView::Impl>();
  view->snapshot = snapshots.size() == 1 ? snapshots[0]
                                         : std::make_shared<const LandmarkSnapshot>(
                                               MergeSnapshots(snapshots, options.landmark_bytes));
  view->parts = std::move(parts);
  if (device_landmarks != nullptr) view->device = device_landmarks->Resident(*view->snapshot);
  return view;
}

}  // namespace mneme
