// Any bytes in any pieces give the tokens of the whole. The input's first byte chooses one of 256
// random vocabularies, the second the length of the pieces; the rest is the text.

#include <algorithm>

#include "common/check.h"
#include "model/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/model/spm_models.h"

namespace mneme {
namespace {

std::vector<std::string> StreamingEncoderSeeds() {
  std::vector<std::string> seeds;
  for (uint8_t choice : {1, 7, 42}) {
    std::mt19937_64 random(choice);
    const RandomVocabulary vocabulary = MakeRandomVocabulary(random);
    seeds.push_back(std::string(1, static_cast<char>(choice)) + '\3' +
                    RandomText(random, vocabulary, 60, /*malformed=*/true));
  }
  return seeds;
}

const Tokenizer& TokenizerOfChoice(uint8_t choice) {
  static auto* const tokenizers = new std::vector<std::unique_ptr<Tokenizer>>(256);
  std::unique_ptr<Tokenizer>& tokenizer = (*tokenizers)[choice];
  if (tokenizer == nullptr) {
    std::mt19937_64 random(choice);
    tokenizer =
        TokenizerOf(WithSpecialPieces(MakeRandomVocabulary(random).pieces), choice % 4 != 0);
  }
  return *tokenizer;
}

MNEME_FUZZ_TARGET(StreamingEncoder, StreamingEncoderSeeds) {
  if (input.size() < 2) return;
  const Tokenizer& tokenizer = TokenizerOfChoice(static_cast<uint8_t>(input[0]));
  const size_t piece_bytes = 1 + static_cast<uint8_t>(input[1]) % 64;
  input.remove_prefix(2);
  std::vector<Token> whole, tokens;
  tokenizer.Encode(input, &whole);
  StreamingEncoder encoder(tokenizer);
  for (size_t at = 0; at < input.size(); at += piece_bytes) {
    encoder.Append(input.substr(at, piece_bytes), &tokens);
    MNEME_CHECK(encoder.checkpoint().byte_offset + encoder.pending_bytes() ==
                static_cast<int64_t>(std::min(input.size(), at + piece_bytes)));
  }
  encoder.Finish(&tokens);
  MNEME_CHECK(tokens == whole);
}

}  // namespace
}  // namespace mneme
