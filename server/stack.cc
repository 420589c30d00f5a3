#include "server/stack.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"
#include "model/bundle.h"

namespace mneme {
namespace {

// `status` with what was being done in front of its message.
absl::Status While(absl::string_view doing, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(doing, ": ", status.message()));
}

}  // namespace

std::vector<std::string> BackendNames() {
  std::vector<std::string> names = {"cpu"};
  if (HasCudaBackend()) names.push_back("cuda");
  return names;
}

absl::StatusOr<std::string> FindDefaultModel() {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  std::vector<fs::path> candidates;
  const fs::path folder = program.parent_path();
  candidates.push_back(folder.parent_path() / "share/mneme/models/mneme-small");
  // build/<preset>/bin/mneme-server of a source tree.
  for (fs::path above = folder; above.has_relative_path(); above = above.parent_path()) {
    candidates.push_back(above / "models/mneme-small");
  }
  for (const fs::path& candidate : candidates) {
    if (fs::exists(candidate / "config.json", error)) return candidate.string();
  }
  return absl::NotFoundError(absl::StrCat("no model: neither ", candidates.front().string(),
                                          " nor models/mneme-small above ", folder.string(),
                                          "; name one with --model"));
}

absl::Status Stack::OpenStores(const ServerConfig& config, Supervisor* supervisor, Metrics& metrics,
                               Clock& clock) {
  ASSIGN_OR_RETURN(backend_, CreateBackend(config.device, {.threads = config.threads}));

  std::string model_path = config.model_path;
  if (model_path.empty()) {
    ASSIGN_OR_RETURN(model_path, FindDefaultModel());
  }
  auto bundle = LoadBundle(model_path);
  if (!bundle.ok()) return While(absl::StrCat("model ", model_path), bundle.status());
  ModelOptions model_options;
  model_options.precision = config.precision == "f32" ? Precision::kF32 : Precision::kBf16;
  auto model = Model::Create(*std::move(bundle), *backend_, model_options);
  if (!model.ok()) return While(absl::StrCat("model ", model_path), model.status());
  model_ = *std::move(model);
  program_bytes_ = ResidentBytes();

  RocksDbOptions disk;
  disk.data_dir = config.data_dir;
  disk.block_cache_bytes = config.block_cache_bytes;
  disk.background_threads = config.background_threads;
  disk.reserve_bytes = config.reserve_bytes;
  disk.read_only = supervisor == nullptr;
  disk.supervisor = supervisor;
  auto chunk_store = OpenRocksDbChunkStore(disk, metrics);
  if (!chunk_store.ok()) {
    return While(absl::StrCat("data directory ", config.data_dir), chunk_store.status());
  }
  chunk_store_ = *std::move(chunk_store);

  MemoryStoreOptions tiers;
  tiers.page_bytes = model_->page_layout().page_bytes();
  tiers.landmark_bytes = model_->page_layout().landmark_bytes();
  tiers.chunk_tokens = model_->page_layout().chunk_tokens;
  tiers.derivation_fingerprint = model_->derivation_fingerprint();
  tiers.host_page_bytes_max = config.host_page_bytes_max;
  tiers.tail_bytes_max = config.past_tail_bytes_max;
  tiers.past_views_max = config.past_views_max;
  tiers.snapshots_per_memory_max = config.snapshots_per_memory_max;
  tiers.fork_depth_max = config.fork_depth_max;
  tiers.host_landmark_bytes_max = config.engine.admission.host_landmark_bytes_max;
  tiers.disk_bytes_max = config.engine.admission.disk_bytes_max;
  if (backend_->has_own_memory()) {
    tiers.device = backend_.get();
    tiers.device_page_bytes_max = config.device_page_bytes_max;
    tiers.device_landmark_bytes_max = config.device_landmark_bytes_max;
  }
  auto memory_store = MemoryStore::Open(tiers, *chunk_store_, metrics, clock);
  if (!memory_store.ok()) {
    return While(absl::StrCat("data directory ", config.data_dir), memory_store.status());
  }
  memory_store_ = *std::move(memory_store);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Stack>> Stack::Open(const ServerConfig& config,
                                                   Supervisor& supervisor) {
  std::unique_ptr<Stack> stack(new Stack());
  Metrics& metrics = supervisor.metrics();
  Clock& clock = supervisor.clock();
  RETURN_IF_ERROR(stack->OpenStores(config, &supervisor, metrics, clock));
  EngineOptions options = config.engine;
  options.supervisor = &supervisor;
  options.admission = config.Admission();
  // Without a device there is none to run out.
  if (!stack->backend_->has_own_memory()) options.admission.device_landmark_bytes_max = 0;
  ASSIGN_OR_RETURN(stack->engine_, Engine::Open(options, *stack->model_, *stack->backend_,
                                                *stack->memory_store_, metrics, clock));
  stack->memory_limit_ = std::make_unique<MemoryLimitMetric>(
      metrics, [config, &stack = *stack] { return stack.MemoryParts(config); });
  LogMemoryLimit(stack->MemoryParts(config));
  return stack;
}

std::vector<MemoryPart> Stack::MemoryParts(const ServerConfig& config) const {
  return MemoryLimit(config, {.model = *model_,
                              .backend = *backend_,
                              .store = *memory_store_,
                              .program_bytes = program_bytes_});
}

absl::StatusOr<std::unique_ptr<Stack>> Stack::OpenToRead(const ServerConfig& config,
                                                         Metrics& metrics, Clock& clock) {
  std::unique_ptr<Stack> stack(new Stack());
  RETURN_IF_ERROR(stack->OpenStores(config, /*supervisor=*/nullptr, metrics, clock));
  return stack;
}

Stack::~Stack() = default;

ServerInfo Stack::info() const {
  ServerInfo info;
  info.backend = backend_->name();
  info.device = backend_->description();
  info.bundle_fingerprint = model_->bundle().fingerprint;
  info.parameter_count = model_->bundle().parameter_count;
  info.chunk_tokens = model_->config().chunk_size;
  info.segment_tokens = model_->config().segment_size;
  info.totals = [this] { return memory_store_->totals(); };
  info.tiers = [this] { return memory_store_->tiers(); };
  return info;
}

}  // namespace mneme
