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
constexpr int UnitsEach(int state_padded) { return state_padded <= 64 ? 4 : 2; }

// The blocks of tokens of all sequences: first the first of each, then the second ...
std::vector<ssd::TokenBlock> TokenBlocks(const SsdParams& p) {
  struct Unfinished {
    SequenceRows rows;  // that are left
    int32_t previous;
  };
  std::vector<Unfinished> unfinished;
  for (int64_t i = 0; i < p.sequence_count; ++i) {
    if (p.sequences[i].row_count > 0) unfinished.push_back({p.sequences[i], -1});
  }
  std::vector<ssd::TokenBlock> blocks;
  while (!unfinished.empty()) {
    for (Unfinished& sequence : unfinished) {
      SequenceRows& left = sequence.rows;
      const int64_t rows = std::min<int64_t>(left.row_count, ssd::kTokens);
      blocks.push_back({.state = left.state,
                        .first_row = left.row_begin,
                        .rows = static_cast<int32_t>(rows),
                        .previous = sequence.previous});
      sequence.previous = static_cast<int32_t>(blocks.size()) - 1;
      left.row_begin += rows;
      left.row_count -= rows;
    }
    unfinished.erase(
        std::remove_if(unfinished.begin(), unfinished.end(),
                       [](const Unfinished& sequence) { return sequence.rows.row_count == 0; }),
        unfinished.end());
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
      ssd::CounterCount(block_count, p.heads * CeilDiv(p.head_dim, ssd::kWidth));
  ASSIGN_OR_RETURN(int* const counters, stream.ScratchOf<int>(counter_count));
  RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(counters, 0, static_cast<size_t>(counter_count) * sizeof(int), stream.get()));
  return LaunchStatus(ssd::LaunchChained<T>(p, blocks, block_count, units_each,
                                            stream.device().major == 9, counters, stream.get()),
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
    for (int units_each = UnitsEach(padded); units_each > 0; --units_each) {
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
