// Quotas and watermarks, through the engine; the disk's free space and the clock are the test's.

#include "engine/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_facts.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kFreeLow = 1000, kFreeHigh = 200;

EngineOptions WithTenant(const QuotaLimits& limits) {
  EngineOptions options = EngineHarness::TestOptions();
  options.admission.sample_every_seconds = 0.005;
  options.admission.quotas.tenants["default"] = limits;
  return options;
}

EngineOptions WithWatermarks() {
  EngineOptions options = WithTenant({});
  options.admission.watermarks.free_low_bytes = kFreeLow;
  options.admission.watermarks.free_high_bytes = kFreeHigh;
  options.admission.slow_bytes_per_second = 1000;
  return options;
}

// The fact of a refusal; one without a quota's name when there is none.
QuotaFact FactOf(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  return QuotaOf(status).value_or(QuotaFact());
}

// Words of three letters.
std::string Text(size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += "abc ";
  text.resize(bytes);
  return text;
}

std::string StateSeries(const char* resource) {
  return absl::StrCat("mneme_watermark_state{resource=\"", resource, "\"}");
}

TEST(AdmissionTest, ATenantsTextHasALimitAndDeletingMakesRoom) {
  EngineHarness harness(WithTenant({.text_bytes_max = 100}));
  harness.CreateMemory("m");
  harness.CreateMemory("n");
  harness.Ingest("m", "a", Text(70));
  TestWriter writer(harness.engine(), harness.Document("n", "b"));
  EXPECT_TRUE(writer->Append(0, Text(30)).ok());
  const absl::Status refused = writer->Append(30, Text(1));
  const QuotaFact fact = FactOf(refused);
  EXPECT_EQ(fact, (QuotaFact{"text_bytes", "tenant default", 100, 100, 1}));
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("text_bytes of tenant default: 100 in use and 1 more asked; limit 100"));
  // What was taken is kept, and sending it again asks for nothing.
  EXPECT_TRUE(writer.WaitDurable(30));
  EXPECT_TRUE(writer->Append(0, Text(30)).ok());
  ASSERT_TRUE(harness.engine().DeleteDocument(harness.Document("m", "a")).ok());
  EXPECT_TRUE(writer->Append(30, Text(70)).ok());
  EXPECT_FALSE(writer->Append(100, Text(1)).ok());
  EXPECT_TRUE(writer.WaitDurable(100));
  EXPECT_TRUE(harness.WaitMetric("mneme_quota_used{quota=\"text_bytes\",tenant=\"default\"}", 100));
  EXPECT_EQ(harness.Metric("mneme_quota_limit{quota=\"text_bytes\",tenant=\"default\"}"), 100);
  EXPECT_EQ(harness.Metric("mneme_quota_refused_total{quota=\"text_bytes\",tenant=\"default\"}"),
            2);
}

TEST(AdmissionTest, ARefusedTextLeavesNoDocumentThatTakesAQuota) {
  EngineHarness harness(WithTenant({.text_bytes_max = 100, .documents_max = 2}));
  harness.CreateMemory("m");
  harness.Ingest("m", "a", Text(90));
  for (int i = 0; i < 3; ++i) {
    TestWriter writer(harness.engine(), harness.Document("m", "b"));
    EXPECT_EQ(FactOf(writer->Append(0, Text(11))).quota, "text_bytes");
    writer.Drop();
    EXPECT_EQ(harness.engine().GetDocument(harness.Document("m", "b")).status().code(),
              absl::StatusCode::kNotFound);
  }
  EXPECT_EQ(harness.engine().admission().quotas[kQuotaCount + 1].used, 1);
  // Its name and its place are free; what was there before, or has text, stays.
  {
    TestWriter writer(harness.engine(), harness.Document("m", "b"));
    writer.Send(Text(5));
    EXPECT_EQ(FactOf(writer->Append(5, Text(11))).quota, "text_bytes");
    EXPECT_TRUE(writer.WaitDurable(5));
  }
  EXPECT_EQ(harness.engine().GetDocument(harness.Document("m", "b"))->durable_bytes, 5);
  harness.Restart();
  EXPECT_EQ(harness.engine().ListDocuments(harness.Memory("m"), DocumentId{}, 10)->size(), 2u);
}

TEST(AdmissionTest, AnEmptyDocumentThatWasThereOutlivesARefusal) {
  EngineHarness harness(WithTenant({.text_bytes_max = 10}));
  harness.CreateMemory("m");
  { const TestWriter writer(harness.engine(), harness.Document("m", "a")); }
  {
    TestWriter writer(harness.engine(), harness.Document("m", "a"));
    EXPECT_FALSE(writer->Append(0, Text(11)).ok());
  }
  EXPECT_EQ(harness.engine().GetDocument(harness.Document("m", "a"))->durable_bytes, 0);
}

TEST(AdmissionTest, TextThatIsNotYetDurableCounts) {
  EngineHarness harness(WithTenant({.text_bytes_max = 100}));
  harness.CreateMemory("m");
  TestWriter writer(harness.engine(), harness.Document("m", "a"));
  TestWriter other(harness.engine(), harness.Document("m", "b"));
  Gate& gate = harness.NewGate();
  harness.faults().OnWrite([&](const WriteBatch&) { gate.Pass(); });
  EXPECT_TRUE(writer->Append(0, Text(60)).ok());
  EXPECT_EQ(FactOf(other->Append(0, Text(41))).used, 60);
  EXPECT_TRUE(other->Append(0, Text(40)).ok());
  gate.Open();
  EXPECT_TRUE(writer.WaitDurable(60));
  EXPECT_TRUE(other.WaitDurable(40));
}

// What is stored and what is on its way there make the use, of a tenant or of a memory.
class TextCountsOnceTest : public ::testing::TestWithParam<bool> {
 protected:
  // 100 bytes are the limit, of the tenant or of memory m.
  TextCountsOnceTest() : harness_(WithTenant({.text_bytes_max = GetParam() ? 0 : 100})) {
    harness_.CreateMemory("m");
    if (!GetParam()) return;
    EXPECT_TRUE(harness_.engine().UpdateMemory(harness_.Memory("m"), {.quota_bytes = 100}).ok());
  }

  EngineHarness harness_;
};

INSTANTIATE_TEST_SUITE_P(Limits, TextCountsOnceTest, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "OfAMemory" : "OfATenant"; });

TEST_P(TextCountsOnceTest, AlsoBetweenItsCommitAndWhatItsWriterIsTold) {
  Gate& commit = harness_.NewGate();
  Gate& tell = harness_.NewGate();
  TestWriter first(harness_.engine(), harness_.Document("m", "first"));
  const auto slow =
      harness_.engine().OpenWriter(harness_.Document("m", "slow"),
                                   {.progress = [&tell](const IngestProgress&) { tell.Pass(); }});
  ASSERT_TRUE(slow.ok()) << slow.status();
  TestWriter last(harness_.engine(), harness_.Document("m", "last"));
  harness_.faults().OnWrite([&commit](const WriteBatch& batch) {
    if (batch.ops[0].table == Table::kText) commit.Pass();
  });
  ASSERT_TRUE(first->Append(0, Text(10)).ok());
  ASSERT_TRUE(commit.WaitArrived(1));
  // One commit has both; the writer of the second one hears of it after that of the first one.
  ASSERT_TRUE((*slow)->Append(0, Text(10)).ok());
  ASSERT_TRUE(last->Append(0, Text(50)).ok());
  commit.Open();
  ASSERT_TRUE(tell.WaitArrived(1));
  EXPECT_EQ(last.told().durable_bytes, 0);
  EXPECT_EQ(harness_.store().totals().durable_bytes, 70);
  EXPECT_EQ(FactOf(first->Append(10, Text(31))).used, 70);
  EXPECT_TRUE(first->Append(10, Text(30)).ok());
  EXPECT_EQ(FactOf(first->Append(40, Text(1))).used, 100);
  tell.Open();
  EXPECT_TRUE(last.WaitDurable(50));
  EXPECT_TRUE(first.WaitDurable(40));
  EXPECT_EQ(FactOf(first->Append(40, Text(1))).used, 100);
}

TEST(AdmissionTest, TextThatCouldNotBeStoredGivesItsRoomBack) {
  EngineHarness harness(WithTenant({.text_bytes_max = 100}));
  harness.CreateMemory("m");
  harness.CreateMemory("n");
  {
    TestWriter writer(harness.engine(), harness.Document("m", "a"));
    harness.faults().FailWrites(Table::kText, absl::ResourceExhaustedError("full"));
    EXPECT_TRUE(writer->Append(0, Text(90)).ok());
    EXPECT_FALSE(writer.WaitFailed().ok());
  }
  harness.faults().FailWrites(Table::kText, absl::OkStatus());
  TestWriter writer(harness.engine(), harness.Document("n", "b"));
  EXPECT_TRUE(writer->Append(0, Text(100)).ok());
  EXPECT_TRUE(writer.WaitDurable(100));
}

TEST(AdmissionTest, OfBrokenTextOnlyWhatIsKeptCounts) {
  EngineHarness harness(WithTenant({.text_bytes_max = 10}));
  harness.CreateMemory("m");
  TestWriter writer(harness.engine(), harness.Document("m", "a"));
  EXPECT_EQ(writer->Append(0, "abc\xff" + Text(20)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(writer.WaitDurable(3));
  EXPECT_TRUE(writer->Append(3, Text(7)).ok());
  EXPECT_EQ(FactOf(writer->Append(10, "y")).used, 10);
}

TEST(AdmissionTest, AMemoryHasAQuotaOfItsOwnWhichCanBeChangedAndSurvivesARestart) {
  EngineHarness harness(WithTenant({}));
  harness.CreateMemory("m");
  const std::string memory = harness.Memory("m");
  ASSERT_TRUE(harness.engine().UpdateMemory(memory, {.quota_bytes = 50}).ok());
  harness.Ingest("m", "a", Text(50));
  harness.Restart();
  EXPECT_EQ(harness.engine().GetMemory(memory)->info.policy.quota_bytes, 50);
  TestWriter writer(harness.engine(), harness.Document("m", "b"));
  const QuotaFact fact = FactOf(writer->Append(0, Text(1)));
  EXPECT_EQ(fact, (QuotaFact{"text_bytes", absl::StrCat("memory ", memory), 50, 50, 1}));
  EXPECT_FALSE(fact.retry_after.has_value());
  // Below what it holds: nothing goes, nothing comes.
  ASSERT_TRUE(harness.engine().UpdateMemory(memory, {.quota_bytes = 10}).ok());
  EXPECT_FALSE(writer->Append(0, Text(1)).ok());
  EXPECT_EQ(harness.engine().GetMemory(memory)->totals.durable_bytes, 50);
  ASSERT_TRUE(harness.engine().UpdateMemory(memory, {.quota_bytes = 0}).ok());
  EXPECT_TRUE(writer->Append(0, Text(1000)).ok());
  EXPECT_TRUE(writer.WaitDurable(1000));
}

absl::Status Fork(EngineHarness& harness, const std::string& source, const std::string& id) {
  return harness.engine()
      .ForkMemory(harness.Memory(id), harness.Memory(source), "", absl::InfiniteFuture())
      .status();
}

TEST(AdmissionTest, WhatForksShareCountsOnceForTheTenantWhoeverHoldsIt) {
  EngineHarness harness(WithTenant({.text_bytes_max = 100, .documents_max = 2}));
  harness.CreateMemory("m");
  harness.Ingest("m", "a", Text(60));
  ASSERT_TRUE(Fork(harness, "m", "f").ok());
  ASSERT_TRUE(Fork(harness, "f", "g").ok());
  EXPECT_TRUE(harness.WaitMetric("mneme_quota_used{quota=\"text_bytes\",tenant=\"default\"}", 60));
  harness.Ingest("f", "b", Text(40));
  EXPECT_EQ(FactOf(harness.engine().OpenWriter(harness.Document("g", "c"), {}).status()),
            (QuotaFact{"documents", "tenant default", 2, 2, 1}));
  const QuotaFact full = {"text_bytes", "tenant default", 100, 100, 1};
  {
    TestWriter writer(harness.engine(), harness.Document("f", "b"));
    EXPECT_EQ(FactOf(writer->Append(40, Text(1))), full);
    // It is there as long as somebody holds it, without its memory even.
    ASSERT_TRUE(harness.engine().DeleteDocument(harness.Document("f", "a")).ok());
    ASSERT_TRUE(harness.engine().DeleteMemory(harness.Memory("m")).ok());
    EXPECT_EQ(FactOf(writer->Append(40, Text(1))), full);
  }
  harness.Restart();
  TestWriter again(harness.engine(), harness.Document("f", "b"));
  EXPECT_EQ(FactOf(again->Append(40, Text(1))), full);
  ASSERT_TRUE(harness.engine().DeleteDocument(harness.Document("g", "a")).ok());
  EXPECT_TRUE(again->Append(40, Text(60)).ok());
  EXPECT_EQ(FactOf(again->Append(100, Text(1))), full);
}

TEST(AdmissionTest, OfAForksQuotaWhatItSharesTakesNothing) {
  EngineHarness harness(WithTenant({}));
  harness.CreateMemory("m");
  ASSERT_TRUE(harness.engine().UpdateMemory(harness.Memory("m"), {.quota_bytes = 50}).ok());
  harness.Ingest("m", "a", Text(50));
  ASSERT_TRUE(Fork(harness, "m", "f").ok());
  EXPECT_EQ(harness.engine().GetMemory(harness.Memory("f"))->info.policy.quota_bytes, 50);
  TestWriter writer(harness.engine(), harness.Document("f", "b"));
  EXPECT_TRUE(writer->Append(0, Text(50)).ok());
  EXPECT_EQ(FactOf(writer->Append(50, Text(1))),
            (QuotaFact{"text_bytes", absl::StrCat("memory ", harness.Memory("f")), 50, 50, 1}));
  // What a memory drops is no more its own, whoever holds it.
  ASSERT_TRUE(harness.engine().DeleteDocument(harness.Document("m", "a")).ok());
  TestWriter anew(harness.engine(), harness.Document("m", "c"));
  EXPECT_TRUE(anew->Append(0, Text(50)).ok());
}

TEST(AdmissionTest, TheLimitOfAllHoldsOverTenants) {
  EngineOptions options = WithTenant({});
  options.admission.quotas.all.text_bytes_max = 100;
  EngineHarness harness(options);
  harness.CreateMemory("m");
  ASSERT_TRUE(harness.engine().CreateMemory("tenants/other/memories/m", "").ok());
  harness.Ingest("m", "a", Text(80));
  TestWriter writer(harness.engine(), "tenants/other/memories/m/documents/b");
  EXPECT_EQ(FactOf(writer->Append(0, Text(21))), (QuotaFact{"text_bytes", "all", 100, 80, 21}));
  EXPECT_TRUE(writer->Append(0, Text(20)).ok());
}

TEST(AdmissionTest, ATenantThatIsNotNamedHasTheLimitsOfEach) {
  EngineOptions options = WithTenant({});
  options.admission.quotas.tenant.text_bytes_max = 10;
  EngineHarness harness(options);
  harness.CreateMemory("m");
  harness.Ingest("m", "a", Text(80));  // default has limits of its own: none
  ASSERT_TRUE(harness.engine().CreateMemory("tenants/other/memories/m", "").ok());
  TestWriter writer(harness.engine(), "tenants/other/memories/m/documents/b");
  EXPECT_EQ(FactOf(writer->Append(0, Text(11))).limit, 10);
}

TEST(AdmissionTest, DocumentsOfATenantHaveALimitHoweverManyAreCreatedAtOnce) {
  EngineHarness harness(WithTenant({.documents_max = 5}));
  harness.CreateMemory("m");
  harness.CreateMemory("n");
  std::atomic<int> created{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 12; ++i) {
    threads.emplace_back([&, i] {
      const auto writer = harness.engine().OpenWriter(
          harness.Document(i % 2 == 0 ? "m" : "n", absl::StrCat("d", i)), {});
      if (writer.ok()) {
        ++created;
      } else {
        const QuotaFact fact = FactOf(writer.status());
        EXPECT_EQ(fact.quota, "documents");
        EXPECT_FALSE(fact.retry_after.has_value());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  // At most: one that was refused may have met one that was being created.
  EXPECT_LE(created, 5);
  for (int i = 0; i < 12; ++i) {
    harness.engine().OpenWriter(harness.Document("m", absl::StrCat("e", i)), {}).IgnoreError();
  }
  EXPECT_EQ(harness.store().totals().documents, 5);
  // Those that are there may be written, in whichever memory they came to be.
  int written = 0;
  for (const char* memory : {"m", "n"}) {
    const auto documents = harness.engine().ListDocuments(harness.Memory(memory), DocumentId{}, 10);
    ASSERT_TRUE(documents.ok());
    for (const auto& document : *documents) {
      written +=
          harness.engine().OpenWriter(harness.Document(memory, document.id), {}).ok() ? 1 : 0;
    }
  }
  EXPECT_EQ(written, 5);
}

TEST(AdmissionTest, QuestionsAtOneTimeHaveALimit) {
  EngineHarness harness(WithTenant({.readers_max = 2}));
  harness.CreateMemory("m");
  harness.Ingest("m", "a", "some text");
  Gate& gate = harness.NewGate();
  harness.model().OnRead([&]() -> absl::Status {
    gate.Pass();
    return absl::OkStatus();
  });
  // A question about a snapshot is one like any other.
  const std::string snapshot = harness.Memory("m") + "/snapshots/s";
  ASSERT_TRUE(harness.engine().CreateSnapshot(snapshot).ok());
  const auto ask = [&](const std::string& memory) {
    return harness.engine().Retrieve({.memories = {memory}, .question = "text"}, {}).status();
  };
  std::vector<std::thread> readers;
  std::atomic<int> failed{0};
  for (const std::string& memory : {harness.Memory("m"), snapshot}) {
    readers.emplace_back([&, memory] { failed += ask(memory).ok() ? 0 : 1; });
  }
  EXPECT_TRUE(harness.WaitMetric("mneme_quota_used{quota=\"readers\",tenant=\"default\"}", 2));
  const QuotaFact fact = FactOf(ask(snapshot));
  EXPECT_EQ(fact.quota, "readers");
  EXPECT_EQ(fact.used, 2);
  EXPECT_TRUE(fact.retry_after.has_value());
  gate.Open();
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(failed, 0);
  EXPECT_TRUE(ask(snapshot).ok());
}

TEST(AdmissionTest, IngestStreamsAtOneTimeHaveALimit) {
  EngineHarness harness(WithTenant({.ingest_streams_max = 1}));
  harness.CreateMemory("m");
  {
    TestWriter writer(harness.engine(), harness.Document("m", "a"));
    const QuotaFact fact =
        FactOf(harness.engine().OpenWriter(harness.Document("m", "b"), {}).status());
    EXPECT_EQ(fact.quota, "ingest_streams");
    EXPECT_TRUE(fact.retry_after.has_value());
    // Another tenant has its own.
    ASSERT_TRUE(harness.engine().CreateMemory("tenants/other/memories/m", "").ok());
    TestWriter other(harness.engine(), "tenants/other/memories/m/documents/b");
  }
  TestWriter writer(harness.engine(), harness.Document("m", "b"));
}

TEST(AdmissionTest, TextAboveTheRateWaitsAndIsNotRefused) {
  EngineHarness harness(WithTenant({.ingest_bytes_per_second = 100, .ingest_burst_bytes = 100}));
  harness.UseSimulatedClock();
  harness.Restart();
  harness.CreateMemory("m");
  TestWriter writer(harness.engine(), harness.Document("m", "a"));
  EXPECT_TRUE(writer->ready());
  ASSERT_TRUE(writer->Append(0, Text(250)).ok());
  EXPECT_TRUE(writer.WaitDurable(250));
  EXPECT_FALSE(writer->ready());
  EXPECT_EQ(harness.Metric("mneme_ingest_held"), 1);
  harness.clock().Advance(absl::Milliseconds(1400));
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_FALSE(writer->ready());
  harness.clock().Advance(absl::Milliseconds(200));
  EXPECT_TRUE(writer.WaitReadyCallback());
  EXPECT_TRUE(writer->ready());
  EXPECT_TRUE(writer->Append(250, Text(10)).ok());
  EXPECT_TRUE(writer.WaitDurable(260));
  EXPECT_EQ(harness.Metric("mneme_quota_refused_total{quota=\"ingest_bytes_per_second\","
                           "tenant=\"default\"}"),
            0);
}

TEST(AdmissionTest, TheRateOfOneTenantHoldsUpNoOther) {
  EngineHarness harness(WithTenant({.ingest_bytes_per_second = 100, .ingest_burst_bytes = 100}));
  harness.UseSimulatedClock();
  harness.Restart();
  harness.CreateMemory("m");
  ASSERT_TRUE(harness.engine().CreateMemory("tenants/other/memories/m", "").ok());
  TestWriter writer(harness.engine(), harness.Document("m", "a"));
  TestWriter other(harness.engine(), "tenants/other/memories/m/documents/b");
  ASSERT_TRUE(writer->Append(0, Text(5000)).ok());
  ASSERT_TRUE(other->Append(0, Text(5000)).ok());
  ASSERT_TRUE(other->Flush().ok());
  // No queue is full any more.
  EXPECT_TRUE(writer.WaitDurable(5000));
  EXPECT_TRUE(other.WaitVisible(5000));
  EXPECT_FALSE(writer->ready());
  EXPECT_TRUE(other->ready());
}

TEST(AdmissionTest, NearTheEndOfTheDiskIngestIsSlowedThenRefusedAndRecovers) {
  EngineHarness harness(WithWatermarks());
  harness.UseSimulatedClock();
  harness.Restart();
  const auto disk = [&](int64_t free_bytes, int state) {
    harness.faults().SetDisk(free_bytes);
    harness.clock().Advance(absl::Seconds(1));
    return harness.WaitMetric(StateSeries("disk"), state);
  };
  harness.CreateMemory("m");
  harness.Ingest("m", "a", "some text");
  ASSERT_TRUE(disk(kFreeLow + 100, 0));
  TestWriter writer(harness.engine(), harness.Document("m", "b"));
  EXPECT_TRUE(writer->Append(0, Text(100)).ok());
  EXPECT_TRUE(writer->ready());

  // Halfway: half of the rate, 500 bytes a second. What comes at once pays for it later.
  ASSERT_TRUE(disk(600, 1));
  const int64_t burst = 64 << 10;
  ASSERT_TRUE(writer->Append(100, Text(burst)).ok());
  ASSERT_TRUE(writer->Append(100 + burst, Text(5000)).ok());
  EXPECT_TRUE(writer.WaitDurable(5100 + burst));
  EXPECT_FALSE(writer->ready());
  EXPECT_EQ(harness.Metric("mneme_ingest_held"), 1);

  // Whoever waits hears that it is refused; what is there may be sent again, asked and deleted.
  ASSERT_TRUE(disk(kFreeHigh, 2));
  EXPECT_TRUE(writer.WaitReadyCallback());
  const QuotaFact fact = FactOf(writer->Append(5100 + burst, Text(1)));
  EXPECT_EQ(fact.quota, "disk");
  EXPECT_TRUE(fact.is_watermark);
  EXPECT_TRUE(fact.retry_after.has_value());
  EXPECT_EQ(fact.asked, 1);
  EXPECT_EQ(fact.free, kFreeHigh);
  EXPECT_EQ(fact.free_needed, 280);
  EXPECT_TRUE(writer->Append(0, Text(100)).ok());
  const absl::Status not_created =
      harness.engine().OpenWriter(harness.Document("m", "c"), {}).status();
  EXPECT_EQ(FactOf(not_created).quota, "disk");
  EXPECT_EQ(FactOf(not_created).asked, 0);
  EXPECT_EQ(FactOf(not_created).limit, 0);
  EXPECT_THAT(std::string(not_created.message()),
              HasSubstr("the disk runs out: 200 bytes are free; text is taken again when more than "
                        "280 bytes are (store.free_high_bytes and a margin)"));
  EXPECT_EQ(harness.engine().admission().watermarks[1].free_needed_bytes, 280);
  EXPECT_TRUE(
      harness.engine().Retrieve({.memories = {harness.Memory("m")}, .question = "text"}, {}).ok());
  EXPECT_TRUE(harness.engine().DeleteDocument(harness.Document("m", "a")).ok());
  EXPECT_GE(harness.Metric("mneme_watermark_refused_total"), 2);

  // A little more than the mark is not enough: it would flap.
  ASSERT_TRUE(disk(kFreeHigh + 40, 2));
  ASSERT_TRUE(disk(kFreeHigh + 100, 1));
  ASSERT_TRUE(disk(kFreeLow + 40, 1));
  ASSERT_TRUE(disk(kFreeLow + 100, 0));
  // What else would hold it up is over too: all of it has been derived.
  ASSERT_TRUE(writer->Flush().ok());
  ASSERT_TRUE(writer.WaitVisible(5100 + burst));
  EXPECT_TRUE(writer->ready());
  EXPECT_TRUE(writer->Append(5100 + burst, Text(1)).ok());
  EXPECT_TRUE(writer.WaitDurable(5101 + burst));
}

TEST(AdmissionTest, TheDataDirectoryMayHaveASizeOfItsOwn) {
  EngineOptions options = WithTenant({});
  options.admission.disk_bytes_max = 1000;
  EngineHarness harness(options);
  harness.CreateMemory("m");
  // The directory itself has more; from here on the test says.
  harness.faults().SetDisk(int64_t{1} << 40, 10);
  EXPECT_TRUE(harness.WaitMetric(StateSeries("disk"), 0));
  harness.faults().SetDisk(int64_t{1} << 40, 960);
  EXPECT_TRUE(harness.WaitMetric(StateSeries("disk"), 2));
  const absl::Status refused = harness.engine().OpenWriter(harness.Document("m", "c"), {}).status();
  EXPECT_EQ(FactOf(refused).used, 960);
  EXPECT_EQ(FactOf(refused).limit, 1000);
  EXPECT_EQ(FactOf(refused).free_needed, -1);
  EXPECT_THAT(
      std::string(refused.message()),
      HasSubstr("960 bytes of 1000 bytes are used; text is taken again when less than 940"));
  harness.faults().SetDisk(int64_t{1} << 40, 10);
  EXPECT_TRUE(harness.WaitMetric(StateSeries("disk"), 0));
}

TEST(AdmissionTest, LandmarksAreWatchedInHostAndDeviceMemory) {
  EngineOptions options = WithTenant({});
  EngineHarness harness(options);
  harness.CreateMemory("m");
  harness.Ingest("m", "a", RandomText(1, 2000));
  const int64_t landmark_bytes = harness.store().landmark_bytes();
  ASSERT_GT(landmark_bytes, 0);
  harness.options().admission.host_landmark_bytes_max = landmark_bytes;
  harness.options().admission.device_landmark_bytes_max = landmark_bytes * 10 / 9;
  harness.Restart();
  EXPECT_EQ(harness.Metric(StateSeries("host")), 2);
  EXPECT_EQ(harness.Metric(StateSeries("device")), 1);
  ASSERT_TRUE(harness.engine().DeleteDocument(harness.Document("m", "a")).ok());
  EXPECT_TRUE(harness.WaitMetric(StateSeries("host"), 0));
}

TEST(AdmissionTest, StatusTellsUseAndLimitOfEverything) {
  EngineOptions options = WithTenant({.text_bytes_max = 100, .documents_max = 7});
  options.admission.quotas.all.readers_max = 9;
  EngineHarness harness(options);
  harness.CreateMemory("m");
  harness.Ingest("m", "a", Text(60));
  const AdmissionStatus status = harness.engine().admission();
  ASSERT_EQ(status.quotas.size(), 2u * kQuotaCount);
  EXPECT_EQ(status.quotas[0].tenant, "");
  EXPECT_EQ(status.quotas[0].used, 60);
  EXPECT_EQ(status.quotas[0].limit, 0);
  EXPECT_EQ(status.quotas[3].limit, 9);
  EXPECT_EQ(status.quotas[kQuotaCount].tenant, "default");
  EXPECT_EQ(status.quotas[kQuotaCount].limit, 100);
  EXPECT_EQ(status.quotas[kQuotaCount + 1].used, 1);
  EXPECT_EQ(status.quotas[kQuotaCount + 1].limit, 7);
  ASSERT_EQ(status.watermarks.size(), 3u);
  EXPECT_EQ(status.watermarks[1].use.resource, "disk");
  EXPECT_GT(status.watermarks[1].use.free_bytes, 0);
}

TEST(AdmissionTest, OptionsThatMakeNoSenseAreNamed) {
  AdmissionOptions options;
  EXPECT_TRUE(CheckAdmissionOptions(options).ok());
  options.watermarks = {.low = 0.9, .high = 0.8};
  EXPECT_THAT(std::string(CheckAdmissionOptions(options).message()), HasSubstr("0.9 and 0.8"));
  options.watermarks = {.free_low_bytes = 100, .free_high_bytes = 200};
  EXPECT_THAT(std::string(CheckAdmissionOptions(options).message()), HasSubstr("100"));
  options = AdmissionOptions();
  options.quotas.tenants["t"].readers_max = -3;
  EXPECT_THAT(std::string(CheckAdmissionOptions(options).message()),
              HasSubstr("readers_max of tenant t is -3"));
  options = AdmissionOptions();
  options.slow_bytes_per_second = 0;
  EXPECT_FALSE(CheckAdmissionOptions(options).ok());
}

}  // namespace
}  // namespace mneme
