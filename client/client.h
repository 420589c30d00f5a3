// Client: Mneme's service over gRPC with deadlines, retries and, for Ingest, resumption after a
// broken stream.
//
//   mneme::Client client({.address = "127.0.0.1:7420"});
//   mneme::StringSource text("The pass key is 40917.");
//   auto outcome = client.Ingest({.document = "tenants/default/memories/demo/documents/note"},
//   text); auto found = client.Retrieve(request);
//
// Requests and responses are the messages of mneme/v1/mneme.proto, which says what each field
// means. Errors are absl::Status with the server's code and message; ErrorInfoOf (rpc_error.h)
// gives reason and metadata.

#ifndef MNEME_CLIENT_CLIENT_H_
#define MNEME_CLIENT_CLIENT_H_

#include <grpcpp/channel.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/cancellation.h"
#include "client/ingest_stream.h"
#include "client/retry.h"
#include "client/text_source.h"
#include "google/longrunning/operations.grpc.pb.h"
#include "mneme/v1/mneme.grpc.pb.h"

namespace mneme {

struct ClientOptions {
  // host:port, or any gRPC target.
  std::string address = "127.0.0.1:7420";
  // For calls other than Ingest, and for Ingest before its first answer.
  RetryPolicy retry;
  // For an Ingest that was under way: counts from the last progress.
  RetryPolicy resume = {.attempts_max = 1000};
  // Jitter and request ids follow from it; 0: drawn from the system.
  uint64_t seed = 0;
};

// Limits of one call, over all its attempts.
struct CallOptions {
  absl::Time deadline = absl::InfiniteFuture();
  // May be null. Must outlive the call.
  Cancellation* cancellation = nullptr;
};

// Thread-safe. Calls block. Connects at the first call, and again by itself whenever the connection
// was lost.
//
// Every call returns the server's error; besides: UNAVAILABLE (no server answered after all
// attempts), DEADLINE_EXCEEDED, CANCELLED. All are tried again on UNAVAILABLE and
// RESOURCE_EXHAUSTED; CreateMemory, ForkMemory and the deletions are made safe to repeat by a
// request_id.
class Client {
 public:
  explicit Client(ClientOptions options);
  // Over a channel made elsewhere (in process, with credentials).
  Client(std::shared_ptr<grpc::Channel> channel, ClientOptions options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // For other services on the same port.
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  absl::StatusOr<v1::Memory> CreateMemory(v1::CreateMemoryRequest request,
                                          const CallOptions& call = {});
  absl::StatusOr<v1::Memory> UpdateMemory(const v1::UpdateMemoryRequest& request,
                                          const CallOptions& call = {});
  absl::StatusOr<v1::Memory> GetMemory(const std::string& name, const CallOptions& call = {});
  // Durably deleted; the operation ends when nothing is left of it in any file. Its name is empty
  // when an earlier attempt did it and only its answer was lost.
  // `everywhere`: also from forks of it.
  absl::StatusOr<google::longrunning::Operation> DeleteMemory(const std::string& name,
                                                              const CallOptions& call = {},
                                                              bool everywhere = false);
  absl::StatusOr<v1::Memory> ForkMemory(v1::ForkMemoryRequest request,
                                        const CallOptions& call = {});
  // Not safe to repeat: ALREADY_EXISTS may mean that an earlier attempt did it.
  absl::StatusOr<v1::Snapshot> CreateSnapshot(const v1::CreateSnapshotRequest& request,
                                              const CallOptions& call = {});
  // OK also when an earlier attempt did it and only its answer was lost. An error may be marked
  // IsOutcomeUnknown, as DeleteMemory's.
  absl::Status DeleteSnapshot(const std::string& name, const CallOptions& call = {});
  absl::StatusOr<v1::Document> GetDocument(const std::string& name, const CallOptions& call = {});
  // An error may be marked IsOutcomeUnknown (rpc_error.h), as DeleteMemory's.
  absl::StatusOr<google::longrunning::Operation> DeleteDocument(const std::string& name,
                                                                const CallOptions& call = {},
                                                                bool everywhere = false);
  // Waits until an operation has ended; its error is this call's, otherwise the response is set.
  // NOT_FOUND: the server does not know it any more. `still_waits`, if any, is called after 5 s and
  // then every 30 s.
  absl::StatusOr<google::longrunning::Operation> WaitOperation(
      google::longrunning::Operation operation, const CallOptions& call = {},
      const std::function<void()>& still_waits = nullptr);
  absl::StatusOr<v1::RetrieveResponse> Retrieve(const v1::RetrieveRequest& request,
                                                const CallOptions& call = {});
  absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request,
                                          const CallOptions& call = {});
  absl::StatusOr<v1::GetStatusResponse> GetStatus(const CallOptions& call = {});
  // OK when the server says of itself that it serves (grpc.health.v1); UNAVAILABLE otherwise. One
  // attempt.
  absl::Status CheckReady(const CallOptions& call = {});

  // All pages, `visit` once a memory or document; it returns false to stop early. `parent`: the
  // tenant's or memory's name.
  absl::Status ListMemories(const std::string& parent,
                            const std::function<bool(const v1::Memory&)>& visit,
                            const CallOptions& call = {});
  absl::Status ListSnapshots(const std::string& parent,
                             const std::function<bool(const v1::Snapshot&)>& visit,
                             const CallOptions& call = {});
  absl::Status ListDocuments(const std::string& parent,
                             const std::function<bool(const v1::Document&)>& visit,
                             const CallOptions& call = {});

  // The stored text, piece by piece in order, each byte once even when the stream broke in between.
  // `visit` returns false to stop early.
  absl::Status ReadDocument(const v1::ReadDocumentRequest& request,
                            const std::function<bool(absl::string_view)>& visit,
                            const CallOptions& call = {});

  // Calls `visit` for each message as it comes; it returns false to stop. Tried again only as long
  // as nothing has come.
  absl::Status Generate(const v1::GenerateRequest& request,
                        const std::function<bool(const v1::GenerateResponse&)>& visit,
                        const CallOptions& call = {});

  // Sends the whole source to one document, in pieces, never further ahead of the server than the
  // window. After a broken stream or a restarted server it takes up again at the server's
  // durable_bytes. See ingest_stream.h.
  IngestOutcome Ingest(const IngestPlan& plan, TextSource& source, const CallOptions& call = {});

 private:
  template <typename Request, typename Response>
  using UnaryMethod = grpc::Status (v1::MemoryService::StubInterface::*)(grpc::ClientContext*,
                                                                         const Request&, Response*);
  template <typename Request, typename Response>
  absl::StatusOr<Response> CallUnary(UnaryMethod<Request, Response> method, const Request& request,
                                     const CallOptions& call);
  // An empty response when an earlier attempt did it and only its answer was lost.
  template <typename Request, typename Response>
  absl::StatusOr<Response> CallDelete(UnaryMethod<Request, Response> method, const Request& request,
                                      const CallOptions& call);
  // Distinct on every call.
  uint64_t NextSeed();
  std::string NewRequestId();
  Retrier NewRetrier(const CallOptions& call);

  const ClientOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::MemoryService::StubInterface> stub_;
  const std::unique_ptr<google::longrunning::Operations::StubInterface> operations_stub_;
  std::atomic<uint64_t> seed_;
};

}  // namespace mneme

#endif  // MNEME_CLIENT_CLIENT_H_
