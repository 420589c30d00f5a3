// The scrubber: finds and heals in the background what was damaged, at its own pace; the same check
// on demand.

#include "engine/scrubber.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

absl::Status NoStep(const StoreCheckReport&) { return absl::OkStatus(); }

EngineOptions Scrubbing(int64_t bytes_per_second, absl::Duration interval) {
  EngineOptions options = EngineHarness::TestOptions();
  options.scrub_bytes_per_second = bytes_per_second;
  options.scrub_interval = interval;
  options.scrub_first_after = absl::ZeroDuration();
  return options;
}

class ScrubberTest : public ::testing::Test {
 protected:
  void Ingest(EngineHarness& harness, int documents) {
    harness.CreateMemory("m");
    for (int i = 0; i < documents; ++i) {
      texts_.push_back(RandomText(static_cast<uint64_t>(i), 300));
      harness.Ingest("m", absl::StrCat("d", i), texts_.back());
    }
  }
  void ExpectAllDerived(EngineHarness& harness) {
    for (size_t i = 0; i < texts_.size(); ++i) {
      EXPECT_EQ(harness.DerivedDiffers("m", absl::StrCat("d", i), texts_[i]), "") << i;
    }
  }
  std::vector<std::string> texts_;
};

TEST_F(ScrubberTest, DamagedSegmentsAndPagesAreDerivedAgainOnDemand) {
  EngineHarness harness;
  Ingest(harness, 4);
  const int segments = harness.Damage(Table::kSegments, "");
  const int pages = harness.Damage(Table::kPages, "");
  ASSERT_GT(segments, 8);
  ASSERT_GT(pages, segments);
  StoreCheckReport report = harness.engine().CheckStore("", /*heal=*/false, NoStep).value();
  EXPECT_EQ(report.found[static_cast<size_t>(StoreFinding::Kind::kSegment)], segments);
  EXPECT_EQ(report.healed_count(), 0);
  EXPECT_EQ(harness.Metric("mneme_scrub_damage_left{kind=\"segment\"}"), segments);

  report = harness.engine().CheckStore("", /*heal=*/true, NoStep).value();
  EXPECT_EQ(report.healed_count(), report.found_count());
  EXPECT_EQ(harness.Metric("mneme_scrub_damage_left{kind=\"segment\"}"), 0);
  EXPECT_EQ(harness.engine().CheckStore("", /*heal=*/false, NoStep)->found_count(), 0);
  ExpectAllDerived(harness);
  harness.Restart();
  ASSERT_TRUE(harness.WaitReady());
  ExpectAllDerived(harness);
  EXPECT_EQ(harness.engine().CheckStore("", /*heal=*/false, NoStep)->found_count(), 0);
}

TEST_F(ScrubberTest, TextIsReportedAndOtherDocumentsServe) {
  EngineHarness harness;
  Ingest(harness, 3);
  ASSERT_EQ(harness.Damage(Table::kText, texts_[1]), 1);
  const StoreCheckReport report = harness.engine().CheckStore("", /*heal=*/true, NoStep).value();
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].document_id, "d1");
  EXPECT_FALSE(report.findings[0].healed);
  const auto read = [&](const std::string& id) {
    return harness.engine().ReadText(harness.Document("m", id), 0,
                                     static_cast<int64_t>(texts_[0].size()) / 2);
  };
  EXPECT_TRUE(absl::IsDataLoss(read("d1").status()));
  EXPECT_TRUE(read("d0").ok());
}

TEST_F(ScrubberTest, BackgroundPassHealsAndTellsWhenItEnded) {
  EngineHarness harness(Scrubbing(int64_t{1} << 40, absl::Milliseconds(1)));
  Ingest(harness, 2);
  const int segments = harness.Damage(Table::kSegments, "");
  EXPECT_TRUE(harness.WaitMetric("mneme_scrub_healed_total{kind=\"segment\"}", segments));
  ExpectAllDerived(harness);
  EXPECT_TRUE(harness.WaitMetricAtLeast("mneme_scrub_last_pass_timestamp_seconds", 1e9));
  EXPECT_GT(harness.Metric("mneme_scrub_read_bytes_total"), 0);
  EXPECT_EQ(harness.Metric("mneme_thread_alive{thread=\"scrubber\"}"), 1);
  EXPECT_TRUE(harness.engine().Ready().ok());
}

TEST_F(ScrubberTest, PassesWaitForTheirRate) {
  EngineHarness harness(Scrubbing(/*bytes_per_second=*/1000, absl::Hours(1)));
  harness.Stop();
  harness.UseSimulatedClock();
  harness.Start();
  Ingest(harness, 2);
  harness.Stop();
  const double before = harness.Metric("mneme_scrub_passes_total");
  const double read = harness.Metric("mneme_scrub_read_bytes_total");
  harness.Start();
  // Time passes a second at a time, as long as it takes; a scrubber that is late takes longer.
  double seconds = 0;
  const absl::Time until = absl::Now() + kPatience;
  while (harness.Metric("mneme_scrub_passes_total") == before && absl::Now() < until) {
    harness.clock().Advance(absl::Seconds(1));
    ++seconds;
    absl::SleepFor(absl::Microseconds(200));
  }
  EXPECT_EQ(harness.Metric("mneme_scrub_passes_total"), before + 1);
  const double bytes = harness.Metric("mneme_scrub_read_bytes_total") - read;
  EXPECT_GT(bytes, 3000);
  EXPECT_GE(seconds,
            bytes / 1000 - 2);  // the first second's bytes, and the last piece, are at once
}

TEST_F(ScrubberTest, PassThatFailsIsCountedAndTriedAgain) {
  EngineHarness harness(Scrubbing(int64_t{1} << 40, absl::Milliseconds(1)));
  Ingest(harness, 1);
  harness.faults().FailReads(Table::kSegments, absl::InternalError("disk gone"));
  const absl::Time until = absl::Now() + kPatience;
  while (harness.Metric("mneme_scrub_pass_failures_total") < 1 && absl::Now() < until) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_GE(harness.Metric("mneme_scrub_pass_failures_total"), 1);
  EXPECT_TRUE(harness.engine().Ready().ok());
  harness.faults().FailReads(Table::kSegments, absl::OkStatus());
  const double passes = harness.Metric("mneme_scrub_passes_total");
  while (harness.Metric("mneme_scrub_passes_total") <= passes && absl::Now() < until) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_GT(harness.Metric("mneme_scrub_passes_total"), passes);
}

TEST_F(ScrubberTest, OneCheckOnDemandAtATimeAndNoneWhileDraining) {
  EngineHarness harness;
  Ingest(harness, 1);
  absl::Status second;
  const auto ask_again = [&](const StoreCheckReport&) {
    second = harness.engine().CheckStore("", /*heal=*/false, NoStep).status();
    return absl::OkStatus();
  };
  EXPECT_TRUE(harness.engine().CheckStore("", /*heal=*/false, ask_again).ok());
  EXPECT_TRUE(absl::IsAborted(second)) << second;
  EXPECT_TRUE(absl::IsCancelled(
      harness.engine()
          .CheckStore("", false, [](const StoreCheckReport&) { return absl::CancelledError(); })
          .status()));
  EXPECT_TRUE(harness.engine().Drain(absl::Now() + kPatience).ok());
  EXPECT_TRUE(
      absl::IsUnavailable(harness.engine().CheckStore("", /*heal=*/false, NoStep).status()));
}

}  // namespace
}  // namespace mneme
