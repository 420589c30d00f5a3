// backup.

#include <unistd.h>

#include <string>

#include <google/protobuf/util/time_util.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/admin_client.h"
#include "client/cli/commands.h"
#include "client/cli/progress_line.h"
#include "client/cli/session.h"
#include "client/cli/terminal.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

Json BackupJson(const v1::Backup& backup) {
  return {{"id", backup.id()},
          {"create_time", google::protobuf::util::TimeUtil::ToString(backup.create_time())},
          {"version", backup.version()},
          {"fingerprint", backup.fingerprint()},
          {"memories", backup.memory_count()},
          {"documents", backup.document_count()},
          {"durable_bytes", backup.durable_bytes()},
          {"files", backup.file_count()},
          {"bytes", backup.bytes()},
          {"damage", backup.damage()}};
}

absl::Status List(Session& session, AdminClient& admin) {
  ASSIGN_OR_RETURN(const v1::ListBackupsResponse response, admin.ListBackups(session.call()));
  if (session.json()) {
    Json backups = Json::array();
    for (const auto& backup : response.backups()) backups.push_back(BackupJson(backup));
    PrintJson({{"backups", backups}});
    return absl::OkStatus();
  }
  if (response.backups().empty()) Print("no backups; mneme backup makes one\n");
  for (const auto& backup : response.backups()) {
    if (!backup.damage().empty()) {
      Print(absl::StrCat(backup.id(), "  DAMAGED: ", EscapeForTerminal(backup.damage()), "\n"));
      continue;
    }
    Print(absl::StrFormat("%d  %s  %s, %s of text, %s of files, version %s\n", backup.id(),
                          google::protobuf::util::TimeUtil::ToString(backup.create_time()),
                          Counted(backup.document_count(), "document", "documents"),
                          HumanBytes(static_cast<double>(backup.durable_bytes())),
                          HumanBytes(static_cast<double>(backup.bytes())),
                          EscapeForTerminal(backup.version())));
  }
  return absl::OkStatus();
}

absl::Status Create(Session& session, AdminClient& admin) {
  ProgressLine line(!session.json() && isatty(STDERR_FILENO) != 0);
  int64_t copied = 0;
  const auto progress = [&](const v1::BackupProgress& now) {
    copied = now.bytes_copied();
    line.Update({.what = "backup",
                 .bytes_done = now.bytes_copied() + now.bytes_shared(),
                 .bytes_total = now.bytes_total(),
                 .bytes_before = now.bytes_shared()},
                absl::Now());
  };
  ASSIGN_OR_RETURN(const v1::Backup backup, admin.CreateBackup(progress, session.call()));
  line.Clear();
  if (session.json()) {
    PrintJson(BackupJson(backup));
  } else {
    Print(absl::StrCat("backup ", backup.id(), ": ",
                       Counted(backup.document_count(), "document", "documents"), ", ",
                       HumanBytes(static_cast<double>(backup.bytes())), ", of which ",
                       HumanBytes(static_cast<double>(copied)), " were copied\n"));
  }
  return absl::OkStatus();
}

absl::Status Backup(Session& session) {
  AdminClient admin(session.client().channel());
  if (session.line().Has("--list")) return List(session, admin);
  if (!session.line().Has("--delete")) return Create(session, admin);
  const int64_t id = session.line().Integer("--delete", 0);
  RETURN_IF_ERROR(admin.DeleteBackup(id, session.call()));
  if (session.json()) {
    PrintJson({{"deleted", id}});
  } else {
    Print(absl::StrCat("deleted backup ", id, "\n"));
  }
  return absl::OkStatus();
}

absl::Status CheckFlags(const CommandLine& line) {
  if (!line.Has("--list") || !line.Has("--delete")) return absl::OkStatus();
  return absl::InvalidArgumentError("--list and --delete do not go together");
}

}  // namespace

CommandSpec BackupCommand() {
  return {.name = "backup",
          .summary = "backs everything up to the server's backup directory, while it serves",
          .flags = {{"--list", "", "list the backups instead"},
                    {"--delete", "ID", "delete a backup instead, and the files that no other needs",
                     FlagSpec::Kind::kInteger, 1}},
          .notes =
              "The directory is the server's key store.backup_dir. A backup copies what the ones "
              "before it lack. Documents\nthat are forgotten later are still in the backups made "
              "before: delete those too.\nRestored offline, into an empty directory: mneme-server "
              "--restore-from DIR[:ID] --data-dir NEW\n\n"
              "--json: {id, create_time, version, fingerprint, memories, documents, durable_bytes, "
              "files, bytes, damage};\nwith --list {backups: [...]}, with --delete {deleted}\n",
          .run = Backup,
          .check = CheckFlags};
}

}  // namespace mneme
