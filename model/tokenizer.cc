#include "model/tokenizer.h"

#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "model/bpe_vocabulary.h"
#include "model/sentencepiece_model.pb.h"

namespace mneme {
namespace {

constexpr absl::string_view kSpaceMark = "\u2581";

absl::Status Unsupported(absl::string_view setting, absl::string_view value) {
  return absl::UnimplementedError(
      absl::StrCat("tokenizer.model: ", setting, " is ", value, ", which is not supported"));
}

absl::Status CheckTrainerSpec(const spm::TrainerSpec& spec) {
  if (spec.model_type() != spm::TrainerSpec::BPE) {
    return Unsupported("trainer_spec.model_type",
                       spm::TrainerSpec::ModelType_Name(spec.model_type()));
  }
  if (!spec.byte_fallback()) return Unsupported("trainer_spec.byte_fallback", "false");
  if (spec.treat_whitespace_as_suffix()) {
    return Unsupported("trainer_spec.treat_whitespace_as_suffix", "true");
  }
  return absl::OkStatus();
}

absl::Status CheckNormalizerSpec(absl::string_view which, const spm::NormalizerSpec& spec) {
  if (!spec.precompiled_charsmap().empty()) {
    return Unsupported(absl::StrCat(which, ".precompiled_charsmap"),
                       absl::StrCat("of ", spec.precompiled_charsmap().size(), " bytes (rule \"",
                                    spec.name(), "\")"));
  }
  return absl::OkStatus();
}

absl::Status CheckSpecs(const spm::ModelProto& model) {
  if (!model.has_trainer_spec() || !model.has_normalizer_spec()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.model: ", model.has_trainer_spec() ? "normalizer_spec" : "trainer_spec",
        " is missing (truncated, or not a SentencePiece model)"));
  }
  RETURN_IF_ERROR(CheckTrainerSpec(model.trainer_spec()));
  const spm::NormalizerSpec& normalizer = model.normalizer_spec();
  RETURN_IF_ERROR(CheckNormalizerSpec("normalizer_spec", normalizer));
  RETURN_IF_ERROR(CheckNormalizerSpec("denormalizer_spec", model.denormalizer_spec()));
  if (normalizer.remove_extra_whitespaces()) {
    return Unsupported("normalizer_spec.remove_extra_whitespaces", "true");
  }
  if (!normalizer.escape_whitespaces()) {
    return Unsupported("normalizer_spec.escape_whitespaces", "false");
  }
  return absl::OkStatus();
}

absl::StatusOr<BpePiece::Type> PieceType(const spm::ModelProto::SentencePiece& piece) {
  switch (piece.type()) {
    case spm::ModelProto::SentencePiece::NORMAL:
      return BpePiece::Type::kNormal;
    case spm::ModelProto::SentencePiece::USER_DEFINED:
      return BpePiece::Type::kUserDefined;
    case spm::ModelProto::SentencePiece::CONTROL:
      return BpePiece::Type::kControl;
    case spm::ModelProto::SentencePiece::UNKNOWN:
      return BpePiece::Type::kUnknown;
    case spm::ModelProto::SentencePiece::BYTE:
      return BpePiece::Type::kByte;
    case spm::ModelProto::SentencePiece::UNUSED:
      break;
  }
  return Unsupported("a piece's type", spm::ModelProto::SentencePiece::Type_Name(piece.type()));
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<BpeVocabulary> vocabulary, bool add_dummy_prefix)
    : vocabulary_(std::move(vocabulary)), add_dummy_prefix_(add_dummy_prefix) {}

Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(absl::string_view model) {
  spm::ModelProto proto;
  if (model.size() > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !proto.ParseFromArray(model.data(), static_cast<int>(model.size()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.model: ", model.size(),
                     " bytes that are not a SentencePiece model (truncated?)"));
  }
  RETURN_IF_ERROR(CheckSpecs(proto));
  std::vector<BpePiece> pieces;
  pieces.reserve(proto.pieces_size());
  for (spm::ModelProto::SentencePiece& piece : *proto.mutable_pieces()) {
    ASSIGN_OR_RETURN(const BpePiece::Type type, PieceType(piece));
    pieces.push_back({std::move(*piece.mutable_piece()), piece.score(), type});
  }
  ASSIGN_OR_RETURN(std::unique_ptr<BpeVocabulary> vocabulary,
                   BpeVocabulary::Create(std::move(pieces)));
  return std::unique_ptr<Tokenizer>(
      new Tokenizer(std::move(vocabulary), proto.normalizer_spec().add_dummy_prefix()));
}

int Tokenizer::vocab_size() const { return static_cast<int>(vocabulary_->pieces().size()); }

TokenId Tokenizer::PieceToId(absl::string_view piece) const {
  return vocabulary_->PieceToId(piece);
}

absl::string_view Tokenizer::IdToPiece(TokenId id) const {
  if (id < 0 || id >= vocab_size()) return "";
  return vocabulary_->pieces()[id].text;
}

void Tokenizer::Encode(absl::string_view text, std::vector<Token>* tokens) const {
  StreamingEncoder encoder(*this);
  encoder.EmitUnits(text, /*is_end=*/true, tokens);
}

// As the SentencePiece program: of the pieces that are not bytes, the first loses a leading U+2581
// if nothing was decoded before it.
std::string Tokenizer::Decode(absl::Span<const TokenId> ids, bool at_begin) const {
  std::string text;
  bool strip_prefix = at_begin && add_dummy_prefix_;
  for (TokenId id : ids) {
    if (id < 0 || id >= vocab_size()) continue;
    const BpePiece& piece = vocabulary_->pieces()[id];
    switch (piece.type) {
      case BpePiece::Type::kControl:
      case BpePiece::Type::kUnknown:
        break;
      case BpePiece::Type::kByte:
        text.push_back(static_cast<char>(vocabulary_->TokenByte(id)));
        break;
      case BpePiece::Type::kNormal:
      case BpePiece::Type::kUserDefined: {
        absl::string_view surface = piece.text;
        if (strip_prefix && text.empty()) absl::ConsumePrefix(&surface, kSpaceMark);
        strip_prefix = false;
        absl::StrAppend(&text, absl::StrReplaceAll(surface, {{kSpaceMark, " "}}));
        break;
      }
    }
  }
  return text;
}

}  // namespace mneme
