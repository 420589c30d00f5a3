// What a server stands on: backend, model, store and engine, opened in order and closed in reverse.

#ifndef MNEME_SERVER_STACK_H_
#define MNEME_SERVER_STACK_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/supervisor.h"
#include "engine/engine.h"
#include "kernels/backend.h"
#include "memory_store/chunk_store.h"
#include "memory_store/memory_store.h"
#include "model/model.h"
#include "server/catalog_handlers.h"
#include "server/config.h"
#include "server/memory_limit.h"

namespace mneme {

// Names of the backends in this build, "cpu" first.
std::vector<std::string> BackendNames();

// The bundle mneme-small that comes with the program: share/mneme/models beside bin/ (installed),
// or models/ above it (source tree). NOT_FOUND names the places.
absl::StatusOr<std::string> FindDefaultModel();

// Thread-compatible. `supervisor`, which watches its threads, `metrics` and `clock` must outlive
// it.
class Stack {
 public:
  // Opens everything that `config` names. Errors name the path or setting: see LoadBundle,
  // OpenRocksDbChunkStore, CreateBackend.
  static absl::StatusOr<std::unique_ptr<Stack>> Open(const ServerConfig& config,
                                                     Supervisor& supervisor);
  // The same without an engine, and without a write to the data directory, which must be there: for
  // a check of what is stored.
  static absl::StatusOr<std::unique_ptr<Stack>> OpenToRead(const ServerConfig& config,
                                                           Metrics& metrics, Clock& clock);
  ~Stack();

  MemoryStore& memory_store() { return *memory_store_; }
  Engine& engine() { return *engine_; }
  const Backend& backend() const { return *backend_; }
  // For the server; it may be used as long as this object lives.
  ServerInfo info() const;

 private:
  Stack() = default;
  // `supervisor`: null when it opens to read alone.
  absl::Status OpenStores(const ServerConfig& config, Supervisor* supervisor, Metrics& metrics,
                          Clock& clock);
  std::vector<MemoryPart> MemoryParts(const ServerConfig& config) const;

  // In the order in which they stand on each other.
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<ChunkStore> chunk_store_;
  std::unique_ptr<MemoryStore> memory_store_;
  std::unique_ptr<Engine> engine_;
  int64_t program_bytes_ = 0;  // resident when the network had been loaded
  std::unique_ptr<MemoryLimitMetric> memory_limit_;
};

}  // namespace mneme

#endif  // MNEME_SERVER_STACK_H_
