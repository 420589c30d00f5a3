// Generate: the question runs through both halves as the prompt, then one token at a time.

#include <algorithm>
#include <set>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "common/utf8.h"
#include "engine/passage_reader.h"
#include "engine/readers.h"
#include "model/sampler.h"

namespace mneme {
namespace {

// Chunks read with less weight than this are not named.
constexpr double kPassageWeightMin = 0.01;
constexpr double kTemperatureMax = 10;

absl::Status CheckOptions(const ReadEnvironment& environment, const GenerateOptions& options) {
  const int tokens_max = environment.options.generate_tokens_max;
  if (options.max_tokens < 1 || options.max_tokens > tokens_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens is ", options.max_tokens, "; it must be 1 to ", tokens_max));
  }
  if (!(options.temperature >= 0 && options.temperature <= kTemperatureMax)) {
    return absl::InvalidArgumentError(absl::StrCat("temperature is ", options.temperature,
                                                   "; it must be 0 to ", kTemperatureMax));
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_p is ", options.top_p, "; it must be above 0 and at most 1"));
  }
  return absl::OkStatus();
}

// Tokens -> text in whole characters.
class AnswerText {
 public:
  explicit AnswerText(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // The text that this token completes; may be empty.
  std::string Add(TokenId id) {
    std::string bytes = tokenizer_.Decode(absl::MakeConstSpan(&id, 1), /*at_begin=*/false);
    // The answer begins as its first word does, without the space before it.
    if (!begun_) bytes.erase(0, std::min(bytes.find_first_not_of(' '), bytes.size()));
    begun_ |= !bytes.empty();
    pending_ += bytes;
    return TakeWhole(/*ended=*/false);
  }
  // What is left at the end: bytes that never became a character give a replacement character.
  std::string Finish() { return TakeWhole(/*ended=*/true); }

 private:
  std::string TakeWhole(bool ended) {
    std::string text;
    while (!pending_.empty()) {
      const Utf8Prefix prefix = ValidUtf8Prefix(pending_);
      text += pending_.substr(0, prefix.valid_bytes);
      pending_.erase(0, prefix.valid_bytes);
      if (pending_.empty() || (prefix.incomplete && !ended)) break;
      text += "\xEF\xBF\xBD";
      pending_.erase(0, 1);
    }
    return text;
  }

  const Tokenizer& tokenizer_;
  bool begun_ = false;
  std::string pending_;
};

// The chunks that the tokens of one piece read.
class PieceReads {
 public:
  void Add(absl::Span<const ChunkHit> row) {
    for (const ChunkHit& hit : row) {
      if (hit.weight <= kPassageWeightMin) continue;
      const auto same = std::find_if(hits_.begin(), hits_.end(), [&](const ChunkHit& other) {
        return other.text.address == hit.text.address;
      });
      if (same == hits_.end()) {
        hits_.push_back(hit);
      } else if (hit.weight > same->weight) {
        *same = hit;
      }
    }
  }

  // By weight, at most `limit`; the text of each chunk only the first time.
  std::vector<Passage> Take(PassageReader& reader, size_t limit) {
    std::sort(hits_.begin(), hits_.end(),
              [](const ChunkHit& a, const ChunkHit& b) { return a.weight > b.weight; });
    hits_.resize(std::min(hits_.size(), limit));
    std::vector<Passage> passages;
    for (const ChunkHit& hit : hits_) {
      const bool fresh = !told_.contains(hit.text.address);
      std::optional<Passage> passage = reader.Read(hit, /*with_text=*/fresh, /*context_bytes=*/0);
      if (!passage) continue;
      told_.insert(hit.text.address);
      passages.push_back(*std::move(passage));
    }
    hits_.clear();
    return passages;
  }

 private:
  std::vector<ChunkHit> hits_;
  absl::flat_hash_set<ChunkAddress> told_;
};

// Counts as decoding for as long as it lives.
class DecodeScope {
 public:
  explicit DecodeScope(ReadBatcher& batcher) : batcher_(batcher) { batcher_.BeginDecode(); }
  ~DecodeScope() { batcher_.EndDecode(); }
  DecodeScope(const DecodeScope&) = delete;
  DecodeScope& operator=(const DecodeScope&) = delete;

 private:
  ReadBatcher& batcher_;
};

// Tokens that end an answer.
std::set<TokenId> StopTokens(const Model& model) {
  std::set<TokenId> stop = {model.bundle().document_id, model.bundle().question_id};
  const TokenId end = model.tokenizer().PieceToId("</s>");
  if (end >= 0) stop.insert(end);
  return stop;
}

}  // namespace

absl::StatusOr<GenerateResult> Generate(const ReadEnvironment& environment,
                                        const GenerateOptions& options, const CallContext& context,
                                        const std::function<bool(GeneratePiece)>& emit) {
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(context.Check());
  RETURN_IF_ERROR(CheckOptions(environment, options));
  const Model& model = environment.model;
  ASSIGN_OR_RETURN(const ReaderInput input, QuestionInput(model, options.question));
  ASSIGN_OR_RETURN(ResolvedMemories memories,
                   ResolveMemories(environment, options.memories, options.as_of,
                                   /*may_be_empty=*/false));
  RETURN_IF_ERROR(WaitForBarriers(environment, options.barriers, context));
  RETURN_IF_ERROR(ViewPast(environment, context, &memories.scope));
  ASSIGN_OR_RETURN(const ReaderGate::Ticket ticket, environment.gate.Enter(context));

  GenerateResult result;
  const std::unique_ptr<ReaderState> state = model.NewReaderState();
  const bool greedy = options.temperature <= 0;
  ReadStep step{.state = state.get(),
                .scope = &memories.scope,
                .upper = true,
                .logit_rows = greedy ? LogitRows::kBestOfStep : LogitRows::kLastOfStep};
  RETURN_IF_ERROR(RunInSteps(environment, input.ids, /*select_all=*/true, context, step,
                             [&](const ReadStep& done, size_t) {
                               result.seconds.encode += done.lower_seconds;
                               result.seconds.scan += done.scan_seconds;
                               result.seconds.read += done.upper_seconds;
                             }));

  const absl::Time decode_start = absl::Now();
  const DecodeScope decoding(environment.batcher);
  const std::set<TokenId> stop = StopTokens(model);
  const auto passages_max = static_cast<size_t>(model.config().chunks_per_read);
  Sampler sampler(
      {.temperature = options.temperature, .top_p = options.top_p, .seed = options.seed});
  AnswerText answer(model.tokenizer());
  PassageReader reader(environment.store, memories.names);
  PieceReads reads;
  GeneratePiece piece;
  const auto send = [&](std::string text) -> absl::Status {
    if (text.empty()) return absl::OkStatus();
    piece.text = std::move(text);
    if (!options.omit_passages) piece.passages = reads.Take(reader, passages_max);
    if (!emit(std::exchange(piece, {}))) {
      return absl::CancelledError("the receiver of the answer wants no more");
    }
    return absl::OkStatus();
  };
  result.reason = FinishReason::kLength;
  for (int count = 0; count < options.max_tokens; ++count) {
    RETURN_IF_ERROR(context.Check());
    const TokenId token = greedy ? step.best : sampler.Next(step.logits);
    if (!options.ignore_eos && stop.contains(token)) {
      result.reason = FinishReason::kStop;
      break;
    }
    environment.metrics.generated_tokens.Increment();
    ++piece.token_count;
    if (!options.omit_passages) reads.Add(step.rows.back());
    RETURN_IF_ERROR(send(answer.Add(token)));
    if (count + 1 == options.max_tokens) break;
    step.ids = absl::MakeConstSpan(&token, 1);
    RETURN_IF_ERROR(environment.batcher.Run(step));
  }
  RETURN_IF_ERROR(send(answer.Finish()));
  result.seconds.generate = absl::ToDoubleSeconds(absl::Now() - decode_start);
  result.seconds.total = absl::ToDoubleSeconds(absl::Now() - start);
  return result;
}

}  // namespace mneme
