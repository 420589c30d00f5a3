#include "server/operations.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <google/protobuf/wrappers.pb.h>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

using google::longrunning::Operation;

google::protobuf::StringValue Text(const std::string& text) {
  google::protobuf::StringValue value;
  value.set_value(text);
  return value;
}

std::string TextOf(const google::protobuf::Any& any) {
  google::protobuf::StringValue value;
  return any.UnpackTo(&value) ? value.value() : "not a StringValue";
}

class OperationsTest : public ::testing::Test {
 protected:
  std::shared_ptr<RunningOperation> Reserved() {
    auto operation = registry_.Reserve();
    EXPECT_TRUE(operation.ok()) << operation.status();
    return *std::move(operation);
  }

  SimulatedClock clock_{absl::FromUnixSeconds(1'000'000)};
  Metrics metrics_;
  OperationRegistry registry_{{.operations_max = 3, .keep = absl::Minutes(10)}, clock_, metrics_};
};

TEST_F(OperationsTest, AnOperationIsFoundWithItsLatestStateUntilItEndedLongAgo) {
  auto running = Reserved();
  const Operation begun =
      running->Publish({.kind = "work", .tenant = "t", .metadata = Packed(Text("begun"))});
  EXPECT_EQ(begun.name().rfind("operations/work-", 0), 0u) << begun.name();
  EXPECT_FALSE(begun.done());
  EXPECT_EQ(TextOf(registry_.Get(begun.name())->metadata()), "begun");

  running->SetMetadata(Text("half way"));
  clock_.Advance(absl::Hours(5));
  EXPECT_EQ(TextOf(registry_.Get(begun.name())->metadata()), "half way");
  running->Finish(Packed(Text("result")));
  clock_.Advance(absl::Minutes(9));
  const auto ended = registry_.Get(begun.name());
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_TRUE(ended->done());
  EXPECT_EQ(TextOf(ended->response()), "result");
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(registry_.Get(begun.name()).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(OperationsTest, AGivenIdIsTheName) {
  auto running = Reserved();
  EXPECT_EQ(running->Publish({.id = "purge-7"}).name(), "operations/purge-7");
  EXPECT_TRUE(registry_.Get("operations/purge-7").ok());
}

TEST_F(OperationsTest, AnErrorKeepsItsCodeAndMessage) {
  auto running = Reserved();
  const std::string name = running->Publish({.kind = "work"}).name();
  running->Finish(absl::DataLossError("chunk 7 is damaged"));
  running->Finish(Packed(Text("too late")));
  const auto ended = registry_.Get(name);
  ASSERT_TRUE(ended->has_error());
  EXPECT_EQ(ended->error().code(), static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_EQ(ended->error().message(), "chunk 7 is damaged");
  EXPECT_GT(ended->error().details_size(), 0);
}

TEST_F(OperationsTest, AnOperationThatIsDroppedEndsAsAborted) {
  auto running = Reserved();
  const std::string name = running->Publish({.kind = "work"}).name();
  running.reset();
  EXPECT_EQ(registry_.Get(name)->error().code(), static_cast<int>(absl::StatusCode::kAborted));
}

TEST_F(OperationsTest, AnOperationMayEndBeforeItIsPublished) {
  auto running = Reserved();
  running->Finish(Packed(Text("quick")));
  const Operation begun = running->Publish({.kind = "work"});
  EXPECT_TRUE(begun.done());
  EXPECT_EQ(TextOf(registry_.Get(begun.name())->response()), "quick");
  clock_.Advance(absl::Minutes(10));
  EXPECT_FALSE(registry_.Get(begun.name()).ok());
}

TEST_F(OperationsTest, TooManyRunningAreRefusedAndThoseNeverPublishedGiveTheirRoomBack) {
  std::vector<std::shared_ptr<RunningOperation>> held{Reserved(), Reserved(), Reserved()};
  const auto refused = registry_.Reserve();
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.status().message().find("at most 3"), std::string::npos);
  held[0].reset();  // never published
  held[0] = Reserved();
  const std::string name = held[1]->Publish({.kind = "work"}).name();
  held[1]->Finish(absl::CancelledError("enough"));
  held[1] = Reserved();
  EXPECT_FALSE(registry_.Reserve().ok());
  EXPECT_TRUE(registry_.Get(name).ok());
}

TEST_F(OperationsTest, OfTheEndedOnesTheOldestAreForgottenFirst) {
  std::vector<std::string> names;
  for (int i = 0; i < 5; ++i) {
    auto running = Reserved();
    names.push_back(running->Publish({.kind = "work"}).name());
    running->Finish(Packed(Text("")));
  }
  for (int i = 0; i < 5; ++i) EXPECT_EQ(registry_.Get(names[i]).ok(), i >= 2) << i;
}

TEST_F(OperationsTest, OneThatCanBeCancelledIsAskedToEndAnotherIsNot) {
  auto stubborn = Reserved(), willing = Reserved();
  const std::string stubborn_name = stubborn->Publish({.kind = "purge"}).name();
  const std::string willing_name = willing->Publish({.kind = "work", .cancellable = true}).name();
  EXPECT_EQ(registry_.Cancel(stubborn_name).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(willing->cancelled());
  EXPECT_TRUE(registry_.Cancel(willing_name).ok());
  EXPECT_TRUE(willing->cancelled());
  EXPECT_FALSE(registry_.Get(willing_name)->done());
  stubborn->Finish(Packed(Text("")));
  EXPECT_TRUE(registry_.Cancel(stubborn_name).ok());
  EXPECT_EQ(registry_.Cancel("operations/none").code(), absl::StatusCode::kNotFound);
}

TEST_F(OperationsTest, AListHoldsOneTenantsOperationsInTheOrderOfTheirBeginning) {
  auto a = Reserved(), b = Reserved(), c = Reserved();
  const std::string a_name = a->Publish({.kind = "work", .tenant = "one"}).name();
  const std::string b_name = b->Publish({.kind = "work", .tenant = "two"}).name();
  const std::string c_name = c->Publish({.kind = "work", .tenant = "one"}).name();
  const auto names = [&](const std::string& tenant, int64_t after, int limit) {
    std::vector<std::string> list;
    for (const auto& listed : registry_.List(tenant, after, limit)) {
      list.push_back(listed.operation.name());
    }
    return list;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names("", 0, 10), (Names{a_name, b_name, c_name}));
  EXPECT_EQ(names("one", 0, 10), (Names{a_name, c_name}));
  EXPECT_EQ(names("one", 0, 1), (Names{a_name}));
  EXPECT_EQ(names("", registry_.List("", 0, 1)[0].sequence, 10), (Names{b_name, c_name}));
  EXPECT_EQ(names("three", 0, 10), Names{});
}

TEST_F(OperationsTest, AWatchIsWokenOnceByTheEnd) {
  auto running = Reserved();
  const std::string name = running->Publish({.kind = "work"}).name();
  int woken = 0, unwatched = 0;
  EXPECT_GT(*registry_.Watch(name, [&] { ++woken; }), 0);
  const int64_t dropped = *registry_.Watch(name, [&] { ++unwatched; });
  registry_.Unwatch(name, dropped);
  running->Finish(Packed(Text("")));
  EXPECT_EQ(woken, 1);
  EXPECT_EQ(unwatched, 0);
  EXPECT_EQ(*registry_.Watch(name, [] { FAIL(); }), 0);
  EXPECT_EQ(registry_.Watch("operations/none", [] {}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(OperationsTest, TheEndOfAllWaitsWakesWatchesAndCancels) {
  auto running = Reserved();
  const std::string name = running->Publish({.kind = "work", .cancellable = true}).name();
  int woken = 0;
  EXPECT_GT(*registry_.Watch(name, [&] { ++woken; }), 0);
  registry_.EndWaits();
  EXPECT_EQ(woken, 1);
  EXPECT_TRUE(running->cancelled());
  EXPECT_EQ(*registry_.Watch(name, [] { FAIL(); }), 0);
  running->Finish(Packed(Text("")));
  EXPECT_EQ(woken, 1);
}

TEST_F(OperationsTest, WorkRunsOnAThreadOfThePoolAndItsResultIsTheOperations) {
  Supervisor supervisor(metrics_, RealClock());
  WorkerPool pool("test", 1, 2, supervisor);
  absl::Notification go;
  const auto begun =
      registry_.Run({.kind = "work", .metadata = Packed(Text("m"))}, pool,
                    [&](RunningOperation& operation) -> absl::StatusOr<google::protobuf::Any> {
                      go.WaitForNotification();
                      operation.SetMetadata(Text("at work"));
                      return Packed(Text("done"));
                    });
  ASSERT_TRUE(begun.ok()) << begun.status();
  EXPECT_FALSE(begun->done());
  absl::Notification ended;
  EXPECT_GT(*registry_.Watch(begun->name(), [&] { ended.Notify(); }), 0);
  go.Notify();
  ended.WaitForNotification();
  const auto operation = registry_.Get(begun->name());
  EXPECT_EQ(TextOf(operation->response()), "done");
  EXPECT_EQ(TextOf(operation->metadata()), "at work");
}

TEST(OperationsLifetimeTest, AnOperationMayOutliveItsRegistryAndWhatThatStoodOn) {
  auto clock = std::make_unique<SimulatedClock>(absl::UnixEpoch());
  auto metrics = std::make_unique<Metrics>();
  auto registry =
      std::make_unique<OperationRegistry>(OperationRegistry::Options(), *clock, *metrics);
  auto published = *registry->Reserve(), reserved = *registry->Reserve(),
       dropped = *registry->Reserve();
  published->Publish({.kind = "work"});
  registry.reset();
  metrics.reset();
  clock.reset();
  published->SetMetadata(Text("still here"));
  published->Finish(Packed(Text("nobody asks")));
  reserved->Publish({.kind = "work"});
  reserved.reset();
  dropped.reset();
  EXPECT_FALSE(published->cancelled());
}

}  // namespace
}  // namespace mneme
