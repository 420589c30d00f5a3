#include "model/tokenizer.h"

#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/bpe_vocabulary.h"
#include "model/bundle.h"
#include "tests/model/spm_models.h"
#include "tests/reference/bpe_reference.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Type = BpePiece::Type;

absl::Status LoadStatus(const spm::ModelProto& model) {
  return Tokenizer::Load(model.SerializeAsString()).status();
}

// A model with one ordinary word: "a", "b" and "ab".
std::vector<BpePiece> SmallPieces() {
  return WithSpecialPieces({{"\u2581", -3}, {"a", -1}, {"b", -2}, {"ab", 0}});
}

// What the spm_encode program printed for these lines and the shipped model.
TEST(TokenizerTest, ShippedModelGivesKnownIds) {
  const Tokenizer& tokenizer = ShippedTokenizer();
  EXPECT_THAT(Ids(EncodeAll(tokenizer, "Hello, world!")),
              ElementsAre(7259, 8134, 1108, 8178));
  EXPECT_THAT(Ids(EncodeAll(tokenizer, "  two  spaces ")),
              ElementsAre(8112, 8112, 700, 8112, 7766, 8112));
  EXPECT_THAT(Ids(EncodeAll(tokenizer, "<q>What is 40917?<a>")),
              ElementsAre(8112, 3, 2188, 325, 8112, 8176, 8153, 8174, 8149, 8182, 8160, 4));
  EXPECT_THAT(Ids(EncodeAll(tokenizer, "na\u00efve \u6f22\u5b57 \U0001f600\u2581x")),
              ElementsAre(303, 8115, 201, 181, 312, 8112, 236, 194, 168, 235, 179, 157, 8112, 246,
                          165, 158, 134, 3761));
  EXPECT_THAT(Ids(EncodeAll(tokenizer, "<do<doc>c>")), ElementsAre(8112, 66, 5054, 5, 8124, 68));
  EXPECT_THAT(EncodeAll(tokenizer, ""), IsEmpty());
}

TEST(TokenizerTest, GoldenDocumentRoundTrips) {
  const auto file =
      SafetensorsFile::Open(MNEME_SOURCE_DIR "/tests/data/golden.safetensors").value();
  const TensorView& view = file->tensors().at("document_ids");
  std::vector<TokenId> ids(static_cast<size_t>(view.elements()));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = view.data[8 * i] | view.data[8 * i + 1] << 8;
  // The first token is <doc>, which stands before the text.
  const absl::Span<const TokenId> text_ids = absl::MakeConstSpan(ids).subspan(1);
  const std::string text = ShippedTokenizer().Decode(text_ids);
  EXPECT_GT(text.size(), 1000u);
  EXPECT_EQ(Ids(EncodeAll(ShippedTokenizer(), text)),
            std::vector<TokenId>(text_ids.begin(), text_ids.end()));
}

TEST(TokenizerTest, PiecesAndIdsCorrespond) {
  const Tokenizer& tokenizer = ShippedTokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 8192);
  EXPECT_EQ(tokenizer.PieceToId("<doc>"), 5);
  EXPECT_EQ(tokenizer.PieceToId("no such piece"), -1);
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
    EXPECT_EQ(tokenizer.PieceToId(tokenizer.IdToPiece(id)), id);
  }
  EXPECT_EQ(tokenizer.IdToPiece(-1), "");
  EXPECT_EQ(tokenizer.IdToPiece(8192), "");
}

TEST(TokenizerTest, HigherScoreMergesFirstAndLeftmostOfEquals) {
  const auto tokenizer = TokenizerOf(
      WithSpecialPieces({{"a", 0}, {"b", 0}, {"c", 0}, {"ab", -2}, {"bc", -1}, {"aa", -3}}), false);
  const auto pieces = [&](absl::string_view text) {
    std::vector<std::string> out;
    for (TokenId id : Ids(EncodeAll(*tokenizer, text))) out.emplace_back(tokenizer->IdToPiece(id));
    return out;
  };
  EXPECT_THAT(pieces("abc"), ElementsAre("a", "bc"));
  EXPECT_THAT(pieces("aaaaa"), ElementsAre("aa", "aa", "a"));
  EXPECT_THAT(pieces("aab"), ElementsAre("a", "ab"));
}

TEST(TokenizerTest, UserDefinedSymbolsMatchLongestAndNeverMerge) {
  const auto tokenizer = TokenizerOf(WithSpecialPieces({{"a", 0},
                                                        {"b", 0},
                                                        {"ab", 0},
                                                        {"<a", 0, Type::kUserDefined},
                                                        {"<ab>", 0, Type::kUserDefined},
                                                        {"b<", 0}}),
                                     false);
  const auto pieces = [&](absl::string_view text) {
    std::vector<std::string> out;
    for (TokenId id : Ids(EncodeAll(*tokenizer, text))) out.emplace_back(tokenizer->IdToPiece(id));
    return out;
  };
  EXPECT_THAT(pieces("ab<ab>ab"), ElementsAre("ab", "<ab>", "ab"));
  EXPECT_THAT(pieces("b<ab"), ElementsAre("b", "<a", "b"));
  EXPECT_THAT(pieces("b<b"), ElementsAre("b<", "b"));
}

// A vocabulary of a million pieces may have a thousand million nodes.
TEST(TokenizerTest, EdgesOfUserDefinedSymbolsDifferHoweverManyThereAre) {
  std::set<uint64_t> edges;
  const std::vector<int> nodes = {0, 1, (1 << 24) - 1, 1 << 24, (1 << 24) + 1, 1 << 30};
  for (int node : nodes) {
    for (int byte = 0; byte < 256; ++byte) {
      edges.insert(BpeVocabulary::UserEdge(node, static_cast<uint8_t>(byte)));
    }
  }
  EXPECT_EQ(edges.size(), nodes.size() * 256);
}

TEST(TokenizerTest, OffsetsLieOnCharactersAndCoverTheText) {
  const auto check = [](const std::string& text) {
    int64_t last = 0;
    for (const Token& token : EncodeAll(ShippedTokenizer(), text)) {
      ASSERT_GE(token.byte_begin, last);
      ASSERT_LE(token.byte_begin, static_cast<int64_t>(text.size()));
      if (token.byte_begin < static_cast<int64_t>(text.size())) {
        ASSERT_NE(text[static_cast<size_t>(token.byte_begin)] & 0xc0, 0x80) << token.byte_begin;
      }
      last = token.byte_begin;
    }
  };
  check(MixedText(/*seed=*/1, 100'000));
  EXPECT_THAT(EncodeAll(ShippedTokenizer(), "\u6f22 x"),
              ElementsAre(Token{8112, 0, true}, Token{236, 0, true}, Token{194, 0, false},
                          Token{168, 0, false}, Token{3761, 3, true}));
}

TEST(TokenizerTest, TextOfATokenDecodesFromItsByteRange) {
  const std::string text = MixedText(/*seed=*/2, 50'000);
  const std::vector<Token> tokens = EncodeAll(ShippedTokenizer(), text);
  for (size_t i = 1; i < tokens.size(); ++i) {
    const TokenId id = tokens[i].id;
    // Byte pieces hold their character only together.
    if (ShippedTokenizer().IdToPiece(id).substr(0, 3) == "<0x") continue;
    const auto begin = static_cast<size_t>(tokens[i].byte_begin);
    const size_t end =
        i + 1 < tokens.size() ? static_cast<size_t>(tokens[i + 1].byte_begin) : text.size();
    const std::string surface =
        absl::StrReplaceAll(text.substr(begin, end - begin), {{"\u2581", " "}});
    ASSERT_EQ(ShippedTokenizer().Decode({&id, 1}, /*at_begin=*/false), surface) << "token " << i;
  }
}

TEST(TokenizerTest, DecodeGivesTheTextBack) {
  for (uint64_t seed = 10; seed < 20; ++seed) {
    const std::string text = absl::StrReplaceAll(MixedText(seed, 20'000), {{"\u2581", "_"}});
    ASSERT_EQ(ShippedTokenizer().Decode(Ids(EncodeAll(ShippedTokenizer(), text))), text)
        << "seed " << seed;
  }
  EXPECT_EQ(ShippedTokenizer().Decode(Ids(EncodeAll(ShippedTokenizer(), " a"))), " a");
  EXPECT_EQ(ShippedTokenizer().Decode(Ids(EncodeAll(ShippedTokenizer(), "a\u2581b"))), "a b");
}

TEST(TokenizerTest, DecodeOfPiecesJoinsBytesAndDropsControls) {
  const Tokenizer& tokenizer = ShippedTokenizer();
  EXPECT_EQ(tokenizer.Decode({1, 7259, 8134, 2, 0, -7, 99999}), "Hello,");
  EXPECT_EQ(tokenizer.Decode({7259, 8134}, /*at_begin=*/false), " Hello,");
  EXPECT_EQ(tokenizer.Decode({236, 194, 168}), "\u6f22");
  EXPECT_EQ(tokenizer.Decode({236, 194}), "\xe6\xbc");
  EXPECT_EQ(tokenizer.Decode({5, 7259}), "<doc> Hello");
}

TEST(TokenizerTest, MalformedBytesCountAsReplacementCharacters) {
  for (absl::string_view broken :
       {"\x80", "\xc3", "\xed\xa0", "\xf0\x9f\x98", "\xc0\x80", "\xff\xfe"}) {
    std::string replaced = "a";
    for (size_t i = 0; i < broken.size(); ++i) replaced += "\ufffd";
    EXPECT_EQ(Ids(EncodeAll(ShippedTokenizer(), absl::StrCat("a", broken))),
              Ids(EncodeAll(ShippedTokenizer(), replaced)));
  }
}

TEST(TokenizerTest, AgreesWithTheSlowTwinOnRandomVocabularies) {
  const uint64_t seed = 20240607;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 400; ++round) {
    RandomVocabulary vocabulary = MakeRandomVocabulary(random);
    if (vocabulary.pieces.empty()) continue;
    const std::vector<BpePiece> pieces = WithSpecialPieces(vocabulary.pieces);
    const bool dummy_prefix = round % 4 != 0;
    const auto tokenizer = TokenizerOf(pieces, dummy_prefix);
    const BpeReference reference(pieces, dummy_prefix);
    for (int i = 0; i < 20; ++i) {
      const std::string text = RandomText(random, vocabulary, random() % 60, /*malformed=*/true);
      ASSERT_EQ(Ids(EncodeAll(*tokenizer, text)), reference.Encode(text))
          << "round " << round << ", text " << testing::PrintToString(text);
    }
  }
}

TEST(TokenizerTest, TruncatedModelIsRefused) {
  const absl::string_view model = ShippedModel();
  for (size_t bytes = 0; bytes < model.size(); bytes += bytes + 300 < model.size() ? 997 : 1) {
    const absl::Status status = Tokenizer::Load(model.substr(0, bytes)).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bytes << " bytes: " << status;
    ASSERT_THAT(status.message(), HasSubstr("tokenizer.model"));
  }
  EXPECT_TRUE(Tokenizer::Load(model).ok());
}

TEST(TokenizerTest, UnsupportedSettingsAreRefusedByName) {
  const spm::ModelProto good = ModelOf(SmallPieces());
  ASSERT_TRUE(LoadStatus(good).ok());
  const auto refused = [&](const char* name, auto change) {
    spm::ModelProto model = good;
    change(model);
    const absl::Status status = LoadStatus(model);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    EXPECT_THAT(status.message(), HasSubstr(name));
  };
  refused("model_type is UNIGRAM",
          [](auto& m) { m.mutable_trainer_spec()->set_model_type(spm::TrainerSpec::UNIGRAM); });
  refused("byte_fallback is false",
          [](auto& m) { m.mutable_trainer_spec()->set_byte_fallback(false); });
  refused("treat_whitespace_as_suffix",
          [](auto& m) { m.mutable_trainer_spec()->set_treat_whitespace_as_suffix(true); });
  refused("remove_extra_whitespaces",
          [](auto& m) { m.mutable_normalizer_spec()->set_remove_extra_whitespaces(true); });
  refused("escape_whitespaces",
          [](auto& m) { m.mutable_normalizer_spec()->set_escape_whitespaces(false); });
  refused("normalizer_spec.precompiled_charsmap is of 3 bytes (rule \"nmt_nfkc\")", [](auto& m) {
    m.mutable_normalizer_spec()->set_name("nmt_nfkc");
    m.mutable_normalizer_spec()->set_precompiled_charsmap("abc");
  });
  refused("denormalizer_spec.precompiled_charsmap",
          [](auto& m) { m.mutable_denormalizer_spec()->set_precompiled_charsmap("abc"); });
  refused("UNUSED", [](auto& m) {
    m.mutable_pieces(m.pieces_size() - 1)->set_type(spm::ModelProto::SentencePiece::UNUSED);
  });
}

TEST(TokenizerTest, BrokenPiecesAreNamed) {
  const auto refused = [&](const char* message, std::vector<BpePiece> pieces) {
    const absl::Status status = LoadStatus(ModelOf(pieces));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(status.message(), HasSubstr(message));
  };
  const auto with = [](BpePiece piece) {
    std::vector<BpePiece> pieces = SmallPieces();
    pieces.push_back(std::move(piece));
    return pieces;
  };
  refused("0 pieces", {});
  refused("piece 263 \"\" is empty", with({""}));
  refused("piece 263 \"ab\" is piece 262 again", with({"ab"}));
  refused("is not UTF-8", with({"\xc3"}));
  refused("has 1025 bytes, the most is 1024", with({std::string(1025, 'x')}));
  refused("not a number", with({"x", std::nanf("")}));
  refused("is unknown, as is piece 0", with({"<unk2>", 0, Type::kUnknown}));
  refused("not <0x00> to <0xFF>", with({"<0x4a>", 0, Type::kByte}));
  refused("holds a NUL", with({std::string("a\0b", 3), 0, Type::kUserDefined}));
  std::vector<BpePiece> pieces = SmallPieces();
  pieces.erase(pieces.begin() + 3 + 0x41);
  refused("no piece for byte 65", pieces);
  pieces = SmallPieces();
  pieces.erase(pieces.begin());
  refused("no piece is unknown", pieces);
}

}  // namespace
}  // namespace mneme
