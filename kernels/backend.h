// Backend: where the network's arithmetic runs. One params struct per op and one shape check for all backends (ops.cc);
// implementations in cpu/ and cuda/.

#ifndef MNEME_KERNELS_BACKEND_H_
#define MNEME_KERNELS_BACKEND_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "kernels/landmark_topk.h"

namespace mneme {

// Thread-safe: ops may be called from any number of threads; they share the backend's workers.
class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu" or "cuda".
  virtual std::string name() const = 0;
  // For people: threads, instruction sets, device name.
  virtual std::string description() const = 0;

  // Scores all landmarks for a batch of queries and keeps the k best of each. INVALID_ARGUMENT for bad shapes.
  absl::Status LandmarkTopK(const LandmarkTopKParams& params);

 protected:
  virtual absl::Status DoLandmarkTopK(const LandmarkTopKParams& params) = 0;
};

struct CpuBackendOptions {
  // Worker threads; 0: one a core.
  int threads = 0;
};

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options);

}  // namespace mneme

#endif  // MNEME_KERNELS_BACKEND_H_
