// MemoryLimit: what the process may come to in memory, by its configuration and by what is stored:
// one number to compare its resident memory with, and the parts that it is made of.

#ifndef MNEME_SERVER_MEMORY_LIMIT_H_
#define MNEME_SERVER_MEMORY_LIMIT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/metrics.h"
#include "kernels/backend.h"
#include "memory_store/memory_store.h"
#include "model/model.h"
#include "server/config.h"

namespace mneme {

struct MemoryPart {
  std::string name;
  int64_t bytes = 0;
};

// Resident memory of this process; 0 when the system does not say.
int64_t ResidentBytes();

// What the parts depend on beside the configuration.
struct MemoryUsers {
  const Model& model;
  const Backend& backend;
  const MemoryStore& store;  // the part "landmarks" grows with it
  // Resident once the network was loaded and before a store was opened: code, libraries, weights.
  int64_t program_bytes = 0;
};

std::vector<MemoryPart> MemoryLimit(const ServerConfig& config, const MemoryUsers& users);

// One line: the sum, and what it is made of.
void LogMemoryLimit(const std::vector<MemoryPart>& parts);

// Exports mneme_memory_limit_bytes, the sum, and mneme_memory_limit_part_bytes{part}, asking
// `parts` at each scrape until the returned handle goes.
class MemoryLimitMetric {
 public:
  MemoryLimitMetric(Metrics& metrics, std::function<std::vector<MemoryPart>()> parts);
  ~MemoryLimitMetric();
  MemoryLimitMetric(const MemoryLimitMetric&) = delete;
  MemoryLimitMetric& operator=(const MemoryLimitMetric&) = delete;

 private:
  class Collectable;
  std::shared_ptr<Collectable> collectable_;  // with Metrics
};

}  // namespace mneme

#endif  // MNEME_SERVER_MEMORY_LIMIT_H_
