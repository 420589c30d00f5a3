// Retrieve: the question runs through the lower half; the row of its last token, <a>, ranks the
// chunks by their landmarks. With `rerank` the best of these, more than are wanted, are ordered by
// a second look at their pages, and the first of them are what is found. With `keywords` the words
// of their texts have a say in that order (engine/keyword_scorer.h).

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "engine/keyword_scorer.h"
#include "engine/passage_reader.h"
#include "engine/readers.h"

namespace mneme {
namespace {

// Text beside a passage, at most, in bytes on either side.
constexpr int kContextBytesMax = 4096;
// Candidates of a rerank, unless the caller says how many or wants more passages: it can only lift
// what is among them, and each is a page that must be found. Of 400 questions of nq-open over 2,655
// passages, the eight best by landmark hold the answer's passage for 49.7 %, the eight best after a
// look at 64 chunks for 56.0 %, at 128 for 56.5 %. Of 400 facts in 4671 chunks (server_load_bench
// needles) 323 come first after a look at 32, 64 or 128 alike.
constexpr int kRerankCandidates = 64;
// What a keyword score counts beside the score after the look. Of 400 questions of each of five
// sets (training/search_engine.py, 256 candidates), on every second question, by which it was
// chosen, the right passage is first, and among eight, on average over the sets for 61.2 and 80.9 %
// with weight 0; 67.2 and 85.9 with 0.5; 67.6 and 87.0 with 1; 65.5 and 87.1 with 2. On the other
// questions 1 gives 69.7 and 88.4 %, 0 60.9 and 83.7. No weight is best for all: nq-open would have
// 2, medical questions, where few words are shared, 0.5 at most.
constexpr double kKeywordWeight = 1;

absl::Status CheckOptions(const ReadEnvironment& environment, const RetrieveOptions& options) {
  const int k_max = environment.options.retrieve_k_max;
  if (options.k < 1 || options.k > k_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("k is ", options.k, "; it must be 1 to ", k_max));
  }
  if (options.context_bytes < 0 || options.context_bytes > kContextBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("context_bytes is ", options.context_bytes,
                                                   "; it must be 0 to ", kContextBytesMax));
  }
  const int candidates = options.rerank_candidates;
  if (candidates != 0 && !options.rerank) {
    return absl::InvalidArgumentError(
        absl::StrCat("rerank_candidates is ", candidates, " without rerank"));
  }
  if (candidates != 0 && (candidates < options.k || candidates > k_max)) {
    return absl::InvalidArgumentError(absl::StrCat("rerank_candidates is ", candidates,
                                                   "; it must be k, ", options.k, ", to ", k_max));
  }
  if (options.keywords && !options.rerank) {
    return absl::InvalidArgumentError("keywords is true without rerank");
  }
  if (options.rerank && environment.model.config().look_heads == 0) {
    return absl::FailedPreconditionError(
        "rerank needs a network that looks at chunks a second time; the bundle has look_heads 0");
  }
  return absl::OkStatus();
}

// Of the best chunks by landmark, so many may be among the passages.
int Candidates(const ReadEnvironment& environment, const RetrieveOptions& options) {
  if (!options.rerank) return options.k;
  if (options.rerank_candidates != 0) return options.rerank_candidates;
  return std::max(options.k, std::min(kRerankCandidates, environment.options.retrieve_k_max));
}

// Scores the words of each candidate whose text is to be had. OK, or as `context` says.
absl::Status ScoreKeywords(const CallContext& context, absl::string_view question,
                           PassageReader& passages, absl::Span<ChunkHit> candidates) {
  std::vector<ChunkHit*> hits;
  std::vector<absl::string_view> texts;
  for (ChunkHit& hit : candidates) {
    RETURN_IF_ERROR(context.Check());
    const std::string* const text = passages.TextOf(hit);
    if (text == nullptr) continue;
    hits.push_back(&hit);
    texts.push_back(*text);
  }
  const std::vector<double> scores = KeywordScores(question, texts);
  for (size_t i = 0; i < hits.size(); ++i) hits[i]->keyword_score = scores[i];
  return absl::OkStatus();
}

// By what candidates are ordered; none, behind all others, without a page to look at.
std::optional<double> Rank(const ChunkHit& hit) {
  if (!hit.rerank_score.has_value()) return std::nullopt;
  return *hit.rerank_score + kKeywordWeight * hit.keyword_score.value_or(0);
}

// Best first. Equal ones keep the order of their landmarks, as do chunks without a page.
void Order(absl::Span<ChunkHit> candidates) {
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const ChunkHit& a, const ChunkHit& b) { return Rank(a) > Rank(b); });
}

}  // namespace

absl::StatusOr<RetrieveResult> Retrieve(const ReadEnvironment& environment,
                                        const RetrieveOptions& options,
                                        const CallContext& context) {
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(context.Check());
  RETURN_IF_ERROR(CheckOptions(environment, options));
  ASSIGN_OR_RETURN(const ReaderInput input, QuestionInput(environment.model, options.question));
  ASSIGN_OR_RETURN(ResolvedMemories memories,
                   ResolveMemories(environment, options.memories, options.as_of,
                                   /*may_be_empty=*/false));
  RETURN_IF_ERROR(WaitForBarriers(environment, options.barriers, context));
  RETURN_IF_ERROR(ViewPast(environment, context, &memories.scope));
  ASSIGN_OR_RETURN(const ReaderGate::Ticket ticket, environment.gate.Enter(context));

  RetrieveResult result;
  const std::unique_ptr<ReaderState> state = environment.model.NewReaderState();
  const int candidates = Candidates(environment, options);
  ReadStep step{
      .state = state.get(), .scope = &memories.scope, .k = candidates, .rerank = options.rerank};
  std::vector<std::vector<ChunkHit>> rows;  // of the whole question with explain, else the last
  RETURN_IF_ERROR(RunInSteps(environment, input.ids, options.explain, context, step,
                             [&](const ReadStep& done, size_t) {
                               result.seconds.encode += done.lower_seconds;
                               result.seconds.scan += done.scan_seconds;
                               result.seconds.read += done.look_seconds;
                               rows.insert(rows.end(), done.rows.begin(), done.rows.end());
                             }));
  if (memories.scope.view) result.chunks_scanned = memories.scope.view->chunk_count();

  const absl::Time read_start = absl::Now();
  PassageReader passages(environment, memories.sources);
  if (options.rerank) {
    std::vector<ChunkHit>& row = rows.back();
    // All that the network reads is looked at, for the weights, however few take part.
    row.resize(std::min(row.size(), static_cast<size_t>(candidates)));
    if (options.keywords) {
      RETURN_IF_ERROR(ScoreKeywords(context, options.question, passages, absl::MakeSpan(row)));
    }
    Order(absl::MakeSpan(row));
  }
  absl::flat_hash_map<int64_t, size_t> passage_of;  // index in the view -> passage
  for (const ChunkHit& hit : rows.back()) {
    if (result.passages.size() == static_cast<size_t>(options.k)) break;
    RETURN_IF_ERROR(context.Check());
    std::optional<Passage> passage = passages.Read(hit, /*with_text=*/true, options.context_bytes);
    if (!passage) continue;
    passage_of[hit.index] = result.passages.size();
    result.passages.push_back(*std::move(passage));
  }
  result.damaged_passages = passages.damaged_count();
  if (options.explain) {
    const std::vector<std::string> texts = TokenTexts(options.question, input.tokens);
    for (size_t i = 0; i < texts.size(); ++i) {
      TokenExplanation& explanation = result.explanation.emplace_back();
      explanation.text = texts[i];
      explanation.weights.assign(result.passages.size(), 0.0);
      for (const ChunkHit& hit : rows[input.first_token + i]) {
        const auto it = passage_of.find(hit.index);
        if (it != passage_of.end()) explanation.weights[it->second] = hit.weight;
      }
    }
  }
  result.seconds.read += absl::ToDoubleSeconds(absl::Now() - read_start);
  result.seconds.total = absl::ToDoubleSeconds(absl::Now() - start);
  return result;
}

}  // namespace mneme
