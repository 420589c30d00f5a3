// Counts and times requests by method and code. All label sets exist from the start, so dashboards
// have data at once.

#ifndef MNEME_SERVER_REQUEST_METRICS_H_
#define MNEME_SERVER_REQUEST_METRICS_H_

#include <array>

#include <grpcpp/support/status.h>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "server/slow_requests.h"

namespace mneme {

// The methods of mneme.v1.MemoryService, in the order of the proto; after them those of
// google.longrunning.Operations and of mneme.v1.AdminService, in the order of theirs.
enum class Method {
  kCreateMemory,
  kGetMemory,
  kListMemories,
  kUpdateMemory,
  kDeleteMemory,
  kForkMemory,
  kCreateSnapshot,
  kListSnapshots,
  kDeleteSnapshot,
  kListDocuments,
  kGetDocument,
  kReadDocument,
  kDeleteDocument,
  kIngest,
  kRetrieve,
  kGenerate,
  kScore,
  kGetStatus,
  kListOperations,
  kGetOperation,
  kCancelOperation,
  kWaitOperation,
  kVerify,
  kRepair,
  kCreateBackup,
  kListBackups,
  kVerifyBackups,
  kDeleteBackup,
  kGetActivity,
};
inline constexpr int kMemoryMethodCount = static_cast<int>(Method::kGetStatus) + 1;
inline constexpr int kFirstAdminMethod = static_cast<int>(Method::kVerify);
inline constexpr int kMethodCount = static_cast<int>(Method::kGetActivity) + 1;

// "CreateMemory", ...
absl::string_view MethodName(Method method);

// Thread-safe.
class RequestMetrics {
 public:
  explicit RequestMetrics(Metrics& metrics);

  void Started(Method method);
  void Finished(Method method, grpc::StatusCode code, absl::Duration took);
  // Of the requests whose end was told with RequestRecord::Finish.
  SlowRequests& slow() { return slow_; }

 private:
  static constexpr int kCodeCount = 17;
  struct Instruments {
    std::array<Counter*, kCodeCount> requests;
    Histogram* seconds;
    Gauge* in_flight;
  };
  std::array<Instruments, kMethodCount> instruments_;
  SlowRequests slow_;
};

// One request: in flight until Finish. Thread-compatible.
class RequestRecord {
 public:
  RequestRecord(RequestMetrics& metrics, Method method);
  // Counts an unfinished request as CANCELLED.
  ~RequestRecord();
  RequestRecord(const RequestRecord&) = delete;
  RequestRecord& operator=(const RequestRecord&) = delete;

  // `resource`: what the request named first.
  void Finish(grpc::StatusCode code, absl::string_view resource = "");

 private:
  RequestMetrics& metrics_;
  const Method method_;
  const absl::Time begin_;
  bool finished_ = false;
};

}  // namespace mneme

#endif  // MNEME_SERVER_REQUEST_METRICS_H_
