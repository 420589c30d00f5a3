#include "engine/read_environment.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/utf8.h"

namespace mneme {

absl::StatusOr<NamedSource> ResolveSource(const MemoryStore& store, absl::string_view name,
                                          absl::Time as_of) {
  NamedSource named;
  ASSIGN_OR_RETURN(named.name, ResourceName::ParseSource(name));
  const absl::StatusOr<MemoryInfo> info = store.GetMemory(named.name.tenant, named.name.memory);
  if (absl::IsNotFound(info.status())) {
    return absl::NotFoundError(absl::StrCat("memory ", name, " does not exist"));
  }
  if (!info.ok()) return info.status();
  named.source = {info->uid, as_of};
  named.is_fork = info->base.has_value();
  if (named.name.snapshot.empty()) return named;
  if (as_of != absl::InfiniteFuture()) {
    return absl::InvalidArgumentError(
        absl::StrCat("as_of ", absl::FormatTime(as_of, absl::UTCTimeZone()), " with the snapshot ",
                     name, ", which has a moment of its own"));
  }
  const absl::StatusOr<SnapshotInfo> snapshot = store.GetSnapshot(info->uid, named.name.snapshot);
  if (absl::IsNotFound(snapshot.status())) {
    return absl::NotFoundError(absl::StrCat("snapshot ", name, " does not exist"));
  }
  if (!snapshot.ok()) return snapshot.status();
  named.source.as_of = snapshot->as_of;
  named.name.snapshot.clear();
  return named;
}

absl::StatusOr<ResolvedMemories> ResolveMemories(const ReadEnvironment& environment,
                                                 absl::Span<const std::string> names,
                                                 absl::Time as_of, bool may_be_empty) {
  if (names.empty() && !may_be_empty) {
    return absl::InvalidArgumentError("no memories are named; 1 or more are needed");
  }
  const auto limit = static_cast<size_t>(environment.options.memories_per_read_max);
  if (names.size() > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat(names.size(), " memories are named; limit ", limit));
  }
  ResolvedMemories resolved;
  bool is_past = false;
  std::string tenant;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const ResourceName parsed, ResourceName::ParseSource(name));
    if (tenant.empty()) tenant = parsed.tenant;
    if (parsed.tenant != tenant) {
      return absl::InvalidArgumentError(absl::StrCat("memories of two tenants, ", tenant, " and ",
                                                     parsed.tenant, "; one call reads one"));
    }
    // A snapshot named beside a memory read at another moment keeps its own.
    const bool is_snapshot = !parsed.snapshot.empty();
    ASSIGN_OR_RETURN(
        const NamedSource named,
        ResolveSource(environment.store, name, is_snapshot ? absl::InfiniteFuture() : as_of));
    is_past |= named.is_fork || named.source.as_of != absl::InfiniteFuture();
    resolved.sources.push_back(named);
  }
  std::sort(resolved.sources.begin(), resolved.sources.end(),
            [](const NamedSource& a, const NamedSource& b) {
              return std::tuple(a.source.memory, b.source.as_of) <
                     std::tuple(b.source.memory, a.source.as_of);
            });
  std::vector<MemoryId>& memories = resolved.scope.memories;
  for (const NamedSource& named : resolved.sources) {
    const MemoryId memory = named.source.memory;
    if (memories.empty() || memories.back() != memory) memories.push_back(memory);
    if (is_past) resolved.scope.past.push_back(named.source);
  }
  return resolved;
}

absl::Status ViewPast(const ReadEnvironment& environment, const CallContext& context,
                      ReadScope* scope) {
  if (scope->past.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(scope->view, environment.past.View(scope->past, context));
  return absl::OkStatus();
}

absl::Status WaitForBarriers(const ReadEnvironment& environment,
                             absl::Span<const ReadBarrier> barriers, const CallContext& context) {
  for (const ReadBarrier& barrier : barriers) {
    if (barrier.visible_bytes < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "barrier of ", barrier.visible_bytes, " bytes on ", barrier.document, " is negative"));
    }
    ASSIGN_OR_RETURN(const ResourceName name, ResourceName::ParseDocument(barrier.document));
    ASSIGN_OR_RETURN(const MemoryInfo memory,
                     environment.store.GetMemory(name.tenant, name.memory));
    ASSIGN_OR_RETURN(const DocumentInfo document,
                     environment.store.GetDocument(memory.uid, name.document));
    if (document.shared && barrier.visible_bytes > document.durable_bytes) {
      return absl::FailedPreconditionError(absl::StrCat(
          "barrier of ", barrier.visible_bytes, " bytes on ", barrier.document,
          ", which is shared with another memory and ends at ", document.durable_bytes, " here"));
    }
    const int64_t bytes_max =
        std::max(environment.options.document_bytes_max, document.durable_bytes);
    if (barrier.visible_bytes > bytes_max) {
      return absl::InvalidArgumentError(absl::StrCat("barrier of ", barrier.visible_bytes,
                                                     " bytes on ", barrier.document, "; limit ",
                                                     bytes_max));
    }
    RETURN_IF_ERROR(environment.visibility.Wait(document.uid, barrier.document,
                                                barrier.visible_bytes, MissingText::kAwait,
                                                environment.scheduler, context));
  }
  return absl::OkStatus();
}

absl::Status CheckUtf8(absl::string_view text, absl::string_view what) {
  const Utf8Prefix prefix = ValidUtf8Prefix(text);
  if (prefix.valid_bytes == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is not UTF-8 at byte ", prefix.valid_bytes));
}

absl::Status CheckFitsSegment(const Model& model, size_t tokens, absl::string_view what) {
  const auto limit = static_cast<size_t>(model.config().segment_size);
  if (tokens <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      what, " has ", tokens, " tokens, those that mark its ends included; limit ", limit));
}

absl::StatusOr<ReaderInput> QuestionInput(const Model& model, absl::string_view question) {
  if (question.empty()) return absl::InvalidArgumentError("the question is empty");
  RETURN_IF_ERROR(CheckUtf8(question, "the question"));
  ReaderInput input{.first_token = 1};
  model.tokenizer().Encode(question, &input.tokens);
  RETURN_IF_ERROR(CheckFitsSegment(model, input.tokens.size() + 2, "the question"));
  input.ids.push_back(model.bundle().question_id);
  for (const Token& token : input.tokens) input.ids.push_back(token.id);
  input.ids.push_back(model.bundle().answer_id);
  return input;
}

std::vector<std::string> TokenTexts(absl::string_view text, absl::Span<const Token> tokens) {
  const auto begin_of = [&](size_t i) {
    if (i >= tokens.size()) return text.size();
    auto begin = static_cast<size_t>(tokens[i].byte_begin);
    while (begin > 0 && begin < text.size() && IsUtf8Continuation(text[begin])) --begin;
    return begin;
  };
  std::vector<std::string> texts;
  texts.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    texts.emplace_back(text.substr(begin_of(i), begin_of(i + 1) - begin_of(i)));
  }
  return texts;
}

absl::Status RunInSteps(const ReadEnvironment& environment, absl::Span<const TokenId> ids,
                        bool select_all, const CallContext& context, ReadStep& step,
                        const std::function<void(const ReadStep&, size_t first_row)>& visit) {
  const auto step_tokens = static_cast<size_t>(environment.step_tokens_max);
  const bool rerank = step.rerank;
  for (size_t first = 0; first < ids.size(); first += step.ids.size()) {
    RETURN_IF_ERROR(context.Check());
    step.ids = ids.subspan(first, step_tokens);
    if (step.told != nullptr) step.ids = step.ids.first(step.told->StepTokens(step.ids));
    const bool last = first + step.ids.size() == ids.size();
    step.select = select_all || step.upper ? ReadStep::Rows::kAll
                  : last                   ? ReadStep::Rows::kLast
                                           : ReadStep::Rows::kNone;
    step.rerank = rerank && last;
    RETURN_IF_ERROR(environment.batcher.Run(step));
    visit(step, first);
  }
  return absl::OkStatus();
}

}  // namespace mneme
