#include "engine/document_writer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "common/status_facts.h"
#include "common/status_macros.h"
#include "common/utf8.h"

namespace mneme {
namespace {

// Stored text compared at a time, in bytes.
constexpr int64_t kCompareBytes = 1 << 20;

// Compares two texts of equal size, of which the first byte is at `byte_offset` of the document.
absl::Status CompareAt(int64_t byte_offset, absl::string_view sent, absl::string_view stored) {
  const auto [a, b] = std::mismatch(sent.begin(), sent.end(), stored.begin(), stored.end());
  if (a == sent.end()) return absl::OkStatus();
  const int64_t differs_at = byte_offset + (a - sent.begin());
  return WithByteOffset(
      absl::AlreadyExistsError(absl::StrCat(
          "byte ", differs_at,
          " of the document is already stored with another value; text that is sent again must "
          "be the same")),
      differs_at);
}

}  // namespace

DocumentWriter::DocumentWriter(const WriterEnvironment& environment, DocumentInfo info,
                               IngestAccount account, WriterCallbacks callbacks,
                               std::function<void(const DocumentWriter&)> released)
    : environment_(environment),
      info_(std::move(info)),
      account_(std::move(account)),
      callbacks_(std::move(callbacks)),
      released_(std::move(released)),
      accepted_bytes_(info_.durable_bytes),
      progress_{.durable_bytes = info_.durable_bytes,
                .visible_bytes = info_.visible_bytes,
                .token_count = info_.token_count,
                .sealed = info_.sealed} {}

absl::Status DocumentWriter::Usable() const {
  if (!failure_.ok()) return failure_;
  if (environment_.draining.load(std::memory_order_relaxed)) {
    return absl::UnavailableError("the engine is draining and takes no more text");
  }
  return absl::OkStatus();
}

absl::Status DocumentWriter::Append(int64_t byte_offset, absl::string_view text) {
  size_t known = 0;
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(Usable());
    if (byte_offset < 0) {
      return absl::InvalidArgumentError(absl::StrCat("byte_offset ", byte_offset, " is negative"));
    }
    if (byte_offset > accepted_bytes_) {
      return absl::OutOfRangeError(absl::StrCat("byte_offset ", byte_offset,
                                                " leaves a gap: the document goes on at byte ",
                                                accepted_bytes_));
    }
    known = static_cast<size_t>(
        std::min<int64_t>(static_cast<int64_t>(text.size()), accepted_bytes_ - byte_offset));
  }
  if (known > 0) RETURN_IF_ERROR(CompareStored(byte_offset, text.substr(0, known)));
  text.remove_prefix(known);
  if (text.empty()) return absl::OkStatus();

  std::optional<TextPiece> piece;
  absl::Status result;
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(Usable());
    if (sealing_ || progress_.sealed) {
      return absl::FailedPreconditionError(absl::StrCat("document ", info_.id, " is sealed at ",
                                                        accepted_bytes_,
                                                        " bytes and takes no more text"));
    }
    const EngineOptions& options = environment_.options;
    if (pending_bytes_ > options.writer_pending_bytes_max) {
      return absl::ResourceExhaustedError(
          absl::StrCat(pending_bytes_, " bytes of this writer are not yet durable; limit ",
                       options.writer_pending_bytes_max, "; wait until it is ready"));
    }
    const auto bytes = static_cast<int64_t>(text.size());
    if (bytes > options.document_bytes_max - accepted_bytes_) {
      return absl::ResourceExhaustedError(absl::StrCat("the document would have ",
                                                       accepted_bytes_ + bytes, " bytes; limit ",
                                                       options.document_bytes_max));
    }
    const int64_t begin = accepted_bytes_ - static_cast<int64_t>(tail_.size());
    std::string joined = absl::StrCat(tail_, text);
    const Utf8Prefix prefix = ValidUtf8Prefix(joined);
    // Before anything of it is taken; settled when the piece is committed.
    if (prefix.valid_bytes > 0) {
      RETURN_IF_ERROR(
          environment_.admission.Accept(account_, static_cast<int64_t>(prefix.valid_bytes)));
    }
    if (prefix.valid_bytes == joined.size() || prefix.incomplete) {
      tail_ = joined.substr(prefix.valid_bytes);
      accepted_bytes_ += bytes;
    } else {
      tail_.clear();
      accepted_bytes_ = begin + static_cast<int64_t>(prefix.valid_bytes);
      result = WithByteOffset(absl::InvalidArgumentError(
                                  absl::StrCat("text is not UTF-8 at byte ", accepted_bytes_,
                                               " of the document; the bytes before it are kept")),
                              accepted_bytes_);
    }
    joined.resize(prefix.valid_bytes);
    if (!joined.empty()) {
      piece = NewPiece(std::move(joined), begin + static_cast<int64_t>(prefix.valid_bytes),
                       /*seal=*/false);
    }
  }
  if (piece) environment_.committer.Submit(*std::move(piece));
  return result;
}

absl::Status DocumentWriter::CompareStored(int64_t byte_offset, absl::string_view text) const {
  int64_t durable_bytes = 0;
  std::deque<Pending> pending;
  {
    absl::MutexLock lock(&mutex_);
    durable_bytes = progress_.durable_bytes;
    pending = pending_;
    pending.push_back({.byte_offset = accepted_bytes_ - static_cast<int64_t>(tail_.size()),
                       .text = std::make_shared<const std::string>(tail_)});
  }
  const int64_t end = byte_offset + static_cast<int64_t>(text.size());
  const auto sent = [&](int64_t from, int64_t to) {
    return text.substr(static_cast<size_t>(from - byte_offset), static_cast<size_t>(to - from));
  };
  for (int64_t from = byte_offset; from < std::min(end, durable_bytes);) {
    const int64_t to = std::min({end, durable_bytes, from + kCompareBytes});
    ASSIGN_OR_RETURN(const std::string stored, environment_.store.ReadText(info_.uid, from, to));
    RETURN_IF_ERROR(CompareAt(from, sent(from, to), stored));
    from = to;
  }
  for (const Pending& piece : pending) {
    const int64_t from = std::max(byte_offset, piece.byte_offset);
    const int64_t to = std::min(end, piece.byte_offset + static_cast<int64_t>(piece.text->size()));
    if (from >= to) continue;
    const absl::string_view stored =
        absl::string_view(*piece.text)
            .substr(static_cast<size_t>(from - piece.byte_offset), static_cast<size_t>(to - from));
    RETURN_IF_ERROR(CompareAt(from, sent(from, to), stored));
  }
  return absl::OkStatus();
}

TextPiece DocumentWriter::NewPiece(std::string text, int64_t byte_end, bool seal) {
  const auto bytes = static_cast<int64_t>(text.size());
  auto shared = std::make_shared<const std::string>(std::move(text));
  pending_.push_back({.byte_offset = byte_end - bytes, .text = shared});
  pending_bytes_ += bytes;
  environment_.scheduler.AddAccepted(bytes);
  return {.document = info_.uid,
          .byte_offset = byte_end - bytes,
          .text = std::move(shared),
          .seal = seal,
          .done = [self = shared_from_this(), byte_end, bytes, seal](const absl::Status& status) {
            self->OnCommitted(byte_end, bytes, seal, status);
          }};
}

absl::Status DocumentWriter::Seal() {
  std::optional<TextPiece> piece;
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(Usable());
    if (!tail_.empty()) {
      const int64_t begun_at = accepted_bytes_ - static_cast<int64_t>(tail_.size());
      return WithByteOffset(absl::InvalidArgumentError(absl::StrCat(
                                "the text ends inside a UTF-8 sequence that begins at byte ",
                                begun_at, "; the document is not sealed")),
                            begun_at);
    }
    if (accepted_bytes_ == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("document ", info_.id, " has no text; an empty one cannot be sealed"));
    }
    if (sealing_ || progress_.sealed) return absl::OkStatus();
    sealing_ = true;
    piece = NewPiece("", accepted_bytes_, /*seal=*/true);
  }
  environment_.committer.Submit(*std::move(piece));
  return absl::OkStatus();
}

absl::Status DocumentWriter::Flush() {
  int64_t flush_at = 0;
  bool durable = false;
  absl::Status result;
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(Usable());
    flush_at = accepted_bytes_ - static_cast<int64_t>(tail_.size());
    durable = progress_.durable_bytes >= flush_at;
    if (!durable) flush_at_ = flush_at;
    if (!tail_.empty()) {
      result = WithByteOffset(absl::InvalidArgumentError(absl::StrCat(
                                  "the text ends inside a UTF-8 sequence that begins at byte ",
                                  flush_at, "; the bytes before it are kept")),
                              flush_at);
    }
  }
  if (durable) environment_.scheduler.Flush(info_.uid, flush_at);
  return result;
}

void DocumentWriter::OnCommitted(int64_t byte_end, int64_t text_bytes, bool seal,
                                 const absl::Status& status) {
  environment_.scheduler.AddAccepted(-text_bytes);
  if (text_bytes > 0) environment_.admission.Settle(account_, text_bytes, status.ok());
  bool flush = false, sealed = false;
  {
    absl::MutexLock lock(&mutex_);
    pending_.pop_front();
    pending_bytes_ -= text_bytes;
    if (status.ok()) {
      progress_.durable_bytes = byte_end;
      progress_.sealed |= seal;
      progress_due_ = true;
      flush = flush_at_ > 0 && byte_end >= flush_at_;
      if (flush) flush_at_ = 0;
    } else if (failure_.ok()) {
      failure_ = status;
      failed_due_ = true;
    }
    sealed = progress_.sealed;
  }
  if (status.ok()) {
    environment_.scheduler.TextDurable(info_.uid, byte_end, sealed);
    if (flush) environment_.scheduler.Flush(info_.uid, byte_end);
  } else {
    environment_.scheduler.TellRoom();
  }
  PokeReady();
  Dispatch();
  bool release = false;
  {
    absl::MutexLock lock(&mutex_);
    release = ReleaseNow();
  }
  if (release) released_(*this);
}

void DocumentWriter::NoteRefusal(const absl::Status& status) {
  // A server that stops refuses nothing for good: the document is gone on with.
  if (absl::IsUnavailable(status)) return;
  absl::MutexLock lock(&mutex_);
  refused_ = true;
}

bool DocumentWriter::refused_empty() const {
  absl::MutexLock lock(&mutex_);
  return progress_.durable_bytes == 0 &&
         (refused_ || (!failure_.ok() && !absl::IsUnavailable(failure_)));
}

bool DocumentWriter::Crowded() const {
  if (environment_.committer.full()) return true;
  if (!environment_.admission.MayTake(account_.tenant)) return true;
  if (!environment_.scheduler.full()) return false;
  absl::MutexLock lock(&mutex_);
  return accepted_bytes_ - progress_.visible_bytes >= environment_.options.document_share_bytes;
}

bool DocumentWriter::ready() {
  {
    absl::MutexLock lock(&mutex_);
    waits_for_ready_ = true;
    if (!failure_.ok() || pending_bytes_ > environment_.options.writer_pending_bytes_max) {
      return false;
    }
  }
  if (Crowded()) return false;
  absl::MutexLock lock(&mutex_);
  // When somebody else saw that there is room, the callback says so.
  return std::exchange(waits_for_ready_, false);
}

void DocumentWriter::PokeReady() {
  {
    absl::MutexLock lock(&mutex_);
    if (!waits_for_ready_) return;
  }
  if (Crowded()) return;
  {
    absl::MutexLock lock(&mutex_);
    if (!waits_for_ready_ || !failure_.ok() ||
        pending_bytes_ > environment_.options.writer_pending_bytes_max) {
      return;
    }
    waits_for_ready_ = false;
    ready_due_ = true;
  }
  Dispatch();
}

IngestProgress DocumentWriter::progress() const {
  absl::MutexLock lock(&mutex_);
  return progress_;
}

int64_t DocumentWriter::accepted_bytes() const {
  absl::MutexLock lock(&mutex_);
  return accepted_bytes_;
}

int64_t DocumentWriter::settled_bytes() const {
  absl::MutexLock lock(&mutex_);
  return accepted_bytes_ - static_cast<int64_t>(tail_.size());
}

void DocumentWriter::OnVisible(const DocumentInfo& info) {
  {
    absl::MutexLock lock(&mutex_);
    if (info.visible_bytes <= progress_.visible_bytes) return;
    progress_.visible_bytes = info.visible_bytes;
    progress_.token_count = info.token_count;
    progress_due_ = true;
  }
  PokeReady();
  Dispatch();
}

void DocumentWriter::Fail(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) return;
    failure_ = status;
    failed_due_ = true;
  }
  Dispatch();
}

void DocumentWriter::Dispatch() {
  mutex_.Lock();
  if (dispatching_) {
    mutex_.Unlock();
    return;
  }
  dispatching_ = true;
  dispatcher_ = std::this_thread::get_id();
  while (!detached_ && (progress_due_ || ready_due_ || failed_due_)) {
    const bool progress_due = std::exchange(progress_due_, false);
    const bool failed_due = !progress_due && std::exchange(failed_due_, false);
    const bool ready_due = !progress_due && !failed_due && std::exchange(ready_due_, false);
    const IngestProgress progress = progress_;
    const absl::Status failure = failure_;
    mutex_.Unlock();
    if (progress_due && callbacks_.progress) callbacks_.progress(progress);
    if (failed_due && callbacks_.failed) callbacks_.failed(failure);
    if (ready_due && callbacks_.ready) callbacks_.ready();
    mutex_.Lock();
  }
  dispatching_ = false;
  dispatched_.SignalAll();
  mutex_.Unlock();
}

void DocumentWriter::Detach() {
  bool release = false;
  {
    absl::MutexLock lock(&mutex_);
    detached_ = true;
    while (dispatching_ && dispatcher_ != std::this_thread::get_id()) {
      dispatched_.Wait(&mutex_);
    }
    release = ReleaseNow();
  }
  if (release) released_(*this);
}

bool DocumentWriter::ReleaseNow() {
  if (!detached_ || !pending_.empty() || release_done_) return false;
  release_done_ = true;
  return true;
}

absl::Status WriterRegistry::Claim(const Name& name, absl::Duration patience) {
  const absl::Time until = absl::Now() + patience;
  absl::MutexLock lock(&mutex_);
  for (;;) {
    const auto [it, added] = by_name_.try_emplace(name);
    if (added) return absl::OkStatus();
    if (!it->second.left || freed_.WaitWithDeadline(&mutex_, until)) {
      return absl::AbortedError(
          absl::StrCat("document ", name.second, " has another writer; one at a time"));
    }
  }
}

void WriterRegistry::Set(std::shared_ptr<DocumentWriter> writer) {
  absl::MutexLock lock(&mutex_);
  by_document_[writer->document()] = writer;
  const Name name(writer->memory(), writer->id());
  by_name_[name].writer = std::move(writer);
}

void WriterRegistry::Unclaim(const Name& name) {
  absl::MutexLock lock(&mutex_);
  by_name_.erase(name);
  freed_.SignalAll();
}

void WriterRegistry::Leave(const DocumentWriter& writer) {
  absl::MutexLock lock(&mutex_);
  const auto it = by_name_.find(Name(writer.memory(), writer.id()));
  if (it == by_name_.end() || it->second.writer.get() != &writer) return;
  it->second.left = true;
  freed_.SignalAll();
}

void WriterRegistry::Free(const DocumentWriter& writer) {
  std::shared_ptr<DocumentWriter> last;  // may be the last owner: destroyed without the lock
  absl::MutexLock lock(&mutex_);
  if (const auto it = by_name_.find(Name(writer.memory(), writer.id()));
      it != by_name_.end() && it->second.writer.get() == &writer) {
    last = std::move(it->second.writer);
    by_name_.erase(it);
    freed_.SignalAll();
  }
  if (const auto it = by_document_.find(writer.document());
      it != by_document_.end() && it->second.get() == &writer) {
    last = std::move(it->second);
    by_document_.erase(it);
  }
}

std::shared_ptr<DocumentWriter> WriterRegistry::Find(DocumentId document) const {
  absl::MutexLock lock(&mutex_);
  const auto it = by_document_.find(document);
  return it == by_document_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<DocumentWriter>> WriterRegistry::All() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<DocumentWriter>> writers;
  for (const auto& [document, writer] : by_document_) writers.push_back(writer);
  return writers;
}

std::vector<std::shared_ptr<DocumentWriter>> WriterRegistry::Of(MemoryId memory) const {
  std::vector<std::shared_ptr<DocumentWriter>> writers = All();
  std::erase_if(writers, [&](const auto& writer) { return writer->memory() != memory; });
  return writers;
}

}  // namespace mneme
