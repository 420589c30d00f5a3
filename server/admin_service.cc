#include "server/admin_service.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include <google/protobuf/empty.pb.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "memory_store/backup_directory.h"
#include "memory_store/table_name.h"
#include "mneme_version.h"
#include "server/error.h"
#include "server/unary_call.h"

namespace mneme {
namespace {

using google::longrunning::Operation;
using google::protobuf::Any;
using grpc::ByteBuffer;

// A call answers at once; the work of an operation may take hours.
constexpr int kCallThreads = 2;
constexpr int kQueueMax = 64;
constexpr int kSlowRequestsDefault = 10;
constexpr int kSlowRequestsMax = 100;
// Progress is told at most so often.
constexpr absl::Duration kProgressEvery = absl::Milliseconds(100);

void SetTimestamp(absl::Time time, google::protobuf::Timestamp* timestamp) {
  const int64_t nanos = absl::ToUnixNanos(time);
  timestamp->set_seconds(nanos / 1'000'000'000);
  timestamp->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
}

absl::Status CancelledByCaller() {
  return absl::CancelledError("the operation was cancelled, or the server stops");
}

v1::CheckProgress ToProgress(const StoreCheckReport& report, int64_t bytes_total) {
  v1::CheckProgress progress;
  progress.set_bytes_read(report.bytes_read());
  progress.set_bytes_total(bytes_total);
  progress.set_documents(report.documents);
  progress.set_found(report.found_count());
  progress.set_healed(report.healed_count());
  return progress;
}

v1::Finding ToMessage(const StoreFinding& finding) {
  v1::Finding message;
  // The order of the proto's, after KIND_UNSPECIFIED.
  message.set_kind(static_cast<v1::Finding::Kind>(static_cast<int>(finding.kind) + 1));
  if (!finding.document_id.empty()) {
    message.set_document(
        ResourceName{finding.tenant, finding.memory_id, finding.document_id}.ToString());
  }
  message.set_byte_begin(finding.byte_begin);
  message.set_byte_end(finding.byte_end);
  message.set_file(finding.file);
  message.set_what(finding.what);
  message.set_healed(finding.healed);
  return message;
}

v1::CheckReport ToMessage(const StoreCheckReport& report) {
  v1::CheckReport message;
  const auto add_read = [&](const char* what, const StoreCheckReport::Read& read) {
    v1::CheckReport::Read* of = message.add_read();
    of->set_what(what);
    of->set_count(read.count);
    of->set_bytes(read.bytes);
  };
  add_read("files", report.files);
  for (int table = 0; table < kTableCount; ++table) {
    add_read(kTableNames[table], report.records[table]);
  }
  message.set_documents(report.documents);
  message.set_segments_without_pages(report.segments_without_pages);
  message.set_found(report.found_count());
  message.set_healed(report.healed_count());
  for (const StoreFinding& finding : report.findings) *message.add_findings() = ToMessage(finding);
  return message;
}

v1::Backup ToMessage(const BackupInfo& info) {
  v1::Backup message;
  message.set_id(info.id);
  SetTimestamp(info.create_time, message.mutable_create_time());
  message.set_version(info.version);
  message.set_fingerprint(absl::StrFormat("%016x", info.fingerprint));
  message.set_memory_count(info.memories);
  message.set_document_count(info.documents);
  message.set_durable_bytes(info.durable_bytes);
  message.set_file_count(info.files);
  message.set_bytes(info.bytes);
  message.set_damage(info.damage);
  message.set_store(info.store);
  message.set_mended_file_count(info.mended_files);
  return message;
}

v1::BackupCheck ToMessage(const CheckedBackup& checked) {
  v1::BackupCheck message;
  *message.mutable_backup() = ToMessage(checked.info);
  for (const BackupDamage& damage : checked.damage) {
    v1::DamagedBackupFile* file = message.add_damaged_files();
    file->set_name(damage.file);
    file->set_derived(damage.is_derived);
    file->set_what(damage.what);
  }
  return message;
}

// What a live view needs, by the beginning of the line.
bool IsOfActivity(absl::string_view line) {
  static constexpr absl::string_view kNames[] = {"mneme_tier_",
                                                 "mneme_page_reads_total",
                                                 "mneme_pages_rederived_total",
                                                 "mneme_engine_queue_",
                                                 "mneme_worker_queue_",
                                                 "mneme_quota_",
                                                 "mneme_watermark_",
                                                 "mneme_ingest_held",
                                                 "mneme_thread_alive",
                                                 "mneme_worker_busy_threads",
                                                 "mneme_requests_in_",
                                                 "mneme_requests_total",
                                                 "mneme_ingest_bytes_total",
                                                 "mneme_ingest_tokens_",
                                                 "mneme_ingest_streams",
                                                 "mneme_ingest_backlog_bytes",
                                                 "mneme_generated_",
                                                 "mneme_landmarks_scanned_",
                                                 "mneme_writers",
                                                 "mneme_scrub_",
                                                 "mneme_backup",
                                                 "mneme_purge",
                                                 "mneme_recovery_documents_left",
                                                 "mneme_documents",
                                                 "mneme_durable_bytes",
                                                 "mneme_visible_bytes",
                                                 "mneme_chunks"};
  return std::any_of(std::begin(kNames), std::end(kNames),
                     [line](absl::string_view name) { return absl::StartsWith(line, name); });
}

// Lets something happen at most every kProgressEvery.
class Pace {
 public:
  bool Due() {
    const absl::Time now = absl::Now();
    if (now < next_) return false;
    next_ = now + kProgressEvery;
    return true;
  }

 private:
  absl::Time next_ = absl::InfinitePast();
};

}  // namespace

AdminService::AdminService(const CallEnvironment& environment, const ResourceCheck& check,
                           OperationRegistry& operations, Engine& engine,
                           std::function<std::vector<TierUse>()> tiers, Supervisor& supervisor)
    : environment_(environment),
      check_(check),
      operations_(operations),
      engine_(engine),
      tiers_(std::move(tiers)),
      metrics_(supervisor.metrics()),
      backups_(supervisor.metrics().AddCounter("backups_total", "Backups made.")),
      failed_backups_(
          supervisor.metrics().AddCounter("backup_failures_total", "Backups that failed.")),
      copied_bytes_(
          supervisor.metrics().AddCounter("backup_copied_bytes_total", "Bytes copied by backups.")),
      damaged_files_(supervisor.metrics().AddCounter(
          "backup_damaged_files_total",
          "Files of backups that were found damaged, by a backup (which copies them anew) or by a "
          "check of the backups.")),
      last_backup_(supervisor.metrics().AddGauge(
          "backup_last_timestamp_seconds",
          "When the newest backup was made, seconds since the epoch; 0: "
          "there is none.")),
      call_pool_("admin", kCallThreads, kQueueMax, supervisor),
      // Never full: the registry refuses before.
      operation_pool_("admin_operation", environment.options.operation_threads,
                      environment.options.operations_max, supervisor) {
  if (!environment.options.backup_dir.empty()) {
    const auto backups = BackupDirectory::List(environment.options.backup_dir);
    for (const BackupInfo& info : backups.value_or(std::vector<BackupInfo>())) {
      if (!info.damage.empty()) continue;
      last_backup_.Set(absl::ToDoubleSeconds(info.create_time - absl::UnixEpoch()));
    }
  }
  AddUnary<v1::VerifyRequest, Operation>(Method::kVerify, [this](const auto& request, const auto&) {
    return BeginCheck(request.memory(), /*heal=*/false);
  });
  AddUnary<v1::RepairRequest, Operation>(Method::kRepair, [this](const auto& request, const auto&) {
    return BeginCheck(request.memory(), /*heal=*/true);
  });
  AddUnary<v1::CreateBackupRequest, Operation>(
      Method::kCreateBackup, [this](const auto&, const auto&) { return BeginBackup(); });
  AddUnary<v1::ListBackupsRequest, v1::ListBackupsResponse>(
      Method::kListBackups, [this](const auto&, const auto&) { return KnownBackups(); });
  AddUnary<v1::VerifyBackupsRequest, Operation>(
      Method::kVerifyBackups,
      [this](const auto& request, const auto&) { return BeginVerifyBackups(request.id()); });
  AddUnary<v1::DeleteBackupRequest, google::protobuf::Empty>(
      Method::kDeleteBackup,
      [this](const auto& request, const auto&) -> absl::StatusOr<google::protobuf::Empty> {
        RETURN_IF_ERROR(RemoveBackup(request.id()));
        return google::protobuf::Empty();
      });
  AddUnary<v1::GetActivityRequest, v1::Activity>(Method::kGetActivity,
                                                 [this](const auto& request, const auto&) {
                                                   return ActivityNow(request.slow_requests_max());
                                                 });
}

AdminService::~AdminService() = default;

template <typename Request, typename Response>
void AdminService::AddUnary(
    Method method,
    std::function<absl::StatusOr<Response>(const Request&, const CallContext&)> handler) {
  MarkMethodRawCallback(
      static_cast<int>(method) - kFirstAdminMethod,
      new grpc::internal::CallbackUnaryHandler<ByteBuffer, ByteBuffer>(
          [this, method, handler = std::move(handler)](grpc::CallbackServerContext* context,
                                                       const ByteBuffer* request,
                                                       ByteBuffer* response) {
            return UnaryCall<Request, Response>::Start(environment_, method, call_pool_, handler,
                                                       context, request, response);
          }));
}

absl::StatusOr<Operation> AdminService::BeginCheck(const std::string& memory, bool heal) {
  std::string tenant;
  if (!memory.empty()) {
    ASSIGN_OR_RETURN(const ResourceName name, check_.Memory("memory", memory));
    RETURN_IF_ERROR(engine_.GetMemory(memory).status());
    tenant = name.tenant;
  }
  // The files, and then what is in them.
  int64_t bytes_total = 0;
  for (const TierUse& tier : tiers_ ? tiers_() : std::vector<TierUse>()) {
    if (tier.name == "disk") bytes_total = 2 * tier.used_bytes;
  }
  return operations_.Run(
      {.kind = heal ? "repair" : "verify",
       .tenant = tenant,
       .metadata = Packed(ToProgress(StoreCheckReport(), bytes_total)),
       .cancellable = true},
      operation_pool_,
      [this, memory, heal, bytes_total](RunningOperation& operation) -> absl::StatusOr<Any> {
        Pace pace;
        ASSIGN_OR_RETURN(const StoreCheckReport report,
                         engine_.CheckStore(memory, heal, [&](const StoreCheckReport& so_far) {
                           if (operation.cancelled()) return CancelledByCaller();
                           if (pace.Due()) operation.SetMetadata(ToProgress(so_far, bytes_total));
                           return absl::OkStatus();
                         }));
        operation.SetMetadata(ToProgress(report, report.bytes_read()));
        return Packed(ToMessage(report));
      });
}

absl::Status AdminService::CheckBackupDir() const {
  if (!environment_.options.backup_dir.empty()) return absl::OkStatus();
  return WithReason(absl::FailedPreconditionError(
                        "no backup directory is configured: set store.backup_dir of the server"),
                    "NO_BACKUP_DIRECTORY");
}

absl::StatusOr<Operation> AdminService::BeginBackup() {
  RETURN_IF_ERROR(CheckBackupDir());
  return operations_.Run(
      {.kind = "backup", .metadata = Packed(v1::BackupProgress()), .cancellable = true},
      operation_pool_, [this](RunningOperation& operation) {
        absl::StatusOr<Any> result = Backup(operation);
        (result.ok() ? backups_ : failed_backups_).Increment();
        return result;
      });
}

absl::StatusOr<Any> AdminService::Backup(RunningOperation& operation) {
  ASSIGN_OR_RETURN(const std::unique_ptr<BackupDirectory> directory,
                   BackupDirectory::Open(environment_.options.backup_dir));
  Pace pace;
  int64_t bytes_told = 0;
  v1::BackupProgress progress;
  const auto step = [&](const BackupProgress& now) {
    if (operation.cancelled()) return CancelledByCaller();
    copied_bytes_.Increment(
        static_cast<double>(now.bytes_copied - std::exchange(bytes_told, now.bytes_copied)));
    progress.set_bytes_total(now.bytes_total);
    progress.set_bytes_copied(now.bytes_copied);
    progress.set_bytes_shared(now.bytes_shared);
    if (pace.Due()) operation.SetMetadata(progress);
    return absl::OkStatus();
  };
  ASSIGN_OR_RETURN(const BackupInfo info, engine_.CreateBackup(*directory, kMnemeVersion, step));
  last_backup_.Set(absl::ToDoubleSeconds(info.create_time - absl::UnixEpoch()));
  damaged_files_.Increment(static_cast<double>(info.mended_files));
  operation.SetMetadata(progress);
  return Packed(ToMessage(info));
}

absl::StatusOr<v1::ListBackupsResponse> AdminService::KnownBackups() const {
  RETURN_IF_ERROR(CheckBackupDir());
  ASSIGN_OR_RETURN(const std::vector<BackupInfo> infos,
                   BackupDirectory::List(environment_.options.backup_dir));
  v1::ListBackupsResponse response;
  for (const BackupInfo& info : infos) *response.add_backups() = ToMessage(info);
  return response;
}

absl::StatusOr<Operation> AdminService::BeginVerifyBackups(int64_t id) {
  RETURN_IF_ERROR(CheckBackupDir());
  if (id < 0) return FieldError("id", absl::StrCat(id), "must not be negative");
  return operations_.Run(
      {.kind = "verify-backups", .metadata = Packed(v1::BackupProgress()), .cancellable = true},
      operation_pool_,
      [this, id](RunningOperation& operation) { return VerifyCopies(id, operation); });
}

absl::StatusOr<Any> AdminService::VerifyCopies(int64_t id, RunningOperation& operation) {
  const std::string& directory = environment_.options.backup_dir;
  ASSIGN_OR_RETURN(const std::vector<BackupInfo> listed, BackupDirectory::List(directory));
  v1::VerifyBackupsResponse response;
  // The directory may not be there yet.
  if (listed.empty() && id == 0) return Packed(response);
  Pace pace;
  ASSIGN_OR_RETURN(const std::vector<CheckedBackup> checked,
                   BackupDirectory::Check(directory, id, [&](const BackupProgress& now) {
                     if (operation.cancelled()) return CancelledByCaller();
                     v1::BackupProgress progress;
                     progress.set_bytes_total(now.bytes_total);
                     progress.set_bytes_shared(now.bytes_shared);
                     if (pace.Due()) operation.SetMetadata(progress);
                     return absl::OkStatus();
                   }));
  std::set<std::string> damaged;  // files, each once, whichever backups have it
  for (const CheckedBackup& backup : checked) {
    for (const BackupDamage& damage : backup.damage) damaged.insert(damage.what);
    *response.add_backups() = ToMessage(backup);
  }
  damaged_files_.Increment(static_cast<double>(damaged.size()));
  return Packed(response);
}

absl::Status AdminService::RemoveBackup(int64_t id) const {
  RETURN_IF_ERROR(CheckBackupDir());
  if (id <= 0) return FieldError("id", absl::StrCat(id), "an id above 0 is expected");
  ASSIGN_OR_RETURN(const std::unique_ptr<BackupDirectory> directory,
                   BackupDirectory::Open(environment_.options.backup_dir));
  return directory->Delete(id);
}

absl::StatusOr<v1::Activity> AdminService::ActivityNow(int slow_requests_max) const {
  if (slow_requests_max < 0) {
    return FieldError("slow_requests_max", absl::StrCat(slow_requests_max), "must not be negative");
  }
  if (slow_requests_max == 0) slow_requests_max = kSlowRequestsDefault;
  v1::Activity activity;
  const absl::Time now = absl::Now();
  SetTimestamp(now, activity.mutable_time());
  const std::string exposed = metrics_.Expose();
  for (absl::string_view line : absl::StrSplit(exposed, '\n', absl::SkipEmpty())) {
    const size_t space = line.rfind(' ');
    double value = 0;
    if (!IsOfActivity(line) || space == absl::string_view::npos ||
        !absl::SimpleAtod(line.substr(space + 1), &value)) {
      continue;
    }
    v1::Activity::Sample* sample = activity.add_samples();
    sample->set_series(std::string(line.substr(0, space)));
    sample->set_value(value);
  }
  for (const SlowRequests::Request& slow : environment_.metrics.slow().List(
           static_cast<size_t>(std::min(slow_requests_max, kSlowRequestsMax)), now)) {
    v1::SlowRequest* request = activity.add_slow_requests();
    request->set_method(std::string(slow.method));
    request->set_resource(slow.resource);
    SetTimestamp(slow.end, request->mutable_end_time());
    request->set_seconds(absl::ToDoubleSeconds(slow.took));
    request->set_code(std::string(slow.code));
  }
  return activity;
}

}  // namespace mneme
