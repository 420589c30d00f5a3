// Chooses a backend by the name of a device.

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"

namespace mneme {

#if defined(MNEME_HAVE_CUDA)
bool HasCudaBackend() { return true; }
#else
bool HasCudaBackend() { return false; }
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions&) {
  return absl::FailedPreconditionError("device \"cuda\": this build has no CUDA backend");
}
#endif

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(absl::string_view device,
                                                       const CpuBackendOptions& cpu_options) {
  if (device == "cpu") return CreateCpuBackend(cpu_options);
  if (device == "cuda") return CreateCudaBackend({});
  if (device == "auto") {
    absl::StatusOr<std::unique_ptr<Backend>> cuda = CreateCudaBackend({});
    // No GPU is what "auto" is for; a GPU that fails is not passed over in silence.
    if (!absl::IsFailedPrecondition(cuda.status())) return cuda;
    return CreateCpuBackend(cpu_options);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device must be cpu, cuda or auto, not \"", device, "\""));
}

}  // namespace mneme
