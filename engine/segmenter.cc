#include "engine/segmenter.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/utf8.h"

namespace mneme {
namespace {

// Bytes fed to the encoder at a time: bounds how many tokens a segment's checkpoint lies before it.
constexpr size_t kFeedBytes = 2048;

}  // namespace

SegmentShape SegmentShape::Of(const Model& model) {
  const Tokenizer& tokenizer = model.tokenizer();
  SegmentShape shape{
      .segment_tokens = model.config().segment_size,
      .chunk_tokens = model.config().chunk_size,
      .document_id = model.bundle().document_id,
      .inside_character = std::vector<bool>(static_cast<size_t>(tokenizer.vocab_size()), false)};
  for (int byte = 0x80; byte <= 0xBF; ++byte) {
    const TokenId id = tokenizer.PieceToId(absl::StrFormat("<0x%02X>", byte));
    if (id >= 0) shape.inside_character[static_cast<size_t>(id)] = true;
  }
  return shape;
}

SegmentDerived DerivedFrom(const Segment& segment, uint64_t derivation_fingerprint,
                           SegmentChunks chunks) {
  MNEME_CHECK(static_cast<size_t>(chunks.chunk_count) == segment.chunk_byte_begin.size());
  return {.document = segment.document,
          .segment_index = segment.index,
          .derivation_fingerprint = derivation_fingerprint,
          .encode_from_byte = segment.encode_from_byte,
          .skip_tokens = segment.skip_tokens,
          .token_count = static_cast<int32_t>(segment.ids.size()),
          .byte_begin = segment.byte_begin,
          .byte_end = segment.byte_end,
          .chunk_byte_begin = segment.chunk_byte_begin,
          .landmarks = std::move(chunks.landmarks),
          .pages = std::move(chunks.pages)};
}

Segmenter::Segmenter(const Tokenizer& tokenizer, const SegmentShape& shape, DocumentId document)
    : shape_(shape), encoder_(tokenizer) {
  cutter_.shape = &shape_;
  cutter_.open.document = document;
}

Segmenter::Segmenter(const Tokenizer& tokenizer, const SegmentShape& shape,
                     const SegmentDerived& from)
    : shape_(shape),
      encoder_(tokenizer,
               {.byte_offset = from.encode_from_byte, .at_begin = from.encode_from_byte == 0}),
      first_segment_index_(from.segment_index),
      fed_bytes_(from.encode_from_byte) {
  cutter_.shape = &shape_;
  cutter_.open.document = from.document;
  cutter_.open.index = from.segment_index;
  cutter_.skip_tokens = from.skip_tokens;
  cutter_.character_byte = from.encode_from_byte;
}

void Segmenter::Feed(absl::string_view text) {
  while (!text.empty()) {
    const absl::string_view piece = text.substr(0, Utf8CutBytes(text, kFeedBytes));
    text.remove_prefix(piece.size());
    const Mark mark = CurrentMark();
    tokens_.clear();
    encoder_.Append(piece, &tokens_);
    fed_bytes_ += static_cast<int64_t>(piece.size());
    for (const Token& token : tokens_) begins_after_checkpoint_.push_back(token.byte_begin);
    const int64_t checkpoint = encoder_.checkpoint().byte_offset;
    while (!begins_after_checkpoint_.empty() && begins_after_checkpoint_.front() < checkpoint) {
      begins_after_checkpoint_.pop_front();
    }
    whole_scratch_.clear();
    cutter_.Take(tokens_, fed_bytes_ - encoder_.pending_bytes(), mark, &whole_scratch_);
    for (Segment& segment : whole_scratch_) whole_.push_back(std::move(segment));
  }
}

Segment Segmenter::TakeWhole() {
  MNEME_CHECK(!whole_.empty());
  Segment segment = std::move(whole_.front());
  whole_.pop_front();
  return segment;
}

std::vector<Segment> Segmenter::OpenSegments() const {
  StreamingEncoder ending = encoder_;
  std::vector<Token> rest;
  ending.Finish(&rest);
  Cutter cutter = cutter_;
  std::vector<Segment> segments;
  cutter.Take(rest, fed_bytes_, CurrentMark(), &segments);
  if (!cutter.open.ids.empty()) segments.push_back(cutter.Close(fed_bytes_));
  return segments;
}

Segmenter::Mark Segmenter::CurrentMark() const {
  return {
      .byte_offset = encoder_.checkpoint().byte_offset,
      .token_number = cutter_.token_number - static_cast<int64_t>(begins_after_checkpoint_.size())};
}

void Segmenter::Cutter::Take(absl::Span<const Token> tokens, int64_t byte_end, const Mark& mark,
                             std::vector<Segment>* whole) {
  const auto segment_tokens = static_cast<size_t>(shape->segment_tokens);
  const auto chunk_tokens = static_cast<size_t>(shape->chunk_tokens);
  // The byte at which a token begins, moved back to the beginning of its character.
  const auto character_begin = [&](const Token& token) {
    return shape->inside_character[static_cast<size_t>(token.id)] ? character_byte
                                                                  : token.byte_begin;
  };
  for (size_t i = 0; i < tokens.size(); ++i) {
    const int64_t number = token_number++;
    const int64_t begin = character_begin(tokens[i]);
    character_byte = begin;
    if (skip_tokens > 0) {
      --skip_tokens;
      continue;
    }
    if (open.ids.empty()) {
      open.encode_from_byte = mark.byte_offset;
      open.skip_tokens = static_cast<int32_t>(number - mark.token_number);
      open.byte_begin = begin;
      open.ids.reserve(segment_tokens);
      if (open.index == 0) {
        open.chunk_byte_begin.push_back(begin);
        open.ids.push_back(shape->document_id);
      }
    }
    if (open.ids.size() % chunk_tokens == 0) open.chunk_byte_begin.push_back(begin);
    open.ids.push_back(tokens[i].id);
    if (open.ids.size() == segment_tokens) {
      whole->push_back(Close(i + 1 < tokens.size() ? character_begin(tokens[i + 1]) : byte_end));
    }
  }
}

Segment Segmenter::Cutter::Close(int64_t byte_end) {
  Segment closed = std::move(open);
  closed.byte_end = byte_end;
  open = Segment{.document = closed.document, .index = closed.index + 1};
  return closed;
}

}  // namespace mneme
