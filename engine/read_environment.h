// ReadEnvironment: what Retrieve, Generate and Score share, and how each begins: names resolved,
// barriers waited for, the question turned into tokens.

#ifndef MNEME_ENGINE_READ_ENVIRONMENT_H_
#define MNEME_ENGINE_READ_ENVIRONMENT_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/engine.h"
#include "engine/engine_metrics.h"
#include "engine/past_reader.h"
#include "engine/read_batcher.h"
#include "engine/reader_gate.h"
#include "engine/visibility.h"
#include "memory_store/memory_store.h"
#include "model/model.h"

namespace mneme {

// Borrows everything. Thread-safe.
struct ReadEnvironment {
  const EngineOptions& options;
  const Model& model;
  MemoryStore& store;
  Scheduler& scheduler;
  ReadBatcher& batcher;
  ReaderGate& gate;
  VisibilityBoard& visibility;
  PastReader& past;
  EngineMetrics& metrics;
  int step_tokens_max = 0;  // tokens of a prompt that go through the network in one step
};

// What a name stands for: a memory at `as_of`, or a snapshot, which has its own moment.
// INVALID_ARGUMENT: a bad name, or a snapshot with another moment; NOT_FOUND names it.
struct NamedSource {
  ResourceName name;
  ReadSource source;
  bool is_fork = false;
};
absl::StatusOr<NamedSource> ResolveSource(const MemoryStore& store, absl::string_view name,
                                          absl::Time as_of);

struct ResolvedMemories {
  ReadScope scope;
  // What was named: ascending by memory, a memory's moments latest first.
  std::vector<NamedSource> sources;
};

// The memories named, each once, in the order of their ids: the order of naming must not matter.
// INVALID_ARGUMENT: none (unless `may_be_empty`), too many, a bad name, several tenants. NOT_FOUND
// names the memory.
absl::StatusOr<ResolvedMemories> ResolveMemories(const ReadEnvironment& environment,
                                                 absl::Span<const std::string> names,
                                                 absl::Time as_of, bool may_be_empty);

// The view of a scope that reads the past or forks; nothing for others, whose view is taken when
// their first step runs. Errors of PastReader.
absl::Status ViewPast(const ReadEnvironment& environment, const CallContext& context,
                      ReadScope* scope);

absl::Status WaitForBarriers(const ReadEnvironment& environment,
                             absl::Span<const ReadBarrier> barriers, const CallContext& context);

// A text as a reader's input.
struct ReaderInput {
  std::vector<TokenId> ids;
  std::vector<Token> tokens;  // of the text; ids[first_token + i] is tokens[i]
  size_t first_token = 0;
};

// <q> question <a>. INVALID_ARGUMENT: empty, not UTF-8, longer than a segment.
absl::StatusOr<ReaderInput> QuestionInput(const Model& model, absl::string_view question);

// Not UTF-8: INVALID_ARGUMENT that says where. `what` names the field.
absl::Status CheckUtf8(absl::string_view text, absl::string_view what);
// More tokens than a segment has: INVALID_ARGUMENT.
absl::Status CheckFitsSegment(const Model& model, size_t tokens, absl::string_view what);

// The text of each token as it stands in `text`: whole characters, so that a token that begins
// inside one has none of its own.
std::vector<std::string> TokenTexts(absl::string_view text, absl::Span<const Token> tokens);

// Runs `ids` through the network in steps, all but the last of which choose no chunks unless
// `step.upper` or `select_all` is set; `step.rerank` is for the last, and `step.told` may make
// steps shorter. Calls `visit` with each finished step and the index of its first row. Checks
// `context` before every step.
absl::Status RunInSteps(const ReadEnvironment& environment, absl::Span<const TokenId> ids,
                        bool select_all, const CallContext& context, ReadStep& step,
                        const std::function<void(const ReadStep&, size_t first_row)>& visit);

}  // namespace mneme

#endif  // MNEME_ENGINE_READ_ENVIRONMENT_H_
