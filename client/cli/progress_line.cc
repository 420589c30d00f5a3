#include "client/cli/progress_line.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal.h"

namespace mneme {
namespace {

constexpr absl::Duration kRedraw = absl::Milliseconds(100);
constexpr absl::Duration kSpeedWindow = absl::Seconds(10);
constexpr int kBarColumns = 20;

// "[######              ]"
std::string Bar(double fraction) {
  const int full = static_cast<int>(std::lround(fraction * kBarColumns));
  return absl::StrCat("[", std::string(static_cast<size_t>(full), '#'),
                      std::string(static_cast<size_t>(kBarColumns - full), ' '), "]");
}

}  // namespace

void ProgressLine::Update(const JobProgress& progress, absl::Time now) {
  if (!enabled_ || now - drawn_at_ < kRedraw) return;
  drawn_at_ = now;
  drawn_ = true;
  absl::FPrintF(stderr, "\r%s\x1b[K", Render(progress, now, TerminalColumns(STDERR_FILENO) - 1));
  fflush(stderr);
}

void ProgressLine::Clear() {
  if (!drawn_) return;
  absl::FPrintF(stderr, "\r\x1b[K");
  fflush(stderr);
  drawn_ = false;
  drawn_at_ = absl::InfinitePast();
}

std::string ProgressLine::Render(const JobProgress& progress, absl::Time now, int columns) {
  const int64_t bytes = progress.bytes_done - progress.bytes_before;
  const int64_t tokens = progress.tokens_done - progress.tokens_before;
  samples_.push_back({now, bytes, tokens});
  while (now - samples_.front().time > kSpeedWindow) samples_.pop_front();
  const double seconds = absl::ToDoubleSeconds(now - samples_.front().time);
  std::string line;
  if (progress.bytes_total) {
    const double fraction =
        std::clamp(static_cast<double>(progress.bytes_done) /
                       std::max<double>(static_cast<double>(*progress.bytes_total), 1),
                   0.0, 1.0);
    line = absl::StrFormat("%s %3.0f%%  %s of %s", Bar(fraction), std::floor(fraction * 100),
                           HumanBytes(static_cast<double>(progress.bytes_done)),
                           HumanBytes(static_cast<double>(*progress.bytes_total)));
  } else {
    line = HumanBytes(static_cast<double>(progress.bytes_done));
  }
  if (!progress.waiting_for.empty()) {
    absl::StrAppend(&line, "  waiting: ", progress.waiting_for);
  } else if (seconds > 0) {
    const double byte_rate = static_cast<double>(bytes - samples_.front().bytes) / seconds;
    const double token_rate = static_cast<double>(tokens - samples_.front().tokens) / seconds;
    absl::StrAppend(&line, absl::StrFormat("  %s/s  %s tokens/s", HumanBytes(byte_rate),
                                           WithCommas(std::llround(token_rate))));
    if (progress.bytes_total && byte_rate > 0) {
      absl::StrAppend(
          &line, "  ETA ",
          HumanSeconds(static_cast<double>(*progress.bytes_total - progress.bytes_done) /
                       byte_rate));
    }
  }
  const int room = columns - CountColumns(line) - 2;
  if (room >= 8)
    line = absl::StrCat(Shorten(EscapeForTerminal(progress.what), std::min(room, 32)), "  ", line);
  return Shorten(EscapeForTerminal(line), columns);
}

}  // namespace mneme
