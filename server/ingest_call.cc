#include "server/ingest_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_facts.h"
#include "common/status_macros.h"
#include "server/error.h"
#include "server/wire_message.h"

namespace mneme {
namespace {

// Errors that come while text is on its way to the disk.
absl::Status WithBrokenReason(const absl::Status& status) {
  if (absl::IsNotFound(status)) return WithReason(status, "DOCUMENT_DELETED");
  return status;
}

// Errors of the writer, with the reason that a client can act on. `byte_offset`: where the refused
// bytes begin, unless the writer says which one is wrong. What broke the writer may show here
// before it is told.
absl::Status WithIngestReason(const absl::Status& status, int64_t byte_offset) {
  const ErrorMetadata metadata = {
      {"byte_offset", absl::StrCat(ByteOffsetOf(status).value_or(byte_offset))}};
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return WithReason(status, "TEXT_INVALID", metadata);
    case absl::StatusCode::kOutOfRange:
      return WithReason(status, "OFFSET_GAP", metadata);
    case absl::StatusCode::kAlreadyExists:
      return WithReason(status, "TEXT_DIFFERS", metadata);
    case absl::StatusCode::kFailedPrecondition:
      return WithReason(status, "DOCUMENT_SEALED", metadata);
    default:
      return WithBrokenReason(status);
  }
}

}  // namespace

std::shared_ptr<IngestCall> IngestCall::Start(const CallEnvironment& environment, Engine& engine,
                                              const ResourceCheck& check, WorkerPool& pool,
                                              grpc::CallbackServerContext* context,
                                              std::function<void(IngestCall*)> done) {
  std::shared_ptr<IngestCall> call(
      new IngestCall(environment, engine, check, pool, *context, std::move(done)));
  call->self_ = call;
  call->StartRead(&call->read_buffer_);
  return call;
}

IngestCall::IngestCall(const CallEnvironment& environment, Engine& engine,
                       const ResourceCheck& check, WorkerPool& pool,
                       grpc::CallbackServerContext& context, std::function<void(IngestCall*)> done)
    : environment_(environment),
      engine_(engine),
      check_(check),
      pool_(pool),
      done_(std::move(done)),
      context_(MakeCallContext(context)),
      stall_watch_(environment.options.client_stall_max, context),
      record_(environment.metrics, Method::kIngest) {}

IngestCall::~IngestCall() = default;

void IngestCall::Drain() {
  Wake([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { events_.draining = true; });
}

void IngestCall::OnReadDone(bool ok) {
  Wake([this, ok]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    (ok ? events_.message : events_.half_closed) = true;
  });
}

void IngestCall::OnWriteDone(bool ok) {
  stall_watch_.WriteDone();
  Wake([this, ok]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    writing_ = false;
    if (!ok) events_.cancelled = true;
  });
}

void IngestCall::OnCancel() {
  Wake([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { events_.cancelled = true; });
}

void IngestCall::OnDone() {
  const std::shared_ptr<IngestCall> self = std::move(self_);
  done_(this);
}

void IngestCall::Wake(absl::FunctionRef<void()> note) {
  {
    absl::MutexLock lock(&mutex_);
    note();
    woken_ = true;
    if (stepping_ || ended_) return;
    stepping_ = true;
  }
  const absl::Status submitted = pool_.Submit([self = shared_from_this()] { self->Run(); });
  MNEME_CHECK(submitted.ok());  // the pool has room for one task of each stream
}

void IngestCall::Run() {
  while (true) {
    Events events;
    {
      absl::MutexLock lock(&mutex_);
      if (!woken_ || ended_) {
        stepping_ = false;
        return;
      }
      woken_ = false;
      events = events_;
      events_.message = false;
    }
    Step(events);
  }
}

void IngestCall::Step(const Events& events) {
  if (events.cancelled) {
    const absl::Status status = context_.Check();
    End(absl::IsDeadlineExceeded(status) ? status : stall_watch_.Gone());
    return;
  }
  if (events.message || events.half_closed) reading_ = false;
  if (!events.broken.ok()) {
    // Nothing more becomes durable through this writer. Of two errors the first is told.
    ending_ = true;
    settled_bytes_ = 0;
    if (outcome_.ok()) outcome_ = WithBrokenReason(events.broken);
  }
  if (!ending_) {
    absl::Status status;
    held_ |= events.message;
    if (events.draining) {
      status = DrainingError();
    } else if (held_ && (writer_ == nullptr || writer_->ready())) {
      held_ = false;
      status = TakeMessage();
    } else if (events.half_closed) {
      status = HalfClose();
    }
    if (!status.ok() || events.half_closed) {
      BeginEnd(std::move(status));
    } else if (!reading_ && !held_) {
      Read();
    }
  }
  SendAck();
  if (ending_ && ReadyToEnd()) End(outcome_);
}

absl::Status IngestCall::TakeMessage() {
  v1::IngestRequest request;
  RETURN_IF_ERROR(ParseMessage(read_buffer_, environment_.options.message_bytes_max, &request));
  read_buffer_.Clear();
  if (writer_ == nullptr) {
    RETURN_IF_ERROR(Open(request));
  } else if (!request.document().empty() && request.document() != document_) {
    return FieldError(
        "document", request.document(),
        absl::StrCat(Quoted(request.document()), " is not the stream's document ", document_));
  }
  const int64_t text_bytes = static_cast<int64_t>(request.text().size());
  if (text_bytes > kIngestTextBytesMax) {
    return FieldError("text", absl::StrCat(text_bytes, " bytes"),
                      absl::StrCat(text_bytes, " bytes: at most ", kIngestTextBytesMax));
  }
  if (request.byte_offset() < 0) {
    return FieldError("byte_offset", absl::StrCat(request.byte_offset()),
                      absl::StrCat(request.byte_offset(), " is negative"));
  }
  if (text_bytes > 0) {
    const absl::Status status = writer_->Append(request.byte_offset(), request.text());
    if (absl::IsResourceExhausted(status) && !QuotaOf(status).has_value() &&
        !IsStorageFull(status)) {
      return WithReason(status, "DOCUMENT_TOO_LONG",
                        {{"byte_offset", absl::StrCat(request.byte_offset())}});
    }
    if (!status.ok()) return WithIngestReason(status, request.byte_offset());
  }
  if (request.seal() && !sealed_) {
    const absl::Status status = writer_->Seal();
    if (!status.ok()) return WithIngestReason(status, writer_->accepted_bytes());
    sealed_ = true;
  }
  return absl::OkStatus();
}

absl::Status IngestCall::Open(const v1::IngestRequest& request) {
  document_ = request.document();
  if (document_.empty()) {
    return FieldError("document", "", "is empty: the first message names the document");
  }
  RETURN_IF_ERROR(check_.Document("document", document_).status());
  wait_visible_ = request.wait_visible();

  ASSIGN_OR_RETURN(const absl::Duration ttl,
                   ResourceCheck::Ttl("ttl", request.has_ttl(), request.ttl()));

  // Callbacks may outlive the call's part in it: they hold on to it only weakly.
  WriterCallbacks callbacks;
  callbacks.progress = [weak = weak_from_this()](const IngestProgress& progress) {
    if (const auto call = weak.lock()) {
      call->Wake([&]()
                     ABSL_EXCLUSIVE_LOCKS_REQUIRED(call->mutex_) { call->NoteProgress(progress); });
    }
  };
  callbacks.ready = [weak = weak_from_this()] {
    if (const auto call = weak.lock()) call->Wake([] {});
  };
  callbacks.failed = [weak = weak_from_this()](absl::Status status) {
    if (const auto call = weak.lock()) {
      call->Wake([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(call->mutex_) {
        call->events_.broken = std::move(status);
      });
    }
  };
  absl::StatusOr<std::unique_ptr<Writer>> writer =
      engine_.OpenWriter(document_, std::move(callbacks), ttl);
  if (absl::IsAborted(writer.status())) {
    return WithRetryAfter(WithReason(writer.status(), "DOCUMENT_BUSY"), absl::Seconds(1));
  }
  RETURN_IF_ERROR(writer.status());
  writer_ = *std::move(writer);
  // The first ack says where to resume, even if that is 0.
  absl::MutexLock lock(&mutex_);
  NoteProgress(writer_->progress());
  progress_is_news_ = true;
  return absl::OkStatus();
}

absl::Status IngestCall::HalfClose() {
  if (writer_ == nullptr) {
    return FieldError("document", "", "is missing: the stream ended before its first message");
  }
  if (sealed_) return absl::OkStatus();
  const absl::Status status = writer_->Flush();
  return status.ok() ? status : WithIngestReason(status, writer_->accepted_bytes());
}

void IngestCall::Read() {
  reading_ = true;
  StartRead(&read_buffer_);
}

void IngestCall::BeginEnd(absl::Status outcome) {
  ending_ = true;
  outcome_ = std::move(outcome);
  settled_bytes_ = writer_ == nullptr ? 0 : writer_->settled_bytes();
}

bool IngestCall::ReadyToEnd() {
  absl::MutexLock lock(&mutex_);
  if (writing_ || progress_is_news_) return false;
  if (progress_.durable_bytes < settled_bytes_) return false;
  if (!outcome_.ok()) return true;
  if (sealed_ && !progress_.sealed) return false;
  return !wait_visible_ || progress_.visible_bytes >= settled_bytes_;
}

void IngestCall::SendAck() {
  v1::IngestResponse response;
  {
    absl::MutexLock lock(&mutex_);
    if (writing_ || !progress_is_news_) return;
    writing_ = true;
    progress_is_news_ = false;
    response.set_durable_bytes(progress_.durable_bytes);
    response.set_visible_bytes(progress_.visible_bytes);
    response.set_token_count(progress_.token_count);
  }
  write_buffer_ = SerializeMessage(response);
  stall_watch_.WriteBegins();
  StartWrite(&write_buffer_);
}

void IngestCall::End(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return;
    ended_ = true;
  }
  // Before the client hears of the end: it may open the document again at once.
  writer_.reset();
  Finish(EndCall(status, Method::kIngest, document_, record_));
}

void IngestCall::NoteProgress(const IngestProgress& progress) {
  progress_.durable_bytes = std::max(progress_.durable_bytes, progress.durable_bytes);
  progress_.visible_bytes = std::max(progress_.visible_bytes, progress.visible_bytes);
  progress_.token_count = std::max(progress_.token_count, progress.token_count);
  progress_.sealed |= progress.sealed;
  progress_is_news_ = true;
}

}  // namespace mneme
