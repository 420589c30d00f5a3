// Calls on memories and documents, and GetStatus: requests checked, handed to the engine, results
// turned into messages.

#ifndef MNEME_SERVER_CATALOG_HANDLERS_H_
#define MNEME_SERVER_CATALOG_HANDLERS_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "engine/engine.h"
#include "google/longrunning/operations.pb.h"
#include "mneme/v1/mneme.pb.h"
#include "server/operations.h"
#include "server/request_cache.h"
#include "server/resource_check.h"

namespace mneme {

// What GetStatus tells beside the engine's state.
struct ServerInfo {
  std::string backend;  // "cpu" or "cuda"
  std::string device;   // in words
  uint64_t bundle_fingerprint = 0;
  int64_t parameter_count = 0;
  int64_t chunk_tokens = 0;
  int64_t segment_tokens = 0;
  // Asked at every GetStatus; may be empty.
  std::function<MemoryStore::Totals()> totals;
  std::function<std::vector<TierUse>()> tiers;
};

// Thread-safe. Calls block on the engine; errors as the proto says.
class CatalogHandlers {
 public:
  CatalogHandlers(Engine& engine, const ResourceCheck& check, RequestCache& requests,
                  OperationRegistry& operations, ServerInfo info, std::string http_address,
                  Clock& clock);

  absl::StatusOr<v1::Memory> CreateMemory(const v1::CreateMemoryRequest& request,
                                          const CallContext& context);
  absl::StatusOr<v1::Memory> GetMemory(const v1::GetMemoryRequest& request,
                                       const CallContext& context);
  absl::StatusOr<v1::ListMemoriesResponse> ListMemories(const v1::ListMemoriesRequest& request,
                                                        const CallContext& context);
  absl::StatusOr<v1::Memory> UpdateMemory(const v1::UpdateMemoryRequest& request,
                                          const CallContext& context);
  absl::StatusOr<google::longrunning::Operation> DeleteMemory(
      const v1::DeleteMemoryRequest& request, const CallContext& context);
  absl::StatusOr<v1::ListDocumentsResponse> ListDocuments(const v1::ListDocumentsRequest& request,
                                                          const CallContext& context);
  absl::StatusOr<v1::Document> GetDocument(const v1::GetDocumentRequest& request,
                                           const CallContext& context);
  absl::StatusOr<google::longrunning::Operation> DeleteDocument(
      const v1::DeleteDocumentRequest& request, const CallContext& context);
  absl::StatusOr<v1::GetStatusResponse> GetStatus(const v1::GetStatusRequest& request,
                                                  const CallContext& context);

 private:
  // Publishes the operation of a deletion, which ends with its purge. `name`: of what was deleted.
  google::longrunning::Operation Follow(const Deletion& deletion, const std::string& name,
                                        std::shared_ptr<RunningOperation> operation);
  // A deletion as a call: room for its operation first, since it cannot be taken back.
  absl::StatusOr<google::longrunning::Operation> Delete(
      absl::string_view method, const std::string& request_id, const std::string& identity,
      const std::string& name, const std::function<absl::StatusOr<Deletion>()>& deletion);

  Engine& engine_;
  const ResourceCheck& check_;
  RequestCache& requests_;
  OperationRegistry& operations_;
  const ServerInfo info_;
  const std::string http_address_;
  Clock& clock_;
  const absl::Time start_;
};

}  // namespace mneme

#endif  // MNEME_SERVER_CATALOG_HANDLERS_H_
