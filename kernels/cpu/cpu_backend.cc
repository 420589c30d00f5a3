// Cuts each operation into shares for the thread pool; the loops themselves are in
// vector_kernels_impl.h, the matrix products in cpu_weight.cc, the landmark scan in
// landmark_topk.cc.

#include "kernels/cpu/cpu_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/chunk_weights.h"
#include "kernels/cpu/cpu_weight.h"
#include "kernels/cpu/landmark_topk.h"
#include "kernels/cpu/scratch.h"

namespace mneme {
namespace {

const VectorKernels& KernelsFor(CpuIsa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case CpuIsa::kAvx2:
      return Avx2VectorKernels();
    case CpuIsa::kAvx512:
      return Avx512VectorKernels();
    case CpuIsa::kAmx:
      return AmxVectorKernels();
#endif
    default:
      return PortableVectorKernels();
  }
}

// Activations between operations are f32 here.
absl::Status CheckF32(absl::string_view operation, DType dtype) {
  if (dtype == DType::kF32) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(operation, ": the CPU's activations are f32, not ", DTypeName(dtype)));
}

// Buffers of so many bytes come from the system and go back to it. From the heap, the states of
// readers, 2.4 MB each and asked for by many threads, left more and more of it unused: an aligned
// block of the C library's (before 2.38) does not fit where one of its size has been, and what lies
// between keeps the arena from shrinking. After 192 questions: 498 MiB resident so, 212 with this.
constexpr int64_t kMappedBytesMin = int64_t{256} << 10;

absl::StatusOr<Buffer> MapBuffer(int64_t bytes) {
  void* data =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, /*fd=*/-1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a buffer of ", bytes, " bytes"));
  }
  return Buffer(
      data, bytes,
      [](void* length, void* memory) { munmap(memory, reinterpret_cast<size_t>(length)); },
      reinterpret_cast<void*>(bytes));
}

int ThreadCount(int wanted) {
  return wanted > 0 ? wanted : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

CpuBackend::CpuBackend(const CpuBackendOptions& options)
    : isa_(std::min(options.isa_max, DetectCpuIsa())),
      kernels_(KernelsFor(isa_)),
      pool_(ThreadCount(options.threads)) {}

std::string CpuBackend::description() const {
  return absl::StrCat("cpu, ", pool_.threads(), " threads, ", CpuIsaName(isa_),
                      ", matrix products in ", DTypeName(fast_dtype()));
}

DType CpuBackend::fast_dtype() const { return isa_ >= CpuIsa::kAmx ? DType::kBf16 : DType::kF32; }

int64_t CpuBackend::pass_rows() const { return 128; }

void CpuBackend::RunPasses(int64_t n_passes, absl::FunctionRef<void(int64_t)> fn) {
  pool_.ParallelFor(n_passes, fn);
}

absl::StatusOr<Buffer> CpuBackend::Allocate(int64_t bytes) {
  if (bytes < 0)
    return absl::InvalidArgumentError(
        absl::StrCat("Allocate: bytes must be at least 0, got ", bytes));
  if (bytes >= kMappedBytesMin) return MapBuffer(bytes);
  const int64_t padded = std::max<int64_t>(64, (bytes + 63) / 64 * 64);
  void* data = std::aligned_alloc(64, padded);
  if (data == nullptr)
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a buffer of ", bytes, " bytes"));
  return Buffer(
      data, bytes, [](void*, void* memory) { std::free(memory); }, nullptr);
}

absl::Status CpuBackend::CopyIn(void* to, const void* host, int64_t bytes) {
  return Copy(to, host, bytes);
}
absl::Status CpuBackend::CopyOut(void* host, const void* from, int64_t bytes) {
  return Copy(host, from, bytes);
}
absl::Status CpuBackend::Copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return absl::OkStatus();
}
absl::Status CpuBackend::Zero(void* to, int64_t bytes) {
  if (bytes > 0) std::memset(to, 0, bytes);
  return absl::OkStatus();
}

void CpuBackend::ForRows(int64_t rows, int64_t least,
                         absl::FunctionRef<void(int64_t, int64_t)> fn) {
  const int64_t tasks = std::clamp<int64_t>(rows / least, 1, pool_.threads());
  if (rows == 0) return;
  pool_.ParallelFor(tasks,
                    [&](int64_t task) { fn(rows * task / tasks, rows * (task + 1) / tasks); });
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CpuBackend::DoPackWeight(
    absl::Span<const WeightSource> parts, const PackOptions& options) {
  if (options.swiglu) return absl::UnimplementedError("PackWeight: swiglu is not for the CPU");
  ASSIGN_OR_RETURN(std::unique_ptr<CpuWeight> weight, CpuWeight::Pack(parts, options));
  return std::unique_ptr<PackedWeight>(std::move(weight));
}

absl::Status CpuBackend::DoEmbed(const EmbedParams& params) {
  const auto& table = static_cast<const CpuWeight&>(*params.table);
  ForRows(params.rows, 32,
          [&](int64_t begin, int64_t end) { table.EmbedRows(params, begin, end); });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoRmsNorm(const RmsNormParams& params) {
  ForRows(params.rows, 32,
          [&](int64_t begin, int64_t end) { kernels_.rms_norm(params, begin, end); });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoGateNorm(const GateNormParams& params) {
  RETURN_IF_ERROR(CheckF32("GateNorm", params.in_dtype));
  ForRows(params.rows, 16,
          [&](int64_t begin, int64_t end) { kernels_.gate_norm(params, begin, end); });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoHeadNorm(const HeadNormParams& params) {
  ForRows(params.rows, 32,
          [&](int64_t begin, int64_t end) { kernels_.head_norm(params, begin, end); });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoMatmul(const MatmulParams& params) {
  RETURN_IF_ERROR(CheckF32("Matmul", params.out_dtype));
  const auto& weight = static_cast<const CpuWeight&>(*params.weight);
  if (!params.per_row) return weight.Matmul(pool_, params);
  weight.LaneMatmul(pool_, kernels_, params,
                    /*bytes_allowed=*/weight.compute_dtype() == DType::kBf16);
  return absl::OkStatus();
}

absl::Status CpuBackend::DoConvSilu(const ConvSiluParams& params) {
  RETURN_IF_ERROR(CheckF32("ConvSilu", params.io_dtype));
  for (int64_t i = 0; i < params.sequence_count; ++i) {
    const SequenceRows& sequence = params.sequences[i];
    ForRows(sequence.row_count, 16,
            [&](int64_t begin, int64_t end) { kernels_.conv_silu(params, sequence, begin, end); });
    // The newest taps - 1 rows of (state, rows) become the state; ascending, as row j comes from j
    // or later.
    const int64_t past = params.taps - 1;
    float* state = sequence.state + params.state_offset;
    for (int64_t j = 0; j < past && sequence.row_count > 0; ++j) {
      const int64_t from = j + sequence.row_count;
      const float* row = from < past ? state + from * params.channels
                                     : static_cast<const float*>(params.in) +
                                           (sequence.row_begin + from - past) * params.in_stride;
      std::memcpy(state + j * params.channels, row, params.channels * sizeof(float));
    }
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::DoSsd(const SsdParams& params) {
  if (params.io_dtype != DType::kF32) {
    return absl::InvalidArgumentError("Ssd: the CPU backend takes f32 rows");
  }
  const int64_t scratch_bytes = kernels_.ssd_scratch_bytes(params);
  const int64_t groups = std::min<int64_t>(params.heads, pool_.threads());
  pool_.ParallelFor(params.sequence_count * groups, [&](int64_t task) {
    const int64_t group = task % groups;
    kernels_.ssd(params, params.sequences[task / groups], params.heads * group / groups,
                 params.heads * (group + 1) / groups, ThreadScratch(scratch_bytes));
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoSsmStep(const SsdParams& params) {
  if (params.io_dtype != DType::kF32) {
    return absl::InvalidArgumentError("SsmStep: the CPU backend takes f32 rows");
  }
  ForRows(params.sequence_count * params.heads, 4, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t sequence = begin / params.heads;
      const int64_t stop = std::min(end, (sequence + 1) * params.heads);
      kernels_.ssm_step(params, params.sequences[sequence], begin - sequence * params.heads,
                        stop - sequence * params.heads);
      begin = stop;
    }
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoChunkInput(const ChunkInputParams& params) {
  ForRows(params.chunks, 1,
          [&](int64_t begin, int64_t end) { kernels_.chunk_input(params, begin, end); });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoChunkAttention(const ChunkAttentionParams& params) {
  RETURN_IF_ERROR(CheckF32("ChunkAttention", params.in_dtype));
  if (params.q_norm != nullptr) {
    return absl::UnimplementedError("ChunkAttention: the CPU takes q and k normed");
  }
  const int64_t scratch_bytes = kernels_.chunk_attention_scratch_bytes(params);
  ForRows(params.groups * params.heads, 1, [&](int64_t begin, int64_t end) {
    void* scratch = ThreadScratch(scratch_bytes);
    for (int64_t i = begin; i < end; ++i) {
      kernels_.chunk_attention(params, i / params.heads, i % params.heads, scratch);
    }
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoSwiGlu(const SwiGluParams& params) {
  ForRows(params.rows, 16,
          [&](int64_t begin, int64_t end) { kernels_.swiglu(params, begin, end); });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoWritePages(const WritePagesParams& params) {
  ForRows(params.chunks, 1,
          [&](int64_t begin, int64_t end) { kernels_.write_pages(params, begin, end); });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoHsaAttend(const HsaAttendParams& params) {
  const int64_t scratch_bytes = kernels_.hsa_scratch_bytes(params);
  ForRows(params.rows, 1, [&](int64_t begin, int64_t end) {
    kernels_.hsa_attend(params, begin, end, ThreadScratch(scratch_bytes));
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoChunkLook(const ChunkLookParams& params) {
  const int64_t scratch_bytes = kernels_.chunk_look_scratch_bytes(params);
  ForRows(params.rows, 1, [&](int64_t begin, int64_t end) {
    kernels_.chunk_look(params, begin, end, ThreadScratch(scratch_bytes));
    const auto pages = static_cast<size_t>(params.pages_max);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = r * params.pages_max;
      ChunkWeights({params.corrected + first, pages}, params.newest_margin,
                   {params.weights + first, pages});
    }
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoArgMax(const ArgMaxParams& params) {
  ForRows(params.rows, 4, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = params.in + r * params.in_stride;
      int64_t best = 0;
      for (int64_t i = 1; i < params.columns; ++i) {
        if (row[i] > row[best] || (std::isnan(row[best]) && !std::isnan(row[i]))) best = i;
      }
      params.out[r] = static_cast<int32_t>(std::isnan(row[best]) ? 0 : best);
    }
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoLandmarkTopK(const LandmarkTopKParams& params) {
  LandmarkTopKCpu(pool_, params, isa_);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options) {
  if (options.threads < 0 || options.threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads must be in 0 .. 1024, got ", options.threads));
  }
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(options));
}

}  // namespace mneme
