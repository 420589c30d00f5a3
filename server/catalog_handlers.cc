#include "server/catalog_handlers.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include <google/protobuf/timestamp.pb.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "mneme_version.h"
#include "server/error.h"
#include "server/page_token.h"

namespace mneme {
namespace {

constexpr size_t kDisplayNameBytesMax = 256;

void SetTimestamp(absl::Time time, google::protobuf::Timestamp* timestamp) {
  const int64_t nanos = absl::ToUnixNanos(time);
  timestamp->set_seconds(nanos / 1'000'000'000);
  timestamp->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
}

v1::Memory ToMessage(const MemoryStat& stat) {
  v1::Memory memory;
  memory.set_name(ResourceName{stat.info.tenant, stat.info.id, ""}.ToString());
  memory.set_display_name(stat.info.display_name);
  SetTimestamp(stat.info.create_time, memory.mutable_create_time());
  memory.set_document_count(stat.totals.documents);
  memory.set_durable_bytes(stat.totals.durable_bytes);
  memory.set_visible_bytes(stat.totals.visible_bytes);
  memory.set_token_count(stat.totals.tokens);
  memory.set_chunk_count(stat.totals.chunks);
  memory.set_retention(stat.info.policy.retention == Retention::kText ? v1::Memory::TEXT
                                                                      : v1::Memory::KEEP);
  if (const absl::Duration ttl = stat.info.policy.ttl; ttl != absl::InfiniteDuration()) {
    const int64_t micros = absl::ToInt64Microseconds(ttl);
    memory.mutable_ttl()->set_seconds(micros / 1'000'000);
    memory.mutable_ttl()->set_nanos(static_cast<int32_t>(micros % 1'000'000 * 1000));
  }
  if (const std::optional<MemoryBase>& base = stat.info.base; base.has_value()) {
    if (!base->memory_id.empty()) {
      memory.set_base(ResourceName{stat.info.tenant, base->memory_id, ""}.ToString());
    }
    SetTimestamp(base->as_of, memory.mutable_base_time());
  }
  memory.set_quota_bytes(stat.info.policy.quota_bytes);
  return memory;
}

v1::Snapshot ToMessage(const SnapshotInfo& info, ResourceName name) {
  name.snapshot = info.id;
  v1::Snapshot snapshot;
  snapshot.set_name(name.ToString());
  SetTimestamp(info.as_of, snapshot.mutable_as_of());
  SetTimestamp(info.create_time, snapshot.mutable_create_time());
  return snapshot;
}

v1::Document ToMessage(const DocumentInfo& info, ResourceName name) {
  name.document = info.id;
  v1::Document document;
  document.set_name(name.ToString());
  document.set_state(info.damaged  ? v1::Document::DAMAGED
                     : info.sealed ? v1::Document::SEALED
                                   : v1::Document::OPEN);
  SetTimestamp(info.create_time, document.mutable_create_time());
  document.set_durable_bytes(info.durable_bytes);
  document.set_visible_bytes(info.visible_bytes);
  document.set_token_count(info.token_count);
  document.set_chunk_count(info.chunk_count);
  if (info.expire_time != absl::InfiniteFuture()) {
    SetTimestamp(info.expire_time, document.mutable_expire_time());
  }
  document.set_shared(info.shared);
  return document;
}

absl::Status CheckDisplayName(const std::string& display_name) {
  if (display_name.size() <= kDisplayNameBytesMax) return absl::OkStatus();
  return FieldError("memory.display_name", display_name,
                    absl::StrCat(display_name.size(), " bytes: at most ", kDisplayNameBytesMax));
}

absl::StatusOr<Retention> ParseRetention(v1::Memory::Retention retention) {
  switch (retention) {
    case v1::Memory::RETENTION_UNSPECIFIED:
    case v1::Memory::KEEP:
      return Retention::kKeep;
    case v1::Memory::TEXT:
      return Retention::kText;
    default:
      return FieldError("memory.retention", absl::StrCat(retention),
                        absl::StrCat(retention, " is none"));
  }
}

absl::StatusOr<int64_t> ParseQuota(int64_t quota_bytes) {
  if (quota_bytes >= 0) return quota_bytes;
  return FieldError("memory.quota_bytes", absl::StrCat(quota_bytes),
                    absl::StrCat(quota_bytes, " is negative: 0 (none) or more"));
}

// The fields that an update changes, by its mask.
absl::StatusOr<MemoryUpdate> ParseUpdate(const v1::UpdateMemoryRequest& request) {
  const v1::Memory& memory = request.memory();
  std::set<std::string> paths(request.update_mask().paths().begin(),
                              request.update_mask().paths().end());
  if (paths.erase("*") > 0) paths.insert({"display_name", "retention", "ttl", "quota_bytes"});
  if (paths.empty()) {
    if (!memory.display_name().empty()) paths.insert("display_name");
    if (memory.retention() != v1::Memory::RETENTION_UNSPECIFIED) paths.insert("retention");
    if (memory.has_ttl()) paths.insert("ttl");
    if (memory.quota_bytes() != 0) paths.insert("quota_bytes");
  }
  MemoryUpdate update;
  for (const std::string& path : paths) {
    if (path == "display_name") {
      RETURN_IF_ERROR(CheckDisplayName(memory.display_name()));
      update.display_name = memory.display_name();
    } else if (path == "retention") {
      ASSIGN_OR_RETURN(update.retention, ParseRetention(memory.retention()));
    } else if (path == "ttl") {
      ASSIGN_OR_RETURN(update.ttl,
                       ResourceCheck::Ttl("memory.ttl", memory.has_ttl(), memory.ttl()));
    } else if (path == "quota_bytes") {
      ASSIGN_OR_RETURN(update.quota_bytes, ParseQuota(memory.quota_bytes()));
    } else {
      return FieldError(
          "update_mask", path,
          absl::StrCat(Quoted(path), " is not display_name, retention, ttl, quota_bytes or *"));
    }
  }
  return update;
}

// Of a deletion named `name` (empty: not known any more) by a tenant.
v1::ForgetReceipt ToMessage(const DeletionReceipt& receipt, const std::string& tenant,
                            const std::string& name) {
  v1::ForgetReceipt message;
  message.set_name(name);
  message.set_document_count(receipt.documents);
  message.set_text_bytes(receipt.text_bytes);
  message.set_token_count(receipt.tokens);
  message.set_chunk_count(receipt.chunks);
  message.set_page_count(receipt.pages);
  SetTimestamp(receipt.delete_time, message.mutable_delete_time());
  if (receipt.purge_time != absl::InfiniteFuture()) {
    SetTimestamp(receipt.purge_time, message.mutable_purge_time());
  }
  for (const std::string& memory : receipt.held_by) {
    message.add_held_by(ResourceName{tenant, memory, ""}.ToString());
  }
  message.set_held_document_count(receipt.held_documents);
  message.set_held_text_bytes(receipt.held_text_bytes);
  return message;
}

// What a request with a request_id asks for, apart from that id: a retry may only repeat the same.
template <typename Request>
std::string Identity(Request request) {
  request.clear_request_id();
  return request.SerializeAsString();
}

}  // namespace

CatalogHandlers::CatalogHandlers(Engine& engine, const ResourceCheck& check, RequestCache& requests,
                                 OperationRegistry& operations, ServerInfo info,
                                 std::string http_address, Clock& clock)
    : engine_(engine),
      check_(check),
      requests_(requests),
      operations_(operations),
      info_(std::move(info)),
      http_address_(std::move(http_address)),
      clock_(clock),
      start_(clock.Now()) {
  // What the last start left to be purged can be asked for under the names that were given then.
  for (const Deletion& deletion : engine_.PendingDeletions()) {
    if (auto operation = operations_.Reserve(); operation.ok()) {
      Follow(deletion, "", *std::move(operation));
    }
  }
}

google::longrunning::Operation CatalogHandlers::Follow(
    const Deletion& deletion, const std::string& name,
    std::shared_ptr<RunningOperation> operation) {
  v1::ForgetMetadata metadata;
  metadata.set_name(name);
  SetTimestamp(deletion.receipt.delete_time, metadata.mutable_delete_time());
  google::longrunning::Operation answer =
      operation->Publish({.id = absl::StrCat("forget-", deletion.id.ToString()),
                          .kind = "forget",
                          .tenant = deletion.tenant,
                          .metadata = Packed(metadata)});
  engine_.WhenPurged(deletion.id,
                     [name, operation, tenant = deletion.tenant](const DeletionReceipt& receipt) {
                       operation->Finish(Packed(ToMessage(receipt, tenant, name)));
                     });
  return answer;
}

absl::StatusOr<google::longrunning::Operation> CatalogHandlers::Delete(
    absl::string_view method, const std::string& request_id, const std::string& identity,
    const std::string& name, const std::function<absl::StatusOr<Deletion>()>& deletion) {
  const auto work = [&]() -> absl::StatusOr<std::string> {
    ASSIGN_OR_RETURN(std::shared_ptr<RunningOperation> operation, operations_.Reserve());
    ASSIGN_OR_RETURN(const Deletion deleted, deletion());
    return Follow(deleted, name, std::move(operation)).SerializeAsString();
  };
  ASSIGN_OR_RETURN(const std::string result, requests_.Run(method, request_id, identity, work));
  google::longrunning::Operation operation;
  operation.ParseFromString(result);
  return operation;
}

absl::StatusOr<v1::Memory> CatalogHandlers::CreateMemory(const v1::CreateMemoryRequest& request,
                                                         const CallContext&) {
  ASSIGN_OR_RETURN(ResourceName name, check_.Tenant("parent", request.parent()));
  if (absl::Status status = CheckResourceId(request.memory_id(), "memory"); !status.ok()) {
    return FieldError("memory_id", request.memory_id(), status.message());
  }
  name.memory = request.memory_id();
  const std::string& display_name = request.memory().display_name();
  RETURN_IF_ERROR(CheckDisplayName(display_name));
  MemoryPolicy policy;
  ASSIGN_OR_RETURN(policy.retention, ParseRetention(request.memory().retention()));
  ASSIGN_OR_RETURN(policy.ttl, ResourceCheck::Ttl("memory.ttl", request.memory().has_ttl(),
                                                  request.memory().ttl()));
  ASSIGN_OR_RETURN(policy.quota_bytes, ParseQuota(request.memory().quota_bytes()));
  if (!request.memory().name().empty() && request.memory().name() != name.ToString()) {
    return FieldError("memory.name", request.memory().name(),
                      absl::StrCat(Quoted(request.memory().name()), " is not ", name.ToString()));
  }
  ASSIGN_OR_RETURN(const std::string result,
                   requests_.Run("CreateMemory", request.request_id(), Identity(request),
                                 [&]() -> absl::StatusOr<std::string> {
                                   ASSIGN_OR_RETURN(
                                       const MemoryStat stat,
                                       engine_.CreateMemory(name.ToString(), display_name, policy));
                                   return ToMessage(stat).SerializeAsString();
                                 }));
  v1::Memory memory;
  memory.ParseFromString(result);
  return memory;
}

absl::StatusOr<v1::Memory> CatalogHandlers::GetMemory(const v1::GetMemoryRequest& request,
                                                      const CallContext&) {
  RETURN_IF_ERROR(check_.Memory("name", request.name()).status());
  ASSIGN_OR_RETURN(const MemoryStat stat, engine_.GetMemory(request.name()));
  return ToMessage(stat);
}

absl::StatusOr<v1::Memory> CatalogHandlers::UpdateMemory(const v1::UpdateMemoryRequest& request,
                                                         const CallContext&) {
  RETURN_IF_ERROR(check_.Memory("memory.name", request.memory().name()).status());
  ASSIGN_OR_RETURN(const MemoryUpdate update, ParseUpdate(request));
  ASSIGN_OR_RETURN(const MemoryStat stat, engine_.UpdateMemory(request.memory().name(), update));
  return ToMessage(stat);
}

absl::StatusOr<v1::ListMemoriesResponse> CatalogHandlers::ListMemories(
    const v1::ListMemoriesRequest& request, const CallContext&) {
  RETURN_IF_ERROR(check_.Tenant("parent", request.parent()).status());
  ASSIGN_OR_RETURN(const int page_size, PageSize(request.page_size()));
  std::string after;
  if (!request.page_token().empty()) {
    ASSIGN_OR_RETURN(after, ParsePageToken("ListMemories", request.parent(), request.page_token()));
  }
  // One more than the page tells whether there is another page.
  ASSIGN_OR_RETURN(const std::vector<MemoryStat> stats,
                   engine_.ListMemories(request.parent(), after, page_size + 1));
  v1::ListMemoriesResponse response;
  for (const MemoryStat& stat : stats) {
    if (response.memories_size() == page_size) {
      response.set_next_page_token(MakePageToken("ListMemories", request.parent(), after));
      break;
    }
    *response.add_memories() = ToMessage(stat);
    after = stat.info.id;
  }
  return response;
}

absl::StatusOr<google::longrunning::Operation> CatalogHandlers::DeleteMemory(
    const v1::DeleteMemoryRequest& request, const CallContext&) {
  RETURN_IF_ERROR(check_.Memory("name", request.name()).status());
  return Delete("DeleteMemory", request.request_id(), Identity(request), request.name(),
                [&] { return engine_.DeleteMemory(request.name(), request.everywhere()); });
}

absl::StatusOr<v1::Memory> CatalogHandlers::ForkMemory(const v1::ForkMemoryRequest& request,
                                                       const CallContext&) {
  ASSIGN_OR_RETURN(ResourceName name, check_.Tenant("parent", request.parent()));
  if (absl::Status status = CheckResourceId(request.memory_id(), "memory"); !status.ok()) {
    return FieldError("memory_id", request.memory_id(), status.message());
  }
  name.memory = request.memory_id();
  ASSIGN_OR_RETURN(const ResourceName source, check_.Source("source", request.source()));
  if (source.tenant != name.tenant) {
    return FieldError("source", request.source(),
                      absl::StrCat(Quoted(request.source()), " is not of ", request.parent()));
  }
  ASSIGN_OR_RETURN(const absl::Time as_of,
                   ResourceCheck::AsOf(request.has_as_of(), request.as_of()));
  if (request.display_name().size() > kDisplayNameBytesMax) {
    return FieldError(
        "display_name", request.display_name(),
        absl::StrCat(request.display_name().size(), " bytes: at most ", kDisplayNameBytesMax));
  }
  const auto fork = [&]() -> absl::StatusOr<std::string> {
    ASSIGN_OR_RETURN(const MemoryStat stat, engine_.ForkMemory(name.ToString(), request.source(),
                                                               request.display_name(), as_of));
    return ToMessage(stat).SerializeAsString();
  };
  ASSIGN_OR_RETURN(const std::string result,
                   requests_.Run("ForkMemory", request.request_id(), Identity(request), fork));
  v1::Memory memory;
  memory.ParseFromString(result);
  return memory;
}

absl::StatusOr<v1::Snapshot> CatalogHandlers::CreateSnapshot(
    const v1::CreateSnapshotRequest& request, const CallContext&) {
  ASSIGN_OR_RETURN(ResourceName name, check_.Memory("parent", request.parent()));
  if (absl::Status status = CheckResourceId(request.snapshot_id(), "snapshot"); !status.ok()) {
    return FieldError("snapshot_id", request.snapshot_id(), status.message());
  }
  name.snapshot = request.snapshot_id();
  ASSIGN_OR_RETURN(const absl::Time as_of,
                   ResourceCheck::AsOf(request.has_as_of(), request.as_of()));
  ASSIGN_OR_RETURN(const SnapshotInfo info, engine_.CreateSnapshot(name.ToString(), as_of));
  return ToMessage(info, name);
}

absl::StatusOr<v1::ListSnapshotsResponse> CatalogHandlers::ListSnapshots(
    const v1::ListSnapshotsRequest& request, const CallContext&) {
  ASSIGN_OR_RETURN(const ResourceName name, check_.Memory("parent", request.parent()));
  ASSIGN_OR_RETURN(const int page_size, PageSize(request.page_size()));
  std::string after;
  if (!request.page_token().empty()) {
    ASSIGN_OR_RETURN(after,
                     ParsePageToken("ListSnapshots", request.parent(), request.page_token()));
  }
  ASSIGN_OR_RETURN(const std::vector<SnapshotInfo> snapshots,
                   engine_.ListSnapshots(request.parent(), after, page_size + 1));
  v1::ListSnapshotsResponse response;
  for (const SnapshotInfo& info : snapshots) {
    if (response.snapshots_size() == page_size) {
      response.set_next_page_token(MakePageToken("ListSnapshots", request.parent(), after));
      break;
    }
    *response.add_snapshots() = ToMessage(info, name);
    after = info.id;
  }
  return response;
}

absl::StatusOr<v1::DeleteSnapshotResponse> CatalogHandlers::DeleteSnapshot(
    const v1::DeleteSnapshotRequest& request, const CallContext&) {
  RETURN_IF_ERROR(check_.Snapshot("name", request.name()).status());
  RETURN_IF_ERROR(engine_.DeleteSnapshot(request.name()));
  return v1::DeleteSnapshotResponse();
}

absl::StatusOr<v1::ListDocumentsResponse> CatalogHandlers::ListDocuments(
    const v1::ListDocumentsRequest& request, const CallContext&) {
  ASSIGN_OR_RETURN(const ResourceName name, check_.Memory("parent", request.parent()));
  ASSIGN_OR_RETURN(const int page_size, PageSize(request.page_size()));
  uint64_t after = 0;
  if (!request.page_token().empty()) {
    ASSIGN_OR_RETURN(const std::string position,
                     ParsePageToken("ListDocuments", request.parent(), request.page_token()));
    if (!absl::SimpleAtoi(position, &after)) {
      return FieldError("page_token", request.page_token(),
                        absl::StrCat(Quoted(request.page_token()), " is damaged"));
    }
  }
  ASSIGN_OR_RETURN(const std::vector<DocumentInfo> documents,
                   engine_.ListDocuments(request.parent(), DocumentId{after}, page_size + 1));
  v1::ListDocumentsResponse response;
  for (const DocumentInfo& info : documents) {
    if (response.documents_size() == page_size) {
      response.set_next_page_token(
          MakePageToken("ListDocuments", request.parent(), absl::StrCat(after)));
      break;
    }
    *response.add_documents() = ToMessage(info, name);
    after = static_cast<uint64_t>(info.uid);
  }
  return response;
}

absl::StatusOr<v1::Document> CatalogHandlers::GetDocument(const v1::GetDocumentRequest& request,
                                                          const CallContext&) {
  ASSIGN_OR_RETURN(const ResourceName name, check_.Document("name", request.name()));
  ASSIGN_OR_RETURN(const DocumentInfo info, engine_.GetDocument(request.name()));
  return ToMessage(info, name);
}

absl::StatusOr<google::longrunning::Operation> CatalogHandlers::DeleteDocument(
    const v1::DeleteDocumentRequest& request, const CallContext&) {
  RETURN_IF_ERROR(check_.Document("name", request.name()).status());
  return Delete("DeleteDocument", request.request_id(), Identity(request), request.name(),
                [&] { return engine_.DeleteDocument(request.name(), request.everywhere()); });
}

absl::StatusOr<v1::GetStatusResponse> CatalogHandlers::GetStatus(const v1::GetStatusRequest&,
                                                                 const CallContext&) {
  v1::GetStatusResponse response;
  response.set_version(kMnemeVersion);
  response.set_commit(kMnemeCommit);
  response.set_backend(info_.backend);
  response.set_device(info_.device);
  response.set_bundle_fingerprint(absl::StrFormat("%016x", info_.bundle_fingerprint));
  response.set_parameter_count(info_.parameter_count);
  response.set_chunk_tokens(info_.chunk_tokens);
  response.set_segment_tokens(info_.segment_tokens);
  if (info_.totals) {
    const MemoryStore::Totals totals = info_.totals();
    response.set_memory_count(totals.memories);
    response.set_document_count(totals.documents);
    response.set_durable_bytes(totals.durable_bytes);
    response.set_visible_bytes(totals.visible_bytes);
    response.set_token_count(totals.tokens);
    response.set_chunk_count(totals.chunks);
  }
  if (info_.tiers) {
    for (const TierUse& tier : info_.tiers()) {
      v1::TierStatus* status = response.add_tiers();
      status->set_name(tier.name);
      status->set_used_bytes(tier.used_bytes);
      status->set_limit_bytes(tier.limit_bytes);
    }
  }
  const AdmissionStatus admission = engine_.admission();
  for (const QuotaUse& use : admission.quotas) {
    v1::QuotaStatus* status = response.add_quotas();
    status->set_tenant(use.tenant);
    status->set_quota(QuotaName(use.quota));
    status->set_used(use.used);
    status->set_limit(use.limit);
  }
  for (const WatermarkUse& mark : admission.watermarks) {
    v1::WatermarkStatus* status = response.add_watermarks();
    status->set_resource(mark.use.resource);
    // The order of the proto's, after STATE_UNSPECIFIED.
    status->set_state(static_cast<v1::WatermarkStatus::State>(static_cast<int>(mark.state) + 1));
    status->set_used_bytes(mark.use.used_bytes);
    status->set_limit_bytes(mark.use.limit_bytes);
    status->set_free_bytes(mark.use.free_bytes);
    status->set_free_needed_bytes(std::max<int64_t>(mark.free_needed_bytes, 0));
  }
  response.set_uptime_seconds(absl::ToDoubleSeconds(clock_.Now() - start_));
  response.set_http_address(http_address_);
  return response;
}

}  // namespace mneme
