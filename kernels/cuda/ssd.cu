// Ssd behind the launcher that all backends' operations have, and the choice among its kernels; how
// they work is in ssd_walk_kernels.cuh, ssd_states_kernel.cuh, ssd_kernels.cuh and
// ssd_f32_kernel.cuh.

#include "kernels/cuda/ssd_kernels.cuh"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/ssd_f32_kernel.cuh"
#include "kernels/cuda/ssd_gate_kernel.cuh"
#include "kernels/cuda/ssd_states_kernel.cuh"
#include "kernels/cuda/ssd_walk_kernels.cuh"

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
  return LaunchStatus(
      ssd::LaunchChained<T>(p, blocks, block_count, units_each, counters, stream.get()),
      "Ssd in bf16");
}

int64_t Tiles(int64_t rows) { return CeilDiv(rows, ssd::kTile); }

// Tiles of a run, such that runs keep the device busy and the states before them take little time.
// What it costs is counted in tiles of the walk; results do not depend on it.
int64_t RunTiles(const SsdParams& p, int64_t multiprocessors) {
  constexpr int64_t kRunTilesMin = 8;
  constexpr double kStart = 3;         // of a run: its state, and tiles on their way
  constexpr double kStatesTile = 0.3;  // a tile of StatesKernel
  constexpr double kStatesStart = 6;   // one kernel more
  const int64_t groups =
      CeilDiv(p.heads * (p.head_dim / ssd::kWidth), ssd::WalkUnits(p.state_size));
  int64_t longest = 0;
  for (int64_t i = 0; i < p.sequence_count; ++i) {
    longest = std::max(longest, Tiles(p.sequences[i].row_count));
  }
  const auto cost = [&](int64_t run_tiles) {
    int64_t runs = 0, tiles = 0;
    for (int64_t i = 0; i < p.sequence_count; ++i) {
      const int64_t of_sequence = Tiles(p.sequences[i].row_count);
      runs += CeilDiv(of_sequence, run_tiles);
      tiles += of_sequence;
    }
    // Either all runs are about equal and go in waves, or they fill gaps.
    const double run = static_cast<double>(run_tiles) + kStart;
    const double waves = static_cast<double>(CeilDiv(runs * groups, multiprocessors)) * run;
    const double filled =
        static_cast<double>((tiles + static_cast<int64_t>(kStart) * runs) * groups) /
            static_cast<double>(multiprocessors) +
        run;
    const double states =
        run_tiles < longest ? kStatesStart + kStatesTile * static_cast<double>(longest - run_tiles)
                            : 0;
    return std::min(waves, filled) + states;
  };
  int64_t best = std::max(longest, int64_t{1});
  double best_cost = cost(best);
  // More runs of a sequence than make up two waves do not help.
  const int64_t cuts_max = std::min(CeilDiv(longest, kRunTilesMin), 2 * multiprocessors);
  for (int64_t cuts = 2; cuts <= cuts_max; ++cuts) {
    const int64_t run_tiles = CeilDiv(longest, cuts);
    const double run_cost = cost(run_tiles);
    if (run_cost >= best_cost) continue;
    best = run_tiles;
    best_cost = run_cost;
  }
  return best;
}

// Runs of at most `run_tiles` tiles of all sequences, and, of sequences with more than one, what
// computes the states before them.
struct WalkPlan {
  std::vector<ssd::Run> runs;
  std::vector<ssd::StateChain> chains;
};
absl::StatusOr<WalkPlan> PlanWalk(const SsdParams& p, int64_t run_tiles, CudaStream& stream) {
  const int64_t state_floats = p.heads * p.state_size * p.head_dim;
  const auto run_count = [&](const SequenceRows& sequence) {
    return CeilDiv(Tiles(sequence.row_count), run_tiles);
  };
  int64_t states = 0;
  for (int64_t i = 0; i < p.sequence_count; ++i) {
    const int64_t count = run_count(p.sequences[i]);
    if (count > 1) states += count;
  }
  ASSIGN_OR_RETURN(float* memory, stream.ScratchOf<float>(states * state_floats));
  WalkPlan plan;
  for (int64_t i = 0; i < p.sequence_count; ++i) {
    const SequenceRows& sequence = p.sequences[i];
    float* const state = sequence.state + p.state_offset;
    const int64_t count = run_count(sequence);
    if (count > 1) {
      plan.chains.push_back({.before = state,
                             .states = memory,
                             .first_row = sequence.row_begin,
                             .run_tiles = static_cast<int32_t>(run_tiles),
                             .run_count = static_cast<int32_t>(count)});
    }
    for (int64_t run = 0; run < count; ++run) {
      const int64_t first = run * run_tiles * ssd::kTile;
      const int64_t rows = std::min(run_tiles * ssd::kTile, sequence.row_count - first);
      plan.runs.push_back({.before = count > 1 ? memory : state,
                           .after = run == count - 1 ? state : nullptr,
                           .first_row = sequence.row_begin + first,
                           .rows = static_cast<int32_t>(rows)});
      if (count > 1) memory += state_floats;
    }
  }
  // Long ones first: the short ones fill the gaps at the end.
  std::stable_sort(plan.runs.begin(), plan.runs.end(),
                   [](const ssd::Run& a, const ssd::Run& b) { return a.rows > b.rows; });
  return plan;
}

absl::Status LaunchWalk(const SsdParams& p, CudaStream& stream) {
  const int64_t run_tiles = RunTiles(p, stream.device().multiprocessors);
  ASSIGN_OR_RETURN(const WalkPlan plan, PlanWalk(p, run_tiles, stream));
  const auto run_count = static_cast<int64_t>(plan.runs.size());
  const auto chain_count = static_cast<int64_t>(plan.chains.size());
  ASSIGN_OR_RETURN(const ssd::Run* const runs, stream.UploadOf(plan.runs.data(), run_count));
  if (chain_count > 0) {
    ASSIGN_OR_RETURN(const ssd::StateChain* const chains,
                     stream.UploadOf(plan.chains.data(), chain_count));
    RETURN_IF_ERROR(LaunchStatus(ssd::LaunchStates(p, chains, chain_count, stream.get()),
                                 "Ssd, states before runs"));
  }
  return LaunchStatus(ssd::LaunchWalk(p, runs, run_count, stream.get()), "Ssd, walk");
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
  if (p.io_dtype == DType::kF32) return LaunchSsd<float>(p, stream);
  if (p.compute_dtype == DType::kBf16 && stream.device().major == 9 && ssd::Walks(p)) {
    return LaunchWalk(p, stream);
  }
  RETURN_IF_ERROR(LaunchSsd<__nv_bfloat16>(p, stream));
  if (p.gate.z == nullptr) return absl::OkStatus();
  return LaunchStatus(ssd::LaunchGate(p, stream.get()), "Ssd, gate");
}

}  // namespace mneme
