// search, ask, score.

#include <google/protobuf/util/time_util.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/policy.h"
#include "client/cli/resource_json.h"
#include "client/cli/session.h"
#include "client/cli/terminal.h"
#include "client/cli/word_weights.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

using google::protobuf::util::TimeUtil;

constexpr int kTextColumnsMax = 100;
// Passages shown below an answer for people.
constexpr int kAnswerPassages = 3;

int TextColumns() { return std::min(TerminalColumns(STDOUT_FILENO), kTextColumnsMax); }

std::string PassageHead(const v1::Passage& passage, bool with_memory) {
  std::string head =
      absl::StrFormat("%s%s  bytes %s-%s  weight %.3f  score %.2f",
                      with_memory ? MemoryIdOf(passage.document()) + "/" : "",
                      ResourceId(passage.document()), WithCommas(passage.byte_begin()),
                      WithCommas(passage.byte_end()), passage.weight(), passage.score());
  if (passage.has_rerank_score()) {
    absl::StrAppendFormat(&head, "  rerank score %.2f", passage.rerank_score());
  }
  if (passage.has_keyword_score()) {
    absl::StrAppendFormat(&head, "  keyword score %.2f", passage.keyword_score());
  }
  return head;
}

void PrintPassage(int rank, const v1::Passage& passage, bool with_memory) {
  Print(absl::StrFormat("%2d. %s\n", rank, PassageHead(passage, with_memory)));
  Print(Paragraph(passage.text(), 4, TextColumns()));
}

// To standard error: how many passages an answer has that it cannot show, if any.
void TellDamage(int64_t passages, absl::string_view one, absl::string_view many) {
  if (passages == 0) return;
  fflush(stdout);
  absl::FPrintF(stderr,
                "mneme: %s %s and cannot be shown: the text is damaged on the server's disk (mneme "
                "documents says which document is damaged)\n",
                Counted(passages, "passage", "passages"), passages == 1 ? one : many);
}

// What is asked about is the past.
template <typename Request>
bool AsksThePast(const Request& request) {
  const auto is_snapshot = [](const std::string& name) {
    return absl::StrContains(name, "/snapshots/");
  };
  return request.has_as_of() ||
         std::any_of(request.memories().begin(), request.memories().end(), is_snapshot);
}

// "the memory held no text at 2026-11-22T14:00:00Z".
template <typename Request>
std::string HeldNothing(const Request& request) {
  return absl::StrCat(request.memories_size() == 1 ? "the memory" : "the memories",
                      " held no text ",
                      request.has_as_of() ? "at " + TimeUtil::ToString(request.as_of()) : "then");
}

std::string WhyNothingWasFound(const v1::RetrieveRequest& request,
                               const v1::RetrieveResponse& found) {
  if (found.damaged_passage_count() > 0) return "what fits cannot be shown";
  if (AsksThePast(request) && found.chunks_scanned() == 0) return HeldNothing(request);
  return "no text of the memory is visible yet";
}

constexpr int64_t kUsualPassages = 8;

absl::Status CheckSearchFlags(const CommandLine& line) {
  if (line.Has("--candidates")) {
    if (!line.Has("--rerank")) {
      return absl::InvalidArgumentError(
          "--candidates says how many passages --rerank looks at; it needs --rerank");
    }
    const int64_t candidates = line.Integer("--candidates", 0);
    const int64_t wanted = line.Integer("-k", kUsualPassages);
    if (candidates < wanted) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--candidates ", candidates, " is fewer than the ", wanted, " passages wanted (-k)"));
    }
  }
  if (line.Has("--keywords") && !line.Has("--rerank")) {
    return absl::InvalidArgumentError(
        "--keywords adds what words say to the order of --rerank; it needs --rerank");
  }
  return CheckAsOfFlag(line);
}

absl::Status Search(Session& session) {
  v1::RetrieveRequest request;
  for (const std::string& name : session.MemoryNames(session.positional(0)))
    request.add_memories(name);
  SetAsOf(session.line(), &request);
  request.set_question(session.positional(1));
  request.set_k(static_cast<int32_t>(session.line().Integer("-k", kUsualPassages)));
  request.set_explain(session.line().Has("--explain"));
  request.set_rerank(session.line().Has("--rerank"));
  request.set_rerank_candidates(static_cast<uint32_t>(session.line().Integer("--candidates", 0)));
  request.set_keywords(session.line().Has("--keywords"));
  request.set_context_bytes(static_cast<int32_t>(session.line().Integer("--context", 0)));
  ASSIGN_OR_RETURN(v1::RetrieveResponse found, session.client().Retrieve(request, session.call()));
  const std::vector<WordWeights> words = WordsOf(found.explanation(), found.passages_size());
  if (session.json()) {
    Json results = Json::array();
    for (const auto& passage : found.passages()) results.push_back(PassageJson(passage));
    Json object = {{"results", results},
                   {"chunks_scanned", found.chunks_scanned()},
                   {"damaged_passages", found.damaged_passage_count()},
                   {"timing", TimingJson(found.timing())}};
    if (request.explain()) {
      Json tokens = Json::array(), grouped = Json::array();
      for (const auto& token : found.explanation()) {
        tokens.push_back(
            {{"text", token.text()},
             {"weights", std::vector<double>(token.weights().begin(), token.weights().end())}});
      }
      for (const WordWeights& word : words)
        grouped.push_back({{"word", word.word}, {"weights", word.weights}});
      object["explanation"] = {{"words", grouped}, {"tokens", tokens}};
    }
    PrintJson(object);
    return absl::OkStatus();
  }
  if (found.passages().empty()) {
    Print(absl::StrCat("nothing found: ", WhyNothingWasFound(request, found), "\n"));
  }
  int rank = 0;
  for (const auto& passage : found.passages()) {
    PrintPassage(++rank, passage, request.memories_size() > 1);
    if (request.explain()) Print(Paragraph(ChosenBy(words, rank - 1), 4, TextColumns()));
    if (rank < found.passages_size()) Print("\n");
  }
  if (request.explain() && !found.passages().empty()) {
    Print(absl::StrCat("\nweight with which each word of the question read each passage:\n",
                       WordTable(words, found.passages_size(), TextColumns())));
  }
  TellDamage(found.damaged_passage_count(), "fits", "fit");
  return absl::OkStatus();
}

// The passages that an answer read, each once, with its weight averaged over the answer's tokens:
// one that a single token looked at does not come before one that all of them read.
class PassageSet {
 public:
  void Add(const v1::GenerateResponse& piece) {
    tokens_ += piece.token_count();
    for (const auto& passage : piece.passages()) {
      Entry& entry = entries_[{passage.document(), passage.chunk_index()}];
      if (entry.passage.document().empty()) entry.passage = passage;
      // The text comes with the first mention only.
      if (entry.passage.text().empty()) entry.passage.set_text(passage.text());
      entry.passage.set_score(std::max(entry.passage.score(), passage.score()));
      entry.weight_sum += passage.weight() * piece.token_count();
    }
  }

  // By weight, then by score.
  std::vector<v1::Passage> Best() const {
    std::vector<v1::Passage> best;
    for (const auto& [place, entry] : entries_) {
      best.push_back(entry.passage);
      best.back().set_weight(tokens_ > 0 ? entry.weight_sum / static_cast<double>(tokens_) : 0);
    }
    std::stable_sort(best.begin(), best.end(), [](const v1::Passage& a, const v1::Passage& b) {
      return std::make_pair(a.weight(), a.score()) > std::make_pair(b.weight(), b.score());
    });
    return best;
  }

  int64_t tokens() const { return tokens_; }

 private:
  struct Entry {
    v1::Passage passage;
    double weight_sum = 0;
  };
  std::map<std::pair<std::string, int64_t>, Entry> entries_;
  int64_t tokens_ = 0;
};

// Why an answer names no passage.
std::string WhyNothingWasRead(Session& session, const v1::GenerateRequest& request) {
  int64_t chunks = 0;
  bool began_later = request.has_as_of();  // all of them, and not as forks of what was there
  for (const std::string& name : request.memories()) {
    const auto memory = session.client().GetMemory(name, session.call());
    chunks += memory.ok() ? memory->chunk_count() : 1;
    began_later = began_later && memory.ok() && !memory->has_base_time() &&
                  memory->create_time() > request.as_of();
  }
  if (began_later) return HeldNothing(request);
  const bool one = request.memories_size() == 1;
  if (chunks > 0) return "no passage had weight, the answer is the network's own";
  return absl::StrCat(one ? "the memory holds" : "the memories hold",
                      " no text that can be found yet");
}

absl::Status Ask(Session& session) {
  v1::GenerateRequest request;
  for (const std::string& name : session.MemoryNames(session.positional(0)))
    request.add_memories(name);
  SetAsOf(session.line(), &request);
  request.set_question(session.positional(1));
  request.set_max_tokens(static_cast<int32_t>(session.line().Integer("--max-tokens", 64)));
  request.set_temperature(session.line().Number("--temperature", 0));
  request.set_top_p(session.line().Number("--top-p", 0));
  request.set_seed(static_cast<uint64_t>(session.line().Integer("--seed", 0)));
  PassageSet read;
  std::string answer;
  v1::GenerateResponse last;
  absl::Status status = session.client().Generate(
      request,
      [&](const v1::GenerateResponse& piece) {
        read.Add(piece);
        // The network begins its answer with the space that parts it from the question.
        absl::string_view text =
            answer.empty() ? absl::StripLeadingAsciiWhitespace(piece.text()) : piece.text();
        absl::StrAppend(&answer, text);
        if (!session.json()) {
          Print(EscapeForTerminal(text, /*keep_lines=*/true));
          fflush(stdout);
        }
        last = piece;
        return ferror(stdout) == 0;
      },
      session.call());
  if (!session.json() && !answer.empty()) Print("\n");
  RETURN_IF_ERROR(status);
  const std::vector<v1::Passage> passages = read.Best();
  if (session.json()) {
    Json results = Json::array();
    for (const auto& passage : passages) results.push_back(PassageJson(passage));
    PrintJson({{"answer", answer},
               {"results", results},
               {"tokens", read.tokens()},
               {"damaged_passages", last.damaged_passage_count()},
               {"finish_reason", absl::AsciiStrToLower(v1::GenerateResponse::FinishReason_Name(
                                     last.finish_reason()))},
               {"timing", TimingJson(last.timing())}});
    return absl::OkStatus();
  }
  if (answer.empty()) Print("(the network gave no answer)\n");
  if (passages.empty() && last.damaged_passage_count() == 0) {
    fflush(stdout);
    absl::FPrintF(stderr, "mneme: no passage was read: %s\n", WhyNothingWasRead(session, request));
  }
  const int64_t shown = std::min<int64_t>(session.line().Integer("-k", kAnswerPassages),
                                          static_cast<int64_t>(passages.size()));
  if (shown > 0) Print("\nread from:\n");
  for (int64_t i = 0; i < shown; ++i)
    PrintPassage(static_cast<int>(i + 1), passages[static_cast<size_t>(i)],
                 request.memories_size() > 1);
  TellDamage(last.damaged_passage_count(), "was read", "were read");
  return absl::OkStatus();
}

absl::Status Score(Session& session) {
  v1::ScoreRequest request;
  if (session.positional(0) != "-") {
    for (const std::string& name : session.MemoryNames(session.positional(0)))
      request.add_memories(name);
  }
  SetAsOf(session.line(), &request);
  request.set_text(session.positional(1));
  request.set_prompt(session.line().Text("--prompt"));
  ASSIGN_OR_RETURN(v1::ScoreResponse score, session.client().Score(request, session.call()));
  const double perplexity =
      score.token_count() > 0
          ? std::exp(-score.log_likelihood() / static_cast<double>(score.token_count()))
          : 0;
  if (session.json()) {
    Json tokens = Json::array();
    for (const auto& token : score.tokens()) {
      tokens.push_back({{"text", token.text()}, {"log_likelihood", token.log_likelihood()}});
    }
    PrintJson({{"log_likelihood", score.log_likelihood()},
               {"token_count", score.token_count()},
               {"perplexity", perplexity},
               {"tokens", tokens}});
    return absl::OkStatus();
  }
  Print(absl::StrFormat("log-likelihood %.4f over %s, perplexity %.2f\n", score.log_likelihood(),
                        Counted(score.token_count(), "token", "tokens"), perplexity));
  for (const auto& token : score.tokens()) {
    Print(absl::StrFormat("%10.4f  %s\n", token.log_likelihood(), EscapeForTerminal(token.text())));
  }
  return absl::OkStatus();
}

}  // namespace

CommandSpec SearchCommand() {
  return {
      .name = "search",
      .summary = "finds the passages that answer a question best",
      .positionals = {{"M", "the memory, or several separated by commas"},
                      {"TEXT", "the question"}},
      .flags = {AsOfFlag(),
                {"-k", "N", "passages wanted (default: 8)", FlagSpec::Kind::kInteger, 1},
                {"--explain", "", "also show which words of the question chose which passage"},
                {"--rerank", "",
                 "look again at the tokens of the best passages and order them by that; slower"},
                {"--candidates", "N",
                 "with --rerank: look at the N best by score (default: 64, or -k if that is more)",
                 FlagSpec::Kind::kInteger, 1},
                {"--keywords", "",
                 "with --rerank: order by the words that passage and question share, too"},
                {"--context", "BYTES", "extend each text by so much on both sides, at most 4096",
                 FlagSpec::Kind::kInteger, 0}},
      .notes =
          "Best first. score: the network's match of question and passage; weight: the share of "
          "its attention that the\n"
          "passage gets at the end of the question (0 for passages beyond those it reads).\n"
          "With --rerank also rerank score: the match after the second look, which gives the order "
          "and the weights; a\n"
          "passage that could not be looked at has none and comes last. The look goes to the "
          "--candidates best by score;\n"
          "of more it finds more and takes longer. A passage that it brings up from beyond those "
          "the network reads has\n"
          "weight 0, though it may come first.\n"
          "With --keywords also keyword score: what the words say that passage and question share "
          "(BM25 with frequencies\n"
          "among the candidates); the order is that of the sum of rerank score and keyword score. "
          "Words find what landmarks\n"
          "rank low: --candidates 256 finds more than 64. In memories that keep text alone "
          "(--retention text)\n"
          "so many may have to be derived again, which takes seconds.\n\n"
          "--json: {results: [{document, memory, name, byte_begin, byte_end, score, weight, text, "
          "chunk_index}],\n"
          "chunks_scanned, damaged_passages, timing}; with --rerank results also have "
          "rerank_score, with --keywords\n"
          "keyword_score; with --explain also explanation: {words: [{word, weights}], tokens: "
          "[{text, weights}]}, one\n"
          "weight a result\n\n"
          "example: mneme search demo \"What is the pass key?\" -k 3 --explain\n",
      .run = Search,
      .check = CheckSearchFlags};
}

CommandSpec AskCommand() {
  return {.name = "ask",
          .summary = "generates an answer from memories",
          .positionals = {{"M", "the memory, or several separated by commas"},
                          {"TEXT", "the question"}},
          .flags = {AsOfFlag(),
                    {"--max-tokens", "N", "length of the answer at most (default: 64)",
                     FlagSpec::Kind::kInteger, 1},
                    {"--temperature", "T",
                     "0 (default): the likeliest token each time; more: freer, at most 10",
                     FlagSpec::Kind::kNumber, 0, 10},
                    {"--top-p", "P",
                     "draw only from the likeliest tokens that together have this probability",
                     FlagSpec::Kind::kNumber, 0, 1},
                    {"--seed", "S", "draws repeat with the same seed (default: 0)",
                     FlagSpec::Kind::kInteger, 0, 9e15},
                    {"-k", "N", "passages shown below the answer (default: 3; --json has all)",
                     FlagSpec::Kind::kInteger, 0}},
          .notes =
              "The answer is printed as it comes, then the passages it was read from, by weight: "
              "each one's share "
              "of the\nattention, averaged over the answer's tokens.\n"
              "When there was nothing to read from, or its text is damaged, standard error says "
              "so.\n\n"
              "--json: {answer, results: [{document, memory, name, byte_begin, byte_end, score, "
              "weight, text,\n"
              "chunk_index}], tokens, damaged_passages, finish_reason, timing}; finish_reason is "
              "stop or length\n\n"
              "example: mneme ask demo \"What is the pass key? The pass key is\"\n",
          .run = Ask,
          .check = CheckAsOfFlag};
}

CommandSpec ScoreCommand() {
  return {
      .name = "score",
      .summary = "how likely a text is, given memories",
      .positionals =
          {{"M|-", "the memory, several separated by commas, or - for the network without memory"},
           {"TEXT", "the text to score"}},
      .flags = {AsOfFlag(),
                {"--prompt", "P", "text before it that conditions and is not scored",
                 FlagSpec::Kind::kText}},
      .notes =
          "Natural logarithms; perplexity = exp(-log_likelihood / token_count).\n"
          "With --prompt the text is scored as the answer that ask would give: after the space "
          "that "
          "parts it from the\n"
          "question, unless it begins with white space itself.\n\n"
          "--json: {log_likelihood, token_count, perplexity, tokens: [{text, log_likelihood}]}\n",
      .run = Score,
      .check = CheckAsOfFlag};
}

}  // namespace mneme
