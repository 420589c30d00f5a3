// The device tier: pages and landmarks in the memory of a backend. Here the CPU's backend lends it,
// counted, so that what lies where can be told without a GPU.

#include "kernels/backend.h"
#include "tests/memory_store/harness.h"

namespace mneme {
namespace {

class DeviceTierTest : public MemoryStoreHarness {
 protected:
  DeviceTierTest() {
    options().device = device_.get();
    options().device_page_bytes_max = 6 * options().page_bytes;
    Reopen();
  }

  TierUse Tier(const std::string& name) {
    for (const TierUse& tier : store().tiers()) {
      if (tier.name == name) return tier;
    }
    ADD_FAILURE() << "no tier " << name;
    return {};
  }
  // The store goes before its device.
  void TearDown() override {
    options().device = nullptr;
    Reopen();
  }

  const std::unique_ptr<Backend> device_ = CreateCpuBackend({.threads = 1}).value();
};

TEST_F(DeviceTierTest, PagesAreReadFromTheDeviceOnceTheyAreThere) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDerivedDocument(memory, "d", 1, 4);
  {
    const PinnedPages pages = Pin({{document, 1}, {document, 3}});
    EXPECT_TRUE(pages.resident());
    EXPECT_TRUE(pages.missing().empty());
    ExpectPage(pages.pages()[0], document, 1, 100);
    ExpectPage(pages.pages()[1], document, 3, 100);
  }
  EXPECT_EQ(Metric("mneme_page_reads_total{tier=\"device\"}"), 0);
  EXPECT_EQ(Metric("mneme_page_reads_total{tier=\"host\"}"), 2);
  ExpectPage(Pin({{document, 3}}).pages()[0], document, 3, 100);
  EXPECT_EQ(Metric("mneme_page_reads_total{tier=\"device\"}"), 1);
  EXPECT_EQ(Metric("mneme_page_reads_total{tier=\"host\"}"), 2);
  EXPECT_EQ(Tier("device").used_bytes, 2 * options().page_bytes);
}

TEST_F(DeviceTierTest, TheLimitOfPagesHoldsAndPinnedOnesStay) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDerivedDocument(memory, "d", 1, 20);
  const PinnedPages held = Pin({{document, 0}});
  for (int64_t chunk = 1; chunk < 20; ++chunk) {
    ExpectPage(Pin({{document, chunk}}).pages()[0], document, chunk, 100);
    EXPECT_LE(Tier("device").used_bytes, Tier("device").limit_bytes);
  }
  ExpectPage(held.pages()[0], document, 0, 100);
  std::vector<ChunkAddress> all;
  for (int64_t chunk = 0; chunk < 20; ++chunk) all.push_back({document, chunk});
  const absl::Status status = store().Pin(all).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("device tier"), absl::string_view::npos) << status;
}

TEST_F(DeviceTierTest, APageInNoTierIsMissingAndAReplacedOneIsNotServed) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDocument(memory, "d");
  ASSERT_TRUE(Append(document, 0, TextOf(document, 200)).ok());
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 2, 0, 60)).ok());
  ExpectPage(Pin({{document, 1}}).pages()[0], document, 1, 60);
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 2, 0, 100)).ok());
  ExpectPage(Pin({{document, 1}}).pages()[0], document, 1, 100);
  EXPECT_EQ(Tier("device").used_bytes, options().page_bytes);  // the old one is gone
  ASSERT_TRUE(
      PutSegment(MadeUpSegment(options(), document, 1, 2, 2, 100, 200, /*with_pages=*/false)).ok());
  const PinnedPages pages = Pin({{document, 2}});
  EXPECT_EQ(pages.pages()[0], nullptr);
  ASSERT_EQ(pages.missing().size(), 1u);
}

TEST_F(DeviceTierTest, WhatIsDeletedLeavesTheDevice) {
  const MemoryId memory = NewMemory("m");
  const DocumentId gone = NewDerivedDocument(memory, "gone", 1, 2);
  const DocumentId kept = NewDerivedDocument(memory, "kept", 1, 2);
  Pin({{gone, 0}, {kept, 0}});
  View(memory);
  EXPECT_EQ(Tier("device_landmarks").used_bytes, 4 * options().landmark_bytes);
  ASSERT_TRUE(store().DeleteDocument(gone).ok());
  EXPECT_EQ(Tier("device").used_bytes, options().page_bytes);
  EXPECT_EQ(Tier("device_landmarks").used_bytes, 0);  // its block is gone, the new one not yet seen
  EXPECT_EQ(View(memory).chunk_count(), 2);
  EXPECT_EQ(Tier("device_landmarks").used_bytes, 2 * options().landmark_bytes);
  ASSERT_TRUE(store().DeleteMemory(memory).ok());
  EXPECT_EQ(Tier("device").used_bytes, 0);
  EXPECT_EQ(Tier("device_landmarks").used_bytes, 0);
}

TEST_F(DeviceTierTest, AViewsLandmarksLieOnTheDeviceAndStayAsTheyWere) {
  const MemoryId memory = NewMemory("m"), other = NewMemory("n");
  const DocumentId first = NewDerivedDocument(memory, "a", 3, 5);
  const DocumentId second = NewDerivedDocument(other, "b", 2, 5);
  const MemoryId both[] = {memory, other};
  const LandmarkView view = store().View(both).value();
  options().device = nullptr;  // the harness reads slabs as host memory, which the CPU's are
  EXPECT_TRUE(view.slabs_resident());
  ASSERT_EQ(view.chunk_count(), 25);
  const DocumentId third = NewDerivedDocument(memory, "c", 1, 5);
  for (int64_t chunk = 0; chunk < 15; ++chunk) {
    EXPECT_EQ(LandmarkAt(view, chunk),
              MadeUpLandmark(first, chunk, 100 * (chunk / 5) + 100, options().landmark_bytes));
  }
  for (int64_t chunk = 0; chunk < 10; ++chunk) {
    EXPECT_EQ(LandmarkAt(view, 15 + chunk),
              MadeUpLandmark(second, chunk, 100 * (chunk / 5) + 100, options().landmark_bytes));
  }
  const LandmarkView later = store().View(both).value();
  EXPECT_EQ(later.chunk_count(), 30);
  EXPECT_EQ(LandmarkAt(later, 25), MadeUpLandmark(third, 0, 100, options().landmark_bytes));
}

TEST_F(DeviceTierTest, LandmarksBeyondTheLimitStreamFromTheHost) {
  options().device_landmark_bytes_max = 600 * options().landmark_bytes;
  Reopen();
  const MemoryId memory = NewMemory("m");
  // Two blocks of landmarks: one finds room.
  const DocumentId document = NewDerivedDocument(memory, "d", 10, 100);
  const LandmarkView view = View(memory);
  EXPECT_FALSE(view.slabs_resident());
  EXPECT_GT(Tier("device_landmarks").used_bytes, 0);
  EXPECT_LE(Tier("device_landmarks").used_bytes, 600 * options().landmark_bytes);
  EXPECT_GT(Metric("mneme_device_landmark_streamed_bytes_total"), 0);
  for (const int64_t chunk : {0, 499, 500, 999}) {
    EXPECT_EQ(LandmarkAt(view, chunk),
              MadeUpLandmark(document, chunk, 100 * (chunk / 100) + 100, options().landmark_bytes));
  }
}

}  // namespace
}  // namespace mneme
