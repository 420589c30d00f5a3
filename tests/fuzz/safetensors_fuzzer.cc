// The header of model.safetensors.

#include "common/check.h"
#include "model/bundle.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/model/bundle_files.h"

namespace mneme {
namespace {

std::vector<std::string> SafetensorsSeeds() {
  return {SafetensorsOf({}),
          SafetensorsOf({{"a", {"F32", {2, 2}, std::string(16, 'x')}},
                         {"b.scale", {"I8", {3}, "abc"}},
                         {"c", {"BF16", {}, "zz"}},
                         {"d", {"I64", {0, 7}, ""}}}),
          SafetensorsPrefix(40) + "{\"__metadata__\":{\"format\":\"pt\"}}        "};
}

MNEME_FUZZ_TARGET(Safetensors, SafetensorsSeeds) {
  const auto* const begin = reinterpret_cast<const uint8_t*>(input.data());
  const auto tensors = ParseSafetensors({begin, input.size()});
  if (!tensors.ok()) return;
  for (const auto& [name, view] : *tensors) {
    MNEME_CHECK(view.data.size() == static_cast<size_t>(view.elements()) * DTypeBytes(view.dtype));
    MNEME_CHECK(view.data.data() >= begin &&
                view.data.data() + view.data.size() <= begin + input.size());
  }
}

}  // namespace
}  // namespace mneme
