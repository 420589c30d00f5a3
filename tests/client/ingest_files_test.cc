#include "client/cli/ingest_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/client/test_files.h"

namespace mneme {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(IngestFilesTest, IdsAreAllowedAndStable) {
  EXPECT_EQ(DocumentIdForPath("book.txt"), "book.txt");
  EXPECT_EQ(DocumentIdForPath("a/b/My Notes (1).txt"), "a~b~My_Notes__1_.txt");
  EXPECT_EQ(DocumentIdForPath("_x"), "doc_x");
  EXPECT_EQ(DocumentIdForPath("\xc3\x9c"
                              "bersicht"),
            "doc_bersicht");
  const std::string longer = DocumentIdForPath(std::string(300, 'x'));
  EXPECT_EQ(longer.size(), 128u);
  EXPECT_EQ(longer, DocumentIdForPath(std::string(300, 'x')));
  EXPECT_NE(longer, DocumentIdForPath(std::string(301, 'x')));
}

TEST(IngestFilesTest, FolderGivesItsRegularFilesSorted) {
  TestFiles folder;
  folder.Write("b.txt", "b");
  folder.Write("a/z.txt", "zz");
  folder.Write("a/empty", "");
  folder.Write(".git/config", "c");
  folder.Write(".hidden", "h");
  std::filesystem::create_symlink(folder.path() + "/b.txt", folder.path() + "/link");
  auto found = CollectFiles(folder.path(), /*take_hidden=*/false);
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->files.size(), 2u);
  EXPECT_EQ(found->files[0].document, "a~z.txt");
  EXPECT_EQ(found->files[0].bytes, 2);
  EXPECT_EQ(found->files[1].document, "b.txt");
  EXPECT_EQ(found->empty, 1);
  EXPECT_EQ(found->hidden, 2);
  EXPECT_EQ(found->special, 1);
  EXPECT_TRUE(found->errors.empty());
  EXPECT_EQ(CollectFiles(folder.path(), /*take_hidden=*/true)->files.size(), 4u);
}

TEST(IngestFilesTest, TwoPathsWithOneIdAreNamed) {
  TestFiles folder;
  folder.Write("a b.txt", "1");
  folder.Write("a_b.txt", "2");
  EXPECT_THAT(std::string(CollectFiles(folder.path(), false).status().message()),
              AllOf(HasSubstr("/a b.txt"), HasSubstr("/a_b.txt"), HasSubstr("document a_b.txt")));
}

TEST(IngestFilesTest, FirstInvalidByteOfAFileIsFound) {
  TestFiles folder;
  // The bad byte lies beyond the first piece that is read.
  const std::string good(3'000'000, 'x');
  EXPECT_EQ(*FirstInvalidUtf8(folder.Write("good", good)), std::nullopt);
  EXPECT_EQ(*FirstInvalidUtf8(folder.Write("bad", good + "\xff" + good)), 3'000'000);
  EXPECT_EQ(*FirstInvalidUtf8(folder.Write("cut", good + "\xe2\x82")), 3'000'000);
  EXPECT_EQ(FirstInvalidUtf8(folder.path() + "/none").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace mneme
