// FakeModel: a Model with the real tokenizer and no network, fast and easy to predict.
//
// A landmark is the bag of its chunk's tokens (hashed), a page holds the token ids (K) and those of
// the halo (V, as many as it has room for), a query is the
// bag of the reader's tokens so far: the chunk that shares most tokens with the question wins. The
// upper half copies: the next token is the one that follows the reader's last token in the chunk
// read with most weight, else </s>.

#ifndef MNEME_TESTS_ENGINE_FAKE_MODEL_H_
#define MNEME_TESTS_ENGINE_FAKE_MODEL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "model/model.h"

namespace mneme {

// Thread-safe.
class FakeModel : public Model {
 public:
  using Segments = absl::Span<const absl::Span<const TokenId>>;

  // Segments of 64 tokens, chunks of 8, 4 chunks a read, landmarks of 256 float32, pages of
  // `kv_dim` times 64 bytes.
  explicit FakeModel(int kv_dim = 1);

  const Bundle& bundle() const override { return *bundle_; }
  PageLayout page_layout() const override;
  uint64_t derivation_fingerprint() const override { return fingerprint_; }
  int64_t reader_bytes() const override { return 64; }
  int64_t pass_bytes() const override { return 4096; }
  using Model::ForwardLower;
  absl::Status ForwardLower(Segments segments, absl::Span<const PageRange> pages,
                            std::vector<SegmentChunks>* out) const override;
  std::unique_ptr<ReaderState> NewReaderState() const override;
  absl::Status ReadLower(absl::Span<const ReaderStep> steps, LowerRows* out) const override;
  absl::Status ReadUpper(absl::Span<const ReaderStep> steps, const LowerRows& lower,
                         absl::Span<const RowSelection> selections, LogitRows which,
                         UpperRows* out) const override;
  absl::Status CorrectScores(const float* hidden, absl::Span<const RowSelection> selections,
                             std::vector<float>* scores) const override;

  // Runs before each ForwardLower; what it returns, if not OK, is its result. May block.
  void OnForward(std::function<absl::Status(Segments)> hook);
  // The same for ReadLower.
  void OnRead(std::function<absl::Status()> hook);
  // The same for ReadUpper.
  void OnUpper(std::function<absl::Status()> hook);
  // Tokens behind a chunk that its page depends on.
  void set_encoder_halo(int tokens) { bundle_->config.encoder_halo = tokens; }
  // Of the weights of what is read; 0, as at first: stick-breaking.
  void set_newest_margin(int margin) { bundle_->config.newest_margin = margin; }
  // Of chunks that an answer has told; 0, as at first: none. A line ends with "<0x0A>".
  void set_told_penalty(int penalty);
  // Another model, as it were: what is derived from now on differs in name.
  void set_fingerprint(uint64_t fingerprint) { fingerprint_ = fingerprint; }
  // From now on the upper half looks again, and gives a row's newest chunk this weight, the others
  // none. It still copies by the weights that it is given.
  void LookAgain(float newest) { looked_weight_ = newest; }
  // Has look_heads from now on: CorrectScores adds kLookBonus to each chunk whose page holds the
  // last token of `word`. It wants rows of <a>.
  static constexpr float kLookBonus = 100;
  void LookFor(const std::string& word);

  // Sizes of the batches of ForwardLower, of ReadLower and of ReadUpper so far.
  std::vector<size_t> forward_batches() const;
  std::vector<size_t> read_batches() const;
  std::vector<size_t> upper_batches() const;
  // Pages of each call of CorrectScores so far.
  std::vector<size_t> looked_pages() const;

 private:
  const int kv_dim_;
  std::unique_ptr<Bundle> bundle_;
  uint64_t fingerprint_ = 0x5eed;
  std::atomic<float> looked_weight_ = 0;  // 0: it does not look again
  TokenId looked_for_ = -1;
  mutable absl::Mutex mutex_;
  std::function<absl::Status(Segments)> on_forward_ ABSL_GUARDED_BY(mutex_);
  std::function<absl::Status()> on_read_ ABSL_GUARDED_BY(mutex_);
  std::function<absl::Status()> on_upper_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<size_t> forward_batches_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<size_t> read_batches_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<size_t> upper_batches_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<size_t> looked_pages_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_TESTS_ENGINE_FAKE_MODEL_H_
