#include "tests/crash/sending.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

constexpr size_t kMarkerBytes = 24;
constexpr size_t kMarkerEveryBytes = 1500;

std::string RandomMarker(std::mt19937& random) {
  std::string marker;
  for (size_t i = 0; i < kMarkerBytes; ++i) {
    marker.push_back("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[random() % 52]);
  }
  return marker;
}

}  // namespace

std::string RandomText(std::mt19937& random, size_t bytes) {
  static const char* const kWords[] = {"harbor", "the",   "lantern", "of",      "and",  "17",
                                       "Zürich", "naïve", "река",    "日本",    "🙂", "pass",
                                       "key",    "is",    "wind,",   "north.\n"};
  std::string text;
  for (size_t marked = 0; text.size() < bytes;) {
    absl::StrAppend(&text, kWords[random() % 16],
                    random() % 5 == 0 ? absl::StrCat(random() % 100000) : "", " ");
    if (text.size() < marked + kMarkerEveryBytes) continue;
    absl::StrAppend(&text, RandomMarker(random), " ");
    marked = text.size();
  }
  return text;
}

std::vector<std::string> MarkersIn(absl::string_view text) {
  std::vector<std::string> markers;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin;
    while (end < text.size() && absl::ascii_isalpha(static_cast<unsigned char>(text[end]))) ++end;
    if (end - begin == kMarkerBytes) markers.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return markers;
}

absl::Duration RandomMilliseconds(std::mt19937& random, int below) {
  return absl::Milliseconds(1 + static_cast<int>(random() % static_cast<uint32_t>(below)));
}

void SendText(Stage& stage, std::mt19937& random, const std::string& document,
              const std::string& text, const SendOptions& options) {
  StringSource source(text);
  IngestPlan plan;
  plan.document = document;
  plan.ttl = options.ttl;
  plan.seal = options.seal;
  plan.wait_visible = random() % 4 != 0;
  plan.piece_bytes = 1 + static_cast<int64_t>(random() % 9000);
  plan.on_progress = [&](const IngestState& state) {
    ASSERT_LE(state.visible_bytes, state.durable_bytes);
    stage.acked.Raise(document, state.durable_bytes);
  };
  const IngestOutcome outcome = stage.client.Ingest(plan, source);
  if (options.ttl != absl::InfiniteDuration()) {
    // It may have gone under the stream, and come again with the next attempt.
    ASSERT_TRUE(outcome.status.ok() || absl::IsNotFound(outcome.status) ||
                absl::IsFailedPrecondition(outcome.status))
        << document << ": " << outcome.status;
    return;
  }
  ASSERT_TRUE(outcome.status.ok()) << document << ": " << outcome.status;
  ASSERT_EQ(outcome.state.durable_bytes, static_cast<int64_t>(text.size()));
  stage.acked.Raise(document, outcome.state.durable_bytes);
}

void SendDocument(Stage& stage, std::mt19937& random, const std::string& document, size_t bytes_max,
                  absl::Duration ttl) {
  const std::string text =
      absl::StrCat(RandomMarker(random), " ", RandomText(random, 1 + random() % bytes_max));
  stage.acked.AddDocument(document, text, /*expires=*/ttl != absl::InfiniteDuration());
  SendText(stage, random, document, text, {.ttl = ttl, .seal = random() % 2 == 0});
}

void UpdateMemory(Stage& stage, const std::string& memory, const AckedPolicy& policy) {
  stage.acked.BeginUpdate(memory, policy);
  v1::UpdateMemoryRequest update;
  *update.mutable_memory() = MemoryMessage(memory, policy);
  const auto updated = stage.client.UpdateMemory(update);
  ASSERT_TRUE(updated.ok()) << memory << ": " << updated.status();
  stage.acked.Updated(memory);
  ++stage.updates;
}

void ExpireMemory(Stage& stage, std::mt19937& random, const std::string& memory,
                  AckedPolicy* policy) {
  stage.acked.BeginExpire(memory);
  policy->ttl = RandomMilliseconds(random, 100);
  ASSERT_NO_FATAL_FAILURE(UpdateMemory(stage, memory, *policy));
  absl::SleepFor(policy->ttl + absl::Milliseconds(1));
  stage.acked.Expired(memory);
  ++stage.expiries;
}

v1::Memory MemoryMessage(const std::string& name, const AckedPolicy& policy) {
  v1::Memory memory;
  memory.set_name(name);
  memory.set_retention(policy.keeps_pages ? v1::Memory::KEEP : v1::Memory::TEXT);
  if (policy.ttl != absl::InfiniteDuration()) {
    const int64_t nanos = absl::ToInt64Nanoseconds(policy.ttl);
    memory.mutable_ttl()->set_seconds(nanos / 1'000'000'000);
    memory.mutable_ttl()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  }
  return memory;
}

bool IsOfACrash(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsNotFound(status) || absl::IsCancelled(status) ||
         absl::IsAborted(status) || absl::IsFailedPrecondition(status);
}

}  // namespace mneme
