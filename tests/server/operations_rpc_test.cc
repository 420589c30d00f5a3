// google.longrunning.Operations over a loopback channel.

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/client_context.h>

#include "absl/time/clock.h"
#include "google/longrunning/operations.grpc.pb.h"
#include "gtest/gtest.h"
#include "tests/server/fake_engine.h"
#include "tests/server/rpc_matchers.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

using google::longrunning::Operation;

class OperationsRpcTest : public ::testing::Test {
 protected:
  OperationsRpcTest()
      : server_(TestServer::Start(engine_)),
        stub_(google::longrunning::Operations::NewStub(server_->NewChannel())) {}

  std::shared_ptr<RunningOperation> Begin(const std::string& id, bool cancellable = false) {
    auto operation = *server_->server().operations().Reserve();
    operation->Publish({.id = id, .kind = "test", .tenant = "default", .cancellable = cancellable});
    return operation;
  }
  grpc::Status Get(const std::string& name, Operation* operation) {
    grpc::ClientContext context;
    google::longrunning::GetOperationRequest request;
    request.set_name(name);
    return stub_->GetOperation(&context, request, operation);
  }
  grpc::Status List(const google::longrunning::ListOperationsRequest& request,
                    google::longrunning::ListOperationsResponse* response) {
    grpc::ClientContext context;
    return stub_->ListOperations(&context, request, response);
  }
  grpc::Status Cancel(const std::string& name) {
    grpc::ClientContext context;
    google::longrunning::CancelOperationRequest request;
    request.set_name(name);
    google::protobuf::Empty empty;
    return stub_->CancelOperation(&context, request, &empty);
  }
  // timeout_seconds < 0: none.
  grpc::Status Wait(const std::string& name, int64_t timeout_seconds, Operation* operation,
                    grpc::ClientContext* context) {
    google::longrunning::WaitOperationRequest request;
    request.set_name(name);
    if (timeout_seconds >= 0) request.mutable_timeout()->set_seconds(timeout_seconds);
    return stub_->WaitOperation(context, request, operation);
  }
  // Until a WaitOperation is being served.
  void AwaitWaiting() {
    while (server_->metrics().Expose().find(
               "mneme_requests_in_flight{method=\"WaitOperation\"} 1") == std::string::npos) {
      absl::SleepFor(absl::Milliseconds(1));
    }
  }

  static google::protobuf::Any Result() {
    google::protobuf::StringValue value;
    value.set_value("result");
    return Packed(value);
  }

  FakeEngine engine_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<google::longrunning::Operations::Stub> stub_;
};

TEST_F(OperationsRpcTest, AnOperationIsFoundByItsName) {
  auto running = Begin("one");
  Operation operation;
  ASSERT_TRUE(Get("operations/one", &operation).ok());
  EXPECT_EQ(operation.name(), "operations/one");
  EXPECT_FALSE(operation.done());
  const grpc::Status status = Get("operations/two", &operation);
  ExpectError(status, grpc::NOT_FOUND, "operations/two", "RESOURCE_NOT_FOUND");
  EXPECT_EQ(DetailsOf(status).info->metadata().at("method"), "GetOperation");
}

TEST_F(OperationsRpcTest, AWaitEndsWithTheOperation) {
  auto running = Begin("one");
  std::thread finisher([&] {
    AwaitWaiting();
    running->Finish(Result());
  });
  grpc::ClientContext context;
  Operation operation;
  const grpc::Status status = Wait("operations/one", -1, &operation, &context);
  finisher.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(operation.done());
  EXPECT_EQ(operation.response().type_url(), Result().type_url());
  // One that has ended is not waited for.
  grpc::ClientContext again;
  ASSERT_TRUE(Wait("operations/one", -1, &operation, &again).ok());
  EXPECT_TRUE(operation.done());
}

TEST_F(OperationsRpcTest, AWaitWhoseTimeIsUpAnswersWithTheStateSoFar) {
  auto running = Begin("one");
  grpc::ClientContext context;
  Operation operation;
  ASSERT_TRUE(Wait("operations/one", 0, &operation, &context).ok());
  EXPECT_EQ(operation.name(), "operations/one");
  EXPECT_FALSE(operation.done());
}

TEST_F(OperationsRpcTest, AWaitOfNoneOrOfLessThanNoTimeIsRefused) {
  auto running = Begin("one");
  Operation operation;
  grpc::ClientContext unknown, negative;
  ExpectError(Wait("operations/none", -1, &operation, &unknown), grpc::NOT_FOUND, "operations/none",
              "RESOURCE_NOT_FOUND");
  google::longrunning::WaitOperationRequest request;
  request.set_name("operations/one");
  request.mutable_timeout()->set_seconds(-3);
  ExpectFieldError(stub_->WaitOperation(&negative, request, &operation), "timeout", "-3s");
}

TEST_F(OperationsRpcTest, AWaitWhoseClientGoesLeavesTheOperationAlone) {
  auto running = Begin("one");
  grpc::ClientContext context;
  std::thread leaver([&] {
    AwaitWaiting();
    context.TryCancel();
  });
  Operation operation;
  EXPECT_EQ(Wait("operations/one", -1, &operation, &context).error_code(), grpc::CANCELLED);
  leaver.join();
  ASSERT_TRUE(Get("operations/one", &operation).ok());
  EXPECT_FALSE(operation.done());
}

TEST_F(OperationsRpcTest, ADrainEndsAWaitAsUnavailable) {
  auto running = Begin("one");
  std::thread stopper([&] {
    AwaitWaiting();
    server_->Stop(absl::Now() + absl::Seconds(60));
  });
  grpc::ClientContext context;
  Operation operation;
  const grpc::Status status = Wait("operations/one", -1, &operation, &context);
  stopper.join();
  ExpectError(status, grpc::UNAVAILABLE, "stopping", "SERVER_DRAINING");
}

TEST_F(OperationsRpcTest, AListComesInPagesOfItsOwn) {
  auto a = Begin("a"), b = Begin("b"), c = Begin("c");
  google::longrunning::ListOperationsRequest request;
  request.set_name("tenants/default");
  request.set_page_size(2);
  google::longrunning::ListOperationsResponse first, second;
  ASSERT_TRUE(List(request, &first).ok());
  ASSERT_EQ(first.operations_size(), 2);
  EXPECT_EQ(first.operations(0).name(), "operations/a");
  request.set_page_token(first.next_page_token());
  ASSERT_TRUE(List(request, &second).ok());
  ASSERT_EQ(second.operations_size(), 1);
  EXPECT_EQ(second.operations(0).name(), "operations/c");
  EXPECT_EQ(second.next_page_token(), "");

  request.set_name("");
  ExpectFieldError(List(request, &second), "page_token", "another list");
  request.clear_page_token();
  request.set_filter("done=true");
  ExpectFieldError(List(request, &second), "filter", "not supported");
  request.clear_filter();
  request.set_name("tenants/nobody");
  ExpectError(List(request, &second), grpc::NOT_FOUND, "nobody", "TENANT_NOT_FOUND");
}

TEST_F(OperationsRpcTest, CancellingAsksThoseThatCanBe) {
  auto stubborn = Begin("stubborn"), willing = Begin("willing", /*cancellable=*/true);
  ExpectError(Cancel("operations/stubborn"), grpc::FAILED_PRECONDITION, "stubborn",
              "NOT_CANCELLABLE");
  ASSERT_TRUE(Cancel("operations/willing").ok());
  EXPECT_TRUE(willing->cancelled());
  ExpectError(Cancel("operations/none"), grpc::NOT_FOUND, "none", "RESOURCE_NOT_FOUND");
}

}  // namespace
}  // namespace mneme
