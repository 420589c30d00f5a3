#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

TEST(ResourceNameTest, NamesOfAllLevelsParseAndPrint) {
  const auto tenant = ResourceName::ParseTenant("tenants/default");
  ASSERT_TRUE(tenant.ok());
  EXPECT_EQ(tenant->tenant, "default");
  const auto memory = ResourceName::ParseMemory("tenants/a/memories/b.c_d~e-1");
  ASSERT_TRUE(memory.ok());
  EXPECT_EQ(memory->memory, "b.c_d~e-1");
  const std::string name = "tenants/a/memories/b/documents/9c";
  const auto document = ResourceName::ParseDocument(name);
  ASSERT_TRUE(document.ok());
  EXPECT_EQ(document->tenant, "a");
  EXPECT_EQ(document->memory, "b");
  EXPECT_EQ(document->document, "9c");
  EXPECT_EQ(document->ToString(), name);
}

TEST(ResourceNameTest, NamesOfAnotherShapeAreRefused) {
  for (const char* name :
       {"", "a", "tenants", "tenants/", "tenants//memories/b", "tenants/a/memories", "/tenants/a",
        "tenants/a/memories/b/", "tenants/a/memory/b", "tenants/a/memories/b/documents/c"}) {
    EXPECT_EQ(ResourceName::ParseMemory(name).status().code(), absl::StatusCode::kInvalidArgument)
        << name;
  }
}

TEST(ResourceNameTest, MessageNamesThePartAndTheCharacter) {
  const auto bad = ResourceName::ParseDocument("tenants/a/memories/b/documents/c d");
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr("document id \"c d\""));
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr("\" \" at 1"));
  const auto newline = ResourceName::ParseMemory("tenants/a/memories/b\nc");
  EXPECT_THAT(std::string(newline.status().message()), HasSubstr("\\n"));
}

TEST(ResourceNameTest, IdsHaveOneToAHundredAndTwentyEightCharacters) {
  EXPECT_TRUE(CheckResourceId(std::string(128, 'x'), "id").ok());
  EXPECT_FALSE(CheckResourceId(std::string(129, 'x'), "id").ok());
  EXPECT_FALSE(CheckResourceId("", "id").ok());
  EXPECT_FALSE(CheckResourceId("-x", "id").ok());
  EXPECT_FALSE(CheckResourceId("..", "id").ok());
  EXPECT_FALSE(CheckResourceId("Zürich", "id").ok());
}

}  // namespace
}  // namespace mneme
