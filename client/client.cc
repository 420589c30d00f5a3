#include "client/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/rpc_error.h"
#include "common/status_macros.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace mneme {
namespace {

// A response holds at most 256 passages of a chunk with 4096 bytes of context on both sides.
constexpr int kReceiveBytesMax = 64 << 20;
constexpr int kPageSize = 1000;
// Of one wait for an operation; then the next, so that a lost connection is noticed.
constexpr int64_t kFirstWaitSeconds = 5;
constexpr int64_t kOperationWaitSeconds = 30;

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kReceiveBytesMax);
  // A proxy from the environment is for the web, not for a server that was named by host and port.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // Also the time that one attempt to connect may take.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 3000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // Notices a machine that vanished in the middle of a call.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  // Retries are ours alone: gRPC's own would hide how often an attempt was made.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

uint64_t SystemSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) ^ device();
}

// One attempt's context, cancelled along with the call.
struct Attempt {
  explicit Attempt(const CallOptions& call) : watch(call.cancellation, &context) {
    if (call.deadline != absl::InfiniteFuture())
      context.set_deadline(absl::ToChronoTime(call.deadline));
  }
  grpc::ClientContext context;
  Cancellation::Watch watch;
};

}  // namespace

Client::Client(ClientOptions options) : Client(Connect(options.address), options) {}

Client::Client(std::shared_ptr<grpc::Channel> channel, ClientOptions options)
    : options_(std::move(options)),
      channel_(std::move(channel)),
      stub_(v1::MemoryService::NewStub(channel_)),
      operations_stub_(google::longrunning::Operations::NewStub(channel_)),
      seed_(options_.seed != 0 ? options_.seed : SystemSeed()) {}

Client::~Client() = default;

uint64_t Client::NextSeed() {
  return seed_.fetch_add(0x9e3779b97f4a7c15, std::memory_order_relaxed);
}

std::string Client::NewRequestId() {
  std::mt19937_64 random(NextSeed());
  const uint64_t high = random(), low = random();
  return absl::StrFormat("%016x%016x", high, low);
}

Retrier Client::NewRetrier(const CallOptions& call) {
  return Retrier(options_.retry, call.deadline, NextSeed(), call.cancellation);
}

template <typename Request, typename Response>
absl::StatusOr<Response> Client::CallUnary(UnaryMethod<Request, Response> method,
                                           const Request& request, const CallOptions& call) {
  Retrier retrier = NewRetrier(call);
  while (true) {
    Response response;
    absl::Status status;
    {
      Attempt attempt(call);
      status = StatusFromRpc(((*stub_).*method)(&attempt.context, request, &response));
    }
    if (status.ok()) return response;
    if (!IsRetryable(status) || !retrier.WaitForNext(status)) return status;
  }
}

template <typename Request, typename Response>
absl::StatusOr<Response> Client::CallDelete(UnaryMethod<Request, Response> method,
                                            const Request& request, const CallOptions& call) {
  Retrier retrier = NewRetrier(call);
  bool may_have_arrived = false;  // in an attempt that was not answered
  while (true) {
    Response response;
    absl::Status status;
    {
      Attempt attempt(call);
      status = StatusFromRpc(((*stub_).*method)(&attempt.context, request, &response));
    }
    if (status.ok()) return response;
    // An earlier attempt did it and only its answer was lost.
    if (may_have_arrived && absl::IsNotFound(status)) return Response();
    may_have_arrived |= !ErrorInfoOf(status).has_value() && !NeverConnected(status);
    if (!IsRetryable(status) || !retrier.WaitForNext(status)) {
      return may_have_arrived ? WithOutcomeUnknown(std::move(status)) : status;
    }
  }
}

absl::StatusOr<v1::Memory> Client::CreateMemory(v1::CreateMemoryRequest request,
                                                const CallOptions& call) {
  if (request.request_id().empty()) request.set_request_id(NewRequestId());
  return CallUnary(&v1::MemoryService::StubInterface::CreateMemory, request, call);
}

absl::StatusOr<v1::Memory> Client::UpdateMemory(const v1::UpdateMemoryRequest& request,
                                                const CallOptions& call) {
  return CallUnary(&v1::MemoryService::StubInterface::UpdateMemory, request, call);
}

absl::StatusOr<v1::Memory> Client::GetMemory(const std::string& name, const CallOptions& call) {
  v1::GetMemoryRequest request;
  request.set_name(name);
  return CallUnary(&v1::MemoryService::StubInterface::GetMemory, request, call);
}

absl::StatusOr<google::longrunning::Operation> Client::DeleteMemory(const std::string& name,
                                                                    const CallOptions& call,
                                                                    bool everywhere) {
  v1::DeleteMemoryRequest request;
  request.set_name(name);
  request.set_everywhere(everywhere);
  request.set_request_id(NewRequestId());
  return CallDelete(&v1::MemoryService::StubInterface::DeleteMemory, request, call);
}

absl::StatusOr<v1::Memory> Client::ForkMemory(v1::ForkMemoryRequest request,
                                              const CallOptions& call) {
  if (request.request_id().empty()) request.set_request_id(NewRequestId());
  return CallUnary(&v1::MemoryService::StubInterface::ForkMemory, request, call);
}

absl::StatusOr<v1::Snapshot> Client::CreateSnapshot(const v1::CreateSnapshotRequest& request,
                                                    const CallOptions& call) {
  return CallUnary(&v1::MemoryService::StubInterface::CreateSnapshot, request, call);
}

absl::Status Client::DeleteSnapshot(const std::string& name, const CallOptions& call) {
  v1::DeleteSnapshotRequest request;
  request.set_name(name);
  return CallDelete(&v1::MemoryService::StubInterface::DeleteSnapshot, request, call).status();
}

absl::StatusOr<v1::Document> Client::GetDocument(const std::string& name, const CallOptions& call) {
  v1::GetDocumentRequest request;
  request.set_name(name);
  return CallUnary(&v1::MemoryService::StubInterface::GetDocument, request, call);
}

absl::StatusOr<google::longrunning::Operation> Client::DeleteDocument(const std::string& name,
                                                                      const CallOptions& call,
                                                                      bool everywhere) {
  v1::DeleteDocumentRequest request;
  request.set_name(name);
  request.set_everywhere(everywhere);
  request.set_request_id(NewRequestId());
  return CallDelete(&v1::MemoryService::StubInterface::DeleteDocument, request, call);
}

absl::StatusOr<google::longrunning::Operation> Client::WaitOperation(
    google::longrunning::Operation operation, const CallOptions& call,
    const std::function<void()>& still_waits) {
  google::longrunning::WaitOperationRequest request;
  request.set_name(operation.name());
  request.mutable_timeout()->set_seconds(kFirstWaitSeconds);
  Retrier retrier = NewRetrier(call);
  while (!operation.done()) {
    absl::Status status;
    {
      Attempt attempt(call);
      status =
          StatusFromRpc(operations_stub_->WaitOperation(&attempt.context, request, &operation));
    }
    if (status.ok()) {
      retrier.NoteProgress();
      request.mutable_timeout()->set_seconds(kOperationWaitSeconds);
      if (!operation.done() && still_waits) still_waits();
    } else if (!IsRetryable(status) || !retrier.WaitForNext(status)) {
      return status;
    }
  }
  if (!operation.has_error()) return operation;
  return absl::Status(static_cast<absl::StatusCode>(operation.error().code()),
                      operation.error().message());
}

absl::StatusOr<v1::RetrieveResponse> Client::Retrieve(const v1::RetrieveRequest& request,
                                                      const CallOptions& call) {
  return CallUnary(&v1::MemoryService::StubInterface::Retrieve, request, call);
}

absl::StatusOr<v1::ScoreResponse> Client::Score(const v1::ScoreRequest& request,
                                                const CallOptions& call) {
  return CallUnary(&v1::MemoryService::StubInterface::Score, request, call);
}

absl::StatusOr<v1::GetStatusResponse> Client::GetStatus(const CallOptions& call) {
  return CallUnary(&v1::MemoryService::StubInterface::GetStatus, v1::GetStatusRequest(), call);
}

absl::Status Client::CheckReady(const CallOptions& call) {
  Attempt attempt(call);
  grpc::health::v1::HealthCheckRequest request;
  grpc::health::v1::HealthCheckResponse response;
  auto health = grpc::health::v1::Health::NewStub(channel_);
  RETURN_IF_ERROR(StatusFromRpc(health->Check(&attempt.context, request, &response)));
  if (response.status() == grpc::health::v1::HealthCheckResponse::SERVING) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the server says ",
                   grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status())));
}

absl::Status Client::ListMemories(const std::string& parent,
                                  const std::function<bool(const v1::Memory&)>& visit,
                                  const CallOptions& call) {
  v1::ListMemoriesRequest request;
  request.set_parent(parent);
  request.set_page_size(kPageSize);
  do {
    ASSIGN_OR_RETURN(auto page,
                     CallUnary(&v1::MemoryService::StubInterface::ListMemories, request, call));
    for (const auto& memory : page.memories()) {
      if (!visit(memory)) return absl::OkStatus();
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return absl::OkStatus();
}

absl::Status Client::ListSnapshots(const std::string& parent,
                                   const std::function<bool(const v1::Snapshot&)>& visit,
                                   const CallOptions& call) {
  v1::ListSnapshotsRequest request;
  request.set_parent(parent);
  request.set_page_size(kPageSize);
  do {
    ASSIGN_OR_RETURN(auto page,
                     CallUnary(&v1::MemoryService::StubInterface::ListSnapshots, request, call));
    for (const auto& snapshot : page.snapshots()) {
      if (!visit(snapshot)) return absl::OkStatus();
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return absl::OkStatus();
}

absl::Status Client::ListDocuments(const std::string& parent,
                                   const std::function<bool(const v1::Document&)>& visit,
                                   const CallOptions& call) {
  v1::ListDocumentsRequest request;
  request.set_parent(parent);
  request.set_page_size(kPageSize);
  do {
    ASSIGN_OR_RETURN(auto page,
                     CallUnary(&v1::MemoryService::StubInterface::ListDocuments, request, call));
    for (const auto& document : page.documents()) {
      if (!visit(document)) return absl::OkStatus();
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return absl::OkStatus();
}

absl::Status Client::ReadDocument(const v1::ReadDocumentRequest& request,
                                  const std::function<bool(absl::string_view)>& visit,
                                  const CallOptions& call) {
  v1::ReadDocumentRequest rest = request;
  Retrier retrier = NewRetrier(call);
  while (true) {
    absl::Status status;
    {
      Attempt attempt(call);
      auto stream = stub_->ReadDocument(&attempt.context, rest);
      v1::ReadDocumentResponse piece;
      while (stream->Read(&piece)) {
        retrier.NoteProgress();
        rest.set_byte_begin(piece.byte_offset() + static_cast<int64_t>(piece.text().size()));
        if (visit(piece.text())) continue;
        attempt.context.TryCancel();
        stream->Finish();
        return absl::OkStatus();
      }
      status = StatusFromRpc(stream->Finish());
    }
    if (status.ok()) return status;
    const bool begun = rest.byte_begin() > request.byte_begin();
    // A break after the very last byte leaves nothing to ask for.
    if (begun && rest.byte_end() != 0 && rest.byte_begin() >= rest.byte_end()) {
      return absl::OkStatus();
    }
    const bool broken = IsBrokenConnection(status) && begun;
    if (call.cancellation != nullptr && call.cancellation->cancelled()) return status;
    if (!(IsRetryable(status) || broken) || !retrier.WaitForNext(status)) return status;
  }
}

absl::Status Client::Generate(const v1::GenerateRequest& request,
                              const std::function<bool(const v1::GenerateResponse&)>& visit,
                              const CallOptions& call) {
  Retrier retrier = NewRetrier(call);
  while (true) {
    absl::Status status;
    bool begun = false;
    {
      Attempt attempt(call);
      auto stream = stub_->Generate(&attempt.context, request);
      v1::GenerateResponse piece;
      while (stream->Read(&piece)) {
        begun = true;
        if (visit(piece)) continue;
        attempt.context.TryCancel();
        stream->Finish();
        return absl::OkStatus();
      }
      status = StatusFromRpc(stream->Finish());
    }
    if (status.ok() || begun || !IsRetryable(status) || !retrier.WaitForNext(status)) return status;
  }
}

IngestOutcome Client::Ingest(const IngestPlan& plan, TextSource& source, const CallOptions& call) {
  IngestStream stream(*stub_, plan, source, call.cancellation, call.deadline);
  return stream.Run(NewRetrier(call),
                    Retrier(options_.resume, call.deadline, NextSeed(), call.cancellation));
}

}  // namespace mneme
