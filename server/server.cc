#include "server/server.h"

#include <algorithm>
#include <functional>
#include <utility>

#include <google/protobuf/stubs/logging.h>
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// The transport takes messages this much larger than the limit, so that the refusal can carry an
// ErrorInfo.
constexpr int kTransportSlack = 4;

// Log lines of gRPC and protobuf are for developers.
void LogGrpc(gpr_log_func_args* args) {
  Log(LogLevel::kDebug, "grpc", args->message,
      {{"file", args->file}, {"line", absl::StrCat(args->line)}});
}

void LogProtobuf(google::protobuf::LogLevel, const char* file, int line,
                 const std::string& message) {
  Log(LogLevel::kDebug, "protobuf", message, {{"file", file}, {"line", absl::StrCat(line)}});
}

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(duration), 1 << 30));
}

void SetLimits(const ServerOptions& options, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(options.message_bytes_max * kTransportSlack));
  builder->SetMaxSendMessageSize(-1);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.connection_streams_max);
  // A second server on the same port must fail, not share it.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Dead connections are found by probes; clients may probe too, even between calls.
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive_interval));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                              Milliseconds(options.keepalive_timeout));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  // Reflection is a synchronous service: one or two threads of its own.
  builder->SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder->SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
  builder->SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, Parts parts) {
  gpr_set_log_function(LogGrpc);
  google::protobuf::SetLogHandler(LogProtobuf);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<Server> server(new Server(parts.readiness));
  ASSIGN_OR_RETURN(server->address_, ParseListenAddress(options.listen));
  RETURN_IF_ERROR(ProbeListenAddress(server->address_));
  const std::function<std::vector<TierUse>()> tiers = parts.info.tiers;
  server->memory_service_ = std::make_unique<MemoryService>(
      options, parts.limits, parts.engine, std::move(parts.info), std::move(parts.http_address),
      parts.readiness, parts.supervisor);
  server->operations_service_ = std::make_unique<OperationsService>(
      server->memory_service_->environment(), server->memory_service_->check(),
      server->memory_service_->operations());
  server->admin_service_ = std::make_unique<AdminService>(
      server->memory_service_->environment(), server->memory_service_->check(),
      server->memory_service_->operations(), parts.engine, tiers, parts.supervisor);
  server->health_service_ = std::make_unique<HealthService>(parts.readiness);

  grpc::ServerBuilder builder;
  SetLimits(options, &builder);
  builder.AddListeningPort(server->address_.ToString(), grpc::InsecureServerCredentials(),
                           &server->address_.port);
  builder.RegisterService(server->memory_service_.get());
  builder.RegisterService(server->operations_service_.get());
  builder.RegisterService(server->admin_service_.get());
  builder.RegisterService(server->health_service_.get());
  server->grpc_ = builder.BuildAndStart();
  if (server->grpc_ == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.listen));
  }
  return server;
}

Server::~Server() {
  if (grpc_ != nullptr && !drained_) Drain(absl::Now());
}

void Server::Drain(absl::Time deadline) {
  drained_ = true;
  readiness_.Drain();
  health_service_->EndWatches();
  memory_service_->operations().EndWaits();
  memory_service_->DrainIngest();
  grpc_->Shutdown(absl::ToChronoTime(deadline));
  grpc_->Wait();
}

}  // namespace mneme
