// MemoryStore: memories as they were. Every piece of text has the time at which it was written, so
// a moment cuts each document at one byte: all segments that end before it and can no longer change
// are shared, the rest is a tail, which the engine derives. See memory_store_impl.h for the locks.

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/container/btree_map.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "memory_store/keys.h"
#include "memory_store/memory_store.h"
#include "memory_store/memory_store_impl.h"
#include "memory_store/records.h"
#include "memory_store/view_cache.h"

namespace mneme {
namespace {

constexpr int64_t kAllSegments = std::numeric_limits<int64_t>::max();
// Cuts remembered, at most.
constexpr size_t kCutsMax = 100'000;

absl::Time InMicroseconds(absl::Time time) {
  if (time == absl::InfiniteFuture() || time == absl::InfinitePast()) return time;
  return absl::FromUnixMicros(absl::ToUnixMicros(time));
}

// What a view shows of one memory.
struct Level {
  const MemoryEntry* memory = nullptr;  // while the lock is held
  bool whole = false;                   // all of it, as it is
  ViewCache::Key key;
  absl::Time until = absl::InfinitePast();  // the latest moment that is shown
  uint64_t version = 0;
  std::shared_ptr<const PastPart> part;  // kept from an earlier view, or made for this one
  // Of one that is to be made: documents, up to which moment, and how many segments of each.
  absl::flat_hash_map<DocumentId, absl::Time> seen_until;
  absl::flat_hash_map<DocumentId, int64_t> segments;
  absl::Time expire_time = absl::InfiniteFuture();  // of the first of them
  // Of those that have not grown since a moment and may yet: where they end.
  absl::flat_hash_map<DocumentId, int64_t> ends;
  // Of those that have grown since: the moment, until it is known where they ended then.
  std::vector<std::pair<DocumentId, absl::Time>> grown;
  std::vector<DocumentCut> cuts;
  std::vector<TailHandle> tails;
  std::shared_ptr<const LandmarkSnapshot> snapshot;  // of all of the memory
};
using Levels = std::map<MemoryId, Level>;

// Sources in order, each once.
void Normalize(ViewCache::Key* key) {
  std::sort(key->sources.begin(), key->sources.end(), [](const ReadSource& a, const ReadSource& b) {
    return std::pair(a.memory, a.as_of) < std::pair(b.memory, b.as_of);
  });
  key->sources.erase(std::unique(key->sources.begin(), key->sources.end()), key->sources.end());
}

// Adds the memories that a source shows something of.
void AddLevels(const MemoryEntry& reader, const ReadSource& source, absl::Time now,
               Levels* levels) {
  absl::Time until = source.as_of;
  for (const MemoryEntry* m = &reader; m != nullptr; m = m->base) {
    Level& level = (*levels)[m->info.uid];
    level.memory = m;
    level.key.memory = m->info.uid;
    level.key.sources.push_back(source);
    level.until = std::max(level.until, until);
    const bool expired = !m->expiring.empty() && m->expiring.begin()->first <= now;
    level.whole |= m == &reader && source.as_of == absl::InfiniteFuture() && !expired &&
                   m->dropped_by_id.empty();
    if (m->base != nullptr) until = std::min(until, m->info.base->as_of);
  }
}

// Errors as ViewPast.
absl::StatusOr<Levels> LevelsOf(const Catalog& catalog, absl::Span<const ReadSource> sources,
                                absl::Time now) {
  Levels levels;
  for (const ReadSource& source : sources) {
    const MemoryEntry* memory = catalog.FindLiveMemory(source.memory);
    if (memory == nullptr) return NoMemory(source.memory);
    AddLevels(*memory, source, now, &levels);
  }
  for (auto& [uid, level] : levels) {
    Normalize(&level.key);
    level.version = level.memory->changes.Version(level.until);
  }
  return levels;
}

// The documents of a level's memory that one of its sources shows.
void AddDocuments(const MemoryEntry& reader, absl::Time as_of, absl::Time now, Level* level) {
  for (const auto& [uid, document] : level->memory->documents) {
    if (document->expire_time <= now || document->create_time > as_of) continue;
    const std::optional<absl::Time> seen = SeenUntil(reader, *document);
    if (!seen.has_value()) continue;
    const absl::Time until = std::min(*seen, as_of);
    if (document->create_time > until) continue;
    const auto [it, is_new] = level->seen_until.try_emplace(uid, until);
    it->second = std::max(it->second, until);
    level->expire_time = std::min(level->expire_time, document->expire_time);
  }
}

// Which of these documents have grown since; and those of which not all text is visible yet.
void FindGrown(Level* level, PastView* past) {
  for (const auto& [document, until] : level->seen_until) {
    const DocumentEntry& entry = *level->memory->documents.at(document);
    level->segments[document] = kAllSegments;
    if (entry.append_time > until) {
      level->grown.emplace_back(document, until);
      continue;
    }
    if (until == absl::InfiniteFuture()) continue;
    if (!entry.sealed) level->ends[document] = entry.durable_bytes;
    if (!entry.damaged && entry.visible_bytes() < entry.durable_bytes) {
      past->lagging.push_back({document, entry.durable_bytes});
    }
  }
}

// Which have grown after FindGrown has looked.
void FindGrownSince(const Catalog& catalog, MemoryId memory, Level* level) {
  const MemoryEntry* const entry = catalog.FindMemory(memory);
  if (entry == nullptr || entry->changes.Version(level->until) == level->version) return;
  absl::erase_if(level->ends, [&catalog, level](const auto& end) {
    const DocumentEntry* const document = catalog.FindDocument(end.first);
    const absl::Time until = level->seen_until.at(end.first);
    if (document == nullptr || document->append_time <= until) return false;
    level->grown.emplace_back(end.first, until);
    return true;
  });
}

// How many segments of a document that has grown go into the view, and its tail, if that is there.
void FindTail(const DocumentEntry& entry, const DocumentCut& cut, TailCache* tails, Level* level,
              PastView* past) {
  int64_t& segments = level->segments[cut.document];
  segments = 0;
  if (cut.cut_bytes == 0) return;
  if (cut.cut_bytes == entry.durable_bytes && entry.visible_bytes() == cut.cut_bytes) {
    segments = kAllSegments;  // what came since was the seal alone
    return;
  }
  const auto segment_count = static_cast<int64_t>(entry.segments.size());
  std::shared_ptr<const Tail> tail = tails->Find(cut.document, cut.cut_bytes);
  if (tail != nullptr && tail->shared_segments > 0 && tail->shared_segments <= segment_count &&
      entry.segments[tail->shared_segments - 1].byte_end != tail->shared_bytes) {
    tail = nullptr;
  }
  if (tail == nullptr) {
    if (entry.damaged) return;
    (entry.visible_bytes() < cut.cut_bytes ? past->lagging : past->wanting).push_back(cut);
    return;
  }
  if (tail->shared_segments > segment_count) {
    past->lagging.push_back({cut.document, tail->shared_bytes});
  }
  segments = tail->shared_segments;
  level->tails.push_back(std::move(tail));
}

// The snapshot of a level's memory, and the tails of what has grown there.
void FindTails(const Catalog& catalog, MemoryId memory, TailCache* tails, Level* level,
               PastView* past) {
  MemoryEntry* const entry = catalog.FindMemory(memory);
  level->snapshot =
      entry == nullptr ? std::make_shared<LandmarkSnapshot>() : entry->landmarks.Snapshot();
  for (const DocumentCut& cut : level->cuts) {
    const DocumentEntry* document = catalog.FindDocument(cut.document);
    if (document != nullptr) FindTail(*document, cut, tails, level, past);
  }
}

// A part of the snapshot of a memory, with tails.
std::shared_ptr<const PastPart> MakePart(Level* level, int64_t landmark_bytes) {
  auto part = std::make_shared<PastPart>();
  part->tails = std::move(level->tails);
  part->cuts = std::move(level->ends);
  for (const DocumentCut& cut : level->cuts) part->cuts[cut.document] = cut.cut_bytes;
  const auto keep = [&shown = level->segments](const LandmarkBlock::Segment& segment) {
    const auto it = shown.find(segment.document);
    return it != shown.end() && segment.segment_index < it->second;
  };
  const auto own = std::make_shared<const LandmarkSnapshot>(
      FilterSnapshot(*level->snapshot, keep, landmark_bytes));
  std::sort(part->tails.begin(), part->tails.end(), [](const TailHandle& a, const TailHandle& b) {
    return a->document.document < b->document.document;
  });
  const auto tails = std::make_shared<LandmarkSnapshot>();
  for (const TailHandle& tail : part->tails) {
    for (const LandmarkRun& run : tail->landmarks->runs) {
      tails->Append(run.block, run.segment_begin, run.segment_end, landmark_bytes, tail->handle);
    }
  }
  part->landmarks =
      std::make_shared<const LandmarkSnapshot>(MergeSnapshots({own, tails}, landmark_bytes));
  return part;
}

}  // namespace

absl::Time MemoryStore::Impl::BeginWrite() {
  last_write =
      std::max({InMicroseconds(clock.Now()), last_write, last_fixed + absl::Microseconds(1)});
  writes_under_way.insert(last_write);
  return last_write;
}

void MemoryStore::Impl::EndWrite(absl::Time moment) {
  writes_under_way.erase(writes_under_way.find(moment));
}

absl::StatusOr<absl::Time> MemoryStore::Impl::FixMoment(absl::Time as_of) {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = std::max(InMicroseconds(clock.Now()), last_write);
  as_of = as_of == absl::InfiniteFuture() ? now : InMicroseconds(as_of);
  if (as_of > now) {
    return absl::InvalidArgumentError(
        absl::StrCat("as_of ", absl::FormatTime(as_of, absl::UTCTimeZone()),
                     " is in the future: it is ", absl::FormatTime(now, absl::UTCTimeZone())));
  }
  last_fixed = std::max(last_fixed, as_of);
  const auto all_written = [this, as_of]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return writes_under_way.empty() || *writes_under_way.begin() > as_of;
  };
  mutex_.Await(absl::Condition(&all_written));
  return as_of;
}

absl::StatusOr<int64_t> MemoryStore::Impl::CutAt(DocumentId document, absl::Time as_of) const {
  DocumentKey document_key;
  absl::Time create_time;
  int64_t durable_bytes = 0;
  bool end_unknown = false;
  {
    absl::ReaderMutexLock lock(&mutex_);
    const DocumentEntry* entry = catalog.FindDocument(document);
    if (entry == nullptr) return NoDocument(document);
    if (entry->append_time <= as_of) return entry->durable_bytes;
    if (entry->create_time > as_of) return 0;
    document_key = entry->key;
    create_time = entry->create_time;
    durable_bytes = entry->durable_bytes;
    end_unknown = entry->text_end_unknown;
  }
  {
    absl::MutexLock lock(&cuts_mutex_);
    const auto known = cuts.find({document, as_of});
    if (known != cuts.end()) return known->second;
  }
  // Text before `low` was there, text from `high` on was not: the pieces' times ascend.
  int64_t low = 0, high = durable_bytes;
  while (low < high) {
    const int64_t at = low + (high - low) / 2;
    absl::Status damage = absl::DataLossError(absl::StrCat(
        "text of document ", static_cast<uint64_t>(document), ": byte ", at, " is missing"));
    const absl::Status status =
        store.Scan(Table::kText, TextKey(document_key, at), RecordKeyRange(document_key).second,
                   [&](absl::string_view key, absl::string_view value) {
                     DocumentKey piece_document;
                     int64_t offset = 0;
                     const absl::StatusOr<TextRecord> record = DecodeTextRecord(key, value);
                     if (!record.ok()) damage = record.status();
                     if (!record.ok() || !ParseTextKey(key, &piece_document, &offset)) return false;
                     const int64_t end = offset + static_cast<int64_t>(record->text.size());
                     if (offset > at || end <= at) return false;
                     damage = absl::OkStatus();
                     const absl::Time time =
                         record->time_us == 0 ? create_time : absl::FromUnixMicros(record->time_us);
                     if (time <= as_of) {
                       low = std::max(low, end);
                     } else {
                       high = std::min(high, offset);
                     }
                     return false;
                   });
    RETURN_IF_ERROR(status);
    RETURN_IF_ERROR(damage);
  }
  if (end_unknown && low == durable_bytes) {
    return absl::DataLossError(absl::StrCat("text of document ", static_cast<uint64_t>(document),
                                            ": nobody knows where it ends"));
  }
  absl::MutexLock lock(&cuts_mutex_);
  if (cuts.size() >= kCutsMax) cuts.clear();
  cuts[{document, as_of}] = low;
  return low;
}

absl::StatusOr<int64_t> MemoryStore::Impl::FindCut(DocumentId document, absl::Time as_of) {
  while (true) {
    int64_t bytes = 0;
    {
      absl::ReaderMutexLock lock(&mutex_);
      const DocumentEntry* entry = catalog.FindDocument(document);
      if (entry == nullptr) return NoDocument(document);
      bytes = entry->durable_bytes;
    }
    const absl::StatusOr<int64_t> cut = CutAt(document, as_of);
    if (!absl::IsDataLoss(cut.status())) return cut;
    const absl::Status marked = MarkTextDamaged(document, bytes, cut.status());
    if (!absl::IsOutOfRange(marked)) return marked;
  }
}

DocumentInfo MemoryStore::Impl::SharedInfo(const DocumentEntry& document,
                                           const MemoryEntry& memory) const {
  DocumentInfo info = document.Info();
  if (document.memory == &memory) return info;
  info.memory = memory.info.uid;
  info.shared = true;
  info.sealed = true;
  return info;
}

absl::StatusOr<DocumentInfo> MemoryStore::Impl::CutInfo(DocumentInfo info, absl::Time until) {
  if (until == absl::InfiniteFuture()) return info;
  const absl::StatusOr<int64_t> cut = FindCut(info.uid, until);
  if (absl::IsDataLoss(cut.status())) {
    info.damaged = true;
    return info;
  }
  RETURN_IF_ERROR(cut.status());
  if (*cut >= info.durable_bytes) return info;
  info.durable_bytes = *cut;
  info.visible_bytes = std::min(info.visible_bytes, *cut);
  info.token_count = 0;
  info.chunk_count = 0;
  absl::MutexLock lock(&mutex_);  // the tails are sorted by use
  const DocumentEntry* entry = catalog.FindDocument(info.uid);
  if (entry == nullptr) return NoDocument(info.uid);
  const std::shared_ptr<const Tail> tail = tails.Find(info.uid, *cut);
  const auto add = [&info](const SegmentEntry& segment) {
    info.token_count += segment.token_count;
    info.chunk_count += segment.chunk_count;
  };
  for (size_t i = 0; i < entry->segments.size(); ++i) {
    if (entry->segments[i].byte_end > *cut) break;
    if (tail == nullptr || static_cast<int64_t>(i) < tail->shared_segments) add(entry->segments[i]);
  }
  if (tail != nullptr) std::for_each(tail->segments.begin(), tail->segments.end(), add);
  return info;
}

absl::StatusOr<int64_t> MemoryStore::Impl::ShownBytes(DocumentId document, absl::Time until) {
  const absl::StatusOr<int64_t> cut = FindCut(document, until);
  // Of damaged text nobody knows what was there then: the view goes on without it.
  if (absl::IsDataLoss(cut.status()) || absl::IsNotFound(cut.status())) return 0;
  return cut;
}

absl::StatusOr<PastView> MemoryStore::ViewPast(absl::Span<const ReadSource> sources) const {
  Impl& impl = *impl_;
  std::vector<ReadSource> fixed(sources.begin(), sources.end());
  for (ReadSource& source : fixed) {
    if (source.as_of == absl::InfiniteFuture()) continue;
    ASSIGN_OR_RETURN(source.as_of, impl.FixMoment(source.as_of));
  }
  PastView past;
  Levels levels;
  const absl::Time now = impl.clock.Now();
  const uint64_t generation = impl.views.generation();
  {
    absl::ReaderMutexLock lock(&impl.mutex_);
    ASSIGN_OR_RETURN(levels, LevelsOf(impl.catalog, fixed, now));
    for (auto& [uid, level] : levels) {
      if (level.whole) continue;
      level.part = impl.views.Find(level.key, level.version, now);
      if (level.part != nullptr) {
        impl.views_reused.Increment();
        continue;
      }
      for (const ReadSource& source : level.key.sources) {
        AddDocuments(*impl.catalog.FindLiveMemory(source.memory), source.as_of, now, &level);
      }
      FindGrown(&level, &past);
    }
  }
  // What grows meanwhile must not show: its end is looked for too, once for each document.
  for (bool all_found = false; !all_found;) {
    for (auto& [uid, level] : levels) {
      for (const auto& [document, until] : std::exchange(level.grown, {})) {
        ASSIGN_OR_RETURN(const int64_t cut_bytes, impl.ShownBytes(document, until));
        level.cuts.push_back({document, cut_bytes});
      }
    }
    absl::MutexLock lock(&impl.mutex_);  // snapshots may have to be made
    all_found = true;
    for (auto& [uid, level] : levels) {
      FindGrownSince(impl.catalog, uid, &level);
      all_found &= level.grown.empty();
    }
    for (auto& [uid, level] : levels) {
      if (all_found && level.part == nullptr) {
        FindTails(impl.catalog, uid, &impl.tails, &level, &past);
      }
    }
  }
  if (!past.wanting.empty() || !past.lagging.empty()) {
    for (auto& [uid, level] : levels) {
      std::move(level.tails.begin(), level.tails.end(), std::back_inserter(past.tails));
    }
    return past;
  }

  std::vector<std::shared_ptr<const LandmarkSnapshot>> snapshots;
  std::vector<std::shared_ptr<const PastPart>> parts;
  for (auto& [uid, level] : levels) {
    if (!level.whole && level.part == nullptr) {
      level.part = MakePart(&level, impl.options.landmark_bytes);
      impl.views_made.Increment();
      impl.views.Put(level.key, level.version, level.expire_time, level.part, generation);
    }
    snapshots.push_back(level.whole ? level.snapshot : level.part->landmarks);
    if (!level.whole) parts.push_back(level.part);
  }
  std::erase_if(snapshots, [](const auto& snapshot) { return snapshot->chunk_count == 0; });
  past.view.emplace().impl_ = impl.ShowTogether(snapshots, std::move(parts));
  return past;
}

absl::Status MemoryStore::Impl::AddTail(std::shared_ptr<Tail> tail,
                                        absl::flat_hash_set<DocumentId>* gone) {
  std::vector<DocumentId> handles;
  // The one before, if any, does not fit its document any more.
  handles = tails.EraseOne(tail->document.document, tail->cut_bytes);
  if (!handles.empty()) views.Clear();
  bool has_room = tails.MakeRoom(tail->bytes, options.tail_bytes_max, &handles);
  if (!has_room) {
    // Views that are kept, and that nobody reads, use tails too.
    views.Clear();
    has_room = tails.MakeRoom(tail->bytes, options.tail_bytes_max, &handles);
  }
  gone->insert(handles.begin(), handles.end());
  if (has_room) {
    tail->handle = tails.NewHandle();
    tails.Add(tail);
  }
  tail_bytes_gauge.Set(static_cast<double>(tails.bytes()));
  if (has_room) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the tails that questions about the past read have ", tails.bytes(),
                   " bytes of landmarks, and one of ", tail->bytes, " does not fit; limit ",
                   options.tail_bytes_max));
}

void MemoryStore::Impl::ForgetEvictedTails() {
  absl::flat_hash_set<DocumentId> evicted;
  {
    absl::ReaderMutexLock lock(&mutex_);
    evicted = tails.evicted();
  }
  if (evicted.empty()) return;
  for (const DocumentId held : PagesHeld(evicted)) evicted.erase(held);
  absl::MutexLock lock(&mutex_);
  tails.ForgetEvicted(evicted);
}

absl::StatusOr<TailHandle> MemoryStore::PutTail(const DocumentCut& cut, int64_t shared_segments,
                                                absl::Span<const SegmentDerived> segments) {
  Impl& impl = *impl_;
  for (const SegmentDerived& segment : segments) {
    RETURN_IF_ERROR(CheckSegment(segment, impl.options));
  }
  // A deletion would not find pages that come after it.
  absl::ReaderMutexLock gate(&impl.write_gate_);
  absl::flat_hash_set<DocumentId> gone;
  std::shared_ptr<Tail> tail;
  absl::Status added;
  {
    absl::MutexLock lock(&impl.mutex_);
    const DocumentEntry* entry = impl.catalog.FindDocument(cut.document);
    if (entry == nullptr) return NoDocument(cut.document);
    ASSIGN_OR_RETURN(tail, MakeTail(*entry, cut, shared_segments, segments,
                                    impl.options.landmark_bytes, &impl.catalog.landmark_blocks()));
    added = impl.AddTail(tail, &gone);
  }
  // Also when there is no room: nobody knows the handles of those that went.
  impl.EraseDocumentPages(gone);
  impl.ForgetEvictedTails();
  RETURN_IF_ERROR(added);
  impl.tails_counter.Increment();
  for (const SegmentDerived& segment : segments) {
    if (segment.pages.empty()) continue;
    impl.pool.Insert(PageIds(tail->handle, segment.segment_index, segment.byte_end,
                             static_cast<int64_t>(segment.chunk_byte_begin.size())),
                     segment.pages.data());
  }
  return tail;
}

}  // namespace mneme
