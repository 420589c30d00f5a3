// Ssd behind the launcher that all backends' operations have; how it works is in ssd_kernels.cuh.

#include "kernels/cuda/ssd_kernels.cuh"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/kernels.h"

namespace mneme {
namespace {

// Heads of a thread block: B and C are staged once for all of them, but more thread blocks fill the
// device sooner.
constexpr int kUnitsEach = 2;

// The blocks of tokens of all sequences: first the first of each, then the second ...
std::vector<ssd::TokenBlock> TokenBlocks(const SsdParams& p) {
  std::vector<ssd::TokenBlock> blocks;
  std::vector<int32_t> alive(p.sequence_count);
  for (size_t i = 0; i < alive.size(); ++i) alive[i] = static_cast<int32_t>(i);
  for (int32_t index = 0; !alive.empty(); ++index) {
    const int64_t first = int64_t{index} * ssd::kTokens;
    alive.erase(std::remove_if(alive.begin(), alive.end(),
                               [&](int32_t i) { return p.sequences[i].row_count <= first; }),
                alive.end());
    for (const int32_t i : alive) {
      const SequenceRows& sequence = p.sequences[i];
      blocks.push_back({.state = sequence.state,
                        .first_row = sequence.row_begin + first,
                        .rows = static_cast<int32_t>(
                            std::min<int64_t>(sequence.row_count - first, ssd::kTokens)),
                        .index = index,
                        .sequence = i});
    }
  }
  return blocks;
}

template <typename T>
absl::Status LaunchBf16(const SsdParams& p, int units_each, CudaStream& stream) {
  const std::vector<ssd::TokenBlock> host_blocks = TokenBlocks(p);
  const auto block_count = static_cast<int64_t>(host_blocks.size());
  ASSIGN_OR_RETURN(const ssd::TokenBlock* const blocks,
                   stream.UploadOf(host_blocks.data(), block_count));
  const int64_t counter_count =
      ssd::CounterCount(p.sequence_count, p.heads * CeilDiv(p.head_dim, ssd::kWidth));
  ASSIGN_OR_RETURN(int* const counters, stream.ScratchOf<int>(counter_count));
  RETURN_IF_CUDA_ERROR(cudaMemsetAsync(
      counters, 0, static_cast<size_t>(counter_count) * sizeof(int), stream.get()));
  return LaunchStatus(
      ssd::LaunchChained<T>(p, blocks, block_count, units_each, counters, stream.get()),
      "Ssd in bf16");
}

template <typename T>
absl::Status LaunchF32(const SsdParams& p, CudaStream& stream) {
  const int64_t shared_max = stream.device().shared_bytes_max;
  int tokens = ssd::kF32TokensMax;
  while (tokens > 1 && ssd::F32SharedBytes(tokens, p.state_size) > shared_max) tokens /= 2;
  if (const int64_t shared = ssd::F32SharedBytes(tokens, p.state_size); shared > shared_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("Ssd: a state of ", p.state_size, " needs ", shared,
                     " bytes of shared memory, the device has ", shared_max));
  }
  ASSIGN_OR_RETURN(const SequenceRows* const sequences,
                   stream.UploadOf(p.sequences, p.sequence_count));
  // What a grid's y allows, in further launches.
  constexpr int64_t kSequencesMax = 65535;
  for (int64_t first = 0; first < p.sequence_count; first += kSequencesMax) {
    RETURN_IF_ERROR(LaunchStatus(
        ssd::LaunchF32<T>(p, sequences + first, std::min(p.sequence_count - first, kSequencesMax),
                          tokens, stream.get()),
        "Ssd in f32"));
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status LaunchSsd(const SsdParams& p, CudaStream& stream) {
  const int padded = ssd::PaddedState(p.state_size);
  if (p.compute_dtype == DType::kBf16 && padded > 0) {
    for (int units_each = kUnitsEach; units_each > 0; --units_each) {
      if (ssd::Bf16SharedBytes(padded, units_each) <= stream.device().shared_bytes_max) {
        return LaunchBf16<T>(p, units_each, stream);
      }
    }
  }
  return LaunchF32<T>(p, stream);
}

}  // namespace

absl::Status CudaSsd(const SsdParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  return p.io_dtype == DType::kBf16 ? LaunchSsd<__nv_bfloat16>(p, stream)
                                    : LaunchSsd<float>(p, stream);
}

}  // namespace mneme
