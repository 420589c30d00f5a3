// ProgressLine: one line on a terminal that says how far a long job is, drawn over itself; nothing
// when standard error is none.

#ifndef MNEME_CLIENT_CLI_PROGRESS_LINE_H_
#define MNEME_CLIENT_CLI_PROGRESS_LINE_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace mneme {

// Where a job stands, summed over all its parts.
struct JobProgress {
  // What is being done, e.g. a file's name or "3 of 20 files".
  std::string what;
  int64_t bytes_done = 0;
  // Known total; nullopt for a pipe.
  std::optional<int64_t> bytes_total;
  // Done before the job began, and so no part of its speed.
  int64_t bytes_before = 0;
  int64_t tokens_done = 0;
  int64_t tokens_before = 0;
  // Why nothing moves, if so.
  std::string waiting_for;
};

// Thread-compatible.
class ProgressLine {
 public:
  // `enabled`: standard error is a terminal and progress was not declined.
  explicit ProgressLine(bool enabled) : enabled_(enabled) {}
  ~ProgressLine() { Clear(); }

  bool enabled() const { return enabled_; }
  // Draws, at most ten times a second.
  void Update(const JobProgress& progress, absl::Time now);
  // Takes the line away, so that something else can be printed.
  void Clear();

  // The line in at most `columns` columns.
  std::string Render(const JobProgress& progress, absl::Time now, int columns);

 private:
  // Speed is measured over the latest ten seconds.
  struct Sample {
    absl::Time time;
    int64_t bytes;
    int64_t tokens;
  };

  const bool enabled_;
  bool drawn_ = false;
  absl::Time drawn_at_ = absl::InfinitePast();
  std::deque<Sample> samples_;
};

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_PROGRESS_LINE_H_
