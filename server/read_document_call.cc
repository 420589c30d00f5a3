#include "server/read_document_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "mneme/v1/mneme.pb.h"
#include "server/error.h"
#include "server/wire_message.h"

namespace mneme {
namespace {

constexpr int64_t kPieceBytes = 256 << 10;

}  // namespace

ReadDocumentCall* ReadDocumentCall::Start(const CallEnvironment& environment, Engine& engine,
                                          const ResourceCheck& check, WorkerPool& pool,
                                          grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request) {
  auto* call = new ReadDocumentCall(environment, engine, check, pool, *context);
  if (absl::Status status = CheckBegin(environment, call->context_); !status.ok()) {
    call->End(status);
    return call;
  }
  call->Submit([call, request] {
    if (absl::Status status = call->Open(*request); !status.ok()) {
      call->End(status);
      return;
    }
    call->SendNext();
  });
  return call;
}

ReadDocumentCall::ReadDocumentCall(const CallEnvironment& environment, Engine& engine,
                                   const ResourceCheck& check, WorkerPool& pool,
                                   grpc::CallbackServerContext& context)
    : environment_(environment),
      engine_(engine),
      check_(check),
      pool_(pool),
      record_(environment.metrics, Method::kReadDocument),
      context_(MakeCallContext(context)),
      stall_watch_(environment.options.client_stall_max, context) {}

void ReadDocumentCall::OnWriteDone(bool ok) {
  stall_watch_.WriteDone();
  if (!ok) {
    End(stall_watch_.Gone());
    return;
  }
  Submit([this] { SendNext(); });
}

void ReadDocumentCall::Submit(WorkerPool::Task step) {
  if (absl::Status status = pool_.Submit(std::move(step)); !status.ok()) End(status);
}

absl::Status ReadDocumentCall::Open(const grpc::ByteBuffer& bytes) {
  v1::ReadDocumentRequest request;
  RETURN_IF_ERROR(ParseMessage(bytes, environment_.options.message_bytes_max, &request));
  name_ = request.name();
  RETURN_IF_ERROR(check_.Document("name", name_).status());
  if (request.byte_begin() < 0) {
    return FieldError("byte_begin", absl::StrCat(request.byte_begin()),
                      absl::StrCat(request.byte_begin(), " is negative"));
  }
  if (request.byte_end() != 0 && request.byte_end() < request.byte_begin()) {
    return FieldError(
        "byte_end", absl::StrCat(request.byte_end()),
        absl::StrCat(request.byte_end(), " is before byte_begin ", request.byte_begin()));
  }
  ASSIGN_OR_RETURN(const DocumentInfo info, engine_.GetDocument(name_));
  next_ = request.byte_begin();
  end_ = request.byte_end() == 0 ? info.durable_bytes : request.byte_end();
  if (const int64_t wanted = std::max(next_, end_); wanted > info.durable_bytes) {
    return WithReason(absl::OutOfRangeError(absl::StrCat(
                          request.byte_end() == 0 ? "byte_begin " : "byte_end ", wanted,
                          " is beyond the ", info.durable_bytes, " bytes of ", name_)),
                      "OFFSET_OUT_OF_RANGE", {{"durable_bytes", absl::StrCat(info.durable_bytes)}});
  }
  return absl::OkStatus();
}

void ReadDocumentCall::SendNext() {
  if (absl::Status status = context_.Check(); !status.ok() || next_ == end_) {
    End(status);
    return;
  }
  const int64_t piece_end = std::min(end_, next_ + kPieceBytes);
  absl::StatusOr<std::string> text = engine_.ReadText(name_, next_, piece_end);
  if (!text.ok()) {
    End(text.status());
    return;
  }
  v1::ReadDocumentResponse response;
  response.set_byte_offset(next_);
  response.set_text(*std::move(text));
  next_ = piece_end;
  piece_ = SerializeMessage(response);
  stall_watch_.WriteBegins();
  StartWrite(&piece_);
}

void ReadDocumentCall::End(const absl::Status& status) {
  Finish(EndCall(status, Method::kReadDocument, name_, record_));
}

}  // namespace mneme
