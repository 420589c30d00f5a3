// Segmenter: the text of one document -> its segments.
//
// The token stream of a document is the document token followed by the tokens of its text; segments
// are exactly segment_tokens of it, chunks chunk_tokens of a segment. Text comes in pieces. A
// segment is whole once it has all its tokens and no later text can change them; the open rest can
// be cut at any time as though the text ended there. Each segment carries a checkpoint from which
// its tokens can be had again without the text before it.

#ifndef MNEME_ENGINE_SEGMENTER_H_
#define MNEME_ENGINE_SEGMENTER_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "memory_store/ids.h"
#include "memory_store/memory_store.h"
#include "model/model.h"
#include "model/tokenizer.h"

namespace mneme {

// How token streams are cut; the same for all documents of an engine.
struct SegmentShape {
  int segment_tokens = 0;
  int chunk_tokens = 0;
  TokenId document_id = 0;
  // By token id: a byte-fallback piece of a UTF-8 continuation byte, so that its first byte lies
  // inside a character.
  std::vector<bool> inside_character;

  static SegmentShape Of(const Model& model);
};

// Tokens to be derived as one segment, and their place in the document (see SegmentDerived).
struct Segment {
  DocumentId document{};
  int64_t index = 0;
  // The text from encode_from_byte on, encoded anew, gives these tokens after skip_tokens others.
  int64_t encode_from_byte = 0;
  int32_t skip_tokens = 0;
  // Text range, both ends between two characters.
  int64_t byte_begin = 0;
  int64_t byte_end = 0;
  std::vector<TokenId> ids;
  // First byte of each chunk, moved back to the beginning of its character.
  std::vector<int64_t> chunk_byte_begin;
};

// A segment with what the network made of it.
SegmentDerived DerivedFrom(const Segment& segment, uint64_t derivation_fingerprint,
                           SegmentChunks chunks);

// Thread-compatible. Borrows the tokenizer and the shape. Memory: one open segment, the encoder's
// pending text, and whole segments not yet taken.
class Segmenter {
 public:
  // From the first byte of a document.
  Segmenter(const Tokenizer& tokenizer, const SegmentShape& shape, DocumentId document);
  // From a stored segment: its own tokens come again, then those after it.
  Segmenter(const Tokenizer& tokenizer, const SegmentShape& shape, const SegmentDerived& from);

  int64_t first_segment_index() const { return first_segment_index_; }
  // Offset in the document at which the next piece of text goes.
  int64_t fed_bytes() const { return fed_bytes_; }
  // Takes the text at fed_bytes(): whole UTF-8 sequences.
  void Feed(absl::string_view text);

  // Whole segments, in order.
  bool has_whole() const { return !whole_.empty(); }
  Segment TakeWhole();

  // False while it is open where the first segment begins: the stored segment that we started from
  // followed tokens that later text may still change. Begin again from the segment before it.
  bool start_settled() const { return cutter_.skip_tokens == 0; }

  // What is neither whole nor empty, as though the text ended here: one segment, or more when the
  // encoder holds back enough tokens. Empty when nothing is open.
  std::vector<Segment> OpenSegments() const;

 private:
  // Where encoding could begin anew: the text offset, and the number of the first token from there
  // on, counted from the encoder's first token.
  struct Mark {
    int64_t byte_offset = 0;
    int64_t token_number = 0;
  };

  // Cuts a run of tokens into segments.
  struct Cutter {
    const SegmentShape* shape = nullptr;
    Segment open;                // ids empty: nothing since the last whole segment
    int64_t skip_tokens = 0;     // to be dropped before the first segment begins
    int64_t token_number = 0;    // of the next token
    int64_t character_byte = 0;  // where the character of the last token begins

    // Appends tokens that end at `byte_end`; `mark` is valid for all of them.
    void Take(absl::Span<const Token> tokens, int64_t byte_end, const Mark& mark,
              std::vector<Segment>* whole);
    // Ends the open segment at `byte_end`, and begins the next.
    Segment Close(int64_t byte_end);
  };

  Mark CurrentMark() const;

  const SegmentShape& shape_;
  StreamingEncoder encoder_;
  Cutter cutter_;
  int64_t first_segment_index_ = 0;
  int64_t fed_bytes_ = 0;
  // Begins of the emitted tokens at or after the encoder's checkpoint.
  std::deque<int64_t> begins_after_checkpoint_;
  std::deque<Segment> whole_;
  std::vector<Token> tokens_;           // scratch
  std::vector<Segment> whole_scratch_;  // scratch
};

}  // namespace mneme

#endif  // MNEME_ENGINE_SEGMENTER_H_
