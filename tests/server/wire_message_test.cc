#include "server/wire_message.h"

#include <string>

#include <grpcpp/support/slice.h>

#include "gtest/gtest.h"
#include "mneme/v1/mneme.pb.h"
#include "server/error.h"
#include "tests/server/rpc_matchers.h"

namespace mneme {
namespace {

grpc::ByteBuffer Buffer(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

constexpr int64_t kBytesMax = 1 << 20;

TEST(WireMessageTest, AMessageSurvivesTheWay) {
  v1::RetrieveRequest request, again;
  request.add_memories("tenants/a/memories/b");
  request.set_question("w\xc3\xa9r");
  ASSERT_TRUE(ParseMessage(SerializeMessage(request), kBytesMax, &again).ok());
  EXPECT_EQ(again.SerializeAsString(), request.SerializeAsString());
}

TEST(WireMessageTest, SlicesAreJoined) {
  v1::IngestRequest request, again;
  request.set_text(std::string(1000, 't'));
  const std::string bytes = request.SerializeAsString();
  const grpc::Slice slices[] = {grpc::Slice(bytes.substr(0, 500)), grpc::Slice(bytes.substr(500))};
  ASSERT_TRUE(ParseMessage(grpc::ByteBuffer(slices, 2), kBytesMax, &again).ok());
  EXPECT_EQ(again.text(), request.text());
}

TEST(WireMessageTest, ATooLargeMessageIsRefusedWithBothSizes) {
  v1::IngestRequest request, again;
  request.set_text(std::string(1000, 't'));
  const absl::Status status = ParseMessage(SerializeMessage(request), 999, &again);
  ExpectError(ToGrpcStatus(status, "", ""), grpc::RESOURCE_EXHAUSTED, "1003 bytes: at most 999",
              "MESSAGE_TOO_LARGE");
}

TEST(WireMessageTest, GarbageIsInvalid) {
  v1::RetrieveRequest request;
  const absl::Status status = ParseMessage(Buffer("\x0a\xff\xff"), kBytesMax, &request);
  ExpectError(ToGrpcStatus(status, "", ""), grpc::INVALID_ARGUMENT, "mneme.v1.RetrieveRequest",
              "MALFORMED_MESSAGE");
}

TEST(WireMessageTest, AStringThatIsNotUtf8IsNamedWithTheOffset) {
  v1::RetrieveRequest request;
  const absl::Status status = ParseMessage(Buffer("\x12\x04"
                                                  "ab\xff!"),
                                           kBytesMax, &request);
  ExpectFieldError(ToGrpcStatus(status, "", ""), "question", "not valid UTF-8 at byte 2");
}

TEST(WireMessageTest, AStringInsideAnotherMessageIsNamed) {
  // barriers { document: "\xff" }
  v1::RetrieveRequest request;
  const absl::Status status =
      ParseMessage(Buffer(std::string("\x2a\x03\x0a\x01\xff", 5)), kBytesMax, &request);
  ExpectFieldError(ToGrpcStatus(status, "", ""), "barriers.document", "at byte 0");
}

TEST(WireMessageTest, InvalidBytesAreReplacedOneByOne) {
  EXPECT_EQ(ReplaceInvalidUtf8("plain w\xc3\xa9"), "plain w\xc3\xa9");
  EXPECT_EQ(ReplaceInvalidUtf8("\xe2\x82"), "\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(ReplaceInvalidUtf8("a\xff"
                               "b"),
            "a\xef\xbf\xbd"
            "b");
  EXPECT_EQ(ReplaceInvalidUtf8(""), "");
}

}  // namespace
}  // namespace mneme
