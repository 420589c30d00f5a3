// The three ways to read memories: Retrieve, Generate and Score (see Engine for what they return).

#ifndef MNEME_ENGINE_READERS_H_
#define MNEME_ENGINE_READERS_H_

#include <functional>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/read_environment.h"

namespace mneme {

absl::StatusOr<RetrieveResult> Retrieve(const ReadEnvironment& environment,
                                        const RetrieveOptions& options, const CallContext& context);

absl::StatusOr<GenerateResult> Generate(const ReadEnvironment& environment,
                                        const GenerateOptions& options, const CallContext& context,
                                        const std::function<bool(GeneratePiece)>& emit);

absl::StatusOr<ScoreResult> Score(const ReadEnvironment& environment, const ScoreOptions& options,
                                  const CallContext& context);

}  // namespace mneme

#endif  // MNEME_ENGINE_READERS_H_
