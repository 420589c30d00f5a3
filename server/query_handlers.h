// Retrieve, Score and the two ends of Generate: requests checked and turned into the engine's
// options, results into messages.

#ifndef MNEME_SERVER_QUERY_HANDLERS_H_
#define MNEME_SERVER_QUERY_HANDLERS_H_

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "mneme/v1/mneme.pb.h"
#include "server/resource_check.h"

namespace mneme {

// The limits of questions, from EngineOptions.
struct QueryLimits {
  int memories_per_read_max = 64;
  int retrieve_k_max = 256;
  int generate_tokens_max = 4096;
};

// Thread-safe. Calls block on the engine; errors as the proto says.
class QueryHandlers {
 public:
  QueryHandlers(Engine& engine, const ResourceCheck& check, QueryLimits limits);

  absl::StatusOr<v1::RetrieveResponse> Retrieve(const v1::RetrieveRequest& request,
                                                const CallContext& context);
  absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request,
                                          const CallContext& context);
  absl::StatusOr<GenerateOptions> ParseGenerate(const v1::GenerateRequest& request) const;

 private:
  Engine& engine_;
  const ResourceCheck& check_;
  const QueryLimits limits_;
};

v1::GenerateResponse ToMessage(const GeneratePiece& piece);
// The last message of a Generate.
v1::GenerateResponse ToMessage(const GenerateResult& result);

}  // namespace mneme

#endif  // MNEME_SERVER_QUERY_HANDLERS_H_
