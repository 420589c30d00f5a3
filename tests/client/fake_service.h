// A MemoryService in memory with faults on demand: it breaks Ingest streams at chosen bytes, loses
// what was not acked durable, and fails calls with chosen errors. For tests of the client; the real
// server is tested with tests/server/test_server.h.

#ifndef MNEME_TESTS_CLIENT_FAKE_SERVICE_H_
#define MNEME_TESTS_CLIENT_FAKE_SERVICE_H_

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "mneme/v1/mneme.grpc.pb.h"

namespace mneme {

// An error as a Mneme server sends it: with ErrorInfo, and RetryInfo when `retry_after` is not
// zero.
grpc::Status ServerError(grpc::StatusCode code, const std::string& message,
                         const std::string& reason,
                         absl::Duration retry_after = absl::ZeroDuration());

// Thread-safe.
class FakeService final : public v1::MemoryService::Service {
 public:
  struct Document {
    std::string text;
    bool sealed = false;
    bool busy = false;
  };

  // The next calls of any kind but Ingest fail with these, in order.
  void FailNextCalls(std::vector<grpc::Status> errors);
  // Each of the next Ingest streams breaks after so many bytes of text, with these statuses; what a
  // stream took but did not ack as durable is lost, all but a random part of it. All streams ack
  // when `unacked_bytes_max` are not acked yet.
  void BreakIngestStreams(std::vector<int64_t> after_bytes, grpc::Status with,
                          int64_t unacked_bytes_max, uint64_t seed);
  // The next Ingest streams fail at once with these.
  void FailNextIngests(std::vector<grpc::Status> errors);
  // Deletions are answered with an operation that does not end.
  void KeepDeletionsRunning();
  // Calls wait until their client has gone.
  void HangCalls(bool hang);
  void PutMemory(const std::string& name);
  void PutDocument(const std::string& name, const std::string& text);
  std::string TextOf(const std::string& name);
  int calls();
  // Streams that came; bytes of text received over all of them.
  int ingest_streams();
  int64_t received_bytes();
  std::set<std::string> request_ids();
  v1::RetrieveRequest last_retrieve();
  // What Retrieve, Generate and GetStatus answer.
  void SetRetrieveResponse(v1::RetrieveResponse response);
  void SetGenerateResponses(std::vector<v1::GenerateResponse> responses);
  void SetStatusResponse(v1::GetStatusResponse response);

  grpc::Status CreateMemory(grpc::ServerContext*, const v1::CreateMemoryRequest*,
                            v1::Memory*) override;
  grpc::Status GetMemory(grpc::ServerContext*, const v1::GetMemoryRequest*, v1::Memory*) override;
  grpc::Status ListMemories(grpc::ServerContext*, const v1::ListMemoriesRequest*,
                            v1::ListMemoriesResponse*) override;
  // Answers with an operation that has ended.
  grpc::Status DeleteMemory(grpc::ServerContext*, const v1::DeleteMemoryRequest*,
                            google::longrunning::Operation*) override;
  // There is none.
  grpc::Status DeleteSnapshot(grpc::ServerContext*, const v1::DeleteSnapshotRequest*,
                              v1::DeleteSnapshotResponse*) override;
  grpc::Status ReadDocument(grpc::ServerContext*, const v1::ReadDocumentRequest*,
                            grpc::ServerWriter<v1::ReadDocumentResponse>*) override;
  grpc::Status Ingest(grpc::ServerContext*,
                      grpc::ServerReaderWriter<v1::IngestResponse, v1::IngestRequest>*) override;
  grpc::Status Retrieve(grpc::ServerContext*, const v1::RetrieveRequest*,
                        v1::RetrieveResponse*) override;
  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest*,
                        grpc::ServerWriter<v1::GenerateResponse>*) override;
  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*,
                         v1::GetStatusResponse*) override;

 private:
  // The error planned for this call, after hanging if asked.
  grpc::Status Enter(grpc::ServerContext* context);
  grpc::Status TakeText(grpc::ServerReaderWriter<v1::IngestResponse, v1::IngestRequest>* stream,
                        v1::IngestRequest request);

  absl::Mutex mutex_;
  std::deque<grpc::Status> call_errors_ ABSL_GUARDED_BY(mutex_);
  std::deque<grpc::Status> ingest_errors_ ABSL_GUARDED_BY(mutex_);
  std::deque<int64_t> breaks_ ABSL_GUARDED_BY(mutex_);
  grpc::Status break_status_ ABSL_GUARDED_BY(mutex_);
  int64_t unacked_bytes_max_ ABSL_GUARDED_BY(mutex_) = 0;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  bool hang_ ABSL_GUARDED_BY(mutex_) = false;
  bool deletions_run_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<std::string> memories_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Document> documents_ ABSL_GUARDED_BY(mutex_);
  int calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int ingest_streams_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t received_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<std::string> request_ids_ ABSL_GUARDED_BY(mutex_);
  v1::RetrieveRequest last_retrieve_ ABSL_GUARDED_BY(mutex_);
  v1::RetrieveResponse retrieve_response_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::GenerateResponse> generate_responses_ ABSL_GUARDED_BY(mutex_);
  v1::GetStatusResponse status_response_ ABSL_GUARDED_BY(mutex_);
};

// The fake on a free port of loopback, for as long as the object lives.
class FakeServer {
 public:
  FakeServer();
  ~FakeServer();
  FakeService& service() { return service_; }
  const std::string& address() const { return address_; }

 private:
  FakeService service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CLIENT_FAKE_SERVICE_H_
