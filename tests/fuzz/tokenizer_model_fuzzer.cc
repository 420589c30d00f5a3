// tokenizer.model of a bundle: what loads must encode.

#include "common/check.h"
#include "model/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/model/spm_models.h"

namespace mneme {
namespace {

std::vector<std::string> TokenizerModelSeeds() {
  std::vector<std::string> seeds;
  std::mt19937_64 random(1);
  while (seeds.size() < 4) {
    const RandomVocabulary vocabulary = MakeRandomVocabulary(random);
    seeds.push_back(ModelOf(WithSpecialPieces(vocabulary.pieces)).SerializeAsString());
  }
  return seeds;
}

MNEME_FUZZ_TARGET(TokenizerModel, TokenizerModelSeeds) {
  const auto tokenizer = Tokenizer::Load(input);
  if (!tokenizer.ok()) return;
  std::vector<Token> tokens;
  (*tokenizer)->Encode("a b  ab<a> \u6f22\U0001f600 c\u2581\t.", &tokens);
  for (const Token& token : tokens) {
    MNEME_CHECK(token.id >= 0 && token.id < (*tokenizer)->vocab_size());
  }
  (*tokenizer)->Decode(Ids(tokens));
}

}  // namespace
}  // namespace mneme
