// config.json of a bundle.

#include "common/check.h"
#include "model/bundle.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/model/bundle_files.h"

namespace mneme {
namespace {

std::vector<std::string> ModelConfigSeeds() {
  std::string nested = SmallBundle("F32").config;
  const std::string value = "264";
  nested.replace(nested.find(value), value.size(),
                 std::string(100, '[') + value + std::string(100, ']'));
  return {SmallBundle("F32").config, nested, "{\"a\": 1e999}"};
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
