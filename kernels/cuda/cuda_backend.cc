#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_weight.h"
#include "kernels/cuda/kernels.h"

namespace mneme {
namespace {

// Rows of a pass on a device with room for their activations.
constexpr int64_t kPassRows = 32768;
constexpr int64_t kPassRowsSmall = 8192;
constexpr int64_t kSmallDeviceBytes = int64_t{32} << 30;
// Where one host page ends and the next begins on the device.
constexpr int64_t kStagedAlignment = 256;

// The streams that this thread has, one a device object; they go back when the thread ends.
class ThreadStreams {
 public:
  ~ThreadStreams() {
    for (Entry& entry : entries_) {
      // Gone already when the backend is gone.
      if (const std::shared_ptr<CudaDevice> device = entry.device.lock(); device != nullptr) {
        device->ReturnStream(entry.stream);
      }
    }
  }

  // The thread's stream of `device`, or null.
  CudaStream* Find(const CudaDevice* device) const {
    for (const Entry& entry : entries_) {
      if (entry.key == device && !entry.device.expired()) return entry.stream;
    }
    return nullptr;
  }
  void Add(const std::shared_ptr<CudaDevice>& device, CudaStream* stream) {
    entries_.erase(std::remove_if(entries_.begin(), entries_.end(),
                                  [](const Entry& entry) { return entry.device.expired(); }),
                   entries_.end());
    entries_.push_back({device.get(), device, stream});
  }

 private:
  struct Entry {
    const CudaDevice* key;
    std::weak_ptr<CudaDevice> device;
    CudaStream* stream;
  };
  std::vector<Entry> entries_;
};

thread_local ThreadStreams thread_streams;
// Where indices and scores of a scan come back together.
thread_local std::vector<char> thread_scan_results;

// Whether the device can read `pointer`: anything but plain host memory.
absl::StatusOr<bool> DeviceReads(const void* pointer) {
  cudaPointerAttributes attributes;
  RETURN_IF_CUDA_ERROR(cudaPointerGetAttributes(&attributes, pointer));
  return attributes.type != cudaMemoryTypeUnregistered;
}

// `pointer` itself where the device can read it, else a copy in scratch.
template <typename T>
absl::StatusOr<const T*> Readable(const T* pointer, int64_t count, CudaStream& stream) {
  if (count == 0) return pointer;
  ASSIGN_OR_RETURN(const bool readable, DeviceReads(pointer));
  if (readable) return pointer;
  return stream.UploadOf(pointer, count);
}

// Launches an operation that reads a table of pages, which are copied up first where they are host
// memory.
template <typename Params>
absl::Status OnResidentPages(const Params& params, CudaStream& stream,
                             absl::Status (*launch)(const Params&, CudaStream&)) {
  if (params.pages_resident || params.rows == 0 || params.pages_max == 0) {
    return launch(params, stream);
  }
  const int64_t cells = params.rows * params.pages_max;
  std::vector<const void*> table(cells);
  std::vector<int32_t> counts(params.rows);
  RETURN_IF_ERROR(
      stream.CopyOut(table.data(), params.pages, cells * static_cast<int64_t>(sizeof(void*))));
  RETURN_IF_ERROR(stream.CopyOut(counts.data(), params.page_counts,
                                 params.rows * static_cast<int64_t>(sizeof(int32_t))));
  const int64_t page_bytes =
      2 * params.chunk_tokens * params.head_dim * DTypeBytes(params.page_dtype);
  std::unordered_map<const void*, const void*> placed;
  int64_t host_pages = 0;
  for (int64_t r = 0; r < params.rows; ++r) {
    for (int64_t i = 0; i < counts[r]; ++i) {
      const void* page = table[r * params.pages_max + i];
      if (page == nullptr) continue;  // not read
      const auto [entry, fresh] = placed.emplace(page, page);
      if (!fresh) continue;
      ASSIGN_OR_RETURN(const bool readable, DeviceReads(page));
      if (readable) continue;
      entry->second = nullptr;
      ++host_pages;
    }
  }
  if (host_pages == 0) return launch(params, stream);
  const int64_t stride = RoundUpTo(page_bytes, kStagedAlignment);
  ASSIGN_OR_RETURN(void* const staged, stream.Scratch(host_pages * stride));
  char* next = static_cast<char*>(staged);
  for (auto& [page, place] : placed) {
    if (place != nullptr) continue;
    RETURN_IF_ERROR(stream.CopyIn(next, page, page_bytes));
    place = next;
    next += stride;
  }
  for (int64_t r = 0; r < params.rows; ++r) {
    for (int64_t i = 0; i < counts[r]; ++i) {
      const void*& page = table[r * params.pages_max + i];
      if (page != nullptr) page = placed.find(page)->second;
    }
  }
  Params resident = params;
  ASSIGN_OR_RETURN(resident.pages, stream.UploadOf(table.data(), cells));
  resident.pages_resident = true;
  return launch(resident, stream);
}

}  // namespace

CudaDevice::CudaDevice(const DeviceInfo& device_info, int64_t device_bytes_max,
                       int64_t pinned_bytes_max)
    : info(device_info),
      device_memory(MemoryPool::Kind::kDevice, device_bytes_max),
      pinned_memory(MemoryPool::Kind::kPinned, pinned_bytes_max) {}

CudaDevice::~CudaDevice() {
  absl::MutexLock lock(&mutex_);
  streams_.clear();  // before the pools that they take from
}

absl::StatusOr<CudaStream*> CudaDevice::TakeStream() {
  RETURN_IF_CUDA_ERROR(cudaSetDevice(info.ordinal));
  {
    absl::MutexLock lock(&mutex_);
    if (!idle_.empty()) {
      CudaStream* stream = idle_.back();
      idle_.pop_back();
      return stream;
    }
  }
  ASSIGN_OR_RETURN(std::unique_ptr<CudaStream> stream,
                   CudaStream::Create(info, device_memory, pinned_memory));
  absl::MutexLock lock(&mutex_);
  streams_.push_back(std::move(stream));
  return streams_.back().get();
}

void CudaDevice::ReturnStream(CudaStream* stream) {
  // What the thread left under way is done before another thread counts on the stream.
  static_cast<void>(stream->Synchronize());
  absl::MutexLock lock(&mutex_);
  idle_.push_back(stream);
}

CudaBackend::CudaBackend(std::shared_ptr<CudaDevice> device, const CudaBackendOptions& options)
    : device_(std::move(device)),
      cublas_lt_(options.cublas_lt ? CublasLt::Open() : nullptr),
      pool_(options.passes) {}

CudaBackend::~CudaBackend() = default;

std::string CudaBackend::description() const {
  const DeviceInfo& info = device_->info;
  return absl::StrCat("cuda, ", info.name, ", ", info.multiprocessors, " multiprocessors, sm_",
                      info.major, info.minor, ", ", info.memory_bytes >> 20, " MiB, ",
                      cublas_lt_ == nullptr ? std::string("own matrix products")
                                            : absl::StrCat("cuBLASLt ", cublas_lt_->version()));
}

int64_t CudaBackend::pass_rows() const {
  return device_->device_memory.bytes_max() < kSmallDeviceBytes ? kPassRowsSmall : kPassRows;
}

void CudaBackend::RunPasses(int64_t n_passes, absl::FunctionRef<void(int64_t)> fn) {
  pool_.ParallelFor(n_passes, fn);
}

absl::Status CudaBackend::Repeat(absl::Span<const int64_t> key,
                                 absl::FunctionRef<absl::Status()> fn) {
  ASSIGN_OR_RETURN(CudaStream* const stream, ThreadStream());
  return stream->Repeat(key, fn);
}

absl::StatusOr<CudaStream*> CudaBackend::ThreadStream() {
  if (CudaStream* stream = thread_streams.Find(device_.get()); stream != nullptr) {
    if (device_->info.ordinal != 0) RETURN_IF_CUDA_ERROR(cudaSetDevice(device_->info.ordinal));
    return stream;
  }
  ASSIGN_OR_RETURN(CudaStream* const stream, device_->TakeStream());
  thread_streams.Add(device_, stream);
  return stream;
}

absl::Status CudaBackend::Run(absl::FunctionRef<absl::Status(CudaStream&)> fn) {
  ASSIGN_OR_RETURN(CudaStream* const stream, ThreadStream());
  absl::Status status = stream->BeginOperation();
  if (status.ok()) {
    stream->NoteWork();
    status = fn(*stream);
  }
  // The caller gives its memory up now: nothing may still write to it.
  if (!status.ok()) stream->Synchronize().IgnoreError();
  return status;
}

absl::Status CudaBackend::RunCopy(absl::FunctionRef<absl::Status(CudaStream&)> fn) {
  ASSIGN_OR_RETURN(CudaStream* const stream, ThreadStream());
  const bool was_idle = stream->idle();
  stream->NoteWork();
  absl::Status status = fn(*stream);
  if (!status.ok()) {
    stream->Synchronize().IgnoreError();
    return status;
  }
  return was_idle ? stream->Synchronize() : absl::OkStatus();
}

absl::StatusOr<Buffer> CudaBackend::Allocate(int64_t bytes) {
  if (bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("Allocate: bytes must be at least 0, got ", bytes));
  }
  if (device_->info.ordinal != 0) RETURN_IF_CUDA_ERROR(cudaSetDevice(device_->info.ordinal));
  ASSIGN_OR_RETURN(void* const data, device_->device_memory.Allocate(bytes));
  return Buffer(
      data, bytes,
      [](void* context, void* memory) {
        CudaDevice* device = static_cast<CudaDevice*>(context);
        // Work of this thread may still use it; other threads have waited for theirs.
        CudaStream* stream = thread_streams.Find(device);
        if (stream != nullptr && !stream->idle()) stream->Synchronize().IgnoreError();
        device->device_memory.Release(memory);
      },
      device_.get());
}

absl::Status CudaBackend::CopyIn(void* to, const void* host, int64_t bytes) {
  if (bytes <= 0) return absl::OkStatus();
  return RunCopy([&](CudaStream& stream) { return stream.CopyIn(to, host, bytes); });
}

absl::Status CudaBackend::Upload(void* to, const void* host, int64_t bytes) {
  if (bytes <= 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(CudaStream* const stream, ThreadStream());
  return stream->CopyIn(to, host, bytes);
}

absl::Status CudaBackend::CopyOut(void* host, const void* from, int64_t bytes) {
  ASSIGN_OR_RETURN(CudaStream* const stream, ThreadStream());
  return stream->CopyOut(host, from, std::max<int64_t>(bytes, 0));
}

absl::Status CudaBackend::Copy(void* to, const void* from, int64_t bytes) {
  if (bytes <= 0) return absl::OkStatus();
  return RunCopy([&](CudaStream& stream) -> absl::Status {
    RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes),
                                         cudaMemcpyDeviceToDevice, stream.get()));
    return absl::OkStatus();
  });
}

absl::Status CudaBackend::Zero(void* to, int64_t bytes) {
  if (bytes <= 0) return absl::OkStatus();
  return RunCopy([&](CudaStream& stream) -> absl::Status {
    RETURN_IF_CUDA_ERROR(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream.get()));
    return absl::OkStatus();
  });
}

absl::Status CudaBackend::Synchronize() {
  CudaStream* const stream = thread_streams.Find(device_.get());
  return stream == nullptr || stream->idle() ? absl::OkStatus() : stream->Synchronize();
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CudaBackend::DoPackWeight(
    absl::Span<const WeightSource> parts, const PackOptions& options) {
  std::unique_ptr<PackedWeight> packed;
  RETURN_IF_ERROR(Run([&](CudaStream& stream) -> absl::Status {
    ASSIGN_OR_RETURN(
        std::unique_ptr<CudaWeight> weight,
        CudaWeight::Pack(parts, options, cublas_lt_.get(), device_->device_memory, stream));
    packed = std::move(weight);
    return absl::OkStatus();
  }));
  return packed;
}

absl::Status CudaBackend::DoEmbed(const EmbedParams& params) {
  const auto& table = static_cast<const CudaWeight&>(*params.table);
  return Run([&](CudaStream& stream) { return table.EmbedRows(params, stream); });
}

absl::Status CudaBackend::DoMatmul(const MatmulParams& params) {
  const auto& weight = static_cast<const CudaWeight&>(*params.weight);
  return Run([&](CudaStream& stream) { return weight.Matmul(params, stream); });
}

bool CudaBackend::FusesNorm(const MatmulParams& params) const {
  return params.per_row && static_cast<const CudaWeight&>(*params.weight).takes_norm();
}

absl::Status CudaBackend::DoRmsNorm(const RmsNormParams& params) {
  return Run([&](CudaStream& stream) { return CudaRmsNorm(params, stream); });
}

absl::Status CudaBackend::DoGateNorm(const GateNormParams& params) {
  return Run([&](CudaStream& stream) { return CudaGateNorm(params, stream); });
}

absl::Status CudaBackend::DoHeadNorm(const HeadNormParams& params) {
  return Run([&](CudaStream& stream) { return CudaHeadNorm(params, stream); });
}

absl::Status CudaBackend::DoConvSilu(const ConvSiluParams& params) {
  return Run([&](CudaStream& stream) { return CudaConvSilu(params, stream); });
}

absl::Status CudaBackend::DoSsd(const SsdParams& params) {
  return Run([&](CudaStream& stream) { return CudaSsd(params, stream); });
}

absl::Status CudaBackend::DoSsmStep(const SsdParams& params) {
  return Run([&](CudaStream& stream) { return CudaSsmStep(params, stream); });
}

absl::Status CudaBackend::DoConvSsmStep(const ConvSiluParams& conv, const SsdParams& ssm) {
  return Run([&](CudaStream& stream) { return CudaConvSsmStep(conv, ssm, stream); });
}

absl::Status CudaBackend::DoChunkInput(const ChunkInputParams& params) {
  return Run([&](CudaStream& stream) { return CudaChunkInput(params, stream); });
}

absl::Status CudaBackend::DoChunkAttention(const ChunkAttentionParams& params) {
  return Run([&](CudaStream& stream) { return CudaChunkAttention(params, stream); });
}

absl::Status CudaBackend::DoSwiGlu(const SwiGluParams& params) {
  return Run([&](CudaStream& stream) { return CudaSwiGlu(params, stream); });
}

absl::Status CudaBackend::DoWritePages(const WritePagesParams& params) {
  return Run([&](CudaStream& stream) { return CudaWritePages(params, stream); });
}

absl::Status CudaBackend::DoHsaAttend(const HsaAttendParams& params) {
  return Run([&](CudaStream& stream) { return OnResidentPages(params, stream, CudaHsaAttend); });
}

absl::Status CudaBackend::DoChunkLook(const ChunkLookParams& params) {
  return Run([&](CudaStream& stream) { return OnResidentPages(params, stream, CudaChunkLook); });
}

absl::Status CudaBackend::DoArgMax(const ArgMaxParams& params) {
  return Run([&](CudaStream& stream) { return CudaArgMax(params, stream); });
}

absl::Status CudaBackend::DoLandmarkTopK(const LandmarkTopKParams& params) {
  if (params.n_queries == 0) return absl::OkStatus();
  return Run([&](CudaStream& stream) -> absl::Status {
    const int64_t places = params.n_queries * params.k;
    LandmarkTopKParams staged = params;
    ASSIGN_OR_RETURN(staged.queries,
                     Readable(params.queries, params.n_queries * params.dim, stream));
    std::vector<LandmarkSlab> slabs;
    if (!params.slabs_resident) {
      slabs.assign(params.slabs.begin(), params.slabs.end());
      for (LandmarkSlab& slab : slabs) {
        ASSIGN_OR_RETURN(slab.rows,
                         Readable(static_cast<const char*>(slab.rows),
                                  slab.row_count * params.dim * DTypeBytes(params.dtype), stream));
      }
      staged.slabs = slabs;
    }
    // Results for the host lie together, so that they come back in one copy.
    ASSIGN_OR_RETURN(const bool indices_there, DeviceReads(params.indices));
    ASSIGN_OR_RETURN(const bool scores_there, DeviceReads(params.scores));
    const int64_t index_bytes = indices_there ? 0 : places * int64_t{sizeof(int64_t)};
    const int64_t score_bytes = scores_there ? 0 : places * int64_t{sizeof(float)};
    ASSIGN_OR_RETURN(void* const results, stream.Scratch(index_bytes + score_bytes));
    if (!indices_there) staged.indices = static_cast<int64_t*>(results);
    if (!scores_there) {
      staged.scores = reinterpret_cast<float*>(static_cast<char*>(results) + index_bytes);
    }
    RETURN_IF_ERROR(CudaLandmarkTopK(staged, stream));
    if (results == nullptr) return absl::OkStatus();
    thread_scan_results.resize(static_cast<size_t>(index_bytes + score_bytes));
    const char* const came = thread_scan_results.data();
    RETURN_IF_ERROR(stream.CopyOut(thread_scan_results.data(), results, index_bytes + score_bytes));
    if (!indices_there) std::memcpy(params.indices, came, static_cast<size_t>(index_bytes));
    if (!scores_there)
      std::memcpy(params.scores, came + index_bytes, static_cast<size_t>(score_bytes));
    return absl::OkStatus();
  });
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options) {
  if (options.passes < 1 || options.passes > 64 || options.device_bytes_max < 0 ||
      options.pinned_bytes_max < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cuda: passes must be in 1 .. 64 and byte limits at least 0, got ", options.passes, ", ",
        options.device_bytes_max, " and ", options.pinned_bytes_max));
  }
  ASSIGN_OR_RETURN(const DeviceInfo info, DeviceInfo::Find(options.device));
  const int64_t bytes = options.device_bytes_max > 0 ? options.device_bytes_max
                                                     : info.memory_bytes - info.memory_bytes / 16;
  auto device = std::make_shared<CudaDevice>(info, bytes, options.pinned_bytes_max);
  return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(std::move(device), options));
}

}  // namespace mneme
