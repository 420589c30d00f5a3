#include "memory_store/memory_store.h"

#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/memory_store/derived.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

#define ASSERT_OK(expression) ASSERT_TRUE((expression).ok())

class MemoryStoreTest : public ::testing::Test {
 protected:
  MemoryStore& store() { return temp_.store(); }
  const MemoryStoreOptions& options() { return temp_.options(); }

  MemoryId NewMemory(const std::string& id) {
    return store().CreateMemory("default", id, "").value().uid;
  }
  DocumentId NewDocument(MemoryId memory, const std::string& id) {
    return store().CreateDocument(memory, id).value().uid;
  }
  absl::Status Append(DocumentId document, int64_t offset, absl::string_view text,
                      bool seal = false) {
    const TextAppend append{document, offset, text, seal};
    return store().AppendText({&append, 1});
  }
  // A document with text and `segments` segments of `chunks` chunks over it.
  DocumentId NewDerivedDocument(MemoryId memory, const std::string& id, int segments = 1,
                                int chunks = 2) {
    const DocumentId document = NewDocument(memory, id);
    EXPECT_TRUE(Append(document, 0, std::string(100 * segments, 'x')).ok());
    std::vector<SegmentDerived> derived;
    for (int s = 0; s < segments; ++s) {
      derived.push_back(MadeUpSegment(options(), document, s, s * chunks, chunks, s * 100,
                                      s * 100 + 100));
    }
    EXPECT_TRUE(store().PutSegments(derived).ok());
    return document;
  }
  void ExpectPage(const uint8_t* page, DocumentId document, int64_t chunk, int64_t version) {
    ASSERT_NE(page, nullptr);
    const auto expected = MadeUpPage(document, chunk, version, options().page_bytes);
    EXPECT_EQ(std::memcmp(page, expected.data(), expected.size()), 0);
  }

  TempStore temp_;
};

TEST_F(MemoryStoreTest, TextIsReadBackAfterReopen) {
  const MemoryId memory = NewMemory("books");
  const DocumentId document = NewDocument(memory, "one");
  ASSERT_OK(Append(document, 0, "hello "));
  ASSERT_OK(Append(document, 6, "world", /*seal=*/true));
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(store().ReadText(document, 0, 11).value(), "hello world");
    EXPECT_EQ(store().ReadText(document, 3, 8).value(), "lo wo");
    const DocumentInfo info = store().GetDocument(memory, "one").value();
    EXPECT_EQ(info.durable_bytes, 11);
    EXPECT_TRUE(info.sealed);
    EXPECT_FALSE(info.damaged);
    temp_.Reopen();
  }
}

TEST_F(MemoryStoreTest, SegmentsAndPagesAreFoundAfterReopen) {
  const MemoryId memory = NewMemory("books");
  const DocumentId document = NewDerivedDocument(memory, "one", 3, 2);
  for (int round = 0; round < 2; ++round) {
    const LandmarkView view = store().View({&memory, 1}).value();
    ASSERT_EQ(view.chunk_count(), 6);
    const ChunkText last = view.Locate(5);
    EXPECT_EQ(last.address, (ChunkAddress{document, 5}));
    EXPECT_EQ(last.byte_begin, 250);
    EXPECT_EQ(last.byte_end, 300);
    const ChunkAddress wanted[] = {{document, 5}, {document, 0}};
    const PinnedPages pages = store().Pin(wanted).value();
    EXPECT_TRUE(pages.missing().empty());
    ExpectPage(pages.pages()[0], document, 5, 300);
    ExpectPage(pages.pages()[1], document, 0, 100);
    const DocumentInfo info = store().GetDocument(document).value();
    EXPECT_EQ(info.visible_bytes, 300);
    EXPECT_EQ(info.chunk_count, 6);
    EXPECT_EQ(info.token_count, 6 * 64);
    temp_.Reopen();
  }
}

}  // namespace
}  // namespace mneme
