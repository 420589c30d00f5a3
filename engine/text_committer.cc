#include "engine/text_committer.h"

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace mneme {
namespace {

// The pieces of one document in one batch, which are one append.
struct DocumentAppend {
  int64_t byte_offset = 0;
  int64_t bytes = 0;
  std::vector<size_t> pieces;
  std::string joined;  // used when there is more than one piece
  bool seal = false;
};

}  // namespace

TextCommitter::TextCommitter(const TextCommitterOptions& options, MemoryStore& store,
                             EngineMetrics& metrics, Supervisor& supervisor)
    : options_(options), store_(store), metrics_(metrics) {
  thread_ = std::make_unique<BackgroundThread>(
      "commit", supervisor, [this](BackgroundThread& thread) { return Loop(thread); });
}

TextCommitter::~TextCommitter() { Stop(); }

void TextCommitter::Stop() {
  if (thread_ != nullptr) thread_->MayEnd();
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.SignalAll();
  }
  thread_.reset();
}

void TextCommitter::Submit(TextPiece piece) {
  absl::MutexLock lock(&mutex_);
  queue_bytes_ += static_cast<int64_t>(piece.text->size());
  metrics_.commit_queue_bytes.Set(static_cast<double>(queue_bytes_));
  queue_.push_back(std::move(piece));
  changed_.SignalAll();
}

bool TextCommitter::full() const {
  absl::MutexLock lock(&mutex_);
  return queue_bytes_ > options_.queue_bytes_max;
}

bool TextCommitter::WaitIdle(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  while (!queue_.empty() || committing_) {
    if (changed_.WaitWithDeadline(&mutex_, deadline)) return queue_.empty() && !committing_;
  }
  return true;
}

absl::Status TextCommitter::Loop(BackgroundThread& thread) {
  for (;;) {
    std::vector<TextPiece> batch;
    bool stopping = false, room = false;
    {
      absl::MutexLock lock(&mutex_);
      committing_ = false;
      changed_.SignalAll();
      while (queue_.empty() && !stopping_) {
        changed_.WaitWithTimeout(&mutex_, BackgroundThread::kBeatEvery);
        thread.Beat();
      }
      const absl::Time gather_until = absl::Now() + options_.wait_max;
      while (!stopping_ && queue_bytes_ < options_.batch_bytes_max && absl::Now() < gather_until) {
        changed_.WaitWithDeadline(&mutex_, gather_until);
      }
      stopping = stopping_;
      if (stopping && queue_.empty()) return absl::OkStatus();
      int64_t bytes = 0;
      while (!queue_.empty() && (stopping || bytes < options_.batch_bytes_max)) {
        bytes += static_cast<int64_t>(queue_.front().text->size());
        batch.push_back(std::move(queue_.front()));
        queue_.pop_front();
      }
      room = queue_bytes_ > options_.queue_bytes_max &&
             queue_bytes_ - bytes <= options_.queue_bytes_max;
      queue_bytes_ -= bytes;
      metrics_.commit_queue_bytes.Set(static_cast<double>(queue_bytes_));
      committing_ = true;
    }
    thread.Beat();
    if (stopping) {
      for (TextPiece& piece : batch) {
        piece.done(absl::UnavailableError("the engine stops; the text was not made durable"));
      }
    } else {
      Commit(std::move(batch));
      if (room) options_.room();
    }
  }
}

void TextCommitter::Commit(std::vector<TextPiece> pieces) {
  // One append per document. A piece that does not follow the one before it comes after a failure.
  std::vector<absl::Status> results(pieces.size());
  absl::flat_hash_map<DocumentId, size_t> append_of;
  std::vector<DocumentId> documents;
  std::vector<DocumentAppend> appends;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const TextPiece& piece = pieces[i];
    const auto [it, added] = append_of.try_emplace(piece.document, appends.size());
    if (added) {
      documents.push_back(piece.document);
      appends.push_back({.byte_offset = piece.byte_offset});
    } else {
      DocumentAppend& append = appends[it->second];
      const int64_t expected = append.byte_offset + append.bytes;
      if (piece.byte_offset != expected) {
        results[i] = absl::FailedPreconditionError(absl::StrCat(
            "byte_offset ", piece.byte_offset, " follows text that ends at ", expected));
        continue;
      }
      if (append.pieces.size() == 1) append.joined = *pieces[append.pieces[0]].text;
      append.joined += *piece.text;
    }
    DocumentAppend& append = appends[it->second];
    append.pieces.push_back(i);
    append.bytes += static_cast<int64_t>(piece.text->size());
    append.seal |= piece.seal;
  }

  std::vector<TextAppend> batch;
  int64_t bytes = 0;
  for (size_t i = 0; i < appends.size(); ++i) {
    const DocumentAppend& append = appends[i];
    batch.push_back(
        {.document = documents[i],
         .byte_offset = append.byte_offset,
         .text = append.pieces.size() == 1 ? *pieces[append.pieces[0]].text : append.joined,
         .seal = append.seal});
    bytes += append.bytes;
  }
  metrics_.commit_batch_documents.Observe(static_cast<double>(batch.size()));
  metrics_.commit_batch_bytes.Observe(static_cast<double>(bytes));
  absl::Status status;
  {
    StageTimer timer(metrics_.commit_seconds);
    status = store_.AppendText(batch);
  }
  for (size_t i = 0; i < appends.size(); ++i) {
    // A batch is all or nothing, so one document that is gone would fail the others: one at a time
    // then.
    const absl::Status own = status.ok() || batch.size() == 1
                                 ? status
                                 : store_.AppendText(absl::MakeConstSpan(&batch[i], 1));
    if (own.ok()) metrics_.ingest_bytes.Increment(static_cast<double>(appends[i].bytes));
    for (size_t piece : appends[i].pieces) results[piece] = own;
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (!results[i].ok()) metrics_.commit_failures.Increment();
    pieces[i].done(results[i]);
  }
}

}  // namespace mneme
