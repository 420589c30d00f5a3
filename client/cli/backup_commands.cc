// backup.

#include <unistd.h>

#include <set>
#include <string>

#include <google/protobuf/util/time_util.h>

#include "absl/strings/numbers.h"
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
          {"damage", backup.damage()},
          {"store", backup.store()},
          {"mended_files", backup.mended_file_count()}};
}

// Whose it is, where that is known.
std::string OfStore(const v1::Backup& backup) {
  return backup.store().empty() ? "" : absl::StrCat(", of ", EscapeForTerminal(backup.store()));
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
    Print(absl::StrFormat("%d  %s  %s, %s of text, %s of files, version %s%s\n", backup.id(),
                          google::protobuf::util::TimeUtil::ToString(backup.create_time()),
                          Counted(backup.document_count(), "document", "documents"),
                          HumanBytes(static_cast<double>(backup.durable_bytes())),
                          HumanBytes(static_cast<double>(backup.bytes())),
                          EscapeForTerminal(backup.version()), OfStore(backup)));
  }
  return absl::OkStatus();
}

Json CheckJson(const v1::BackupCheck& check) {
  Json files = Json::array();
  for (const auto& file : check.damaged_files()) {
    files.push_back({{"name", file.name()}, {"derived", file.derived()}, {"what", file.what()}});
  }
  return {{"id", check.backup().id()},
          {"store", check.backup().store()},
          {"damage", check.backup().damage()},
          {"damaged_files", files}};
}

bool IsWhole(const v1::BackupCheck& check) {
  return check.backup().damage().empty() && check.damaged_files().empty();
}

// One backup: whole, or what is damaged of it.
void PrintCheck(const v1::BackupCheck& check) {
  const v1::Backup& backup = check.backup();
  if (IsWhole(check)) {
    Print(absl::StrCat(backup.id(), "  whole, ", HumanBytes(static_cast<double>(backup.bytes())),
                       " of files", OfStore(backup), "\n"));
    return;
  }
  bool is_derived = backup.damage().empty();
  for (const auto& file : check.damaged_files()) is_derived &= file.derived();
  Print(absl::StrCat(backup.id(), "  DAMAGED",
                     is_derived ? ", only what is derived from text: --restore-damaged restores it"
                                : ": it cannot be restored",
                     OfStore(backup), "\n"));
  if (!backup.damage().empty()) {
    Print(absl::StrCat("   ", EscapeForTerminal(backup.damage()), "\n"));
  }
  for (const auto& file : check.damaged_files()) {
    Print(absl::StrCat("   ", EscapeForTerminal(file.what()), "\n"));
  }
}

absl::Status Verify(Session& session, AdminClient& admin, int64_t id) {
  ProgressLine line(!session.json() && isatty(STDERR_FILENO) != 0);
  const auto progress = [&](const v1::BackupProgress& now) {
    line.Update({.what = "verify backups",
                 .bytes_done = now.bytes_shared(),
                 .bytes_total = now.bytes_total()},
                absl::Now());
  };
  ASSIGN_OR_RETURN(const v1::VerifyBackupsResponse response,
                   admin.VerifyBackups(id, progress, session.call()));
  line.Clear();
  Json backups = Json::array();
  int64_t damaged = 0;
  for (const v1::BackupCheck& check : response.backups()) {
    backups.push_back(CheckJson(check));
    if (!session.json()) PrintCheck(check);
    if (!IsWhole(check)) ++damaged;
  }
  if (session.json()) PrintJson({{"backups", backups}});
  if (!session.json() && response.backups().empty()) Print("no backups; mneme backup makes one\n");
  if (damaged == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      Counted(damaged, "backup is", "backups are"), " damaged, of ", response.backups_size(),
      "; mneme backup copies anew what the store still has of them, and mends them with it"));
}

// Whose backups lie beside the new one.
void WarnOfOthers(Session& session, AdminClient& admin, const v1::Backup& made) {
  const absl::StatusOr<v1::ListBackupsResponse> response = admin.ListBackups(session.call());
  if (!response.ok()) return;  // the backup is made all the same
  std::set<std::string> others;
  for (const v1::Backup& backup : response->backups()) {
    if (!backup.store().empty() && backup.store() != made.store()) others.insert(backup.store());
  }
  for (const std::string& other : others) {
    absl::FPrintF(stderr, "mneme: the backup directory also holds backups of %s\n",
                  EscapeForTerminal(other));
  }
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
    if (backup.mended_file_count() > 0) {
      Print(absl::StrCat("copied anew, damaged in earlier backups: ",
                         Counted(backup.mended_file_count(), "file", "files"),
                         "; check the disk of the backup directory\n"));
    }
    WarnOfOthers(session, admin, backup);
  }
  return absl::OkStatus();
}

absl::Status Backup(Session& session) {
  AdminClient admin(session.client().channel());
  if (session.line().Has("--list")) return List(session, admin);
  if (session.line().Has("--verify")) {
    int64_t id = 0;
    // CheckFlags has seen it.
    if (!session.line().positionals.empty()) (void)absl::SimpleAtoi(session.positional(0), &id);
    return Verify(session, admin, id);
  }
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
  if (line.Has("--list") + line.Has("--delete") + line.Has("--verify") > 1) {
    return absl::InvalidArgumentError("--list, --verify and --delete do not go together");
  }
  if (line.positionals.empty()) return absl::OkStatus();
  if (!line.Has("--verify")) {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected argument ", line.positionals[0], ": only --verify takes an id"));
  }
  int64_t id = 0;
  if (absl::SimpleAtoi(line.positionals[0], &id) && id > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(line.positionals[0], " is no id of a backup: mneme backup --list"));
}

}  // namespace

CommandSpec BackupCommand() {
  return {.name = "backup",
          .summary = "backs everything up to the server's backup directory, while it serves",
          .positionals = {{"ID", "with --verify: only this backup"}},
          .optional_positionals = 1,
          .flags = {{"--list", "", "list the backups instead"},
                    {"--verify", "", "read the backups instead and say which are whole"},
                    {"--delete", "ID", "delete a backup instead, and the files that no other needs",
                     FlagSpec::Kind::kInteger, 1}},
          .notes =
              "The directory is the server's key store.backup_dir. A backup copies what the ones "
              "before it lack, and reads\nwhat they have: a file that is damaged there is copied "
              "anew. Documents that are forgotten later are still\nin the backups made before: "
              "delete those too.\nRestored offline, into an empty directory: mneme-server "
              "--restore-from DIR[:ID] --data-dir NEW\n\n"
              "--json: {id, create_time, version, fingerprint, memories, documents, durable_bytes, "
              "files, bytes, damage,\nstore, mended_files}; with --list {backups: [...]}, with "
              "--delete "
              "{deleted},\nwith --verify {backups: [{id, store, damage, damaged_files: [{name, "
              "derived, what}]}]} (exit status 1: one is damaged)\n",
          .run = Backup,
          .check = CheckFlags};
}

}  // namespace mneme
