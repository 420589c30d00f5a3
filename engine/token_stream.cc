#include "engine/token_stream.h"

#include <utility>

#include "common/check.h"

namespace mneme {

TokenStream::TokenStream(TokenStreamOptions options)
    : state_(std::move(options.state)),
      told_chunks_(std::move(options.told)),
      stop_(std::move(options.stop)),
      tokens_max_(options.tokens_max),
      with_hits_(options.with_hits),
      scope_(std::move(options.scope)),
      last_(options.first) {
  step_ = {.state = state_.get(),
           .ids = absl::MakeConstSpan(&last_, 1),
           .scope = &scope_,
           .told = told_chunks_.get(),
           .select = ReadStep::Rows::kAll,
           .upper = true,
           .logit_rows = LogitRows::kBestOfStep};
  batched_.step = &step_;
}

bool TokenStream::Wait(absl::Duration longest) {
  if (Settled()) return true;
  absl::MutexLock lock(&mutex_);
  sleeping_ = true;
  // Tell looks at sleeping_ after what it tells of: one of both sides sees the other.
  bool timed_out = false;
  while (!Settled() && !timed_out) timed_out = changed_.WaitWithTimeout(&mutex_, longest);
  sleeping_ = false;
  return Settled();
}

TokenId TokenStream::Take() {
  MNEME_CHECK(ready());
  Slot& slot = slots_[SlotOf(taken_)];
  if (with_hits_) std::swap(hits_, slot.hits);
  const TokenId id = slot.id;
  ++taken_;
  return id;
}

bool TokenStream::HasRoom() {
  if (put_ - taken_ < kTokensMax) return true;
  stalled_ = true;
  if (put_ - taken_ == kTokensMax) return false;
  stalled_ = false;
  return true;
}

bool TokenStream::PutStep() {
  if (!batched_.status.ok()) {
    End(batched_.status);
    return false;
  }
  last_ = step_.best;
  Slot& slot = slots_[SlotOf(put_)];
  slot.id = last_;
  if (with_hits_) slot.hits.assign(step_.rows.back().begin(), step_.rows.back().end());
  // Who sees the end sees the last token too.
  const bool last = ++put_ == tokens_max_ || stop_.contains(last_);
  if (last) ended_ = true;
  return !last;
}

void TokenStream::End(const absl::Status& status) {
  end_status_ = status;
  ended_ = true;
}

void TokenStream::Tell() {
  if (!sleeping_) return;
  absl::MutexLock lock(&mutex_);
  changed_.Signal();
}

}  // namespace mneme
