#include "memory_store/page_pool.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace mneme {
namespace {

constexpr size_t kPageAlignment = 64;
constexpr int64_t kSlabBytes = int64_t{1} << 20;
// A read counts for this much beside the weight that it gives, which is 1 for all chunks of a token
// together. With less, what is read all the time for little is fetched each time; with more, weight
// decides nothing (bench/page_pool_bench).
constexpr float kMassOfARead = 0.5f;
// What a page's mass comes to at most, so that one that was hot for long can be outweighed.
constexpr float kMassMax = 64;
// Mass halves with as many hits as this many times the pool's slots.
constexpr double kHalfLifeOfSlots = 4;
// Of the oldest pages of the main queue, as many are compared.
constexpr int kVictimsCompared = 8;

Counter& ReadsCounter(Metrics& metrics, const char* tier) {
  return metrics.AddCounter("page_reads_total", "Pages asked for, by the tier that had them.",
                            {{"tier", tier}});
}

}  // namespace

PagePool::Tier PagePool::HostTier() {
  const auto allocate = [](int64_t bytes) -> absl::StatusOr<Buffer> {
    constexpr std::align_val_t kAlignment{kPageAlignment};
    return Buffer(
        ::operator new[](static_cast<size_t>(bytes), kAlignment), bytes,
        [](void*, void* data) { ::operator delete[](data, kAlignment); }, nullptr);
  };
  const auto wipe = [](uint8_t* page, int64_t bytes) {
    std::memset(page, 0, static_cast<size_t>(bytes));
  };
  return {.name = "host", .allocate = allocate, .wipe = wipe, .counts_loads = true};
}

PagePool::PagePool(int64_t page_bytes, int64_t bytes_max, Metrics& metrics, Tier tier)
    : tier_(std::move(tier)),
      page_bytes_(page_bytes),
      slot_count_max_(
          std::clamp<int64_t>(bytes_max / page_bytes, 0, std::numeric_limits<SlotIndex>::max())),
      small_count_target_(slot_count_max_ / 10),
      own_reads_(ReadsCounter(metrics, tier_.name)),
      disk_reads_(tier_.counts_loads ? &ReadsCounter(metrics, "disk") : nullptr),
      missing_reads_(tier_.counts_loads ? &ReadsCounter(metrics, "missing") : nullptr),
      evictions_(metrics.AddCounter("page_evictions_total",
                                    "Pages that left a tier in memory to make room.",
                                    {{"tier", tier_.name}})) {}

absl::StatusOr<PagePool::Pins> PagePool::PinAll(absl::Span<const PageId> ids, Load load,
                                                absl::Span<const float> mass) {
  MNEME_CHECK(mass.empty() || mass.size() == ids.size());
  Pins pins;
  pins.slots.assign(ids.size(), -1);
  pins.pages.assign(ids.size(), nullptr);
  std::vector<size_t> todo(ids.size());
  for (size_t i = 0; i < todo.size(); ++i) todo[i] = i;
  // One round, unless another thread's load, on which this one waited, failed: then its pages are
  // tried again here.
  while (!todo.empty()) {
    std::vector<size_t> to_load, to_await;
    std::vector<PageId> load_ids;
    std::vector<uint8_t*> destinations;
    {
      absl::MutexLock lock(&mutex_);
      for (const size_t i : todo) {
        if (const auto it = index_.find(ids[i]); it != index_.end()) {
          Slot& slot = slots_[it->second];
          pins.slots[i] = it->second;
          Pin(it->second);
          ++hits_;
          Add(kMassOfARead + (mass.empty() ? 0 : mass[i]), &slot.mass);
          if (slot.state == State::kReady) {
            own_reads_.Increment();
          } else {
            to_await.push_back(i);
          }
          continue;
        }
        pins.slots[i] = Take(ids[i]);
        if (pins.slots[i] < 0) {
          // Nobody has seen these: they were taken under this lock.
          for (const size_t loading : to_load) Unlink(pins.slots[loading]);
          for (const SlotIndex slot : pins.slots) {
            if (slot >= 0) UnpinOne(slot);
          }
          return absl::ResourceExhaustedError(absl::StrCat(
              "pinned pages fill the ", tier_.name, " tier: ", pinned_count_ * page_bytes_, " of ",
              limit_bytes(), " bytes are pinned by others, ", ids.size() * page_bytes_,
              " more asked for"));
        }
        Add(kMassOfARead + (mass.empty() ? 0 : mass[i]), &slots_[pins.slots[i]].mass);
        to_load.push_back(i);
        load_ids.push_back(ids[i]);
        destinations.push_back(slots_[pins.slots[i]].data);
      }
    }

    std::vector<bool> found(to_load.size(), true);
    absl::Status status;
    if (!to_load.empty()) status = load(load_ids, destinations, &found);

    todo.clear();
    absl::MutexLock lock(&mutex_);
    for (size_t n = 0; n < to_load.size(); ++n) {
      SlotIndex& index = pins.slots[to_load[n]];
      if (status.ok() && found[n]) {
        slots_[index].state = State::kReady;
        if (disk_reads_ != nullptr) disk_reads_->Increment();
        continue;
      }
      if (status.ok() && missing_reads_ != nullptr) missing_reads_->Increment();
      slots_[index].state = status.ok() ? State::kAbsent : State::kFailed;
      Unlink(index);
      UnpinOne(index);
      index = -1;
    }
    // Own loads are done, so two threads that wait for each other's both get on.
    for (const size_t i : to_await) {
      const Slot& slot = slots_[pins.slots[i]];
      const auto loaded = [&slot] { return slot.state != State::kLoading; };
      mutex_.Await(absl::Condition(&loaded));
      if (slot.state == State::kReady) {
        own_reads_.Increment();
        continue;
      }
      if (slot.state == State::kAbsent && missing_reads_ != nullptr) missing_reads_->Increment();
      if (slot.state == State::kFailed) todo.push_back(i);
      UnpinOne(pins.slots[i]);
      pins.slots[i] = -1;
    }
    if (!status.ok()) {
      for (const SlotIndex slot : pins.slots) {
        if (slot >= 0) UnpinOne(slot);
      }
      return status;
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      if (pins.slots[i] >= 0) pins.pages[i] = slots_[pins.slots[i]].data;
    }
  }
  return pins;
}

void PagePool::Unpin(absl::Span<const SlotIndex> slots) {
  absl::MutexLock lock(&mutex_);
  for (const SlotIndex slot : slots) {
    if (slot >= 0) UnpinOne(slot);
  }
}

void PagePool::Insert(absl::Span<const PageId> ids, const uint8_t* data) {
  std::vector<std::pair<SlotIndex, uint8_t*>> taken;  // first ids.size() at most, in order
  taken.reserve(ids.size());
  {
    absl::MutexLock lock(&mutex_);
    for (const PageId& id : ids) {
      if (const auto it = index_.find(id); it != index_.end()) Unlink(it->second);
      const SlotIndex slot = Take(id);
      if (slot < 0) break;
      taken.emplace_back(slot, slots_[slot].data);
    }
  }
  for (size_t i = 0; i < taken.size(); ++i) {
    std::memcpy(taken[i].second, data + i * page_bytes_, page_bytes_);
  }
  absl::MutexLock lock(&mutex_);
  for (const auto& [slot, destination] : taken) {
    slots_[slot].state = State::kReady;
    UnpinOne(slot);
  }
}

void PagePool::Erase(absl::Span<const PageId> ids) {
  absl::MutexLock lock(&mutex_);
  for (const PageId& id : ids) {
    if (const auto it = index_.find(id); it != index_.end()) Unlink(it->second);
  }
}

void PagePool::EraseDocuments(const absl::flat_hash_set<DocumentId>& documents) {
  absl::MutexLock lock(&mutex_);
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].indexed && documents.contains(slots_[i].id.document)) {
      Unlink(static_cast<SlotIndex>(i));
    }
  }
}

absl::flat_hash_set<DocumentId> PagePool::Held(
    const absl::flat_hash_set<DocumentId>& documents) const {
  absl::flat_hash_set<DocumentId> held;
  absl::MutexLock lock(&mutex_);
  for (const Slot& slot : slots_) {
    if (slot.state != State::kFree && documents.contains(slot.id.document)) {
      held.insert(slot.id.document);
    }
  }
  return held;
}

int64_t PagePool::used_bytes() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int64_t>(slots_.size() - free_.size()) * page_bytes_;
}

int64_t PagePool::pinned_bytes() const {
  absl::MutexLock lock(&mutex_);
  return pinned_count_ * page_bytes_;
}

void PagePool::Enqueue(SlotIndex index) {
  Slot& slot = slots_[index];
  Fifo& fifo = FifoOf(slot);
  slot.queued = true;
  slot.previous = -1;
  slot.next = fifo.head;
  if (fifo.head >= 0) slots_[fifo.head].previous = index;
  fifo.head = index;
  if (fifo.tail < 0) fifo.tail = index;
  ++fifo.size;
}

void PagePool::Dequeue(SlotIndex index) {
  Slot& slot = slots_[index];
  Fifo& fifo = FifoOf(slot);
  (slot.previous >= 0 ? slots_[slot.previous].next : fifo.head) = slot.next;
  (slot.next >= 0 ? slots_[slot.next].previous : fifo.tail) = slot.previous;
  slot.queued = false;
  --fifo.size;
}

PagePool::SlotIndex PagePool::Take(const PageId& id) {
  const SlotIndex index = FreeSlot();
  if (index < 0) return -1;
  Slot& slot = slots_[index];
  slot.id = id;
  slot.state = State::kLoading;
  slot.mass = {0, hits_};
  slot.queue = Queue::kSmall;
  if (const auto ghost = ghosts_.find(id); ghost != ghosts_.end()) {
    ++hits_;
    slot.mass = ghost->second.mass;
    ghosts_.erase(ghost);
  }
  slot.indexed = true;
  slot.pins = 1;
  ++pinned_count_;
  index_[id] = index;
  return index;
}

PagePool::SlotIndex PagePool::FreeSlot() {
  if (free_.empty() && static_cast<int64_t>(slots_.size()) < slot_count_max_) {
    const int64_t first = static_cast<int64_t>(slots_.size());
    const int64_t count =
        std::min(std::max<int64_t>(1, kSlabBytes / page_bytes_), slot_count_max_ - first);
    if (absl::StatusOr<Buffer> slab = tier_.allocate(count * page_bytes_); slab.ok()) {
      slots_.resize(static_cast<size_t>(first + count));
      for (int64_t i = count - 1; i >= 0; --i) {
        slots_[first + i].data = slab->as<uint8_t>(i * page_bytes_);
        free_.push_back(static_cast<SlotIndex>(first + i));
      }
      slabs_.push_back(*std::move(slab));
    }
  }
  if (free_.empty() && !EvictOne()) return -1;
  const SlotIndex index = free_.back();
  free_.pop_back();
  return index;
}

float PagePool::Now(Mass mass) const {
  if (mass.at == hits_) return mass.amount;
  const double half_life = kHalfLifeOfSlots * static_cast<double>(slot_count_max_);
  return static_cast<float>(mass.amount *
                            std::exp2(static_cast<double>(mass.at - hits_) / half_life));
}

void PagePool::Add(float amount, Mass* mass) const {
  *mass = {std::min(Now(*mass) + amount, kMassMax), hits_};
}

void PagePool::MoveToMain(SlotIndex index) {
  Dequeue(index);
  slots_[index].queue = Queue::kMain;
  Enqueue(index);
}

PagePool::SlotIndex PagePool::MainVictim(float mass) {
  std::array<std::pair<SlotIndex, float>, kVictimsCompared> oldest;
  int count = 0;
  SlotIndex lightest = -1;
  float least = mass;
  for (SlotIndex at = main_.tail; at >= 0 && count < kVictimsCompared; at = slots_[at].previous) {
    const float own = Now(slots_[at].mass);
    oldest[count++] = {at, own};
    if (own > least || (own == least && lightest >= 0)) continue;
    least = own;
    lightest = at;
  }
  for (int i = 0; i < count; ++i) {
    if (oldest[i].second > least) MoveToMain(oldest[i].first);
  }
  return lightest;
}

void PagePool::Evict(SlotIndex index) {
  RememberGhost(slots_[index].id, slots_[index].mass);
  Unlink(index);
  evictions_.Increment();
}

bool PagePool::EvictOne() {
  const int64_t main_target = slot_count_max_ - small_count_target_;
  // Pages that were pinned may have made it larger than it is to be.
  const bool main_is_large = small_.size < small_count_target_ && main_.size > main_target;
  while (small_.size > 0 && !main_is_large) {
    const SlotIndex candidate = small_.tail;
    const float mass = Now(slots_[candidate].mass);
    if (mass > 0 && main_.size < main_target) {
      MoveToMain(candidate);
      continue;
    }
    const SlotIndex victim = mass > 0 ? MainVictim(mass) : -1;
    if (victim >= 0) MoveToMain(candidate);
    Evict(victim >= 0 ? victim : candidate);
    return true;
  }
  if (main_.size == 0) return false;
  Evict(MainVictim(std::numeric_limits<float>::max()));
  return true;
}

void PagePool::Pin(SlotIndex index) {
  Slot& slot = slots_[index];
  if (slot.queued) Dequeue(index);
  if (slot.pins++ == 0) ++pinned_count_;
}

void PagePool::UnpinOne(SlotIndex index) {
  Slot& slot = slots_[index];
  MNEME_CHECK(slot.pins > 0);
  if (--slot.pins > 0) return;
  --pinned_count_;
  if (slot.indexed) {
    Enqueue(index);
  } else {
    Free(index);
  }
}

void PagePool::Unlink(SlotIndex index) {
  Slot& slot = slots_[index];
  if (slot.indexed) index_.erase(slot.id);
  slot.indexed = false;
  if (slot.queued) Dequeue(index);
  if (slot.pins == 0) Free(index);
}

void PagePool::Free(SlotIndex index) {
  slots_[index].state = State::kFree;
  // Nothing of a page outlives it.
  tier_.wipe(slots_[index].data, page_bytes_);
  free_.push_back(index);
}

void PagePool::RememberGhost(const PageId& id, Mass mass) {
  // Nobody has read it.
  if (mass.amount <= 0) return;
  ghosts_[id] = {mass, ++last_ghost_};
  ghost_order_.emplace_back(id, last_ghost_);
  while (static_cast<int64_t>(ghosts_.size()) > slot_count_max_ ||
         static_cast<int64_t>(ghost_order_.size()) > 2 * slot_count_max_) {
    const auto [oldest, number] = ghost_order_.front();
    ghost_order_.pop_front();
    const auto ghost = ghosts_.find(oldest);
    if (ghost != ghosts_.end() && ghost->second.number == number) ghosts_.erase(ghost);
  }
}

}  // namespace mneme
