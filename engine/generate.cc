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
#include "engine/told_chunks.h"
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

// The tokens of an answer, one after the other, and the chunks that each read. Owned by its
// reader's thread.
class AnswerTokens {
 public:
  virtual ~AnswerTokens() = default;

  TokenId token() const { return token_; }
  virtual absl::Span<const ChunkHit> hits() const = 0;
  // On to the next one. Errors of ReadBatcher.
  virtual absl::Status Next() = 0;
  // The next one is here already.
  virtual bool ready() const { return false; }

 protected:
  TokenId token_ = 0;
};

// Drawn by this thread, step by step.
class DrawnTokens : public AnswerTokens {
 public:
  // `prompt`: the prompt's last step, and what it borrows.
  DrawnTokens(ReadBatcher& batcher, const SamplerOptions& options, ReadStep prompt,
              std::unique_ptr<ReaderState> state, std::unique_ptr<ToldChunks> told, ReadScope scope)
      : batcher_(batcher),
        decoding_(batcher),
        sampler_(options),
        state_(std::move(state)),
        told_chunks_(std::move(told)),
        scope_(std::move(scope)),
        step_(std::move(prompt)) {
    step_.scope = &scope_;
    token_ = sampler_.Next(step_.logits);
  }

  absl::Span<const ChunkHit> hits() const override { return step_.rows.back(); }
  absl::Status Next() override {
    step_.ids = absl::MakeConstSpan(&token_, 1);
    RETURN_IF_ERROR(batcher_.Run(step_));
    token_ = sampler_.Next(step_.logits);
    return absl::OkStatus();
  }

 private:
  ReadBatcher& batcher_;
  const DecodeScope decoding_;
  Sampler sampler_;
  const std::unique_ptr<ReaderState> state_;
  const std::unique_ptr<ToldChunks> told_chunks_;
  ReadScope scope_;
  ReadStep step_;
};

// The likeliest ones, which the batch thread makes by itself.
class LikeliestTokens : public AnswerTokens {
 public:
  // `first_hits`: what the token behind the prompt read.
  LikeliestTokens(ReadBatcher& batcher, TokenStreamOptions options,
                  std::vector<ChunkHit> first_hits)
      : batcher_(batcher), first_hits_(std::move(first_hits)) {
    token_ = options.first;
    stream_ = std::make_shared<TokenStream>(std::move(options));
  }
  ~LikeliestTokens() override {
    if (begun_) batcher_.EndStream(*stream_);
  }

  absl::Span<const ChunkHit> hits() const override {
    return begun_ ? stream_->hits() : absl::MakeConstSpan(first_hits_);
  }
  absl::Status Next() override {
    if (!begun_) RETURN_IF_ERROR(batcher_.BeginStream(stream_));
    begun_ = true;
    ASSIGN_OR_RETURN(token_, batcher_.NextToken(*stream_));
    return absl::OkStatus();
  }
  bool ready() const override { return stream_->ready(); }

 private:
  ReadBatcher& batcher_;
  const std::vector<ChunkHit> first_hits_;
  std::shared_ptr<TokenStream> stream_;  // shared with the batch thread
  bool begun_ = false;
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
  std::unique_ptr<ReaderState> state = model.NewReaderState();
  std::unique_ptr<ToldChunks> told = ToldChunks::Of(model.bundle());
  const bool greedy = options.temperature <= 0;
  ReadStep step{.state = state.get(),
                .scope = &memories.scope,
                .told = told.get(),
                .upper = true,
                .logit_rows = greedy ? LogitRows::kBestOfStep : LogitRows::kLastOfStep};
  RETURN_IF_ERROR(RunInSteps(environment, input.ids, /*select_all=*/true, context, step,
                             [&](const ReadStep& done, size_t) {
                               result.seconds.encode += done.lower_seconds;
                               result.seconds.scan += done.scan_seconds;
                               result.seconds.read += done.upper_seconds;
                             }));

  const absl::Time decode_start = absl::Now();
  const std::set<TokenId> stop = StopTokens(model);
  const auto passages_max = static_cast<size_t>(model.config().chunks_per_read);
  std::unique_ptr<AnswerTokens> tokens;
  if (greedy) {
    TokenStreamOptions stream = {.state = std::move(state),
                                 .told = std::move(told),
                                 .scope = std::move(memories.scope),
                                 .first = step.best,
                                 .tokens_max = options.max_tokens - 1,
                                 .stop = options.ignore_eos ? std::set<TokenId>() : stop,
                                 .with_hits = !options.omit_passages};
    tokens = std::make_unique<LikeliestTokens>(environment.batcher, std::move(stream),
                                               std::move(step.rows.back()));
  } else {
    const SamplerOptions sampler = {
        .temperature = options.temperature, .top_p = options.top_p, .seed = options.seed};
    tokens =
        std::make_unique<DrawnTokens>(environment.batcher, sampler, std::move(step),
                                      std::move(state), std::move(told), std::move(memories.scope));
  }
  AnswerText answer(model.tokenizer());
  PassageReader reader(environment, memories.sources);
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
  std::string text;
  for (int count = 0; count < options.max_tokens; ++count) {
    if (count > 0) RETURN_IF_ERROR(tokens->Next());
    RETURN_IF_ERROR(context.Check());
    if (!options.ignore_eos && stop.contains(tokens->token())) {
      result.reason = FinishReason::kStop;
      if (count == 0 && !options.omit_passages) {
        // Nothing will be said; passages that could not be read may be why.
        reads.Add(tokens->hits());
        reads.Take(reader, passages_max);
      }
      break;
    }
    environment.metrics.generated_tokens.Increment();
    ++piece.token_count;
    if (!options.omit_passages) reads.Add(tokens->hits());
    text += answer.Add(tokens->token());
    // Tokens that came while the receiver took the piece before go together.
    if (!tokens->ready()) RETURN_IF_ERROR(send(std::exchange(text, {})));
  }
  RETURN_IF_ERROR(send(text + answer.Finish()));
  result.damaged_passages = reader.damaged_count();
  result.seconds.generate = absl::ToDoubleSeconds(absl::Now() - decode_start);
  result.seconds.total = absl::ToDoubleSeconds(absl::Now() - start);
  return result;
}

}  // namespace mneme
