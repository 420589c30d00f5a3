// Score: the log-likelihood of a text after a prompt, given memories.
//
// With a prompt the network reads `<q>` prompt `<a>` text, the form in which it answers, so that
// the score is that of the text as an answer; without one, `<doc>` text, as at the beginning of a
// document. Each row reads the memories as it would when generating.

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "engine/readers.h"
#include "engine/told_chunks.h"

namespace mneme {
namespace {

// Natural logarithm of the softmax of `logits` at `id`.
double LogSoftmaxAt(absl::Span<const float> logits, TokenId id) {
  double largest = logits[0];
  for (float logit : logits) largest = std::max<double>(largest, logit);
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - largest);
  return logits[static_cast<size_t>(id)] - largest - std::log(sum);
}

}  // namespace

absl::StatusOr<ScoreResult> Score(const ReadEnvironment& environment, const ScoreOptions& options,
                                  const CallContext& context) {
  RETURN_IF_ERROR(context.Check());
  if (options.text.empty()) return absl::InvalidArgumentError("the text to score is empty");
  RETURN_IF_ERROR(CheckUtf8(options.prompt, "the prompt"));
  RETURN_IF_ERROR(CheckUtf8(options.text, "the text"));
  const Model& model = environment.model;
  std::vector<TokenId> ids = {model.bundle().document_id};
  if (!options.prompt.empty()) {
    ASSIGN_OR_RETURN(const ReaderInput prompt, QuestionInput(model, options.prompt));
    ids = prompt.ids;
  }
  const size_t first_token = ids.size();
  std::vector<Token> tokens;
  model.tokenizer().Encode(options.text, &tokens);
  for (const Token& token : tokens) ids.push_back(token.id);
  RETURN_IF_ERROR(CheckFitsSegment(model, ids.size(), "prompt and text together"));
  ASSIGN_OR_RETURN(ResolvedMemories memories,
                   ResolveMemories(environment, options.memories, options.as_of,
                                   /*may_be_empty=*/true));
  RETURN_IF_ERROR(WaitForBarriers(environment, options.barriers, context));
  RETURN_IF_ERROR(ViewPast(environment, context, &memories.scope));
  ASSIGN_OR_RETURN(const ReaderGate::Ticket ticket, environment.gate.Enter(context));

  const std::vector<std::string> texts = TokenTexts(options.text, tokens);
  ScoreResult result;
  const std::unique_ptr<ReaderState> state = model.NewReaderState();
  const std::unique_ptr<ToldChunks> told = ToldChunks::Of(model.bundle());
  ReadStep step{.state = state.get(),
                .scope = &memories.scope,
                .told = told.get(),
                .upper = true,
                .logit_rows = LogitRows::kAll};
  const auto vocab_size = static_cast<size_t>(model.config().vocab_size);
  const auto visit = [&](const ReadStep& done, size_t first_row) {
    for (size_t row = 0; row < done.ids.size(); ++row) {
      const size_t next = first_row + row + 1;  // the token that this row predicts
      if (next < first_token || next >= ids.size()) continue;
      const double log_likelihood = LogSoftmaxAt(
          absl::MakeConstSpan(done.logits).subspan(row * vocab_size, vocab_size), ids[next]);
      result.log_likelihood += log_likelihood;
      result.tokens.emplace_back(texts[next - first_token], log_likelihood);
    }
  };
  RETURN_IF_ERROR(RunInSteps(environment, ids, /*select_all=*/true, context, step, visit));
  return result;
}

}  // namespace mneme
