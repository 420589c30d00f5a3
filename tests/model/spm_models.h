// SentencePiece models and texts for tests: the shipped one, small ones made by hand, random ones.

#ifndef MNEME_TESTS_MODEL_SPM_MODELS_H_
#define MNEME_TESTS_MODEL_SPM_MODELS_H_

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "model/bpe_vocabulary.h"
#include "model/sentencepiece_model.pb.h"
#include "model/tokenizer.h"

namespace mneme {

// Contents of a file, which must exist.
std::string FileContents(const std::string& path);

// Contents of models/mneme-small/tokenizer.model.
const std::string& ShippedModel();
const Tokenizer& ShippedTokenizer();

// <unk>, <s>, </s> and the 256 byte pieces, then `pieces`: a model that Tokenizer::Load takes.
std::vector<BpePiece> WithSpecialPieces(std::vector<BpePiece> pieces);
spm::ModelProto ModelOf(const std::vector<BpePiece>& pieces, bool add_dummy_prefix = true);
std::unique_ptr<Tokenizer> TokenizerOf(const std::vector<BpePiece>& pieces,
                                       bool add_dummy_prefix = true);

// A small random vocabulary over few characters, so that pieces overlap, tie and nest: pieces with
// inner and repeated U+2581, pieces that no merge can reach, characters without a piece,
// user-defined symbols that are prefixes of others.
struct RandomVocabulary {
  std::vector<BpePiece> pieces;
  std::vector<std::string> alphabet;
};
RandomVocabulary MakeRandomVocabulary(std::mt19937_64& random);
// Text over the alphabet, runs and strangers among it; with `malformed`, bytes that are not UTF-8
// too. No '\n'.
std::string RandomText(std::mt19937_64& random, const RandomVocabulary& vocabulary, size_t pieces,
                       bool malformed);

// About `bytes` bytes of English, code, numbers, runs of spaces and of single characters, CJK,
// emoji, random Unicode and special tokens, valid UTF-8, in lines. The same for the same seed.
std::string MixedText(uint64_t seed, size_t bytes);

std::vector<TokenId> Ids(const std::vector<Token>& tokens);
std::vector<Token> EncodeAll(const Tokenizer& tokenizer, absl::string_view text);

inline bool operator==(const Token& a, const Token& b) {
  return a.id == b.id && a.byte_begin == b.byte_begin && a.can_restart == b.can_restart;
}

// A token as a failed assertion shows it.
void PrintTo(const Token& token, std::ostream* out);

}  // namespace mneme

#endif  // MNEME_TESTS_MODEL_SPM_MODELS_H_
