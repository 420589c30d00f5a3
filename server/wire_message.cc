#include "server/wire_message.h"

#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/support/slice.h>

#include "absl/strings/str_cat.h"
#include "common/utf8.h"
#include "server/error.h"

namespace mneme {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownFieldSet;

// The first string field of the message whose bytes are not UTF-8: protobuf's parser refuses it
// without a name.
absl::Status CheckStrings(const UnknownFieldSet& fields, const Descriptor& type,
                          const std::string& prefix) {
  for (int i = 0; i < fields.field_count(); ++i) {
    const auto& field = fields.field(i);
    const FieldDescriptor* known = type.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED) {
      continue;
    }
    const std::string& bytes = field.length_delimited();
    const std::string name = absl::StrCat(prefix, known->name());
    if (known->type() == FieldDescriptor::TYPE_STRING) {
      const size_t valid = ValidUtf8Prefix(bytes).valid_bytes;
      if (valid < bytes.size()) {
        return FieldError(name, absl::StrCat(valid),
                          absl::StrCat("not valid UTF-8 at byte ", valid));
      }
    } else if (known->type() == FieldDescriptor::TYPE_MESSAGE) {
      UnknownFieldSet inner;
      if (!inner.ParseFromString(bytes)) continue;
      absl::Status status = CheckStrings(inner, *known->message_type(), absl::StrCat(name, "."));
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseMessage(const grpc::ByteBuffer& buffer, int64_t bytes_max,
                          google::protobuf::Message* message) {
  const int64_t length = static_cast<int64_t>(buffer.Length());
  if (length > bytes_max) {
    return WithReason(absl::ResourceExhaustedError(absl::StrCat("request message of ", length,
                                                                " bytes: at most ", bytes_max)),
                      "MESSAGE_TOO_LARGE",
                      {{"bytes", absl::StrCat(length)}, {"limit", absl::StrCat(bytes_max)}});
  }
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) {
    return WithReason(absl::InvalidArgumentError("request message cannot be decompressed"),
                      "MALFORMED_MESSAGE");
  }
  // One slice is the common case and is parsed where it lies.
  std::string joined;
  absl::string_view bytes;
  if (slices.size() == 1) {
    bytes = {reinterpret_cast<const char*>(slices[0].begin()), slices[0].size()};
  } else {
    joined.reserve(length);
    for (const grpc::Slice& slice : slices) {
      joined.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    bytes = joined;
  }
  if (message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::OkStatus();
  }
  UnknownFieldSet fields;
  if (fields.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    absl::Status status = CheckStrings(fields, *message->GetDescriptor(), "");
    if (!status.ok()) return status;
  }
  return WithReason(absl::InvalidArgumentError(absl::StrCat(
                        "request is not a ", message->GetDescriptor()->full_name(), " message")),
                    "MALFORMED_MESSAGE");
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message) {
  const size_t length = message.ByteSizeLong();
  grpc::Slice slice(length);
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

std::string ReplaceInvalidUtf8(absl::string_view text) {
  std::string valid;
  while (true) {
    const size_t prefix = ValidUtf8Prefix(text).valid_bytes;
    absl::StrAppend(&valid, text.substr(0, prefix));
    if (prefix == text.size()) return valid;
    absl::StrAppend(&valid, "\xef\xbf\xbd");  // U+FFFD
    text.remove_prefix(prefix + 1);
  }
}

}  // namespace mneme
