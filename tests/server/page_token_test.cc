#include "server/page_token.h"

#include <string>

#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(PageTokenTest, GivesThePositionBack) {
  for (const std::string position : {"", "a", "12345678901234567890", "x.y~z-_"}) {
    const auto parsed =
        ParsePageToken("List", "tenants/a", MakePageToken("List", "tenants/a", position));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, position);
  }
}

TEST(PageTokenTest, ATokenOfAnotherListIsRefused) {
  const std::string token = MakePageToken("ListMemories", "tenants/a", "m");
  for (const auto& [method, parent] :
       {std::pair("ListMemories", "tenants/b"), std::pair("ListDocuments", "tenants/a")}) {
    const auto parsed = ParsePageToken(method, parent, token);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(parsed.status().message().find("another list"), absl::string_view::npos)
        << parsed.status();
  }
}

TEST(PageTokenTest, EveryChangedOrMissingCharacterIsFound) {
  const std::string token = MakePageToken("List", "tenants/a", "position");
  for (size_t i = 0; i < token.size(); ++i) {
    std::string changed = token;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    EXPECT_FALSE(ParsePageToken("List", "tenants/a", changed).ok()) << i;
    EXPECT_FALSE(ParsePageToken("List", "tenants/a", token.substr(0, i)).ok()) << i;
  }
  EXPECT_FALSE(ParsePageToken("List", "tenants/a", "!?").ok());
}

TEST(PageSizeTest, ZeroIsTheUsualAndLargeIsClamped) {
  EXPECT_EQ(*PageSize(0), 100);
  EXPECT_EQ(*PageSize(7), 7);
  EXPECT_EQ(*PageSize(1'000'000), 1000);
  EXPECT_EQ(PageSize(-1).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme
