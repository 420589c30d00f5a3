// Segmenter: whatever way text comes in and wherever it is resumed, the segments are those of the
// whole text.

#include "engine/segmenter.h"

#include <gtest/gtest.h>

#include <random>

#include "common/utf8.h"
#include "tests/engine/engine_harness.h"
#include "tests/engine/fake_model.h"

namespace mneme {
namespace {

class SegmenterTest : public ::testing::Test {
 protected:
  Segmenter New() { return Segmenter(model_.tokenizer(), shape_, DocumentId{1}); }

  // All segments of a text, cut at one go.
  std::vector<Segment> Whole(const std::string& text) {
    Segmenter segmenter = New();
    segmenter.Feed(text);
    return Drain(segmenter);
  }

  static std::vector<Segment> Drain(Segmenter& segmenter) {
    std::vector<Segment> segments;
    while (segmenter.has_whole()) segments.push_back(segmenter.TakeWhole());
    for (Segment& open : segmenter.OpenSegments()) segments.push_back(std::move(open));
    return segments;
  }

  static void ExpectSame(const Segment& a, const Segment& b) {
    EXPECT_EQ(a.index, b.index);
    EXPECT_EQ(a.byte_begin, b.byte_begin);
    EXPECT_EQ(a.byte_end, b.byte_end);
    EXPECT_EQ(a.ids, b.ids);
    EXPECT_EQ(a.chunk_byte_begin, b.chunk_byte_begin);
  }

  FakeModel model_;
  const SegmentShape shape_ = SegmentShape::Of(model_);
};

TEST_F(SegmenterTest, SegmentsAreTheTokensOfTheTextBehindTheDocumentToken) {
  const std::string text = RandomText(3, 400);
  std::vector<Token> tokens;
  model_.tokenizer().Encode(text, &tokens);
  std::vector<TokenId> expected = {shape_.document_id};
  for (const Token& token : tokens) expected.push_back(token.id);

  std::vector<TokenId> ids;
  int64_t byte = 0;
  for (const Segment& segment : Whole(text)) {
    EXPECT_EQ(segment.index, static_cast<int64_t>(ids.size()) / shape_.segment_tokens);
    EXPECT_EQ(segment.byte_begin, byte);
    byte = segment.byte_end;
    ids.insert(ids.end(), segment.ids.begin(), segment.ids.end());
    EXPECT_EQ(segment.chunk_byte_begin.size(), (segment.ids.size() + 7) / 8);
  }
  EXPECT_EQ(ids, expected);
  EXPECT_EQ(byte, static_cast<int64_t>(text.size()));
}

TEST_F(SegmenterTest, RangesFallBetweenCharacters) {
  // Characters without a piece of their own fall apart into bytes.
  std::string text;
  for (int i = 0; i < 300; ++i) text += i % 3 == 0 ? "𓀀" : i % 3 == 1 ? "ꙮ" : "𝔘";
  for (const Segment& segment : Whole(text)) {
    for (int64_t byte : segment.chunk_byte_begin) {
      EXPECT_FALSE(IsUtf8Continuation(text[static_cast<size_t>(byte)]));
    }
    EXPECT_FALSE(IsUtf8Continuation(text[static_cast<size_t>(segment.byte_begin)]));
    EXPECT_TRUE(segment.byte_end == static_cast<int64_t>(text.size()) ||
                !IsUtf8Continuation(text[static_cast<size_t>(segment.byte_end)]));
  }
}

TEST_F(SegmenterTest, PiecesGiveTheSegmentsOfTheWhole) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::string text = RandomText(seed, 600);
    const std::vector<Segment> expected = Whole(text);
    Segmenter segmenter = New();
    absl::string_view rest = text;
    while (!rest.empty()) {
      const size_t bytes = Utf8CutBytes(rest, 4 + random() % 300);
      segmenter.Feed(rest.substr(0, bytes));
      rest.remove_prefix(bytes);
      // Looking at the open end changes nothing.
      if (random() % 4 == 0) segmenter.OpenSegments();
    }
    const std::vector<Segment> segments = Drain(segmenter);
    ASSERT_EQ(segments.size(), expected.size());
    for (size_t i = 0; i < segments.size(); ++i) ExpectSame(segments[i], expected[i]);
  }
}

TEST_F(SegmenterTest, OpenSegmentsAreThoseOfTheTextSoFar) {
  const std::string text = RandomText(5, 300);
  Segmenter segmenter = New();
  absl::string_view rest = text;
  size_t fed = 0, taken = 0;
  while (!rest.empty()) {
    const size_t bytes = Utf8CutBytes(rest, 37);
    segmenter.Feed(rest.substr(0, bytes));
    rest.remove_prefix(bytes);
    fed += bytes;
    for (; segmenter.has_whole(); ++taken) segmenter.TakeWhole();
    const std::vector<Segment> expected = Whole(text.substr(0, fed));
    const std::vector<Segment> open = segmenter.OpenSegments();
    ASSERT_EQ(taken + open.size(), expected.size());
    for (size_t i = 0; i < open.size(); ++i) ExpectSame(open[i], expected[taken + i]);
  }
}

TEST_F(SegmenterTest, EachSegmentCanBeHadAgainFromItsCheckpoint) {
  const std::string text = RandomText(8, 3000);
  const std::vector<Segment> segments = Whole(text);
  ASSERT_GT(segments.size(), 20u);
  for (size_t i = 0; i < segments.size(); ++i) {
    SegmentDerived stored;
    stored.document = DocumentId{1};
    stored.segment_index = segments[i].index;
    stored.encode_from_byte = segments[i].encode_from_byte;
    stored.skip_tokens = segments[i].skip_tokens;
    // A checkpoint does not lie far before its segment.
    EXPECT_LT(segments[i].byte_begin - segments[i].encode_from_byte, 8192);
    Segmenter segmenter(model_.tokenizer(), shape_, stored);
    EXPECT_EQ(segmenter.fed_bytes(), stored.encode_from_byte);
    segmenter.Feed(absl::string_view(text).substr(static_cast<size_t>(stored.encode_from_byte)));
    const std::vector<Segment> again = Drain(segmenter);
    ASSERT_EQ(again.size(), segments.size() - i);
    for (size_t j = 0; j < again.size(); ++j) ExpectSame(again[j], segments[i + j]);
  }
}

}  // namespace
}  // namespace mneme
