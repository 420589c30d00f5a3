#include "server/query_handlers.h"

#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "server/error.h"
#include "server/wire_message.h"

namespace mneme {
namespace {

constexpr int kUsualK = 8;
constexpr int kUsualTokens = 64;
constexpr int kContextBytesMax = 4096;
constexpr double kTemperatureMax = 10;

void Fill(const Passage& passage, v1::Passage* message) {
  message->set_document(passage.document);
  message->set_byte_begin(passage.byte_begin);
  message->set_byte_end(passage.byte_end);
  message->set_score(passage.score);
  message->set_weight(passage.weight);
  message->set_text(passage.text);
  message->set_chunk_index(passage.chunk_index);
  if (passage.rerank_score.has_value()) message->set_rerank_score(*passage.rerank_score);
  if (passage.keyword_score.has_value()) message->set_keyword_score(*passage.keyword_score);
}

void Fill(const StageSeconds& seconds, v1::Timing* timing) {
  timing->set_encode_seconds(seconds.encode);
  timing->set_scan_seconds(seconds.scan);
  timing->set_read_seconds(seconds.read);
  timing->set_generate_seconds(seconds.generate);
  timing->set_total_seconds(seconds.total);
}

// `value` if in 0 (meaning `usual`, which may be 0 itself) .. max.
absl::StatusOr<int> CountOrUsual(absl::string_view field, int value, int usual, int max) {
  if (value < 0 || value > max) {
    return FieldError(field, absl::StrCat(value),
                      usual > 0
                          ? absl::StrCat(value, " is not in 1 .. ", max, " (0 means ", usual, ")")
                          : absl::StrCat(value, " is not in 0 .. ", max));
  }
  return value == 0 ? usual : value;
}

// 0 means the engine's usual number.
absl::StatusOr<int> RerankCandidates(const v1::RetrieveRequest& request, int k, int k_max) {
  const uint32_t value = request.rerank_candidates();
  if (value == 0) return 0;
  if (!request.rerank()) {
    return FieldError("rerank_candidates", absl::StrCat(value),
                      absl::StrCat(value, " is set without rerank"));
  }
  if (value < static_cast<uint32_t>(k) || value > static_cast<uint32_t>(k_max)) {
    return FieldError("rerank_candidates", absl::StrCat(value),
                      absl::StrCat(value, " is not in ", k, " (k) .. ", k_max));
  }
  return static_cast<int>(value);
}

absl::Status CheckQuestion(absl::string_view question) {
  if (question.empty()) return FieldError("question", "", "is empty: at least 1 byte");
  return absl::OkStatus();
}

}  // namespace

QueryHandlers::QueryHandlers(Engine& engine, const ResourceCheck& check, QueryLimits limits)
    : engine_(engine), check_(check), limits_(limits) {}

absl::StatusOr<v1::RetrieveResponse> QueryHandlers::Retrieve(const v1::RetrieveRequest& request,
                                                             const CallContext& context) {
  RetrieveOptions options;
  ASSIGN_OR_RETURN(options.memories,
                   check_.Memories(request.memories(), 1, limits_.memories_per_read_max));
  ASSIGN_OR_RETURN(options.as_of, ResourceCheck::AsOf(request.has_as_of(), request.as_of()));
  RETURN_IF_ERROR(CheckQuestion(request.question()));
  options.question = request.question();
  ASSIGN_OR_RETURN(options.k, CountOrUsual("k", request.k(), kUsualK, limits_.retrieve_k_max));
  options.explain = request.explain();
  options.rerank = request.rerank();
  ASSIGN_OR_RETURN(options.rerank_candidates,
                   RerankCandidates(request, options.k, limits_.retrieve_k_max));
  if (request.keywords() && !request.rerank()) {
    return FieldError("keywords", "true", "true is set without rerank");
  }
  options.keywords = request.keywords();
  ASSIGN_OR_RETURN(options.context_bytes,
                   CountOrUsual("context_bytes", request.context_bytes(), 0, kContextBytesMax));
  ASSIGN_OR_RETURN(options.barriers, check_.Barriers(request.barriers()));

  ASSIGN_OR_RETURN(const RetrieveResult result, engine_.Retrieve(options, context));
  v1::RetrieveResponse response;
  for (const Passage& passage : result.passages) Fill(passage, response.add_passages());
  for (const TokenExplanation& token : result.explanation) {
    v1::TokenExplanation* explanation = response.add_explanation();
    // A token may be part of a character.
    explanation->set_text(ReplaceInvalidUtf8(token.text));
    for (double weight : token.weights) explanation->add_weights(weight);
  }
  response.set_chunks_scanned(result.chunks_scanned);
  response.set_damaged_passage_count(result.damaged_passages);
  Fill(result.seconds, response.mutable_timing());
  return response;
}

absl::StatusOr<v1::ScoreResponse> QueryHandlers::Score(const v1::ScoreRequest& request,
                                                       const CallContext& context) {
  ScoreOptions options;
  ASSIGN_OR_RETURN(options.memories,
                   check_.Memories(request.memories(), 0, limits_.memories_per_read_max));
  ASSIGN_OR_RETURN(options.as_of, ResourceCheck::AsOf(request.has_as_of(), request.as_of()));
  if (request.text().empty()) return FieldError("text", "", "is empty: at least 1 byte");
  options.prompt = request.prompt();
  // The network begins an answer with the space that parts it from the question, which Generate
  // leaves out: with it the score is that of the answer as it was generated.
  const bool begins_answer =
      !request.prompt().empty() &&
      !absl::ascii_isspace(static_cast<unsigned char>(request.text().front()));
  options.text = absl::StrCat(begins_answer ? " " : "", request.text());
  ASSIGN_OR_RETURN(options.barriers, check_.Barriers(request.barriers()));

  ASSIGN_OR_RETURN(const ScoreResult result, engine_.Score(options, context));
  v1::ScoreResponse response;
  response.set_log_likelihood(result.log_likelihood);
  response.set_token_count(static_cast<int64_t>(result.tokens.size()));
  for (const auto& [text, log_likelihood] : result.tokens) {
    v1::TokenScore* token = response.add_tokens();
    token->set_text(ReplaceInvalidUtf8(text));
    token->set_log_likelihood(log_likelihood);
  }
  return response;
}

absl::StatusOr<GenerateOptions> QueryHandlers::ParseGenerate(
    const v1::GenerateRequest& request) const {
  GenerateOptions options;
  ASSIGN_OR_RETURN(options.memories,
                   check_.Memories(request.memories(), 1, limits_.memories_per_read_max));
  ASSIGN_OR_RETURN(options.as_of, ResourceCheck::AsOf(request.has_as_of(), request.as_of()));
  RETURN_IF_ERROR(CheckQuestion(request.question()));
  options.question = request.question();
  ASSIGN_OR_RETURN(options.max_tokens, CountOrUsual("max_tokens", request.max_tokens(),
                                                    kUsualTokens, limits_.generate_tokens_max));
  // Written so that a NaN fails.
  if (!(request.temperature() >= 0 && request.temperature() <= kTemperatureMax)) {
    return FieldError("temperature", absl::StrCat(request.temperature()),
                      absl::StrCat(request.temperature(), " is not in 0 .. ", kTemperatureMax));
  }
  options.temperature = request.temperature();
  if (!(request.top_p() >= 0 && request.top_p() <= 1)) {
    return FieldError("top_p", absl::StrCat(request.top_p()),
                      absl::StrCat(request.top_p(), " is not in 0 .. 1"));
  }
  options.top_p = request.top_p() == 0 ? 1 : request.top_p();
  options.seed = request.seed();
  ASSIGN_OR_RETURN(options.barriers, check_.Barriers(request.barriers()));
  options.omit_passages = request.omit_passages();
  options.ignore_eos = request.ignore_eos();
  return options;
}

v1::GenerateResponse ToMessage(const GeneratePiece& piece) {
  v1::GenerateResponse message;
  message.set_text(piece.text);
  message.set_token_count(piece.token_count);
  for (const Passage& passage : piece.passages) Fill(passage, message.add_passages());
  return message;
}

v1::GenerateResponse ToMessage(const GenerateResult& result) {
  v1::GenerateResponse message;
  message.set_finish_reason(result.reason == FinishReason::kStop ? v1::GenerateResponse::STOP
                                                                 : v1::GenerateResponse::LENGTH);
  message.set_damaged_passage_count(result.damaged_passages);
  Fill(result.seconds, message.mutable_timing());
  return message;
}

}  // namespace mneme
