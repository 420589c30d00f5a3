#include "server/memory_service.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "mneme/v1/admin.pb.h"
#include "server/error.h"
#include "server/generate_call.h"
#include "server/read_document_call.h"
#include "server/unary_call.h"

namespace mneme {
namespace {

using grpc::ByteBuffer;

// Refuses a stream at once. Owned by gRPC: deletes itself.
class RefusedIngest final : public grpc::ServerBidiReactor<ByteBuffer, ByteBuffer> {
 public:
  RefusedIngest(const absl::Status& status, RequestMetrics& metrics) {
    RequestRecord record(metrics, Method::kIngest);
    Finish(EndCall(status, Method::kIngest, "", record));
  }
  void OnDone() override { delete this; }
};

// The methods of a proto's service, in its order, are what Method says from `first` on.
void CheckMethods(const google::protobuf::ServiceDescriptor* service, int first, int count) {
  MNEME_CHECK(service != nullptr && service->method_count() == count);
  for (int i = 0; i < count; ++i) {
    MNEME_CHECK(MethodName(static_cast<Method>(first + i)) == service->method(i)->name());
  }
}

}  // namespace

MemoryService::MemoryService(const ServerOptions& options, const QueryLimits& limits,
                             Engine& engine, ServerInfo info, std::string http_address,
                             const Readiness& readiness, Supervisor& supervisor)
    : options_(options),
      engine_(engine),
      readiness_(readiness),
      check_(options.tenants),
      requests_(options.request_ids_max, supervisor.clock(), supervisor.metrics()),
      operations_({.operations_max = options.operations_max, .keep = options.operation_keep},
                  supervisor.clock(), supervisor.metrics()),
      request_metrics_(supervisor.metrics()),
      catalog_(engine, check_, requests_, operations_, std::move(info), std::move(http_address),
               supervisor.clock()),
      queries_(engine, check_, limits),
      environment_{options_, request_metrics_, readiness_},
      ingest_streams_gauge_(
          supervisor.metrics().AddGauge("ingest_streams", "Ingest streams that are open.")),
      catalog_pool_("catalog", options.catalog_threads, options.catalog_queue_max, supervisor),
      reader_pool_("reader", options.reader_threads, options.reader_queue_max, supervisor),
      // Never full: a stream has at most one task in it.
      ingest_pool_("ingest", options.ingest_threads, options.ingest_streams_max, supervisor) {
  CheckMethods(v1::GetStatusRequest::descriptor()->file()->FindServiceByName("MemoryService"), 0,
               kMemoryMethodCount);
  CheckMethods(
      google::longrunning::Operation::descriptor()->file()->FindServiceByName("Operations"),
      kMemoryMethodCount, kFirstAdminMethod - kMemoryMethodCount);
  CheckMethods(v1::VerifyRequest::descriptor()->file()->FindServiceByName("AdminService"),
               kFirstAdminMethod, kMethodCount - kFirstAdminMethod);
  Metrics& metrics = supervisor.metrics();
  metrics.AddGauge("ingest_streams_limit", "Ingest streams that may be open.")
      .Set(options.ingest_streams_max);
  metrics.AddGauge("message_bytes_limit", "Largest request message that is taken, in bytes.")
      .Set(static_cast<double>(options.message_bytes_max));
  AddCatalogMethods();
  AddReaderMethods();
  AddIngest();
}

MemoryService::~MemoryService() = default;

template <typename Request, typename Response>
void MemoryService::AddUnary(
    Method method, WorkerPool& pool,
    std::function<absl::StatusOr<Response>(const Request&, const CallContext&)> handler) {
  MarkMethodRawCallback(static_cast<int>(method),
                        new grpc::internal::CallbackUnaryHandler<ByteBuffer, ByteBuffer>(
                            [this, method, &pool, handler = std::move(handler)](
                                grpc::CallbackServerContext* context, const ByteBuffer* request,
                                ByteBuffer* response) {
                              return UnaryCall<Request, Response>::Start(
                                  environment_, method, pool, handler, context, request, response);
                            }));
}

void MemoryService::AddCatalogMethods() {
  AddUnary<v1::CreateMemoryRequest, v1::Memory>(Method::kCreateMemory, catalog_pool_,
                                                [this](const auto& request, const auto& call) {
                                                  return catalog_.CreateMemory(request, call);
                                                });
  AddUnary<v1::GetMemoryRequest, v1::Memory>(
      Method::kGetMemory, catalog_pool_,
      [this](const auto& request, const auto& call) { return catalog_.GetMemory(request, call); });
  AddUnary<v1::ListMemoriesRequest, v1::ListMemoriesResponse>(
      Method::kListMemories, catalog_pool_, [this](const auto& request, const auto& call) {
        return catalog_.ListMemories(request, call);
      });
  AddUnary<v1::UpdateMemoryRequest, v1::Memory>(Method::kUpdateMemory, catalog_pool_,
                                                [this](const auto& request, const auto& call) {
                                                  return catalog_.UpdateMemory(request, call);
                                                });
  AddUnary<v1::DeleteMemoryRequest, google::longrunning::Operation>(
      Method::kDeleteMemory, catalog_pool_, [this](const auto& request, const auto& call) {
        return catalog_.DeleteMemory(request, call);
      });
  AddUnary<v1::ForkMemoryRequest, v1::Memory>(
      Method::kForkMemory, catalog_pool_,
      [this](const auto& request, const auto& call) { return catalog_.ForkMemory(request, call); });
  AddUnary<v1::CreateSnapshotRequest, v1::Snapshot>(Method::kCreateSnapshot, catalog_pool_,
                                                    [this](const auto& request, const auto& call) {
                                                      return catalog_.CreateSnapshot(request, call);
                                                    });
  AddUnary<v1::ListSnapshotsRequest, v1::ListSnapshotsResponse>(
      Method::kListSnapshots, catalog_pool_, [this](const auto& request, const auto& call) {
        return catalog_.ListSnapshots(request, call);
      });
  AddUnary<v1::DeleteSnapshotRequest, v1::DeleteSnapshotResponse>(
      Method::kDeleteSnapshot, catalog_pool_, [this](const auto& request, const auto& call) {
        return catalog_.DeleteSnapshot(request, call);
      });
  AddUnary<v1::ListDocumentsRequest, v1::ListDocumentsResponse>(
      Method::kListDocuments, catalog_pool_, [this](const auto& request, const auto& call) {
        return catalog_.ListDocuments(request, call);
      });
  AddUnary<v1::GetDocumentRequest, v1::Document>(Method::kGetDocument, catalog_pool_,
                                                 [this](const auto& request, const auto& call) {
                                                   return catalog_.GetDocument(request, call);
                                                 });
  AddUnary<v1::DeleteDocumentRequest, google::longrunning::Operation>(
      Method::kDeleteDocument, catalog_pool_, [this](const auto& request, const auto& call) {
        return catalog_.DeleteDocument(request, call);
      });
  AddUnary<v1::GetStatusRequest, v1::GetStatusResponse>(
      Method::kGetStatus, catalog_pool_,
      [this](const auto& request, const auto& call) { return catalog_.GetStatus(request, call); });
  MarkMethodRawCallback(
      static_cast<int>(Method::kReadDocument),
      new grpc::internal::CallbackServerStreamingHandler<ByteBuffer, ByteBuffer>(
          [this](grpc::CallbackServerContext* context, const ByteBuffer* request) {
            return ReadDocumentCall::Start(environment_, engine_, check_, catalog_pool_, context,
                                           request);
          }));
}

void MemoryService::AddReaderMethods() {
  AddUnary<v1::RetrieveRequest, v1::RetrieveResponse>(
      Method::kRetrieve, reader_pool_,
      [this](const auto& request, const auto& call) { return queries_.Retrieve(request, call); });
  AddUnary<v1::ScoreRequest, v1::ScoreResponse>(
      Method::kScore, reader_pool_,
      [this](const auto& request, const auto& call) { return queries_.Score(request, call); });
  MarkMethodRawCallback(
      static_cast<int>(Method::kGenerate),
      new grpc::internal::CallbackServerStreamingHandler<ByteBuffer, ByteBuffer>(
          [this](grpc::CallbackServerContext* context, const ByteBuffer* request) {
            return GenerateCall::Start(environment_, engine_, queries_, reader_pool_, context,
                                       request);
          }));
}

void MemoryService::AddIngest() {
  MarkMethodRawCallback(
      static_cast<int>(Method::kIngest),
      new grpc::internal::CallbackBidiHandler<ByteBuffer, ByteBuffer>(
          [this](grpc::CallbackServerContext* context) { return StartIngest(context); }));
}

grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>* MemoryService::StartIngest(
    grpc::CallbackServerContext* context) {
  absl::Status status = CheckBegin(environment_, MakeCallContext(*context));
  if (!status.ok()) return new RefusedIngest(status, request_metrics_);
  absl::MutexLock lock(&mutex_);
  if (ingest_calls_.size() >= static_cast<size_t>(options_.ingest_streams_max)) {
    return new RefusedIngest(
        WithRetryAfter(
            WithReason(absl::ResourceExhaustedError(
                           absl::StrCat(ingest_calls_.size(), " Ingest streams are open: at most ",
                                        options_.ingest_streams_max)),
                       "TOO_MANY_STREAMS", {{"limit", absl::StrCat(options_.ingest_streams_max)}}),
            absl::Seconds(1)),
        request_metrics_);
  }
  const std::shared_ptr<IngestCall> call = IngestCall::Start(
      environment_, engine_, check_, ingest_pool_, context, [this](IngestCall* ended) {
        absl::MutexLock ended_lock(&mutex_);
        ingest_calls_.erase(ended);
        ingest_streams_gauge_.Set(static_cast<double>(ingest_calls_.size()));
      });
  ingest_calls_.emplace(call.get(), call);
  ingest_streams_gauge_.Set(static_cast<double>(ingest_calls_.size()));
  return call.get();
}

void MemoryService::DrainIngest() {
  std::vector<std::shared_ptr<IngestCall>> calls;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [key, weak] : ingest_calls_) {
      if (auto call = weak.lock()) calls.push_back(std::move(call));
    }
  }
  for (const auto& call : calls) call->Drain();
}

}  // namespace mneme
