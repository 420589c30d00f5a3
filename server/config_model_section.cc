// Section `model`: the network and where it runs.

#include "server/config_key_kinds.h"
#include "server/config_sections.h"

namespace mneme {

std::vector<ConfigKey> ModelSection() {
  return {
      TextKey("model", "path", "a folder or empty",
              "Model bundle; empty: models/mneme-small beside the program.", IsAnything,
              MNEME_CONFIG_FIELD(model_path)),
      ChoiceKey("model", "device", {"cpu", "cuda", "auto"},
                "Where the network runs; auto: cuda when there is one, otherwise cpu.",
                MNEME_CONFIG_FIELD(device)),
      ChoiceKey("model", "precision", {"bf16", "f32"}, "Arithmetic of the network.",
                MNEME_CONFIG_FIELD(precision)),
      IntegerKey("model", "threads", 0, kConfigThreadsMax,
                 "Worker threads of the cpu device; 0: one a core.", MNEME_CONFIG_FIELD(threads)),
  };
}

}  // namespace mneme
