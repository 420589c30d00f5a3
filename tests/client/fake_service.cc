#include "tests/client/fake_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace mneme {

grpc::Status ServerError(grpc::StatusCode code, const std::string& message,
                         const std::string& reason, absl::Duration retry_after) {
  google::rpc::ErrorInfo info;
  info.set_domain("mneme");
  info.set_reason(reason);
  (*info.mutable_metadata())["value"] = "x";
  google::rpc::Status details;
  details.set_code(code);
  details.set_message(message);
  details.add_details()->PackFrom(info);
  if (retry_after > absl::ZeroDuration()) {
    google::rpc::RetryInfo retry;
    const int64_t seconds = absl::ToInt64Seconds(retry_after);
    retry.mutable_retry_delay()->set_seconds(seconds);
    retry.mutable_retry_delay()->set_nanos(
        static_cast<int32_t>(absl::ToInt64Nanoseconds(retry_after - absl::Seconds(seconds))));
    details.add_details()->PackFrom(retry);
  }
  return grpc::Status(code, message, details.SerializeAsString());
}

void FakeService::FailNextCalls(std::vector<grpc::Status> errors) {
  absl::MutexLock lock(&mutex_);
  call_errors_.assign(errors.begin(), errors.end());
}

void FakeService::BreakIngestStreams(std::vector<int64_t> after_bytes, grpc::Status with,
                                     int64_t unacked_bytes_max, uint64_t seed) {
  absl::MutexLock lock(&mutex_);
  breaks_.assign(after_bytes.begin(), after_bytes.end());
  break_status_ = std::move(with);
  unacked_bytes_max_ = unacked_bytes_max;
  random_.seed(seed);
}

void FakeService::FailNextIngests(std::vector<grpc::Status> errors) {
  absl::MutexLock lock(&mutex_);
  ingest_errors_.assign(errors.begin(), errors.end());
}

void FakeService::KeepDeletionsRunning() {
  absl::MutexLock lock(&mutex_);
  deletions_run_ = true;
}

void FakeService::HangCalls(bool hang) {
  absl::MutexLock lock(&mutex_);
  hang_ = hang;
}

void FakeService::PutMemory(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  memories_.insert(name);
}

void FakeService::PutDocument(const std::string& name, const std::string& text) {
  absl::MutexLock lock(&mutex_);
  documents_[name].text = text;
}

std::string FakeService::TextOf(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  return documents_[name].text;
}

int FakeService::calls() {
  absl::MutexLock lock(&mutex_);
  return calls_;
}

int FakeService::ingest_streams() {
  absl::MutexLock lock(&mutex_);
  return ingest_streams_;
}

int64_t FakeService::received_bytes() {
  absl::MutexLock lock(&mutex_);
  return received_bytes_;
}

std::set<std::string> FakeService::request_ids() {
  absl::MutexLock lock(&mutex_);
  return request_ids_;
}

v1::RetrieveRequest FakeService::last_retrieve() {
  absl::MutexLock lock(&mutex_);
  return last_retrieve_;
}

void FakeService::SetRetrieveResponse(v1::RetrieveResponse response) {
  absl::MutexLock lock(&mutex_);
  retrieve_response_ = std::move(response);
}

void FakeService::SetStatusResponse(v1::GetStatusResponse response) {
  absl::MutexLock lock(&mutex_);
  status_response_ = std::move(response);
}

void FakeService::SetGenerateResponses(std::vector<v1::GenerateResponse> responses) {
  absl::MutexLock lock(&mutex_);
  generate_responses_ = std::move(responses);
}

grpc::Status FakeService::Enter(grpc::ServerContext* context) {
  bool hang;
  grpc::Status error;
  {
    absl::MutexLock lock(&mutex_);
    ++calls_;
    hang = hang_;
    if (!call_errors_.empty()) {
      error = call_errors_.front();
      call_errors_.pop_front();
    }
  }
  // gRPC's synchronous API tells of a cancellation only when asked.
  while (hang && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
  return error;
}

grpc::Status FakeService::CreateMemory(grpc::ServerContext* context,
                                       const v1::CreateMemoryRequest* request,
                                       v1::Memory* response) {
  {
    absl::MutexLock lock(&mutex_);
    request_ids_.insert(request->request_id());
  }
  if (grpc::Status error = Enter(context); !error.ok()) return error;
  response->set_name(absl::StrCat(request->parent(), "/memories/", request->memory_id()));
  response->set_display_name(request->memory().display_name());
  PutMemory(response->name());
  return grpc::Status::OK;
}

grpc::Status FakeService::GetMemory(grpc::ServerContext* context,
                                    const v1::GetMemoryRequest* request, v1::Memory* response) {
  if (grpc::Status error = Enter(context); !error.ok()) return error;
  absl::MutexLock lock(&mutex_);
  if (memories_.count(request->name()) == 0) {
    return ServerError(grpc::NOT_FOUND, absl::StrCat(request->name(), " does not exist"),
                       "RESOURCE_NOT_FOUND");
  }
  response->set_name(request->name());
  for (const auto& [name, document] : documents_) {
    if (absl::StartsWith(name, absl::StrCat(request->name(), "/")) && !document.text.empty())
      response->set_chunk_count(response->chunk_count() + 1);
  }
  return grpc::Status::OK;
}

// Pages of two, whatever was asked for.
grpc::Status FakeService::ListMemories(grpc::ServerContext* context,
                                       const v1::ListMemoriesRequest* request,
                                       v1::ListMemoriesResponse* response) {
  if (grpc::Status error = Enter(context); !error.ok()) return error;
  absl::MutexLock lock(&mutex_);
  for (auto name = memories_.upper_bound(request->page_token()); name != memories_.end(); ++name) {
    if (response->memories_size() == 2) {
      response->set_next_page_token(response->memories(1).name());
      break;
    }
    response->add_memories()->set_name(*name);
  }
  return grpc::Status::OK;
}

grpc::Status FakeService::DeleteMemory(grpc::ServerContext* context,
                                       const v1::DeleteMemoryRequest* request,
                                       google::longrunning::Operation* operation) {
  grpc::Status error = Enter(context);
  absl::MutexLock lock(&mutex_);
  request_ids_.insert(request->request_id());
  const bool known = memories_.erase(request->name()) > 0;
  // Done all the same: only the answer is lost.
  if (!error.ok()) return error;
  v1::ForgetReceipt receipt;
  receipt.set_name(request->name());
  receipt.set_document_count(2);
  operation->set_name("operations/forget-m1");
  operation->set_done(!deletions_run_);
  if (!deletions_run_) operation->mutable_response()->PackFrom(receipt);
  return known ? grpc::Status::OK
               : ServerError(grpc::NOT_FOUND, request->name(), "RESOURCE_NOT_FOUND");
}

grpc::Status FakeService::DeleteSnapshot(grpc::ServerContext* context,
                                         const v1::DeleteSnapshotRequest* request,
                                         v1::DeleteSnapshotResponse*) {
  if (grpc::Status error = Enter(context); !error.ok()) return error;
  return ServerError(grpc::NOT_FOUND, request->name(), "RESOURCE_NOT_FOUND");
}

grpc::Status FakeService::ReadDocument(grpc::ServerContext* context,
                                       const v1::ReadDocumentRequest* request,
                                       grpc::ServerWriter<v1::ReadDocumentResponse>* writer) {
  grpc::Status error = Enter(context);
  {
    absl::MutexLock lock(&mutex_);
    if (documents_.count(request->name()) == 0) {
      return ServerError(grpc::NOT_FOUND, absl::StrCat(request->name(), " does not exist"),
                         "RESOURCE_NOT_FOUND");
    }
  }
  const std::string text = TextOf(request->name());
  const int64_t end =
      request->byte_end() > 0 ? request->byte_end() : static_cast<int64_t>(text.size());
  // A planned error comes half way.
  const int64_t stop = error.ok() ? end : (request->byte_begin() + end) / 2;
  for (int64_t offset = request->byte_begin(); offset < stop; offset += 10) {
    v1::ReadDocumentResponse piece;
    piece.set_byte_offset(offset);
    piece.set_text(text.substr(static_cast<size_t>(offset),
                               static_cast<size_t>(std::min<int64_t>(10, stop - offset))));
    writer->Write(piece);
  }
  return error;
}

grpc::Status FakeService::Ingest(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::IngestResponse, v1::IngestRequest>* stream) {
  v1::IngestRequest request;
  {
    absl::MutexLock lock(&mutex_);
    ++ingest_streams_;
    if (!ingest_errors_.empty()) {
      grpc::Status error = ingest_errors_.front();
      ingest_errors_.pop_front();
      return error;
    }
  }
  if (!stream->Read(&request)) return grpc::Status::OK;
  {
    absl::MutexLock lock(&mutex_);
    Document& document = documents_[request.document()];
    if (document.busy)
      return ServerError(grpc::ABORTED, "another stream writes the document", "DOCUMENT_BUSY");
    document.busy = true;
  }
  const std::string name = request.document();
  grpc::Status status = TakeText(stream, std::move(request));
  absl::MutexLock lock(&mutex_);
  documents_[name].busy = false;
  return context->IsCancelled() ? grpc::Status::CANCELLED : status;
}

grpc::Status FakeService::TakeText(
    grpc::ServerReaderWriter<v1::IngestResponse, v1::IngestRequest>* stream,
    v1::IngestRequest request) {
  const std::string name = request.document();
  int64_t break_after = -1;
  int64_t taken = 0;
  std::string text;
  int64_t durable;
  {
    absl::MutexLock lock(&mutex_);
    text = documents_[name].text;
    if (!breaks_.empty()) {
      break_after = breaks_.front();
      breaks_.pop_front();
    }
  }
  durable = static_cast<int64_t>(text.size());
  const auto ack = [&]() {
    v1::IngestResponse response;
    response.set_durable_bytes(durable);
    response.set_visible_bytes(durable);
    response.set_token_count(durable / 4);
    stream->Write(response);
  };
  ack();
  do {
    if (request.text().empty() && !request.seal()) continue;
    const auto offset = static_cast<size_t>(request.byte_offset());
    if (offset > text.size()) {
      return ServerError(grpc::OUT_OF_RANGE,
                         absl::StrCat("offset ", offset, " is beyond ", text.size()), "OFFSET_GAP");
    }
    const size_t known = std::min(text.size() - offset, request.text().size());
    if (text.compare(offset, known, request.text(), 0, known) != 0) {
      return ServerError(grpc::ALREADY_EXISTS, absl::StrCat("other bytes at ", offset),
                         "TEXT_DIFFERS");
    }
    text += request.text().substr(known);
    taken += static_cast<int64_t>(request.text().size());
    absl::MutexLock lock(&mutex_);
    received_bytes_ += static_cast<int64_t>(request.text().size());
    if (break_after >= 0 && taken >= break_after) {
      // The crash: of what was not acked yet, a random part had reached the disk.
      const auto unacked = static_cast<int64_t>(text.size()) - durable;
      const int64_t kept = std::uniform_int_distribution<int64_t>(0, unacked)(random_);
      documents_[name].text = text.substr(0, static_cast<size_t>(durable + kept));
      return break_status_;
    }
    const auto size = static_cast<int64_t>(text.size());
    if (size - durable >= unacked_bytes_max_) {
      documents_[name].text = text;
      documents_[name].sealed |= request.seal();
      durable = size;
      ack();
    }
  } while (stream->Read(&request));
  absl::MutexLock lock(&mutex_);
  documents_[name].text = text;
  durable = static_cast<int64_t>(text.size());
  ack();
  return grpc::Status::OK;
}

grpc::Status FakeService::Retrieve(grpc::ServerContext* context, const v1::RetrieveRequest* request,
                                   v1::RetrieveResponse* response) {
  if (grpc::Status error = Enter(context); !error.ok()) return error;
  absl::MutexLock lock(&mutex_);
  last_retrieve_ = *request;
  *response = retrieve_response_;
  return grpc::Status::OK;
}

grpc::Status FakeService::Generate(grpc::ServerContext* context, const v1::GenerateRequest*,
                                   grpc::ServerWriter<v1::GenerateResponse>* writer) {
  if (grpc::Status error = Enter(context); !error.ok()) return error;
  std::vector<v1::GenerateResponse> responses;
  {
    absl::MutexLock lock(&mutex_);
    responses = generate_responses_;
  }
  for (const auto& response : responses) writer->Write(response);
  return grpc::Status::OK;
}

grpc::Status FakeService::GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest*,
                                    v1::GetStatusResponse* response) {
  if (grpc::Status error = Enter(context); !error.ok()) return error;
  absl::MutexLock lock(&mutex_);
  *response = status_response_;
  response->set_version("fake");
  return grpc::Status::OK;
}

FakeServer::FakeServer() {
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service_);
  server_ = builder.BuildAndStart();
  address_ = absl::StrCat("127.0.0.1:", port);
}

FakeServer::~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

}  // namespace mneme
