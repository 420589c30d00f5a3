// verify, repair.

#include <unistd.h>

#include <string>

#include "absl/strings/ascii.h"
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

std::string KindName(const v1::Finding& finding) {
  return absl::AsciiStrToLower(v1::Finding::Kind_Name(finding.kind()));
}

Json FindingJson(const v1::Finding& finding) {
  return {{"kind", KindName(finding)},
          {"document", finding.document()},
          {"byte_begin", finding.byte_begin()},
          {"byte_end", finding.byte_end()},
          {"file", finding.file()},
          {"what", finding.what()},
          {"healed", finding.healed()}};
}

void PrintReportJson(const v1::CheckReport& report) {
  Json read = Json::object();
  for (const auto& of : report.read()) {
    read[of.what()] = {{"count", of.count()}, {"bytes", of.bytes()}};
  }
  Json findings = Json::array();
  for (const auto& finding : report.findings()) findings.push_back(FindingJson(finding));
  PrintJson({{"read", read},
             {"documents", report.documents()},
             {"segments_without_pages", report.segments_without_pages()},
             {"found", report.found()},
             {"healed", report.healed()},
             {"findings", findings}});
}

void PrintReport(const v1::CheckReport& report) {
  for (const auto& of : report.read()) {
    Print(absl::StrFormat("%-9s %13s  %s\n", of.what(), WithCommas(of.count()),
                          HumanBytes(static_cast<double>(of.bytes()))));
  }
  for (const auto& finding : report.findings()) {
    std::string where = finding.file();
    if (!finding.document().empty()) {
      where = absl::StrCat(finding.document(), " bytes ", finding.byte_begin(), " to ",
                           finding.byte_end());
    }
    Print(absl::StrCat(finding.healed() ? "healed  " : "DAMAGED ", KindName(finding), " ",
                       EscapeForTerminal(where), where.empty() ? "" : ": ",
                       EscapeForTerminal(finding.what()), "\n"));
  }
  const int64_t shown = report.findings_size();
  if (report.found() > shown) {
    Print(absl::StrCat("... and ", WithCommas(report.found() - shown), " more\n"));
  }
  Print(absl::StrCat(Counted(report.documents(), "document", "documents"), " read, ",
                     WithCommas(report.found()), " damaged, ", WithCommas(report.healed()),
                     " healed\n"));
}

absl::Status Check(Session& session, bool heal) {
  const std::string memory = session.line().positionals.empty()
                                 ? std::string()
                                 : session.MemoryName(session.positional(0));
  ProgressLine line(!session.json() && isatty(STDERR_FILENO) != 0);
  const auto progress = [&](const v1::CheckProgress& now) {
    line.Update({.what = absl::StrCat(heal ? "repair" : "verify", ", ",
                                      Counted(now.documents(), "document", "documents")),
                 .bytes_done = now.bytes_read(),
                 .bytes_total = now.bytes_total()},
                absl::Now());
  };
  ASSIGN_OR_RETURN(
      const v1::CheckReport report,
      AdminClient(session.client().channel()).Check(memory, heal, progress, session.call()));
  line.Clear();
  if (session.json()) {
    PrintReportJson(report);
  } else {
    PrintReport(report);
  }
  if (report.found() == report.healed()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      Counted(report.found() - report.healed(), "thing is", "things are"), " damaged"));
}

absl::Status Verify(Session& session) { return Check(session, /*heal=*/false); }
absl::Status Repair(Session& session) { return Check(session, /*heal=*/true); }

constexpr char kMemoryHelp[] =
    "only the documents of this memory, of a fork those that it shares too (default: everything, "
    "files too)";
constexpr char kReportNotes[] =
    "--json: {read: {files, catalog, text, segments, pages: {count, bytes}}, documents,\n"
    "segments_without_pages, found, healed,\n"
    "findings: [{kind, document, byte_begin, byte_end, file, what, healed}]}\n";

}  // namespace

CommandSpec VerifyCommand() {
  return {.name = "verify",
          .summary = "reads everything that is stored and says what is damaged",
          .positionals = {{"M", kMemoryHelp}},
          .optional_positionals = 1,
          .notes = absl::StrCat(
              "Changes nothing; the server goes on meanwhile. Exit status 1 when anything is "
              "damaged.\n\n",
              kReportNotes),
          .run = Verify};
}

CommandSpec RepairCommand() {
  return {.name = "repair",
          .summary = "as verify, and mends what can be mended",
          .positionals = {{"M", kMemoryHelp}},
          .optional_positionals = 1,
          .notes = absl::StrCat(
              "What is derived from text is derived again. Damaged text cannot be mended: its "
              "documents are named;\nrestore them from a backup, or forget them and send them "
              "again. Exit status 1 when anything stays damaged.\n\n",
              kReportNotes),
          .run = Repair};
}

}  // namespace mneme
