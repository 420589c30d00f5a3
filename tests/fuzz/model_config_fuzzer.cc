// config.json of a bundle.

#include "common/check.h"
#include "model/bundle.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/model/bundle_files.h"

namespace mneme {
namespace {

std::vector<std::string> ModelConfigSeeds() {
  return {SmallBundle("F32").config, "{\"a\": 1e999}"};
}

MNEME_FUZZ_TARGET(ModelConfig, ModelConfigSeeds) {
  const auto config = ParseModelConfig(input);
  if (!config.ok()) return;
  MNEME_CHECK(config->n_kv_heads == 1 && config->chunks_per_segment() >= 1);
  for (const auto& [name, shape] : ExpectedTensors(*config)) {
    for (int64_t length : shape) MNEME_CHECK(length > 0);
  }
}

}  // namespace
}  // namespace mneme
