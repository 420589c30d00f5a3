#include "tests/model/spm_models.h"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <ostream>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/check.h"

namespace mneme {
namespace {

size_t Below(std::mt19937_64& random, size_t limit) { return random() % limit; }

template <typename T>
const T& Pick(std::mt19937_64& random, const std::vector<T>& from) {
  return from[Below(random, from.size())];
}

std::string Utf8Of(char32_t c) {
  std::string out;
  if (c < 0x80) {
    out = {static_cast<char>(c)};
  } else if (c < 0x800) {
    out = {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
  } else if (c < 0x10000) {
    out = {static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3f)),
           static_cast<char>(0x80 | (c & 0x3f))};
  } else {
    out = {static_cast<char>(0xf0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3f)),
           static_cast<char>(0x80 | (c >> 6 & 0x3f)), static_cast<char>(0x80 | (c & 0x3f))};
  }
  return out;
}

// Words of whatever English this machine has for certain: the repository's and Debian's own texts.
const std::vector<std::string>& EnglishLines() {
  static const auto* const kLines = [] {
    auto* lines = new std::vector<std::string>();
    for (const char* path :
         {MNEME_SOURCE_DIR "/README.md", "/usr/share/common-licenses/GPL-3",
          "/usr/share/common-licenses/Artistic", "/usr/share/common-licenses/MPL-2.0"}) {
      std::ifstream file(path);
      for (std::string line; std::getline(file, line);) lines->push_back(line);
    }
    for (absl::string_view line : absl::StrSplit(
             "A document is a log of text.\n"
             "Everything else is a pure function of one segment of it, they said; nobody's idea!\n"
             "    \"Don't,\" whispered Mr. O'Neill (aged 73) -- \"it's the 2nd door, isn't it?\"\n"
             "\tIn 1912, c. 3,140 people lived there: 51% men, 49% women... and one cat.\n"
             "The naïve café's façade cost £12.50, i.e. about €15; São Paulo's — cheaper.",
             '\n')) {
      lines->emplace_back(line);
    }
    return lines;
  }();
  return *kLines;
}

std::string CodeLine(std::mt19937_64& random) {
  static const auto* const kLines = new std::vector<std::string>{
      "    for (size_t i = 0; i < n; ++i) { total += values[i] * 0x1f; }",
      "def read(self, ids, K=None): return self.run_lower(ids)[:, -1] @ W.T  # [L,d]",
      "std::vector<std::pair<int, std::string>> kTable{{1, \"a\"}, {2, \"b\"}};",
      "SELECT name, count(*) FROM t WHERE x >= 10 AND y <> 'q' GROUP BY 1;",
      "<html><body class=\"doc\"><a href='/q?x=1&y=2'>link</a></body></html>",
      "\tif [ -z \"${HOME:-}\" ]; then echo \"no home\" >&2; exit 1; fi",
      "{\"key\": [1, 2.5e-3, null, true], \"nested\": {\"a\": \"\\u00e9\"}}",
      "==========  ----------------------------------------  **********",
      "PATH=/usr/local/bin:/usr/bin:/bin_______________________________x",
  };
  return Pick(random, *kLines);
}

std::string RandomUnicode(std::mt19937_64& random) {
  static constexpr std::pair<char32_t, char32_t> kRanges[] = {
      {0x01, 0x09},       {0x20, 0x7e},        {0xa0, 0x24f},    {0x300, 0x36f},
      {0x370, 0x4ff},     {0x590, 0x6ff},      {0x900, 0x97f},   {0x2000, 0x206f},
      {0x2580, 0x2590},   {0x3040, 0x30ff},    {0x4e00, 0x9fff}, {0xac00, 0xd7a3},
      {0xe000, 0xe010},   {0xfdd0, 0xfdd5},    {0xfff0, 0xffff}, {0x1f300, 0x1f6ff},
      {0x20000, 0x20100}, {0x10fff0, 0x10ffff}};
  std::string out;
  const auto& [low, high] = kRanges[Below(random, std::size(kRanges))];
  for (size_t n = 1 + Below(random, 24); n > 0; --n) {
    out += Utf8Of(low + static_cast<char32_t>(Below(random, high - low + 1)));
    if (Below(random, 8) == 0) out += ' ';
  }
  return out;
}

std::string Run(std::mt19937_64& random) {
  static const auto* const kUnits =
      new std::vector<std::string>{" ",  "a",      "the", "-", ".",   "e",  "  ", "漢",
                                   "ab", "\u2581", "0",   "!", "ing", "\t", "😀",  "\u0301"};
  const std::string& unit = Pick(random, *kUnits);
  std::string out;
  for (size_t n = 1 + Below(random, Below(random, 20) == 0 ? 800 : 40); n > 0; --n) out += unit;
  return out;
}

std::string SpecialTokens(std::mt19937_64& random) {
  static const auto* const kParts =
      new std::vector<std::string>{"<doc>", "<q>",  "<a>",   "<",   "do",   "c>",     ">",
                                   "<d",    "<<q>", "<unk>", "<s>", "</s>", "<0x41>", " "};
  std::string out;
  for (size_t n = 1 + Below(random, 12); n > 0; --n) out += Pick(random, *kParts);
  return out;
}

std::string SentenceOfWords(std::mt19937_64& random) {
  std::string out;
  for (size_t n = 1 + Below(random, 30); n > 0; --n) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(Pick(random, EnglishLines()), ' ', absl::SkipWhitespace());
    if (words.empty()) continue;
    absl::StrAppend(&out, words[Below(random, words.size())], Below(random, 12) == 0 ? ", " : " ");
  }
  return out;
}

}  // namespace

std::string FileContents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  MNEME_CHECK(file.good());
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

const std::string& ShippedModel() {
  static const auto* const kModel =
      new std::string(FileContents(MNEME_SOURCE_DIR "/models/mneme-small/tokenizer.model"));
  return *kModel;
}

const Tokenizer& ShippedTokenizer() {
  static const Tokenizer* const kTokenizer = Tokenizer::Load(ShippedModel()).value().release();
  return *kTokenizer;
}

std::vector<BpePiece> WithSpecialPieces(std::vector<BpePiece> pieces) {
  std::vector<BpePiece> all = {{"<unk>", 0, BpePiece::Type::kUnknown},
                               {"<s>", 0, BpePiece::Type::kControl},
                               {"</s>", 0, BpePiece::Type::kControl}};
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    std::snprintf(text, sizeof(text), "<0x%02X>", byte);
    all.push_back({text, 0, BpePiece::Type::kByte});
  }
  for (BpePiece& piece : pieces) all.push_back(std::move(piece));
  return all;
}

spm::ModelProto ModelOf(const std::vector<BpePiece>& pieces, bool add_dummy_prefix) {
  using Proto = spm::ModelProto::SentencePiece;
  spm::ModelProto model;
  for (const BpePiece& piece : pieces) {
    Proto* proto = model.add_pieces();
    proto->set_piece(piece.text);
    proto->set_score(piece.score);
    switch (piece.type) {
      case BpePiece::Type::kNormal:
        break;
      case BpePiece::Type::kUserDefined:
        proto->set_type(Proto::USER_DEFINED);
        break;
      case BpePiece::Type::kControl:
        proto->set_type(Proto::CONTROL);
        break;
      case BpePiece::Type::kUnknown:
        proto->set_type(Proto::UNKNOWN);
        break;
      case BpePiece::Type::kByte:
        proto->set_type(Proto::BYTE);
        break;
    }
  }
  model.mutable_trainer_spec()->set_model_type(spm::TrainerSpec::BPE);
  model.mutable_trainer_spec()->set_byte_fallback(true);
  model.mutable_normalizer_spec()->set_name("identity");
  model.mutable_normalizer_spec()->set_add_dummy_prefix(add_dummy_prefix);
  model.mutable_normalizer_spec()->set_remove_extra_whitespaces(false);
  return model;
}

std::unique_ptr<Tokenizer> TokenizerOf(const std::vector<BpePiece>& pieces, bool add_dummy_prefix) {
  return Tokenizer::Load(ModelOf(pieces, add_dummy_prefix).SerializeAsString()).value();
}

RandomVocabulary MakeRandomVocabulary(std::mt19937_64& random) {
  static const auto* const kCharacters = new std::vector<std::string>{
      "\u2581", "a", "b", "c", "e", "<", ">", ".", "0", "é", "漢", "字", "😀", "\t", "\ufffd"};
  RandomVocabulary out;
  out.alphabet = {"\u2581"};
  for (size_t n = 2 + Below(random, 4); n > 0; --n)
    out.alphabet.push_back(Pick(random, *kCharacters));

  std::set<std::string> seen;
  std::vector<std::string> parts = out.alphabet;
  const auto add = [&](const std::string& text, BpePiece::Type type) {
    if (!seen.insert(text).second) return;
    // Few distinct scores: ties are the interesting case.
    out.pieces.push_back({text, -static_cast<float>(Below(random, 12)), type});
  };
  for (size_t n = Below(random, 4); n > 0; --n) {
    std::string text;
    for (size_t k = 1 + Below(random, 4); k > 0; --k) text += Pick(random, out.alphabet);
    add(text, BpePiece::Type::kUserDefined);
    if (Below(random, 2) == 0) add(text + Pick(random, out.alphabet), BpePiece::Type::kUserDefined);
  }
  for (const std::string& c : out.alphabet) {
    if (Below(random, 5) != 0) add(c, BpePiece::Type::kNormal);
  }
  for (size_t n = Below(random, 40); n > 0; --n) {
    const std::string text = Pick(random, parts) + Pick(random, parts);
    if (text.size() > 40) continue;
    // One in eight is a part of others, but no piece: they may be out of reach then.
    if (Below(random, 8) != 0) add(text, BpePiece::Type::kNormal);
    parts.push_back(text);
  }
  return out;
}

std::string RandomText(std::mt19937_64& random, const RandomVocabulary& vocabulary, size_t pieces,
                       bool malformed) {
  static const auto* const kBroken = new std::vector<std::string>{
      "\x80", "\xe2\x96", "\xff", "\xc0\x80", "\xed\xa0\x80", "\xf0\x9f"};
  std::string text;
  for (size_t i = 0; i < pieces; ++i) {
    const size_t kind = Below(random, 40);
    if (kind == 0) {
      text += RandomUnicode(random);
    } else if (kind == 1 && malformed) {
      text += Pick(random, *kBroken);
    } else if (kind < 6) {
      text += Pick(random, vocabulary.pieces).text;
    } else if (kind < 10) {
      text += ' ';
    } else if (kind == 10) {
      const std::string& c = Pick(random, vocabulary.alphabet);
      for (size_t n = Below(random, 60); n > 0; --n) text += c;
    } else {
      text += Pick(random, vocabulary.alphabet);
    }
  }
  return text;
}

std::string MixedText(uint64_t seed, size_t bytes) {
  std::mt19937_64 random(seed);
  std::string text;
  while (text.size() < bytes) {
    switch (Below(random, 16)) {
      case 0:
        text += CodeLine(random);
        break;
      case 1:
        text += RandomUnicode(random);
        break;
      case 2:
        text += Run(random);
        break;
      case 3:
        text += SpecialTokens(random);
        break;
      case 4:
        absl::StrAppend(&text, random() % 100000, ".", random() % 1000, " ", random());
        break;
      case 5:
      case 6:
      case 7:
        text += SentenceOfWords(random);
        break;
      default:
        text += Pick(random, EnglishLines());
    }
    // Mostly lines; now and then two kinds touch each other.
    if (Below(random, 6) != 0) text += '\n';
  }
  return text;
}

std::vector<TokenId> Ids(const std::vector<Token>& tokens) {
  std::vector<TokenId> ids;
  for (const Token& token : tokens) ids.push_back(token.id);
  return ids;
}

std::vector<Token> EncodeAll(const Tokenizer& tokenizer, absl::string_view text) {
  std::vector<Token> tokens;
  tokenizer.Encode(text, &tokens);
  return tokens;
}

void PrintTo(const Token& token, std::ostream* out) {
  *out << "{" << token.id << " at " << token.byte_begin << (token.can_restart ? " restart" : "")
       << "}";
}

}  // namespace mneme
