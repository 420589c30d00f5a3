// Protobuf messages from and to the raw bytes of gRPC, so that a message that does not parse gets
// an error of ours that names the field, and parsing runs on our worker threads.

#ifndef MNEME_SERVER_WIRE_MESSAGE_H_
#define MNEME_SERVER_WIRE_MESSAGE_H_

#include <cstdint>
#include <string>

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace mneme {

// Parses `buffer`. INVALID_ARGUMENT: malformed, or a string field is not UTF-8 (the field and byte
// offset are named); RESOURCE_EXHAUSTED: longer than `bytes_max`.
absl::Status ParseMessage(const grpc::ByteBuffer& buffer, int64_t bytes_max,
                          google::protobuf::Message* message);

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

// `text` with each byte that is not valid UTF-8 replaced by U+FFFD: fit for a protobuf string
// field.
std::string ReplaceInvalidUtf8(absl::string_view text);

}  // namespace mneme

#endif  // MNEME_SERVER_WIRE_MESSAGE_H_
