#include "client/ingest_stream.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/rpc_error.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

void SetDuration(absl::Duration duration, google::protobuf::Duration* message) {
  const int64_t nanos = absl::ToInt64Nanoseconds(duration);
  message->set_seconds(absl::ToInt64Seconds(duration));
  message->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
}

}  // namespace

IngestStream::IngestStream(v1::MemoryService::StubInterface& stub, IngestPlan plan,
                           TextSource& source, Cancellation* cancellation, absl::Time deadline)
    : stub_(stub),
      plan_(std::move(plan)),
      source_(source),
      cancellation_(cancellation),
      deadline_(deadline) {}

IngestOutcome IngestStream::Run(Retrier connect, Retrier resume) {
  absl::Time aborted_since = absl::InfiniteFuture();
  while (true) {
    absl::Status status = RunOneStream();
    bool connected, progressed;
    {
      absl::MutexLock lock(&mutex_);
      connected = connected_;
      progressed = std::exchange(progressed_, false);
      if (status.ok()) return {status, state_};
    }
    if (progressed) {
      resume.NoteProgress();
      aborted_since = absl::InfiniteFuture();
    }
    bool again = IsRetryable(status) || (connected && IsBrokenConnection(status));
    if (absl::IsAborted(status)) {
      aborted_since = std::min(aborted_since, absl::Now());
      again = absl::Now() - aborted_since <
              (connected ? plan_.aborted_resume_max : plan_.aborted_start_max);
    }
    if (cancellation_ != nullptr && cancellation_->cancelled()) {
      status = absl::CancelledError("cancelled");
      again = false;
    }
    if (again) {
      {
        absl::MutexLock lock(&mutex_);
        if (connected) ++state_.breaks;
        state_.waiting_for = status;
      }
      ReportProgress();
      // ABORTED before the first ack has its own, longer patience than a connection that never was.
      again = (connected || absl::IsAborted(status) ? resume : connect).WaitForNext(status);
    }
    if (!again) {
      absl::MutexLock lock(&mutex_);
      if (cancellation_ != nullptr && cancellation_->cancelled())
        status = absl::CancelledError("cancelled");
      state_.waiting_for = absl::OkStatus();
      return {status, state_};
    }
  }
}

absl::Status IngestStream::RunOneStream() {
  {
    absl::MutexLock lock(&mutex_);
    acked_ = closed_ = false;
  }
  sent_all_ = false;
  grpc::ClientContext context;
  if (deadline_ != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline_));
  Cancellation::Watch watch(cancellation_, &context);
  auto stream = stub_.Ingest(&context);
  std::thread acks([&] {
    v1::IngestResponse ack;
    while (stream->Read(&ack)) TakeAck(ack);
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  });
  absl::Status sending = Send(*stream);
  if (sending.ok()) {
    stream->WritesDone();
  } else {
    context.TryCancel();
  }
  acks.join();
  grpc::Status finished = stream->Finish();
  if (!sending.ok()) return sending;
  if (finished.ok() && !sent_all_) {
    return absl::InternalError(absl::StrCat("the server ended the stream of ", plan_.document,
                                            " before all text was sent"));
  }
  return StatusFromRpc(finished);
}

absl::Status IngestStream::Send(Stream& stream) {
  v1::IngestRequest message;
  message.set_document(plan_.document);
  if (plan_.ttl != absl::InfiniteDuration()) SetDuration(plan_.ttl, message.mutable_ttl());
  message.set_wait_visible(plan_.wait_visible);
  if (!stream.Write(message)) return absl::OkStatus();
  {
    absl::MutexLock lock(&mutex_);
    auto answered = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return acked_ || closed_; };
    mutex_.Await(absl::Condition(&answered));
    if (!acked_) return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(int64_t offset, ResumeOffset());
  while (AwaitWindow(offset)) {
    ASSIGN_OR_RETURN(std::string piece, source_.Read(offset - base_, plan_.piece_bytes));
    const bool last = piece.empty();
    message.Clear();
    message.set_byte_offset(offset);
    offset += static_cast<int64_t>(piece.size());
    message.set_text(std::move(piece));
    message.set_seal(last && plan_.seal);
    if (last && !plan_.seal) {
      sent_all_ = true;
      return absl::OkStatus();
    }
    if (!stream.Write(message)) return absl::OkStatus();
    if (last) {
      sent_all_ = true;
      return absl::OkStatus();
    }
    int64_t release;
    {
      absl::MutexLock lock(&mutex_);
      state_.sent_bytes = std::max(state_.sent_bytes, offset);
      // While stored text is being compared, acks do not tell how far the server has come: keep a
      // window's worth.
      release = state_.durable_bytes > state_.durable_bytes_before
                    ? std::min(state_.durable_bytes, offset)
                    : offset - plan_.window_bytes;
    }
    source_.Release(release - base_);
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> IngestStream::ResumeOffset() {
  absl::MutexLock lock(&mutex_);
  base_ = plan_.append ? state_.durable_bytes_before : 0;
  if (stream_durable_bytes_ < state_.durable_bytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        plan_.document, " now holds ", stream_durable_bytes_, " bytes, but ", state_.durable_bytes,
        " were acknowledged: it was deleted or replaced meanwhile"));
  }
  const int64_t offset = stream_durable_bytes_ > state_.durable_bytes_before
                             ? std::min(stream_durable_bytes_, state_.sent_bytes)
                             : base_;
  return std::max(offset, base_ + source_.first_offset());
}

void IngestStream::TakeAck(const v1::IngestResponse& ack) {
  {
    absl::MutexLock lock(&mutex_);
    if (!acked_) stream_durable_bytes_ = ack.durable_bytes();
    acked_ = true;
    if (!connected_) {
      connected_ = true;
      state_.durable_bytes_before = ack.durable_bytes();
      state_.token_count_before = ack.token_count();
      state_.sent_bytes = plan_.append ? ack.durable_bytes() : 0;
    }
    state_.waiting_for = absl::OkStatus();
    progressed_ |= ack.durable_bytes() > state_.durable_bytes ||
                   ack.visible_bytes() > state_.visible_bytes ||
                   ack.token_count() > state_.token_count;
    state_.durable_bytes = std::max(state_.durable_bytes, ack.durable_bytes());
    state_.visible_bytes = std::max(state_.visible_bytes, ack.visible_bytes());
    state_.token_count = std::max(state_.token_count, ack.token_count());
  }
  ReportProgress();
}

bool IngestStream::AwaitWindow(int64_t offset) {
  absl::MutexLock lock(&mutex_);
  auto open = [this, offset]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return closed_ || offset - state_.durable_bytes < plan_.window_bytes;
  };
  mutex_.Await(absl::Condition(&open));
  return !closed_;
}

void IngestStream::ReportProgress() {
  if (!plan_.on_progress) return;
  IngestState state;
  {
    absl::MutexLock lock(&mutex_);
    state = state_;
  }
  plan_.on_progress(state);
}

}  // namespace mneme
