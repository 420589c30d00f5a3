// Chooses a backend by the name of a device.

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"

namespace mneme {

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(absl::string_view device,
                                                       const CpuBackendOptions& cpu_options) {
  if (device == "cpu" || device == "auto") return CreateCpuBackend(cpu_options);
  if (device == "cuda")
    return absl::FailedPreconditionError("device \"cuda\": this build has no CUDA backend");
  return absl::InvalidArgumentError(
      absl::StrCat("device must be cpu, cuda or auto, not \"", device, "\""));
}

}  // namespace mneme
