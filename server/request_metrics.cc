#include "server/request_metrics.h"

#include <string>

#include "absl/time/clock.h"
#include "server/error.h"

namespace mneme {

absl::string_view MethodName(Method method) {
  static constexpr std::array<absl::string_view, kMethodCount> kNames = {
      "CreateMemory",    "GetMemory",      "ListMemories",   "UpdateMemory",   "DeleteMemory",
      "ForkMemory",      "CreateSnapshot", "ListSnapshots",  "DeleteSnapshot", "ListDocuments",
      "GetDocument",     "ReadDocument",   "DeleteDocument", "Ingest",         "Retrieve",
      "Generate",        "Score",          "GetStatus",      "ListOperations", "GetOperation",
      "CancelOperation", "WaitOperation",  "Verify",         "Repair",         "CreateBackup",
      "ListBackups",     "VerifyBackups",  "DeleteBackup",   "GetActivity"};
  return kNames[static_cast<int>(method)];
}

RequestMetrics::RequestMetrics(Metrics& metrics) {
  for (int m = 0; m < kMethodCount; ++m) {
    const std::string method(MethodName(static_cast<Method>(m)));
    for (int c = 0; c < kCodeCount; ++c) {
      const std::string code(CodeName(static_cast<absl::StatusCode>(c)));
      instruments_[m].requests[c] =
          &metrics.AddCounter("requests_total", "Requests that ended, by method and status code.",
                              {{"method", method}, {"code", code}});
    }
    instruments_[m].seconds =
        &metrics.AddHistogram("request_seconds", "Time from a request's arrival to its status.",
                              Metrics::LatencyBounds(), {{"method", method}});
    instruments_[m].in_flight =
        &metrics.AddGauge("requests_in_flight", "Requests being served.", {{"method", method}});
  }
}

void RequestMetrics::Started(Method method) {
  instruments_[static_cast<int>(method)].in_flight->Increment();
}

void RequestMetrics::Finished(Method method, grpc::StatusCode code, absl::Duration took) {
  Instruments& of_method = instruments_[static_cast<int>(method)];
  const int index = code >= 0 && code < kCodeCount ? code : grpc::StatusCode::UNKNOWN;
  of_method.requests[index]->Increment();
  of_method.seconds->Observe(absl::ToDoubleSeconds(took));
  of_method.in_flight->Decrement();
}

RequestRecord::RequestRecord(RequestMetrics& metrics, Method method)
    : metrics_(metrics), method_(method), begin_(absl::Now()) {
  metrics_.Started(method_);
}

RequestRecord::~RequestRecord() {
  if (!finished_) Finish(grpc::StatusCode::CANCELLED);
}

void RequestRecord::Finish(grpc::StatusCode code, absl::string_view resource) {
  finished_ = true;
  const absl::Time now = absl::Now();
  metrics_.Finished(method_, code, now - begin_);
  // How long these take their clients decide.
  if (method_ == Method::kIngest || method_ == Method::kWaitOperation) return;
  metrics_.slow().Add({.method = MethodName(method_),
                       .resource = std::string(resource),
                       .code = CodeName(static_cast<absl::StatusCode>(code)),
                       .end = now,
                       .took = now - begin_});
}

}  // namespace mneme
