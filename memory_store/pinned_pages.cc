// PinnedPages: the pages that a reader has asked for, brought into memory and held there. See
// memory_store_impl.h for the locks.

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "common/status_macros.h"
#include "memory_store/keys.h"
#include "memory_store/memory_store.h"
#include "memory_store/memory_store_impl.h"
#include "memory_store/records.h"

namespace mneme {

PinnedPages::PinnedPages() = default;
PinnedPages::~PinnedPages() = default;
PinnedPages::PinnedPages(PinnedPages&&) noexcept = default;
PinnedPages& PinnedPages::operator=(PinnedPages&&) noexcept = default;

absl::Span<const uint8_t* const> PinnedPages::pages() const {
  return impl_ ? absl::MakeConstSpan(impl_->pins.pages) : absl::Span<const uint8_t* const>();
}

bool PinnedPages::resident() const { return impl_ != nullptr && impl_->resident; }

absl::Span<const ChunkAddress> PinnedPages::missing() const {
  return impl_ ? absl::MakeConstSpan(impl_->missing) : absl::Span<const ChunkAddress>();
}

absl::Status MemoryStore::Impl::LoadPages(const absl::flat_hash_map<DocumentId, MemoryId>& memories,
                                          absl::Span<const PageId> ids,
                                          absl::Span<uint8_t* const> destinations,
                                          std::vector<bool>* found) const {
  std::vector<std::string> keys;
  std::vector<size_t> places;  // of the keys' pages: those of tails are never on disk
  for (size_t i = 0; i < ids.size(); ++i) {
    const PageId& id = ids[i];
    (*found)[i] = false;
    if (IsTail(id.document)) continue;
    keys.push_back(
        PageKey({memories.at(id.document), id.document}, id.segment_index, id.chunk_in_segment));
    places.push_back(i);
  }
  const std::vector<absl::StatusOr<std::string>> values = store.MultiGet(Table::kPages, keys);
  for (size_t at = 0; at < values.size(); ++at) {
    const size_t i = places[at];
    absl::Status status = values[at].status();
    if (absl::IsNotFound(status)) continue;
    if (status.ok()) {
      const absl::StatusOr<PageRecord> record = DecodePageRecord(keys[at], *values[at]);
      status = record.status();
      if (record.ok()) {
        // Of another model, or of the segment before it grew: as good as none.
        if (record->derivation_fingerprint != options.derivation_fingerprint ||
            record->segment_byte_end != ids[i].segment_byte_end ||
            static_cast<int64_t>(record->page.size()) != options.page_bytes) {
          continue;
        }
        std::memcpy(destinations[i], record->page.data(), record->page.size());
        (*found)[i] = true;
        continue;
      }
    }
    if (!absl::IsDataLoss(status)) return status;
    ReportDamage(RecordKind::kPage, status);
  }
  return absl::OkStatus();
}

absl::Status MemoryStore::Impl::LoadDevicePages(absl::Span<const PageId> ids,
                                                absl::Span<uint8_t* const> destinations,
                                                PagePool::Load load, std::vector<bool>* found) {
  ASSIGN_OR_RETURN(const PagePool::Pins pins, pool.PinAll(ids, load));
  const absl::Cleanup unpin = [this, &pins] { pool.Unpin(pins.slots); };
  for (size_t i = 0; i < ids.size(); ++i) {
    (*found)[i] = pins.pages[i] != nullptr;
    if (pins.pages[i] == nullptr) continue;
    RETURN_IF_ERROR(options.device->CopyIn(destinations[i], pins.pages[i], options.page_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::optional<PageId>>> MemoryStore::Impl::PagesNow(
    absl::Span<const ChunkAddress> chunks,
    absl::flat_hash_map<DocumentId, MemoryId>* memories) const {
  std::vector<std::optional<PageId>> ids(chunks.size());
  absl::ReaderMutexLock lock(&mutex_);
  for (size_t i = 0; i < chunks.size(); ++i) {
    const auto [document, chunk_index] = chunks[i];
    if (const std::shared_ptr<const Tail> tail = tails.Find(document); tail != nullptr) {
      const int64_t index = tail->SegmentOf(chunk_index);
      if (index < 0) continue;
      const SegmentEntry& of_tail = tail->segments[index - tail->shared_segments];
      ids[i] = PageId{document, index, of_tail.byte_end, chunk_index - of_tail.first_chunk};
      continue;
    }
    const DocumentEntry* entry = catalog.FindDocument(document);
    if (entry == nullptr) return NoDocument(document);
    (*memories)[document] = entry->key.memory;
    if (chunk_index < 0 || chunk_index >= entry->chunk_count()) continue;
    const auto segment = std::partition_point(entry->segments.begin(), entry->segments.end(),
                                              [chunk = chunk_index](const SegmentEntry& s) {
                                                return s.first_chunk <= chunk;
                                              }) -
                         1;
    ids[i] = PageId{document, segment - entry->segments.begin(), segment->byte_end,
                    chunk_index - segment->first_chunk};
  }
  return ids;
}

absl::StatusOr<PinnedPages> MemoryStore::Pin(absl::Span<const ChunkAddress> chunks,
                                             absl::Span<const float> mass) {
  Impl& impl = *impl_;
  absl::flat_hash_map<DocumentId, MemoryId> memories;
  const auto from_disk = [&impl, &memories](absl::Span<const PageId> page_ids,
                                            absl::Span<uint8_t* const> destinations,
                                            std::vector<bool>* found) {
    return impl.LoadPages(memories, page_ids, destinations, found);
  };
  const auto from_host = [&impl, &from_disk](absl::Span<const PageId> page_ids,
                                             absl::Span<uint8_t* const> destinations,
                                             std::vector<bool>* found) {
    return impl.LoadDevicePages(page_ids, destinations, from_disk, found);
  };
  ASSIGN_OR_RETURN(std::vector<std::optional<PageId>> ids, impl.PagesNow(chunks, &memories));
  while (true) {
    std::vector<PageId> wanted;
    std::vector<float> wanted_mass;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (!ids[i].has_value()) continue;
      wanted.push_back(*ids[i]);
      wanted_mass.push_back(mass.empty() ? 0 : mass[i]);
    }
    auto impl_pins = std::make_unique<PinnedPages::Impl>();
    const bool on_device = impl.device_pool != nullptr;
    impl_pins->resident = on_device;
    impl_pins->pool = on_device ? impl.device_pool.get() : &impl.pool;
    ASSIGN_OR_RETURN(PagePool::Pins pins,
                     on_device ? impl.device_pool->PinAll(wanted, from_host, wanted_mass)
                               : impl.pool.PinAll(wanted, from_disk, wanted_mass));
    impl_pins->pins.slots = std::move(pins.slots);
    size_t next = 0;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const uint8_t* page = ids[i].has_value() ? pins.pages[next++] : nullptr;
      impl_pins->pins.pages.push_back(page);
      if (page == nullptr) impl_pins->missing.push_back(chunks[i]);
    }
    if (!impl_pins->missing.empty()) {
      std::vector<DocumentId> documents;
      for (const ChunkAddress& chunk : chunks) documents.push_back(chunk.document);
      // A segment that was replaced meanwhile, or is just being, has its pages under other ids; a
      // document that is being deleted has none.
      absl::ReaderMutexLock gate(&impl.write_gate_);
      {
        absl::MutexLock lock(&impl.mutex_);
        impl.AwaitDerivations(documents);
      }
      ASSIGN_OR_RETURN(std::vector<std::optional<PageId>> ids_now,
                       impl.PagesNow(chunks, &memories));
      if (ids_now != ids) {
        ids = std::move(ids_now);
        continue;
      }
    }
    PinnedPages result;
    result.impl_ = std::move(impl_pins);
    return result;
  }
}

}  // namespace mneme
