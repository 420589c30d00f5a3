#include "memory_store/page_pool.h"

#include <cstring>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

constexpr int64_t kPageBytes = 64;

PageId Id(int64_t number) { return {DocumentId{1}, 0, 100, number}; }

std::vector<PageId> Ids(std::initializer_list<int64_t> numbers) {
  std::vector<PageId> ids;
  for (const int64_t number : numbers) ids.push_back(Id(number));
  return ids;
}

class PagePoolTest : public ::testing::Test {
 protected:
  // Loads a page filled with its number, and remembers that it was asked for. Pages of negative
  // number are absent.
  absl::Status Load(absl::Span<const PageId> ids, absl::Span<uint8_t* const> destinations,
                    std::vector<bool>* found) {
    for (size_t i = 0; i < ids.size(); ++i) {
      ++loads_[ids[i].chunk_in_segment];
      (*found)[i] = ids[i].chunk_in_segment >= 0;
      if ((*found)[i])
        std::memset(destinations[i], static_cast<int>(ids[i].chunk_in_segment), kPageBytes);
    }
    return absl::OkStatus();
  }
  absl::StatusOr<PagePool::Pins> TryPin(PagePool& pool, const std::vector<PageId>& ids,
                                        absl::Span<const float> mass = {}) {
    return pool.PinAll(
        ids,
        [this](auto load_ids, auto destinations, auto* found) {
          return Load(load_ids, destinations, found);
        },
        mass);
  }
  PagePool::Pins Pin(PagePool& pool, std::initializer_list<int64_t> numbers) {
    return TryPin(pool, Ids(numbers)).value();
  }
  // Reads pages and lets go of them.
  void Touch(PagePool& pool, std::initializer_list<int64_t> numbers) {
    for (const int64_t number : numbers) pool.Unpin(Pin(pool, {number}).slots);
  }
  // Reads pages with this weight each.
  void Weigh(PagePool& pool, int64_t first, int64_t end, float mass) {
    for (int64_t number = first; number < end; ++number) {
      pool.Unpin(TryPin(pool, Ids({number}), {&mass, 1})->slots);
    }
  }
  // How many of these are there; looking changes little.
  int CountInPool(PagePool& pool, int64_t first, int64_t end) {
    int count = 0;
    for (int64_t number = first; number < end; ++number) {
      bool found = true;
      const float nothing = 0;
      const PageId id = Id(number);
      const auto pins = pool.PinAll({&id, 1},
                                    [&found](auto, auto, std::vector<bool>* loaded) {
                                      found = (*loaded)[0] = false;
                                      return absl::OkStatus();
                                    },
                                    {&nothing, 1});
      pool.Unpin(pins->slots);
      count += found;
    }
    return count;
  }
  bool InPool(PagePool& pool, int64_t number) {
    const int before = loads_[number];
    Touch(pool, {number});
    return loads_[number] == before;
  }

  Metrics metrics_;
  std::map<int64_t, int> loads_;
};

TEST_F(PagePoolTest, LoadsAPageOnceAndThenHasIt) {
  PagePool pool(kPageBytes, 8 * kPageBytes, metrics_);
  const PagePool::Pins first = Pin(pool, {3, 4});
  const PagePool::Pins second = Pin(pool, {4, 3, 4});
  EXPECT_EQ(second.pages[0], first.pages[1]);
  EXPECT_EQ(second.pages[1], first.pages[0]);
  EXPECT_EQ(second.pages[2], first.pages[1]);
  EXPECT_EQ(first.pages[0][kPageBytes - 1], 3);
  EXPECT_EQ(loads_[3], 1);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.pages[0]) % 64, 0u);
  EXPECT_EQ(pool.pinned_bytes(), 2 * kPageBytes);
  pool.Unpin(first.slots);
  pool.Unpin(second.slots);
  EXPECT_EQ(pool.pinned_bytes(), 0);
  EXPECT_EQ(pool.used_bytes(), 2 * kPageBytes);
}

TEST_F(PagePoolTest, AbsentPageTakesNoRoom) {
  PagePool pool(kPageBytes, 8 * kPageBytes, metrics_);
  const PagePool::Pins pins = Pin(pool, {-1, 5, -1});
  EXPECT_EQ(pins.pages[0], nullptr);
  EXPECT_EQ(pins.pages[2], nullptr);
  EXPECT_EQ(pins.slots[0], -1);
  EXPECT_EQ(pins.pages[1][0], 5);
  EXPECT_EQ(pool.used_bytes(), kPageBytes);
  pool.Unpin(pins.slots);
}

TEST_F(PagePoolTest, FailedLoadLeavesNothingPinnedAndIsTriedAgain) {
  PagePool pool(kPageBytes, 8 * kPageBytes, metrics_);
  Touch(pool, {1});
  const auto fail = [](auto, auto, auto*) { return absl::InternalError("disk failed"); };
  EXPECT_EQ(pool.PinAll(Ids({1, 2, 3}), fail).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(pool.pinned_bytes(), 0);
  EXPECT_EQ(pool.used_bytes(), kPageBytes);
  EXPECT_FALSE(InPool(pool, 2));
}

TEST_F(PagePoolTest, PinnedPagesAloneBeyondTheLimitAreRefusedAndNothingStaysPinned) {
  PagePool pool(kPageBytes, 4 * kPageBytes + kPageBytes / 2, metrics_);
  EXPECT_EQ(pool.limit_bytes(), 4 * kPageBytes);
  const PagePool::Pins pins = Pin(pool, {1, 2, 3});
  const absl::Status status = TryPin(pool, Ids({1, 4, 5})).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(loads_[4], 0) << "refused before it read";
  EXPECT_EQ(pool.pinned_bytes(), 3 * kPageBytes);
  EXPECT_EQ(TryPin(pool, Ids({1, 2, 3, 4, 4, 1})).value().pages[3][0], 4);
  EXPECT_EQ(pool.used_bytes(), 4 * kPageBytes);
}

TEST_F(PagePoolTest, PoolWithoutRoomRefusesEveryPinAndTakesNoInsert) {
  PagePool pool(kPageBytes, kPageBytes - 1, metrics_);
  EXPECT_EQ(TryPin(pool, Ids({1})).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(TryPin(pool, {}).ok());
  const std::vector<uint8_t> page(kPageBytes);
  pool.Insert(Ids({1}), page.data());
  EXPECT_EQ(pool.used_bytes(), 0);
}

TEST_F(PagePoolTest, PinnedPageIsNotEvicted) {
  PagePool pool(kPageBytes, 4 * kPageBytes, metrics_);
  const PagePool::Pins pins = Pin(pool, {1});
  for (int64_t number = 10; number < 100; ++number) Touch(pool, {number});
  EXPECT_EQ(pins.pages[0][0], 1);
  EXPECT_TRUE(InPool(pool, 1));
  EXPECT_EQ(pool.used_bytes(), 4 * kPageBytes);
  pool.Unpin(pins.slots);
}

TEST_F(PagePoolTest, ScanDoesNotDisplaceWhatIsReadAgainAndAgain) {
  PagePool pool(kPageBytes, 20 * kPageBytes, metrics_);
  for (int round = 0; round < 3; ++round) {
    for (int64_t hot = 0; hot < 10; ++hot) Touch(pool, {hot});
  }
  for (int64_t number = 100; number < 1000; ++number) Touch(pool, {number});
  int kept = 0;
  for (int64_t hot = 0; hot < 10; ++hot) kept += InPool(pool, hot);
  EXPECT_EQ(kept, 10);
}

TEST_F(PagePoolTest, IngestDoesNotDisplaceWhatIsReadAgainAndAgain) {
  PagePool pool(kPageBytes, 20 * kPageBytes, metrics_);
  for (int round = 0; round < 2; ++round) {
    for (int64_t hot = 0; hot < 10; ++hot) Touch(pool, {hot});
  }
  const std::vector<uint8_t> page(kPageBytes, 7);
  for (int64_t number = 100; number < 1000; ++number) pool.Insert(Ids({number}), page.data());
  int kept = 0;
  for (int64_t hot = 0; hot < 10; ++hot) kept += InPool(pool, hot);
  EXPECT_EQ(kept, 10);
}

TEST_F(PagePoolTest, ScanByOneReaderLeavesWhatOthersWeighed) {
  PagePool pool(kPageBytes, 40 * kPageBytes, metrics_);
  // Two readers' hot pages; the scan weighs each of its pages as much as one read of theirs did.
  for (int round = 0; round < 3; ++round) Weigh(pool, 0, 30, 0.3f);
  for (int64_t scanned = 1000; scanned < 5000; scanned += 100) {
    Weigh(pool, scanned, scanned + 100, 0.3f);
    ASSERT_EQ(pool.used_bytes(), pool.limit_bytes());
  }
  EXPECT_EQ(CountInPool(pool, 0, 30), 30);
}

TEST_F(PagePoolTest, MassBeatsRecency) {
  PagePool pool(kPageBytes, 20 * kPageBytes, metrics_);
  Weigh(pool, 0, 10, 0.9f);
  // Later and more often, but for next to nothing.
  for (int round = 0; round < 5; ++round) Weigh(pool, 100, 200, 0.001f);
  EXPECT_EQ(CountInPool(pool, 0, 10), 10);
}

TEST_F(PagePoolTest, AmongEqualsTheNewerStay) {
  PagePool pool(kPageBytes, 20 * kPageBytes, metrics_);
  Weigh(pool, 0, 100, 0.5f);
  EXPECT_EQ(CountInPool(pool, 80, 100), 20);
}

TEST_F(PagePoolTest, WhatWasHotOnceGivesWayToWhatIsHotNow) {
  PagePool pool(kPageBytes, 20 * kPageBytes, metrics_);
  for (int round = 0; round < 200; ++round) Weigh(pool, 0, 18, 0.5f);
  for (int round = 0; round < 40; ++round) Weigh(pool, 100, 118, 0.5f);
  EXPECT_EQ(CountInPool(pool, 100, 118), 18);
}

TEST_F(PagePoolTest, PageThatNobodyWeighedLeavesFirst) {
  PagePool pool(kPageBytes, 20 * kPageBytes, metrics_);
  const std::vector<uint8_t> page(kPageBytes, 7);
  Weigh(pool, 0, 10, 0.01f);
  for (int64_t number = 100; number < 110; ++number) pool.Insert(Ids({number}), page.data());
  Weigh(pool, 200, 210, 0.01f);
  EXPECT_EQ(CountInPool(pool, 0, 10), 10);
  EXPECT_EQ(CountInPool(pool, 200, 210), 10);
  // Last: to look for a page that is not there makes room.
  EXPECT_EQ(CountInPool(pool, 100, 110), 0);
}

TEST_F(PagePoolTest, LimitHoldsWhileEverythingIsPinned) {
  PagePool pool(kPageBytes, 10 * kPageBytes, metrics_);
  std::vector<PagePool::SlotIndex> pinned;
  std::vector<const uint8_t*> pages;
  for (int64_t number = 0; number < 10; ++number) {
    const PagePool::Pins pins = Pin(pool, {number});
    pinned.push_back(pins.slots[0]);
    pages.push_back(pins.pages[0]);
    Weigh(pool, 100 * number + 100, 100 * number + 100 + (number < 9 ? 20 : 0), 1);
    ASSERT_LE(pool.used_bytes(), pool.limit_bytes());
  }
  EXPECT_FALSE(TryPin(pool, Ids({77})).ok());
  for (int64_t number = 0; number < 10; ++number) EXPECT_EQ(pages[number][0], number);
  pool.Unpin(pinned);
}

TEST_F(PagePoolTest, PageThatComesBackSoonStaysLonger) {
  PagePool pool(kPageBytes, 10 * kPageBytes, metrics_);
  Touch(pool, {1});
  for (int64_t number = 100; number < 110; ++number) Touch(pool, {number});
  ASSERT_FALSE(InPool(pool, 1));  // it left, and this brings it back: into the main queue
  for (int64_t number = 200; number < 300; ++number) Touch(pool, {number});
  EXPECT_TRUE(InPool(pool, 1));
}

TEST_F(PagePoolTest, InsertedPagesAreFoundAndReplaceOlderOnes) {
  PagePool pool(kPageBytes, 8 * kPageBytes, metrics_);
  std::vector<uint8_t> pages(2 * kPageBytes, 50);
  std::memset(pages.data() + kPageBytes, 51, kPageBytes);
  const PagePool::Pins old = Pin(pool, {1});
  pool.Insert(Ids({1, 2}), pages.data());
  const PagePool::Pins now = Pin(pool, {1, 2});
  EXPECT_EQ(now.pages[0][0], 50);
  EXPECT_EQ(now.pages[1][0], 51);
  EXPECT_EQ(old.pages[0][0], 1) << "pinned pages stay";
  EXPECT_EQ(pool.used_bytes(), 3 * kPageBytes);
  pool.Unpin(old.slots);
  EXPECT_EQ(pool.used_bytes(), 2 * kPageBytes);
  pool.Unpin(now.slots);
}

TEST_F(PagePoolTest, ErasedPagesAreGoneOncePinsAre) {
  PagePool pool(kPageBytes, 8 * kPageBytes, metrics_);
  Touch(pool, {1, 2, 3});
  const PagePool::Pins pins = Pin(pool, {1});
  pool.Erase(Ids({1, 2, 99}));
  EXPECT_EQ(pool.used_bytes(), 2 * kPageBytes);
  pool.Unpin(pins.slots);
  EXPECT_EQ(pool.used_bytes(), kPageBytes);
  EXPECT_FALSE(InPool(pool, 1));
  EXPECT_TRUE(InPool(pool, 3));
  pool.EraseDocuments({DocumentId{2}});
  EXPECT_TRUE(InPool(pool, 3));
  pool.EraseDocuments({DocumentId{1}});
  EXPECT_EQ(pool.used_bytes(), 0);
}

TEST_F(PagePoolTest, TwoThreadsShareOneLoad) {
  PagePool pool(kPageBytes, 8 * kPageBytes, metrics_);
  std::thread second;
  absl::Notification second_begun;
  std::atomic<int> loads{0};
  const auto load = [&](auto ids, auto destinations, auto* found) -> absl::Status {
    if (loads.fetch_add(1) == 0) {
      second = std::thread([&] {
        second_begun.Notify();
        const auto pins = pool.PinAll(
            Ids({1}), [&](auto, auto, auto*) { return absl::InternalError("not to be asked"); });
        EXPECT_TRUE(pins.ok());
        EXPECT_EQ(pins->pages[0][0], 1);
        pool.Unpin(pins->slots);
      });
      second_begun.WaitForNotification();
    }
    return Load(ids, destinations, found);
  };
  const auto pins = pool.PinAll(Ids({1}), load);
  ASSERT_TRUE(pins.ok());
  pool.Unpin(pins->slots);
  second.join();
  EXPECT_EQ(loads.load(), 1);
  EXPECT_EQ(pool.pinned_bytes(), 0);
}

TEST_F(PagePoolTest, WaiterLoadsForItselfWhenTheOtherFailed) {
  PagePool pool(kPageBytes, 8 * kPageBytes, metrics_);
  absl::Notification loading, fail;
  std::thread first([&] {
    const auto load = [&](auto, auto, auto*) -> absl::Status {
      loading.Notify();
      fail.WaitForNotification();
      return absl::InternalError("disk failed");
    };
    EXPECT_FALSE(pool.PinAll(Ids({1}), load).ok());
  });
  loading.WaitForNotification();
  std::thread failer([&] { fail.Notify(); });
  const PagePool::Pins pins = Pin(pool, {1});  // waits, or comes after the failure
  EXPECT_EQ(pins.pages[0][0], 1);
  pool.Unpin(pins.slots);
  first.join();
  failer.join();
}

TEST_F(PagePoolTest, ManyThreadsNeverSeeAWrongPageOrMoreThanTheLimit) {
  constexpr int64_t kSlots = 40;
  PagePool pool(kPageBytes, kSlots * kPageBytes, metrics_);
  const auto load = [](absl::Span<const PageId> ids, absl::Span<uint8_t* const> destinations,
                       std::vector<bool>*) {
    for (size_t i = 0; i < ids.size(); ++i) {
      std::memset(destinations[i], static_cast<int>(ids[i].chunk_in_segment), kPageBytes);
    }
    return absl::OkStatus();
  };
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, &load, t] {
      std::mt19937 random(t);
      std::vector<uint8_t> page(kPageBytes);
      for (int round = 0; round < 3000; ++round) {
        const int64_t number = random() % 100;
        if (random() % 10 == 0) {
          std::memset(page.data(), static_cast<int>(number), kPageBytes);
          pool.Insert(Ids({number}), page.data());
        } else if (random() % 20 == 0) {
          pool.Erase(Ids({number}));
        } else {
          std::vector<PageId> ids;
          for (int i = 0; i < 5; ++i) ids.push_back(Id(random() % 100));
          const auto pins = pool.PinAll(ids, load);
          ASSERT_TRUE(pins.ok()) << pins.status();
          for (size_t i = 0; i < ids.size(); ++i) {
            ASSERT_EQ(pins->pages[i][0], ids[i].chunk_in_segment);
            ASSERT_EQ(pins->pages[i][kPageBytes - 1], ids[i].chunk_in_segment);
          }
          pool.Unpin(pins->slots);
        }
        ASSERT_LE(pool.used_bytes(), pool.limit_bytes());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.pinned_bytes(), 0);
}

}  // namespace
}  // namespace mneme
