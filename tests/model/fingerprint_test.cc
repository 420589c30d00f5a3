#include "model/fingerprint.h"

#include <string>

#include "gtest/gtest.h"

namespace mneme {
namespace {

// Published vectors of XXH64.
TEST(FingerprintTest, MatchesPublishedVectors) {
  EXPECT_EQ(Fingerprint64("", 0), 0xef46db3751d8e999u);
  EXPECT_EQ(Fingerprint64("a", 0), 0xd24ec4f1a98c6e5bu);
  EXPECT_EQ(Fingerprint64("abc", 0), 0x44bc2cf5ad770999u);
  EXPECT_EQ(Fingerprint64("Nobody inspects the spammish repetition", 0), 0xfbcea83c8a378bf1u);
}

TEST(FingerprintTest, EveryByteAndTheSeedCount) {
  std::string data(100, 'x');
  const uint64_t hash = Fingerprint64(data, 0);
  EXPECT_NE(Fingerprint64(data, 1), hash);
  for (size_t i = 0; i < data.size(); ++i) {
    data[i] = 'y';
    EXPECT_NE(Fingerprint64(data, 0), hash) << i;
    data[i] = 'x';
  }
}

}  // namespace
}  // namespace mneme
