// TokenStream: a greedy reader's answer, on its way from the batch thread, which makes one token
// after the other, to the reader's thread, which sends them. The batch thread runs ahead by at most
// kTokensMax tokens: a receiver slower than the network finds several at once, and holds nobody up.

#ifndef MNEME_ENGINE_TOKEN_STREAM_H_
#define MNEME_ENGINE_TOKEN_STREAM_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/read_step.h"
#include "engine/told_chunks.h"
#include "model/model.h"

namespace mneme {

// What goes on behind a reader's prompt.
struct TokenStreamOptions {
  std::unique_ptr<ReaderState> state;  // behind the prompt
  std::unique_ptr<ToldChunks> told;    // the same; null: nothing is told
  ReadScope scope;
  TokenId first = 0;       // the token behind the prompt; the stream begins behind it
  int tokens_max = 0;      // it ends behind so many
  std::set<TokenId> stop;  // or behind one of these, which is its last
  bool with_hits = false;  // what each token read is kept, for `hits`
};

// One producer, one consumer, each a thread, both of which own it: whoever leaves last frees it.
class TokenStream {
 public:
  // Tokens that wait to be taken, at most.
  static constexpr int64_t kTokensMax = 64;

  explicit TokenStream(TokenStreamOptions options);

  // ---- the reader's thread ----

  // Waits until a token can be taken or the stream has ended; false when neither came in time.
  bool Wait(absl::Duration longest);
  // A token can be taken at once.
  bool ready() const { return taken_ < put_; }
  // The next token; ready() must hold.
  TokenId Take();
  // What the last token taken read.
  absl::Span<const ChunkHit> hits() const { return hits_; }
  // There was no room, and Take made some: the batch thread is to look again. Asked once.
  bool TakeStalled() { return stalled_.exchange(false); }
  // Why it ended, when Wait returned true and nothing is ready.
  absl::Status end_status() const { return end_status_; }

  // ---- the batch thread ----

  // The step that makes the next token.
  BatchedStep& next_step() { return batched_; }
  // A token may be put. While there is no room, TakeStalled tells the reader's thread.
  bool HasRoom();
  // Takes up what next_step() left: a token, or an error, which ends the stream. False: it ended.
  bool PutStep();
  // Ends it, with an error.
  void End(const absl::Status& status);
  // Wakes the reader's thread if it waits.
  void Tell();

  // Whether a Tell is already due: the batch thread's note.
  bool to_tell = false;

 private:
  struct Slot {
    TokenId id = 0;
    std::vector<ChunkHit> hits;
  };
  static size_t SlotOf(int64_t token) { return static_cast<size_t>(token % kTokensMax); }
  bool Settled() const { return ready() || ended_; }

  const std::unique_ptr<ReaderState> state_;
  const std::unique_ptr<ToldChunks> told_chunks_;
  const std::set<TokenId> stop_;
  const int64_t tokens_max_;
  const bool with_hits_;
  ReadScope scope_;
  TokenId last_;
  ReadStep step_;
  BatchedStep batched_;

  std::array<Slot, kTokensMax> slots_;
  std::vector<ChunkHit> hits_;
  // Tokens put and taken so far. Slots between them are the reader's, the others the batch
  // thread's.
  std::atomic<int64_t> put_{0}, taken_{0};
  std::atomic<bool> stalled_{false};
  std::atomic<bool> ended_{false};
  absl::Status end_status_;  // not written any more once ended_

  absl::Mutex mutex_;  // for sleeping alone
  absl::CondVar changed_;
  std::atomic<bool> sleeping_{false};
};

}  // namespace mneme

#endif  // MNEME_ENGINE_TOKEN_STREAM_H_
