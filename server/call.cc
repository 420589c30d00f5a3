#include "server/call.h"

#include <chrono>

#include <google/protobuf/descriptor.h>

#include "common/log.h"
#include "common/status_macros.h"
#include "common/utf8.h"
#include "server/error.h"

namespace mneme {
namespace {

// Of what a request names, in logs and among the slow requests: more than any valid name has.
constexpr size_t kResourceBytesMax = 512;

}  // namespace

CallContext MakeCallContext(const grpc::CallbackServerContext& context) {
  CallContext call;
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    call.deadline = absl::FromChrono(deadline);
  }
  call.cancelled = [&context] { return context.IsCancelled(); };
  return call;
}

absl::Status CheckBegin(const CallEnvironment& environment, const CallContext& context) {
  if (environment.readiness.draining()) return DrainingError();
  return context.Check();
}

std::string RequestResource(const google::protobuf::Message& request) {
  const google::protobuf::Descriptor& type = *request.GetDescriptor();
  const google::protobuf::Reflection& reflection = *request.GetReflection();
  for (const char* name : {"name", "parent", "document", "memories"}) {
    const google::protobuf::FieldDescriptor* field = type.FindFieldByName(name);
    if (field == nullptr) continue;
    if (!field->is_repeated()) return reflection.GetString(request, field);
    if (reflection.FieldSize(request, field) > 0) {
      return reflection.GetRepeatedString(request, field, 0);
    }
  }
  return "";
}

grpc::Status EndCall(const absl::Status& status, Method method, absl::string_view resource,
                     RequestRecord& record) {
  resource = resource.substr(0, Utf8CutBytes(resource, kResourceBytesMax));
  if (status.code() == absl::StatusCode::kInternal || absl::IsDataLoss(status) ||
      absl::IsUnknown(status)) {
    LogError("server", "request failed",
             {{"method", std::string(MethodName(method))},
              {"code", std::string(CodeName(status.code()))},
              {"resource", std::string(resource)},
              {"message", std::string(status.message())}});
  }
  grpc::Status wire = ToGrpcStatus(status, MethodName(method), resource);
  record.Finish(wire.error_code(), resource);
  return wire;
}

}  // namespace mneme
